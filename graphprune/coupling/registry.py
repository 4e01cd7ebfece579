"""The registry of rules: what each operator says about the spaces of its operands and results.

Rules live in :mod:`graphprune.coupling.rules`, most of them as one line of the notation. Where a line is not enough a
function of the node returns one, or raises :class:`Refuse` with a reason.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import onnx_ir as ir

from graphprune.errors import GraphpruneError
from graphprune.ir.program import Array, Program, attribute

__all__ = ["NodeView", "Refuse", "Rule", "all_rules", "barrier", "declare", "keeps", "rule", "rule_for"]


class Refuse(GraphpruneError):
    """Raised by a rule's function: this node cannot be described; everything it touches stays whole."""


@dataclass(frozen=True)
class NodeView:
    """What a rule's function may look at: attributes, observed shapes, and small observed contents."""

    node: ir.Node
    program: Program

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's plain value, or ``default``."""
        return attribute(self.node, name, default)

    def has(self, index: int) -> bool:
        """Whether an operand is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def name(self, index: int) -> str:
        """The name of an operand."""
        value = self.node.inputs[index]
        assert value is not None and value.name is not None
        return value.name

    def shape(self, index: int) -> tuple[int, ...]:
        """The observed shape of an operand."""
        try:
            return self.program.shapes[self.name(index)]
        except KeyError:
            raise Refuse(f"operand {index} is not a tensor") from None

    def out(self, index: int = 0) -> tuple[int, ...]:
        """The observed shape of a result."""
        try:
            return self.program.shapes[self.node.outputs[index].name]  # type: ignore[index]
        except KeyError:
            raise Refuse(f"result {index} is not a tensor") from None

    def value(self, index: int) -> Array | None:
        """The contents of an operand that depends on sizes or constants only; ``None`` if absent or computed."""
        if not self.has(index):
            return None
        name = self.name(index)
        if name in self.program.small:
            return self.program.small[name]
        return self.program.tensor(name) if name in self.program.fixed else None

    def constant(self, index: int, what: str) -> None:
        """Refuse where an operand is computed from the network's data: what it holds could not be written back."""
        if self.has(index) and self.value(index) is None:
            raise Refuse(f"its {what} are computed from data")

    def axis(self, default: int = 0, *, name: str = "axis") -> int:
        """The attribute ``axis`` counted from the front."""
        rank = len(self.shape(0))
        axis = int(self.attr(name, default))
        if not -rank <= axis < max(rank, 1):
            raise Refuse(f"axis {axis} does not exist in {rank} axes")
        return axis % rank if rank else 0

    def moving(self, value: ir.Value | None) -> frozenset[int]:
        """Axes of a value whose size follows a symbolic dimension."""
        return self.program.moving.get(value.name or "", frozenset()) if value is not None else frozenset()


@dataclass(frozen=True)
class Rule:
    """One operator's rule: a line, a function that returns one, or a barrier with its reason.

    ``moves``: the operator only moves elements, so what holds of its result holds of the constant it came from.
    ``keep``: never folded although nothing varies in it (dequantisers, random generators).
    """

    op: str
    domain: str = ""
    line: str | None = None
    make: Callable[[NodeView], str] | None = None
    reason: str | None = None
    moves: bool = False
    keep: bool = False
    source: str = ""

    def for_node(self, view: NodeView) -> str:
        """The line for one node.

        Raises:
            Refuse: the operator cannot be described here.
        """
        if self.line is not None:
            return self.line
        if self.make is not None:
            return self.make(view)
        raise Refuse(self.reason or "the operator is a barrier")


_RULES: dict[tuple[str, str], Rule] = {}


def _add(one: Rule) -> None:
    key = (one.domain, one.op)
    if key in _RULES:
        raise ValueError(f"{one.op} has two rules")
    _RULES[key] = one


def declare(text: str, *, domain: str = "", moves: bool = False, keep: bool = False) -> None:
    """Register one rule per line of ``text``: names (``Add|Sub|Mul``), white space, the line of the notation."""
    for row in text.strip().splitlines():
        names, _, line = row.strip().partition(" ")
        for op in names.split("|"):
            _add(Rule(op, domain, line=line.strip(), moves=moves, keep=keep))


def barrier(ops: str, reason: str, *, domain: str = "", keep: bool = False) -> None:
    """Register operators (separated by spaces) that are never cut through."""
    for op in ops.split():
        _add(Rule(op, domain, reason=reason, keep=keep))


def rule(
    *ops: str, domain: str = "", moves: bool = False, keep: bool = False
) -> Callable[[Callable[[NodeView], str]], Callable[[NodeView], str]]:
    """Register a function that returns the line for a node."""

    def register(make: Callable[[NodeView], str]) -> Callable[[NodeView], str]:
        for op in ops:
            _add(Rule(op, domain, make=make, moves=moves, keep=keep, source=(make.__doc__ or "").strip()))
        return make

    return register


@lru_cache(maxsize=1)
def _loaded() -> Exception | None:
    package = importlib.import_module("graphprune.coupling.rules")
    try:
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    except Exception as error:  # kept, since a second try would meet the rules of the first and hide it
        return error
    return None


def _load() -> None:
    if (failed := _loaded()) is not None:
        raise failed


def rule_for(node: ir.Node) -> Rule | None:
    """The rule of a node's operator, or ``None`` where there is none."""
    _load()
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _RULES.get((domain, node.op_type))


def keeps(node: ir.Node) -> bool:
    """Whether a node counts as computed though all of its inputs are fixed."""
    rule = rule_for(node)
    return rule is not None and rule.keep


def all_rules() -> dict[tuple[str, str], Rule]:
    """Every rule by (domain, operator)."""
    _load()
    return dict(_RULES)
