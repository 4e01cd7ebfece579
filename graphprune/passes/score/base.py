"""What every criterion shares: the interface, sums over the slices of a unit, reductions and normalisers.

A criterion sees ``(tensor, axis, unit_of, role)`` and values, never an operator's type.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError, UsageError

if TYPE_CHECKING:
    from graphprune.calibration.observations import Observations
    from graphprune.coupling.groups import Group, Member, Role

Floats = NDArray[np.float64]
Tensors = Callable[[str], NDArray[Any]]
Reduction = Literal["norm", "sum", "mean", "max", "prod", "first"]
Normalizer = Literal["none", "mean", "max", "sum", "standardize", "gaussian"]

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
NORMALIZERS: tuple[Normalizer, ...] = get_args(Normalizer)
CONSTANT_ROLES: tuple[Role, ...] = ("producer", "consumer", "rider")

# Values cast to float64 at a time (16 MiB): a weight of gigabytes must not be copied whole to be scored.
BLOCK = 1 << 21
_JOIN: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "prod": np.prod}


@dataclass(frozen=True)
class Scores:
    """``values[group id]``: float64, shape ``(group.size,)``; higher means more important.

    ``notes``: one line for each group that could not be scored as asked, and how it was scored instead.
    ``adds_up``: sums of them estimate the loss, see :func:`estimates_loss`.
    """

    values: Mapping[str, Floats]
    notes: tuple[str, ...] = ()
    adds_up: bool = False

    def from_zero(self) -> Scores:
        """The same differences with nothing below 0 (standardised ones are negative too)."""
        least = min((float(one.min()) for one in self.values.values() if one.size), default=0.0)
        return self if least >= 0 else replace(self, values={name: one - least for name, one in self.values.items()})

    def additive(self, groups: Iterable[Group]) -> Scores:
        """Scores in the same order whose sums an allocation can maximise.

        Those that estimate a loss stay as they are. Others say what share of its input each layer keeps; what a signal
        loses from layer to layer multiplies, so logarithms add up: a unit is worth ``n log(s_k / s_(k-1))``, where
        ``s_k`` is the sum of the ``k`` highest scores, itself the least of them, and ``n`` layers read the group. A
        group that many layers read (a residual stream) and one that is nearly used up are so held to be worth more
        than the plain sum says, which takes them first because they save the most.
        """
        if self.adds_up:
            return self.from_zero()
        values = dict(self.from_zero().values)
        for group in groups:
            order = np.argsort(values[group.id], kind="stable")[::-1]
            total = np.cumsum(values[group.id][order])
            if not total.size or total[-1] <= 0:
                continue
            worth = np.full(group.size, math.log(2.0))  # of the first: no other is worth more
            worth[1:] = np.log(total[1:] / total[:-1])
            readers = len({member.tensor for member in group.members if member.role == "consumer"})
            values[group.id] = np.empty(group.size)
            values[group.id][order] = max(1, readers) * worth
        return replace(self, values=values, adds_up=True)


@runtime_checkable
class Criterion(Protocol):
    """A way to score units. Implementations are frozen dataclasses whose fields are their options.

    Where scores are what the loss is estimated to change by, so that sums of them mean something, the class says
    ``estimates_loss = True``: the knapsack then maximises their sum.
    """

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Importance of each unit, shape ``(group.size,)``. ``scales`` names the tensors that are BatchNorm scales."""
        ...

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence if this group has not what the criterion needs: what was used instead. Otherwise ``None``."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A criterion that looks at what the network computes on calibration data."""

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    @property
    def needs(self) -> str:
        """``calibration``."""
        ...

    def on(self, observations: Observations) -> Criterion:
        """The criterion with what it looks at."""
        ...


def estimates_loss(criterion: object) -> bool:
    """Whether a criterion's scores are what the loss is estimated to change by, so that sums of them mean something."""
    return bool(getattr(criterion, "estimates_loss", False))


def check_roles(owner: str, roles: Sequence[Role]) -> None:
    """Raise ``UsageError`` unless ``roles`` is a non-empty sequence of roles that constants have."""
    if isinstance(roles, str) or not roles or any(role not in CONSTANT_ROLES for role in roles):
        raise UsageError(f"{owner}: roles={roles!r} must be one or more of {', '.join(map(repr, CONSTANT_ROLES))}.")


def members_to_score(group: Group, roles: Sequence[Role]) -> list[Member]:
    """The members of those roles; where there are none, every constant member (maybe none either)."""
    constants = [each for each in group.members if each.role in CONSTANT_ROLES]
    return [each for each in constants if each.role in roles] or constants


def roles_remark(group: Group, roles: Sequence[Role]) -> str | None:
    """The sentence for a group in which ``members_to_score`` had to take other members than asked."""
    found = {each.role for each in group.members if each.role in CONSTANT_ROLES}
    if found.intersection(roles):
        return None
    instead = f"scored by its {' and '.join(sorted(found))} tensors" if found else "its units count as equal"
    return f"Group '{group.id}' has no {' or '.join(roles)} tensor; {instead}."


