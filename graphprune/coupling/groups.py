"""Groups: what a solved coupling means for the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod as multiply
from typing import Literal, overload

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupling.kinds import Evidence, evidence, kind_of
from graphprune.coupling.notation import letters_of
from graphprune.coupling.solve import Binding, Coupling
from graphprune.coupling.space import Form, Refusal, Space, find, free_leaves, make_whole
from graphprune.ir.look import READS_SIZES

__all__ = ["Group", "Grouping", "Member", "Role", "group", "repeated", "sources"]

Role = Literal["producer", "consumer", "rider", "contracted"]
_RANK: dict[Role, int] = {"consumer": 0, "contracted": 1, "producer": 2, "rider": 3}

Mask = NDArray[np.bool_]
Keep = Mapping[str, Mask]
Entry = tuple[Role, Space, int]  # role, the axis' space, the tensor's rank


@dataclass(frozen=True)
class Member:
    """One axis of one tensor on which a group's units stand.

    ``role`` is *producer* (a constant that makes the units: a weight cut on an output axis), *consumer* (a constant
    contracted on that axis), *rider* (a bias, norm or scale that goes along) or *contracted* (a computed value
    contracted with another computed value, or reduced).

    ``unit_of`` has shape ``(size,)``: the unit of the group (``0 .. group.size - 1``) that each index of the axis
    belongs to, or ``-1`` where the index does not belong to this group. One unit may own any number of indices.
    """

    tensor: str
    axis: int
    size: int
    rank: int
    role: Role
    unit_of: NDArray[np.int64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Group:
    """Units that can only go together, wherever they appear.

    ``exact``: the cut network equals the masked original to float accuracy whatever the weights are; otherwise some
    operator computes a statistic over the units (LayerNorm over the residual stream) and the group is *stat*.
    ``refusal``: why the group may not be cut at all, or ``None``.
    ``covers``: sets of units (sorted, shape ``(k,)``) of which one has to stay each, since some axis holds no others.
    """

    id: str
    kind: str
    size: int
    exact: bool
    members: Sequence[Member]
    refusal: str | None = None
    covers: tuple[NDArray[np.int64], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Grouping:
    """All groups of a coupling, and what a choice of units means for any axis."""

    coupling: Coupling
    groups: tuple[Group, ...]
    place: Mapping[Space, tuple[str, int]] = field(repr=False)
    scales: frozenset[str] = frozenset()

    def leaf_mask(self, one: Space, keep: Keep) -> Mask | None:
        """Kept units of a leaf, or ``None`` where nothing goes."""
        placed = self.place.get(one)
        chosen = keep.get(placed[0]) if placed is not None else None
        return None if placed is None or chosen is None else chosen[placed[1] : placed[1] + one.n]

    def mask(self, space: Space, keep: Keep) -> Mask:
        """Kept indices of an axis, shape ``(n,)``."""
        space = find(space)
        if space.form is Form.LEAF:
            chosen = self.leaf_mask(space, keep)
            return np.ones(space.n, dtype=np.bool_) if chosen is None else chosen
        parts = [self.mask(kid, keep) for kid in space.kids]
        if space.form is Form.SUM:
            return np.concatenate(parts)
        whole = parts[0]
        for part in parts[1:]:
            whole = np.logical_and.outer(whole, part).reshape(-1)
        return whole

    def size(self, space: Space, keep: Keep) -> int:
        """Kept size of an axis."""
        space = find(space)
        if space.form is Form.LEAF:
            chosen = self.leaf_mask(space, keep)
            return space.n if chosen is None else int(np.count_nonzero(chosen))
        sizes = [self.size(kid, keep) for kid in space.kids]
        return sum(sizes) if space.form is Form.SUM else multiply(sizes)

    def emptied(self, keep: Keep) -> list[tuple[str, int]]:
        """Axes that a plan would leave without an index, as (value, axis).

        A group always keeps a unit, but where channels are shuffled a value may hold a few of its units only.
        """
        return [
            (name, axis)
            for name, axes in self.coupling.values.items()
            for axis, space in enumerate(axes)
            if space.n and not self.size(space, keep)
        ]

    def by_id(self, name: str) -> Group:
        """The group of that id."""
        return next(one for one in self.groups if one.id == name)


def group(coupling: Coupling) -> Grouping:
    """Collect the groups of a solved coupling: every free leaf that a constant makes or consumes."""
    found: dict[Space, dict[tuple[str, int], tuple[Role, Space, int]]] = {}
    collector = _Collector(coupling)
    for name in coupling.moves:  # what is rearranged in the file cannot be cut for some of its readers alone
        if (node := _computing(coupling, name)) is not None:
            for axis, space in enumerate(coupling.of(name)):
                make_whole(space, Refusal("a constant is computed from it", node.op_type, node.name or "", name, axis))
    for binding in coupling.bindings:
        if binding.live:
            for one, tensor, axis, role, space, rank in collector.members(binding):
                if role == "contracted" and axis in coupling.program.moving.get(tensor, ()):
                    # the units' place on that axis is another at every size: no list of indices says it
                    make_whole(one, Refusal("it is contracted on an axis whose size is symbolic", "", "", tensor, axis))
                held = found.setdefault(one, {})
                known = held.get((tensor, axis))
                if known is None or _RANK[role] < _RANK[known[0]]:
                    held[tensor, axis] = (role, space, rank)
    for space in {find(space): None for entries in found.values() for _, space, _ in entries.values()}:
        for twice in repeated(space):
            make_whole(twice, Refusal("it stands twice in one product"))
    families: dict[object, list[Space]] = {}
    for one, entries in found.items():
        if one.refusal is None and any(role in ("producer", "consumer") for role, _, _ in entries.values()):
            families.setdefault(one.kin.top() if one.kin is not None else one, []).append(one)
    groups: list[Group] = []
    place: dict[Space, tuple[str, int]] = {}
    seen = evidence(coupling, {one: entries.values() for one, entries in found.items()})
    for i, family in enumerate(families.values()):
        groups.append(_group(f"g{i:03d}", family, found, coupling, seen))
        offset = 0
        for one in family:
            place[one] = (groups[-1].id, offset)
            offset += one.n
    return Grouping(coupling, tuple(groups), place, frozenset(collector.scales))


def _group(
    name: str,
    family: list[Space],
    found: Mapping[Space, Mapping[tuple[str, int], Entry]],
    coupling: Coupling,
    seen: Evidence,
) -> Group:
    where: dict[tuple[str, int], Entry] = {}
    for one in family:
        for key, entry in found[one].items():
            if key not in where or _RANK[entry[0]] < _RANK[where[key][0]]:
                where[key] = entry
    offsets: dict[Space, int] = {}
    size = 0
    for one in family:
        offsets[one] = size
        size += one.n
    members = _Members(where, offsets)
    exact = all(one.stat is None for one in family)
    covers = _covers(coupling, offsets, size) if len(family) > 1 else ()
    return Group(name, kind_of(family, where.values(), seen), size, exact, members, covers=covers)


def _covers(coupling: Coupling, offsets: Mapping[Space, int], size: int) -> tuple[NDArray[np.int64], ...]:
    """Where channels are shuffled, an axis may hold a few of the group's units only, and nothing else."""
    found: dict[bytes, NDArray[np.int64]] = {}
    for space in {space for axes in (*coupling.values.values(), *coupling.uses.values()) for space in map(find, axes)}:
        if any(part in offsets for part in free_leaves(space)):
            here = np.unique(units(space, offsets))
            if here[0] >= 0 and here.size < size:
                found[here.tobytes()] = here
    return tuple(found[key] for key in sorted(found, key=lambda key: (len(key), key)))


