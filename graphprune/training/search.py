"""Values for the sizes that a module's own code holds as attributes: tried, judged by how far a pass comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

from torch import nn

from graphprune.errors import GraphpruneError
from graphprune.training.scopes import Scopes
from graphprune.training.sizes import Change
from graphprune.training.watch import Watch, failing_module, watching

__all__ = ["HeldError", "find_sizes", "set_attribute"]

_TRIES = 48  # for one place; most modules need none
_TOGETHER = 4  # attributes of one submodule that are tried together in all their values


class HeldError(Exception):
    """A forward pass fails in a submodule whatever sizes its attributes get; chained to the error.

    ``path`` is that of the user's own code, ``inner`` that of the innermost submodule.
    """

    def __init__(self, path: str, inner: str) -> None:
        super().__init__(path)
        self.path, self.inner = path, inner


def set_attribute(owner: nn.Module, name: str, value: Any) -> None:
    """Set a size; a list stays a list."""
    if isinstance(getattr(owner, name), list) and isinstance(value, tuple):
        value = list(value)
    setattr(owner, name, value)


def find_sizes(module: nn.Module, scopes: Scopes, fixed: set[tuple[str, str]], run: Callable[[], Any]) -> list[Change]:
    """Set the attributes of the module's submodules so that it runs.

    What is called like a size and equals one that changed becomes the size after the cut. Where the forward pass then
    fails, the attributes of the submodule that it fails in, of those above it and of its parts are tried: a value stays
    if the pass comes further with it.

    Args:
        fixed: (path, name) of attributes that are set already, from parameters.
        run: a forward pass.

    Returns:
        What was set.

    Raises:
        HeldError: no value helps.
    """
    parts = dict(module.named_modules())
    options = {
        path: {
            name: values
            for name, values in scopes.options(path, owner).items()
            if (path, name) not in fixed and not _plain(owner, name)
        }
        for path, owner in parts.items()
    }
    first = {(path, name): values[-1] for path, held in options.items() for name, (values, _) in held.items()}
    for path, held in options.items():
        for name, (values, likely) in held.items():
            if likely:
                set_attribute(parts[path], name, values[0])
    failed = _run(module, run)
    while failed is not None:
        far, (path, inner), error = failed
        for number, trial in enumerate(_trials(path, options, parts)):
            kept = [(place, name, getattr(parts[place], name)) for place, name, _ in trial]
            for place, name, value in trial:
                set_attribute(parts[place], name, value)
            again = _run(module, run)
            if again is None or again[0] > far:
                failed = again
                break
            for place, name, value in kept:
                setattr(parts[place], name, value)
            if number >= _TRIES:
                raise HeldError(path, inner) from error
        else:
            raise HeldError(path, inner) from error
    return [
        (path, name, tuple(now) if isinstance(now, list) else now)
        for (path, name), value in first.items()
        if _differ(now := getattr(parts[path], name), value)
    ]


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or bool(one != other)


def _plain(owner: nn.Module, name: str) -> bool:
    """Whether an attribute is PyTorch's own, or ours, and follows from the parameters."""
    held = (*owner._parameters.values(), *owner._buffers.values(), *owner._modules.values())
    if all(one is None for one in held):
        return False
    kinds = [kind for kind in type(owner).__mro__ if kind.__module__.startswith(("torch.nn", "graphprune.training"))]
    return type(owner) in kinds or any(name in getattr(kind, "__constants__", ()) for kind in kinds)


def _run(module: nn.Module, run: Callable[[], Any]) -> tuple[int, tuple[str, str], Exception] | None:
    """How far a pass comes before it fails, the submodules where, and the error; None if it does not fail."""
    watch = Watch(module)
    try:
        with watching(watch):
            run()
    except GraphpruneError:
        raise
    except Exception as error:
        return watch.calls, failing_module(error, module), error
    return None


def _trials(
    path: str, options: dict[str, dict[str, tuple[list[Any], bool]]], parts: dict[str, nn.Module]
) -> Iterator[list[Change]]:
    """Other values, near to where it failed first: one attribute, then several of one submodule."""
    steps = path.split(".") if path else []
    above = [".".join(steps[:k]) for k in range(len(steps), -1, -1)]
    below = [one for one in options if one.startswith(f"{path}." if path else "") and one not in above]
    for place in (*above, *below):
        held = options.get(place, {})
        for name, (values, _) in held.items():
            for value in values:
                if _differ(value, getattr(parts[place], name)):
                    yield [(place, name, value)]
    for place in above:
        held = options.get(place, {})
        if 1 < len(held) <= _TOGETHER:
            for count in range(2, len(held) + 1):
                for names in combinations(held, count):
                    for chosen in product(*(held[name][0] for name in names)):
                        yield [(place, name, value) for name, value in zip(names, chosen, strict=True)]
