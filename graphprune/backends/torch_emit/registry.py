"""The registry of emitters."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphpruneError

if TYPE_CHECKING:
    from graphprune.backends.torch_emit.view import View

__all__ = ["Refuse", "Sizes", "all_emitters", "emits", "lines"]


class Refuse(GraphpruneError):
    """Raised by an emitter: this node has no counterpart in PyTorch, for the reason given."""


class Sizes(tuple[Any, ...]):
    """A small vector (or scalar) whose entries are Python numbers, or nodes that compute them."""

    scalar: bool

    @classmethod
    def of(cls, items: Sequence[Any], scalar: bool = False) -> Sizes:
        """The entries, row-major; ``scalar``: a tensor without axes."""
        made = cls(items)
        made.scalar = scalar
        return made


Emitted = Any  # a node, a Sizes, or a tuple of them (None for outputs left out)
_EMITTERS: dict[tuple[str, str], Callable[[View], Emitted]] = {}


def emits(*operators: str, domain: str = "") -> Callable[[Callable[[View], Emitted]], Callable[[View], Emitted]]:
    """Register a function as the emitter of operators."""

    def register(function: Callable[[View], Emitted]) -> Callable[[View], Emitted]:
        for operator in operators:
            assert (domain, operator) not in _EMITTERS, f"{operator} has two emitters"
            _EMITTERS[domain, operator] = function
        return function

    return register


def lines(table: dict[str, Any], domain: str = "") -> None:
    """Register operators that are one call: ``function``, or ``(function, {its keyword: (attribute, default)})``.

    The operands go into it in their order, as tensors.
    """
    for operator, held in table.items():
        function, keywords = held if isinstance(held, tuple) else (held, {})

        def emit(v: View, function: Any = function, keywords: dict[str, tuple[str, Any]] = keywords) -> Emitted:
            given = {key: v.attr(name, default) for key, (name, default) in keywords.items()}
            return v.call(function, v.x(0), *(v.x(k) for k in range(1, v.count)), **given)

        emits(operator, domain=domain)(emit)


@cache
def all_emitters() -> dict[tuple[str, str], Callable[[View], Emitted]]:
    """Every emitter by domain and operator."""
    package = importlib.import_module("graphprune.backends.torch_emit")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _EMITTERS
