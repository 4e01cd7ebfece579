"""The field's words for a group's units, read off what the operators do with them; names play no part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod as multiply

from graphprune.coupling.notation import Letter, letters_of
from graphprune.coupling.solve import Binding, Coupling
from graphprune.coupling.space import Form, Space, find, free_leaves

__all__ = ["Evidence", "Stand", "evidence", "kind_of"]

#: Where a leaf stands on a tensor: role, the axis' space, the tensor's rank.
Stand = tuple[str, Space, int]


@dataclass
class Evidence:
    """What the contractions of a network do with each free leaf.

    Attributes:
        heads: it counts the matrices of a product of two computed values (attention), or stands left of ``matched``.
        matched: it is contracted between two computed values: queries with keys.
        paired: ``matched``, two indices to a unit: the halves that a rotary embedding turns.
        carried: times that it passes from one of two computed values: values through attention.
        stacked: it counts the matrices in a tensor of weights, on an axis of its own.
        grouped: it counts the matrices in a tensor of weights, with what they make or take on one axis (groups of a
            convolution).
        single: ``grouped``, and each takes one channel (depthwise).
        windowed: it stands in a product with a window (convolution).
        dense: weights contract it without a window.
        fed_back: an operator hands it back to itself.
        left, right: leaves that stand on its left (right) in some product.
    """

    heads: set[Space] = field(default_factory=set)
    matched: set[Space] = field(default_factory=set)
    paired: set[Space] = field(default_factory=set)
    carried: Counter[Space] = field(default_factory=Counter)
    stacked: set[Space] = field(default_factory=set)
    grouped: set[Space] = field(default_factory=set)
    single: set[Space] = field(default_factory=set)
    windowed: set[Space] = field(default_factory=set)
    dense: set[Space] = field(default_factory=set)
    fed_back: set[Space] = field(default_factory=set)
    left: dict[Space, set[Space]] = field(default_factory=dict)
    right: dict[Space, set[Space]] = field(default_factory=dict)


def evidence(coupling: Coupling, found: Mapping[Space, Iterable[Stand]]) -> Evidence:
    """Read every contraction, and every product that a leaf stands in, once."""
    seen = Evidence()
    for binding in coupling.bindings:
        if binding.live and (binding.layout.macs or any(one.fed_back for one in _given(binding))):
            _read(seen, coupling, binding)
    walked: set[Space] = set()
    for stands in found.values():
        for _, space, _ in stands:
            _order(seen, space, walked)
    for one in [one for one in seen.matched if one not in seen.heads]:
        seen.heads |= seen.left.get(one, set()) - seen.matched
    return seen


def _given(binding: Binding) -> list[Letter]:
    return [one for axes in binding.layout.operands for one in letters_of(axes)]


def _read(seen: Evidence, coupling: Coupling, binding: Binding) -> None:
    layout, fixed = binding.layout, coupling.program.fixed
    weights: list[set[str]] = []
    computed: list[set[str]] = []
    alone: set[str] = set()  # letters that are a whole axis of some weights
    for axes, value in zip(layout.operands, binding.operands, strict=False):
        if axes is None or value is None:
            continue
        names = {one.name for one in letters_of(axes)}
        for one in letters_of(axes):
            if one.fed_back:
                seen.fed_back.update(free_leaves(binding.spaces[one.name]))
        if value.name in fixed:
            weights.append(names)
            alone |= {axis.name for axis in axes if isinstance(axis, Letter)}
        else:
            computed.append(names)
    work = {name for term in layout.macs for name in term if isinstance(name, str)}
    held = set().union(*weights)
    taken: Counter[str] = Counter(name for names in computed for name in names)
    window = any(name in layout.whole and name in layout.contracted and name not in taken for name in work & held)
    attends = _attends(binding, computed, work)
    for name, space in binding.spaces.items():
        leaves = tuple(free_leaves(space))
        if not leaves:
            continue
        summed = name in layout.contracted
        inside = summed and not taken[name] and name in layout.zero  # an operator that makes queries and keys itself
        between = attends and taken[name] > 1 and (summed or name in layout.zero)
        if name in work and (inside or between):
            seen.matched.update(leaves)
            seen.paired.update(one for one in leaves if _copies(space, one) == 2)
        elif name in work and not summed and taken[name] > 1:
            seen.heads.update(leaves)
        elif attends and name in work and not summed and taken[name] == 1 and name not in held:
            seen.carried.update(leaves)
        elif taken[name] and name in held and not (summed and name in work):
            _count(seen, binding, name, leaves, [names for names in weights if name in names], name in alone)
        if name in work and name in held:
            if window:
                seen.windowed.update(leaves)
            elif summed and taken[name]:
                seen.dense.update(leaves)


def _attends(binding: Binding, computed: list[set[str]], work: set[str]) -> bool:
    """Whether positions meet positions: a product of computed matrices, or one per head.

    A row times weights that were picked for it is none.
    """
    if len(computed) != 2:
        return len(computed) > 2
    passing = [
        {one for one in names & work if one not in binding.layout.contracted and binding.spaces[one].n > 1}
        for names in computed
    ]
    shared = passing[0] & passing[1]
    return all(names - shared for names in passing) or any(any(free_leaves(binding.spaces[one])) for one in shared)


def _count(
    seen: Evidence, binding: Binding, name: str, leaves: Collection[Space], bearing: list[set[str]], alone: bool
) -> None:
    """A letter of weights that passes: each of its indices may be a matrix of its own."""
    layout = binding.layout
    work = {one for term in layout.macs for one in term if isinstance(one, str)}
    for names in bearing:
        inner = [one for one in names & work if one != name and one in binding.spaces]
        if not any(one in layout.contracted for one in inner):
            continue
        if alone and len(inner) > 1:
            seen.stacked.update(leaves)
        taken = [binding.spaces[one].n for one in inner if one in layout.contracted and one not in layout.whole]
        if not alone:
            (seen.grouped if multiply(taken) > 1 else seen.single).update(leaves)


def _copies(space: Space, one: Space) -> int:
    """Indices that one unit of a leaf has in a space."""
    space = find(space)
    if space.form is Form.LEAF:
        return int(space is one)
    if space.form is Form.SUM:
        return sum(_copies(kid, one) for kid in space.kids)
    return sum(_copies(kid, one) * (space.n // find(kid).n) for kid in space.kids)


def _order(seen: Evidence, space: Space, walked: set[Space]) -> None:
    """Which leaves stand left and right of which others."""
    space = find(space)
    if space in walked:
        return
    walked.add(space)
    if space.form is Form.PROD:
        parts = [set(free_leaves(kid)) for kid in space.kids]
        for i, part in enumerate(parts):
            before, after = set().union(*parts[:i]), set().union(*parts[i + 1 :])
            for one in part:
                seen.left.setdefault(one, set()).update(before)
                seen.right.setdefault(one, set()).update(after)
    for kid in space.kids:
        _order(seen, kid, walked)


def kind_of(family: list[Space], stands: Collection[Stand], seen: Evidence) -> str:
    """The word for the units of one group.

    Args:
        family: the leaves of the group.
        stands: everywhere that they stand on tensors.
        seen: of the whole network.
    """
    if len(family) > 1:
        return "interleaved channels"
    one = family[0]
    left, right = seen.left.get(one, set()), seen.right.get(one, set())
    if one in seen.fed_back:
        return "recurrent hidden units"
    if one in seen.heads:
        return "kv heads" if right & seen.heads else "query heads" if left & seen.heads else "heads"
    if one in seen.stacked:
        routed = any(role == "producer" and rank <= 2 and find(space) is one for role, space, rank in stands)
        return "experts" if routed else "linear groups"
    in_head = bool(left & seen.heads)
    makers = sum(role == "producer" for role, _, _ in stands)
    if one.stat is not None and not in_head and makers > 1 and one in seen.dense and one not in seen.single:
        return "embedding width"
    if in_head or one not in seen.windowed:
        if one in seen.matched and not seen.carried[one]:
            return "Q/K rotary pairs" if one in seen.paired else "Q/K dimensions"
        if seen.carried[one] == 1 and one not in seen.matched:
            return "V/O dimensions"
        if one in seen.matched or seen.carried[one]:
            return "head dimensions"
    if in_head:
        return "V/O dimensions"
    if one in seen.grouped:
        return "convolution groups"
    if one in seen.windowed:
        return "channel groups" if right else "channels per group" if left else "channels"
    if left or right:
        return "heads" if right else "head dimensions"
    made = [find(space).form for role, space, _ in stands if role == "producer"]
    return "neuron blocks" if Form.PROD in made else "neurons"
