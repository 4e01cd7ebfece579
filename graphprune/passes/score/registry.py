"""Things found by name, with their options; what is not found is answered with the nearest names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from graphprune.errors import UsageError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str:
    """A sentence part that offers the nearest of ``known`` names, or all of them where none is near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{each}'" for each in close) + "?"
    return "known are " + ", ".join(f"'{each}'" for each in known) + "." if known else "there are none."


def create(table: Mapping[str, Callable[..., T]], what: str, name: str, options: Mapping[str, Any]) -> T:
    """``table[name](**options)``; raises ``UsageError`` where the name or an option is unknown."""
    if name not in table:
        raise UsageError(f"There is no {what} '{name}'; {nearest(name, sorted(table))}")
    make = table[name]
    if not dataclasses.is_dataclass(make):
        return make(**options)
    build: Callable[..., T] = table[name]
    defaults = {each.name: each.default for each in dataclasses.fields(make)}
    for option in options:
        if option not in defaults:
            raise UsageError(f"The {what} '{name}' has no option '{option}'; {nearest(option, list(defaults))}")
    return build(**{key: _typed(f"{what} '{name}'", key, one, defaults[key]) for key, one in options.items()})


def _typed(owner: str, option: str, value: Any, default: Any) -> Any:
    """What was written as text, in the type of the option's default."""
    if not isinstance(value, str) or isinstance(default, str) or default is dataclasses.MISSING:
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if isinstance(default, tuple):
            return tuple(value.split(","))
        return type(default)(value) if isinstance(default, (int, float)) else value
    except (KeyError, ValueError):
        wanted = "true or false" if isinstance(default, bool) else f"a number, such as {default}"
        raise UsageError(f"The {owner}: {option}={value!r}: write {wanted}.") from None


def one_of(owner: str, option: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ``UsageError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UsageError(f"{owner}: {option}={value!r} is not one of {', '.join(repr(each) for each in allowed)}.")