def values_of(group: Group, member: Member, tensors: Tensors) -> NDArray[Any]:
    """The member's values; raises ``InputError`` if its shape is not what the group was made for."""
    array = np.asarray(tensors(member.tensor))
    if array.ndim != member.rank or array.shape[member.axis] != member.size:
        raise InputError(
            f"Tensor '{member.tensor}' has shape {array.shape}, but group '{group.id}' expects {member.rank} axes and "
            f"{member.size} indices on axis {member.axis}; the weights and the groups are of different models."
        )
    return array


def index_sums(group: Group, member: Member, array: NDArray[Any], p: int) -> Floats:
    """``sum |w|^p`` for each index of the member's axis, shape ``(member.size,)``, in float64.

    Raises ``InputError`` if any value of the tensor is NaN or infinite (also at indices outside the group).
    """
    total = np.zeros(member.size)
    for rows, block in _blocks(array, member.axis):
        if p == 2:
            total[rows] += np.einsum("anb,anb->n", block, block)
        else:
            total[rows] += np.abs(block).sum(axis=(0, 2))
    if not np.isfinite(total).all():
        bad = sum(int((~np.isfinite(block)).sum()) for _, block in _blocks(array, member.axis))
        what = f"{bad} NaN or infinite value(s)" if bad else "values too large to be squared"
        raise InputError(
            f"Tensor '{member.tensor}' (shape {array.shape}) holds {what}, so group '{group.id}' cannot be scored; "
            f"repair the weights or exclude this tensor."
        )
    return total


def _blocks(array: NDArray[Any], axis: int) -> Iterator[tuple[slice, Floats]]:
    """Pieces of ``array`` seen as ``(before, axis, after)``, cast to float64, with their range on the axis."""
    if array.size == 0:
        return
    before = int(np.prod(array.shape[:axis], dtype=np.int64))
    view = array.reshape(before, array.shape[axis], -1)
    last = min(view.shape[2], BLOCK)
    middle = min(view.shape[1], max(1, BLOCK // last))
    first = min(before, max(1, BLOCK // (last * middle)))
    starts = (range(0, size, step) for size, step in zip(view.shape, (first, middle, last), strict=True))
    for a, n, b in itertools.product(*starts):
        block = view[a : a + first, n : n + middle, b : b + last]
        block = np.abs(block) if block.dtype.kind == "c" else block
        yield slice(n, n + middle), block.astype(np.float64)


def unit_sums(group: Group, member: Member, tensors: Tensors, p: int) -> Floats:
    """``sum |w|^p`` over all of a unit's slices of one member, shape ``(group.size,)``."""
    sums = index_sums(group, member, values_of(group, member, tensors), p)
    inside = member.unit_of >= 0
    return np.asarray(np.bincount(member.unit_of[inside], sums[inside], group.size), dtype=np.float64)


def unit_rows(group: Group, member: Member, tensors: Tensors) -> NDArray[Any]:
    """All slices of a unit in one row, shape ``(group.size, indices per unit * rest)``, in the order of the indices.

    A unit with fewer indices than another one is filled with zeros. Single precision where the values have no more.
    """
    array = values_of(group, member, tensors)
    flat = np.moveaxis(array, member.axis, 0).reshape(member.size, -1)
    inside = np.flatnonzero(member.unit_of >= 0)
    order = inside[np.argsort(member.unit_of[inside], kind="stable")]
    units = member.unit_of[order]
    counts = np.bincount(units, minlength=group.size)
    place = np.arange(units.size) - np.repeat(np.cumsum(counts) - counts, counts)
    single = array.dtype.itemsize < 4 or array.dtype == np.float32
    rows = np.zeros((group.size, int(counts.max(initial=0)), flat.shape[1]), np.float32 if single else np.float64)
    rows[units, place] = flat[order]
    return rows.reshape(group.size, -1)


def reduce_members(parts: Sequence[Floats], how: Reduction, p: int = 2) -> Floats:
    """Join the scores that a group's members gave its units; each part and the result have shape ``(group.size,)``.

    ``norm`` is the p-norm over the members, that is the norm of all slices of the unit taken as one vector.
    """
    stack = np.stack(parts)
    if how == "norm":
        return np.asarray(np.power(np.power(stack, p).sum(axis=0), 1 / p))
    if how == "first":
        return np.asarray(stack[0])
    return np.asarray(_JOIN[how](stack, axis=0), dtype=np.float64)


def normalize(scores: Floats, how: Normalizer) -> Floats:
    """Make the scores of different groups comparable; keeps the order within the group.

    ``mean``, ``max`` and ``sum`` divide (a group of zeros stays zeros), ``standardize`` maps to 0..1 (equal units:
    0.5), ``gaussian`` to mean 0 and deviation 1 (equal units: 0). The set is that of Torch-Pruning's importances.
    """
    if how == "none":
        return scores
    if how == "standardize":
        spread = np.ptp(scores)
        return (scores - scores.min()) / spread if spread > 0 else np.full_like(scores, 0.5)
    if how == "gaussian":
        deviation = scores.std()
        # Equal units differ from their rounded mean by an ulp, which must not be blown up to one deviation.
        return (scores - scores.mean()) / deviation if np.ptp(scores) > 0 else np.zeros_like(scores)
    by = float(_JOIN[how](scores))
    return scores / by if by > 0 else np.zeros_like(scores)
