"""Explain: what an axis is tied to, or why it cannot be cut."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from graphprune.coupling.groups import Group, Grouping
from graphprune.coupling.space import find, leaves, show
from graphprune.errors import UsageError

__all__ = ["AxisReport", "Part", "explain"]


@dataclass(frozen=True)
class Part:
    """One leaf of an axis: its size, the group it belongs to, or why it is never cut."""

    size: int
    group: Group | None
    reason: str


@dataclass(frozen=True)
class AxisReport:
    """What is known of one axis.

    Attributes:
        tensor, axis, size: which.
        space: its structure: ``12·64`` is a product, ``(58+58)`` a sum, ``!`` marks what is never cut.
        parts: its leaves in order, each once.
    """

    tensor: str
    axis: int
    size: int
    space: str
    parts: tuple[Part, ...]


def explain(grouping: Grouping, tensor: str, axis: int) -> AxisReport:
    """Describe an axis of a value, by the value's (or the user's parameter's) name.

    Raises:
        UsageError: no such tensor (with the nearest names) or axis.
    """
    coupling = grouping.coupling
    program = coupling.program
    ours = {theirs: name for name, theirs in program.parameter_names.items()}
    name = tensor if tensor in program.shapes else ours.get(tensor, tensor)
    if name not in program.shapes:
        near = get_close_matches(tensor, [*program.shapes, *ours], 3, 0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"the network has no tensor {tensor!r}{hint}")
    shape = program.shapes[name]
    if not -len(shape) <= axis < len(shape):
        raise UsageError(f"{name!r} has {len(shape)} axes ({'x'.join(map(str, shape)) or 'a scalar'}), not axis {axis}")
    axis %= len(shape)
    spaces = coupling.of(name)
    if name in coupling.private:  # one copy per use: show the use that is cut, if any
        stated = {binding.node for binding in coupling.bindings}
        uses = [coupling.axes(node, k) for node, k in program.values()[name].uses() if node in stated] or [spaces]
        spaces = next((one for one in uses if any(leaf in grouping.place for leaf in leaves(one[axis]))), uses[0])
    parts: dict[object, Part] = {}
    for one in leaves(spaces[axis]):
        if one in parts:
            continue
        placed = grouping.place.get(one)
        group = grouping.by_id(placed[0]) if placed is not None else None
        reason = ""
        if group is None:
            reason = str(one.refusal) if one.refusal is not None else "no weights make or consume it"
        elif one.stat is not None:
            reason = f"removal is not exact: {one.stat}"
        parts[one] = Part(one.n, group, reason)
    return AxisReport(name, axis, shape[axis], show(find(spaces[axis])), tuple(parts.values()))