class _Members(Sequence[Member]):
    """A group's members, made when they are first looked at: an analysis often needs only how many there are."""

    def __init__(self, where: Mapping[tuple[str, int], Entry], offsets: Mapping[Space, int]) -> None:
        self._where = where
        self._offsets = offsets
        self._made: tuple[Member, ...] | None = None

    def _all(self) -> tuple[Member, ...]:
        if self._made is None:
            self._made = tuple(
                Member(tensor, axis, space.n, rank, role, units(space, self._offsets))
                for (tensor, axis), (role, space, rank) in self._where.items()
            )
        return self._made

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, at: int) -> Member: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Member]: ...
    def __getitem__(self, at: int | slice) -> Member | Sequence[Member]:
        return self._all()[at]

    def __iter__(self) -> Iterator[Member]:
        return iter(self._all())


def units(space: Space, offsets: Mapping[Space, int]) -> NDArray[np.int64]:
    """The unit that each index of an axis belongs to, ``-1`` for none, shape ``(n,)``."""
    space = find(space)
    if space.form is Form.LEAF:
        at = offsets.get(space)
        return np.full(space.n, -1, dtype=np.int64) if at is None else np.arange(at, at + space.n, dtype=np.int64)
    parts = [units(kid, offsets) for kid in space.kids]
    if space.form is Form.SUM:
        return np.concatenate(parts)
    whole = parts[0]
    for part in parts[1:]:  # at most one factor holds the group's units, the others are -1
        whole = np.maximum.outer(whole, part).reshape(-1)
    return whole


def sources(coupling: Coupling, value: ir.Value) -> list[tuple[str, list[Space]]]:
    """The file's constants that a fixed value only rearranges, with their spaces; itself where it is computed."""
    name = value.name or ""
    moved = coupling.moves.get(name)
    if moved is None or coupling.program.is_parameter(name) or name in coupling.private:
        return [(name, coupling.of(name))]
    return [
        source
        for axes, operand in zip(moved.layout.operands, moved.node.inputs, strict=False)
        if axes is not None and operand is not None
        for source in sources(coupling, operand)
    ]


def _computing(coupling: Coupling, name: str) -> ir.Node | None:
    """A node that computes another constant from a constant: it reads the uncut one, whoever else reads it."""
    program = coupling.program
    for node, _ in program.values()[name].uses():
        made = node.outputs[0].name or ""
        known = made in coupling.moves or made in program.same or node.op_type in READS_SIZES
        if made in program.fixed and not known:
            return node
    return None


