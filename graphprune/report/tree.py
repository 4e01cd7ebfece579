"""Groups as a tree of the network's parts, blocks that are alike folded into one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from graphprune.report.scopes import Path, block_of, common, path_of, shown

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group
    from graphprune.pipeline import Analysis

__all__ = ["Line", "group_tree"]


@dataclass(frozen=True)
class Line:
    """A line of the tree: a part of the network, a group, or an axis that is not cut.

    Attributes:
        depth, label: where it stands; a part that stands for several ends in ``x3``.
        kind: of the group; empty for a part.
        size: units of one group, or indices of the axis.
        ids: the groups, one per folded block; empty for an axis that is not cut.
        params, macs: of one of them, on average.
        reason: why the axis is not cut.
    """

    depth: int
    label: str
    kind: str = ""
    size: int = 0
    ids: tuple[str, ...] = ()
    params: int = 0
    macs: int = 0
    reason: str = ""


@dataclass
class _Part:
    name: str
    at: int
    leaves: list[tuple[int, Line]] = field(default_factory=list)
    parts: dict[str, _Part] = field(default_factory=dict)

    def signature(self) -> tuple[object, ...]:
        """What makes two blocks alike: the same lines with the same sizes."""
        lines = [(line.label, line.kind, line.size) for _, line in self.leaves]
        return (tuple(lines), tuple((part.name, part.signature()) for part in self.parts.values()))


def group_tree(analysis: Analysis) -> list[Line]:
    """All groups, and the axes of weights that are not cut, by the part of the network that they are in.

    Names group the lines and nothing else.
    """
    root = _Part("", 0)
    for at, (path, line) in enumerate(_lines(analysis)):
        part = root
        for name in path:
            part = part.parts.setdefault(name, _Part(name, at))
        part.leaves.append((at, line))
    return list(_walk([_joined(root)], 0))


def _joined(part: _Part) -> _Part:
    """Parts that only hold one other are one with it."""
    made = _Part(part.name, part.at, part.leaves)
    for one in map(_joined, part.parts.values()):
        while not one.leaves and len(one.parts) == 1:
            (held,) = one.parts.values()
            one = _Part(f"{one.name}.{held.name}", one.at, held.leaves, held.parts)
        made.parts[one.name] = one
    return made


def _lines(analysis: Analysis) -> Iterator[tuple[Path, Line]]:
    names = analysis.parameter_names
    for one in analysis.groups:
        paths = [path_of(names.get(tensor, tensor)) for tensor in _makers(one)]
        scope = common([block_of(path) for path in paths])
        own = [path[len(scope) :] for path in paths]
        label = shown(own[0]) + (f" +{len(own) - 1}" if len(own) > 1 else "")
        kind = one.kind if one.exact else f"{one.kind}, stat"
        yield scope, Line(0, label, kind, one.size, (one.id,), *analysis.shares[one.id])
    for axis in analysis.uncut:
        path = path_of(names.get(axis.tensor, axis.tensor))
        scope = block_of(path)
        yield scope, Line(0, shown(path[len(scope) :]), "not cut", axis.size, reason=axis.reason)


def _makers(one: Group) -> list[str]:
    """The tensors that a group is told by: those that make its units, else those that consume them."""
    for roles in (("producer",), ("consumer",), ("rider", "contracted")):
        found = list(dict.fromkeys(member.tensor for member in one.members if member.role in roles))
        if found:
            return found
    return []


def _walk(alike: Sequence[_Part], depth: int) -> Iterator[Line]:
    """The lines of some parts that are alike, told once."""
    first = alike[0]
    children = [list(same) for _, same in groupby(first.parts.values(), key=_Part.signature)]
    inner: list[tuple[int, list[_Part] | int]] = [(at, i) for i, (at, _) in enumerate(first.leaves)]
    inner += [(same[0].at, same) for same in children]
    for _, one in sorted(inner, key=lambda pair: pair[0]):
        if isinstance(one, int):
            lines = [part.leaves[one][1] for part in alike]
            yield Line(
                depth, lines[0].label, lines[0].kind, lines[0].size, tuple(name for line in lines for name in line.ids),
                sum(line.params for line in lines) // len(lines), sum(line.macs for line in lines) // len(lines),
                lines[0].reason,
            )  # fmt: skip
            continue
        every = [part.parts[same.name] for part in alike for same in one]
        yield Line(depth, _range([part.name for part in one]) + (f" x{len(one)}" if len(one) > 1 else ""))
        yield from _walk(every, depth + 1)


def _range(names: list[str]) -> str:
    """``block_0`` to ``block_11`` as ``block_0..11``."""
    if len(names) == 1:
        return names[0]
    number = re.search(r"\d+$", names[-1])
    return f"{names[0]}..{number[0] if number else names[-1]}"
