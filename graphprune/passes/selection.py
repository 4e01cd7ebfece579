"""Which groups may be cut: exactness, and the user's include and exclude patterns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from graphprune.coupling.groups import Group, Grouping
from graphprune.errors import UsageError
from graphprune.ir.nested import walk

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Chooses the groups that a plan may touch.

    Args:
        include: patterns (``*``, ``?``, ``[..]``); only groups that touch a matching tensor, node or parameter.
        exclude: patterns; a group that touches a match is left alone, so the tensor stays as it is.
        stat: also groups over which a statistic is computed (their removal is not exact).
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    stat: bool = False

    def __call__(self, grouping: Grouping, parameter_names: Mapping[str, str]) -> list[Group]:
        """The chosen groups, in order.

        Raises:
            UsageError: a pattern matches nothing; the nearest names are given.
        """
        touched = _names(grouping, parameter_names)
        known = sorted(set().union(*touched.values(), _all_names(grouping))) if touched else _all_names(grouping)
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                if not any(_fits(name, pattern) for name in known):
                    near = get_close_matches(pattern, known, 3, 0.5)
                    hint = f"did you mean {', '.join(near)}?" if near else "`graphprune analyze` lists the names"
                    raise UsageError(f"{option} {pattern!r} matches no tensor, node or parameter; {hint}")
        return [
            one
            for one in grouping.groups
            if (one.exact or self.stat)
            and one.refusal is None
            and (not self.include or _any(touched[one.id], self.include))
            and not _any(touched[one.id], self.exclude)
        ]


def _any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(_fits(name, pattern) for name in names for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name may itself hold brackets


def _names(grouping: Grouping, parameter_names: Mapping[str, str]) -> dict[str, set[str]]:
    """Names that a group answers to: its tensors, their parameters, and the nodes that compute with them."""
    users: dict[str, set[str]] = {}
    for binding in grouping.coupling.bindings:
        for value in binding.node.inputs:
            if value is not None and value.name:
                users.setdefault(value.name, set()).add(binding.node.name or "")
    touched: dict[str, set[str]] = {}
    for one in grouping.groups:
        names = {member.tensor for member in one.members}
        names |= {parameter_names[name] for name in names if name in parameter_names}
        for member in one.members:
            if member.role != "rider":
                names |= users.get(member.tensor, set())
        touched[one.id] = names
    return touched


def _all_names(grouping: Grouping) -> list[str]:
    program = grouping.coupling.program
    nodes = {node.name for node in walk(program.model.graph) if node.name}
    return sorted(set(program.values()) | nodes | set(program.parameter_names.values()))