def repeated(space: Space) -> Iterator[Space]:
    """Leaves that stand in two factors of one product: an index would belong to two units of one group."""
    space = find(space)
    if space.form is Form.PROD:
        seen: set[Space] = set()
        for kid in space.kids:
            here = set(free_leaves(kid))
            yield from seen & here
            seen |= here
    for kid in space.kids:
        yield from repeated(kid)


@dataclass
class _Collector:
    coupling: Coupling
    scales: set[str] = field(default_factory=set)
    known: dict[Space, tuple[Space, ...]] = field(default_factory=dict)

    def free(self, space: Space) -> tuple[Space, ...]:
        """The free leaves of a space, found once."""
        space = find(space)
        if space not in self.known:
            self.known[space] = tuple(free_leaves(space))
        return self.known[space]

    def members(self, binding: Binding) -> Iterator[tuple[Space, str, int, Role, Space, int]]:
        """(leaf, tensor, axis, role, the axis' space, rank) for every free leaf of a node."""
        node, layout = binding.node, binding.layout
        program = self.coupling.program
        free = {letter: self.free(space) for letter, space in binding.spaces.items()}
        operands = [
            (k, axes, value, letters)
            for k, (axes, value) in enumerate(zip(layout.operands, binding.operands, strict=False))
            if axes is not None and value is not None
            for letters in [letters_of(axes)]
            if any(free.get(one.name) for one in letters)
        ]
        if layout.line.scale is not None:
            scale = node.inputs[layout.line.scale]
            if scale is not None and scale.name in program.fixed:
                self.scales.update(name for name, _ in sources(self.coupling, scale))
        computed = {one.name for _, _, value, letters in operands if value.name not in program.fixed for one in letters}
        weighed = {
            one.name
            for _, _, value, letters in operands
            if value.name in program.fixed and any(a.name in layout.contracted for a in letters)
            for one in letters
        }
        pending: dict[str, tuple[ir.Value, int, list[Space]]] = {}
        settled: set[str] = set()
        for k, axes, value, letters in operands:
            fixed = value.name in program.fixed
            held = self.coupling.axes(node, k)
            contracts = any(one.name in layout.contracted or one.fed_back for one in letters)
            lent = fixed and contracts and self._is_lent(value)
            roles: dict[Space, tuple[Role, int]] = {}
            for at, axis in enumerate(axes):
                for one in letters_of((axis,)):
                    summed = one.fed_back or one.name in layout.contracted
                    if not free.get(one.name):
                        continue
                    if one.name in layout.zero and not fixed:
                        for part in free[one.name]:
                            yield part, value.name or "", at, "contracted", held[at], len(held)
                    silent = layout.line.silent if one.name in layout.contracted else None
                    if summed and (not fixed or lent):
                        known = pending.get(one.name)
                        if silent in (None, k) and (known is None or (not fixed and known[0].name in program.fixed)):
                            pending[one.name] = (value, at, held)
                        if not fixed:
                            continue
                    if not fixed:
                        continue
                    role: Role = "rider"
                    if summed and not lent:
                        role = "consumer"
                        if silent in (None, k):
                            settled.add(one.name)
                    elif not summed and one.name not in computed and (contracts or one.name not in weighed):
                        role = "producer"
                    for part in free[one.name]:
                        if part not in roles or _RANK[role] < _RANK[roles[part][0]]:
                            roles[part] = (role, at)
            if fixed:
                yield from self._on_sources(value, held, roles)
        for letter, (value, at, held) in pending.items():
            if letter not in settled:
                for part in free[letter]:
                    if value.name in program.fixed:
                        why = "it is contracted on a constant that others use as well"
                        make_whole(part, Refusal(why, node.op_type, node.name or "", value.name or "", at))
                    yield part, value.name or "", at, "contracted", held[at], len(held)

    def _is_lent(self, value: ir.Value) -> bool:
        """Whether silencing a constant would reach more than its use here: then what meets it is silenced."""
        return value.name in self.coupling.private or any(
            _computing(self.coupling, name) is not None for name, _ in sources(self.coupling, value)
        )

    def _on_sources(
        self, value: ir.Value, held: list[Space], roles: Mapping[Space, tuple[Role, int]]
    ) -> Iterator[tuple[Space, str, int, Role, Space, int]]:
        """Say it of the file's own tensors; of the computed constant itself where it is more than a rearrangement."""
        told: set[Space] = set()
        for tensor, axes in sources(self.coupling, value):
            axes = held if tensor == value.name else axes
            for axis, space in enumerate(axes):
                for part in self.free(space):
                    if part in roles:
                        role = roles[part][0]
                        if role == "consumer" and not self.coupling.program.is_parameter(tensor):
                            role = "contracted"
                        told.add(part)
                        yield part, tensor, axis, role, space, len(axes)
        for part, (role, at) in roles.items():
            if part not in told and role == "consumer":
                yield part, value.name or "", at, "contracted", held[at], len(held)
