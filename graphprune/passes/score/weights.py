"""Criteria that need the weights and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphprune.passes.score.base import (
    NORMALIZERS,
    REDUCTIONS,
    Floats,
    Normalizer,
    Reduction,
    Tensors,
    check_roles,
    index_sums,
    members_to_score,
    normalize,
    reduce_members,
    roles_remark,
    unit_rows,
    unit_sums,
    values_of,
)
from graphprune.passes.score.registry import one_of

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group, Role

# Elements of a block of pairwise distances (64 MiB).
PAIRS = 1 << 23


@dataclass(frozen=True)
class Magnitude:
    """Norm of a unit's weights (L1: Li et al., "Pruning Filters for Efficient ConvNets", 2017; L2 likewise).

    By default the L2 norm of all of a unit's slices, in the weights that make it and in those that read it, taken as
    one vector (the group norm of DepGraph, Fang et al. 2023), divided by the group's mean. The division is what makes
    one global threshold possible: layers differ in scale by their fan-in and by the norm that follows, not by how much
    they matter; it is also the default of Torch-Pruning's ``MagnitudeImportance`` and ``GroupNormImportance``. Riders
    (biases, norm scales) have other units of measure and are left out unless ``roles`` names them.
    """

    name: ClassVar[str] = "magnitude"
    p: int = 2
    reduce: Reduction = "norm"
    normalize: Normalizer = "mean"
    roles: tuple[Role, ...] = ("producer", "consumer")

    def __post_init__(self) -> None:
        one_of(self.name, "p", self.p, (1, 2))
        one_of(self.name, "reduce", self.reduce, REDUCTIONS)
        one_of(self.name, "normalize", self.normalize, NORMALIZERS)
        check_roles(self.name, self.roles)

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Shape ``(group.size,)``."""
        members = members_to_score(group, self.roles)
        if not members:
            return np.ones(group.size)
        parts = [np.power(unit_sums(group, each, tensors, self.p), 1 / self.p) for each in members]
        return normalize(reduce_members(parts, self.reduce, self.p), self.normalize)

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence if the group has no member of the roles asked for."""
        return roles_remark(group, self.roles)


@dataclass(frozen=True)
class Lamp:
    """Squared norm over the sum of those not smaller in the group (Lee et al., "Layer-adaptive Sparsity", 2021).

    In ascending order (equal ones by index), ``score[i] = s[i] / (s[i] + s[i+1] + ...)``: the largest unit has score 1
    in every group, so a global threshold never empties one, and no normaliser is needed.
    """

    name: ClassVar[str] = "lamp"
    roles: tuple[Role, ...] = ("producer", "consumer")

    def __post_init__(self) -> None:
        check_roles(self.name, self.roles)

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Shape ``(group.size,)``, values in 0..1."""
        members = members_to_score(group, self.roles)
        squares = np.sum([unit_sums(group, each, tensors, 2) for each in members], axis=0)
        if not members:
            squares = np.ones(group.size)
        ascending = np.argsort(squares, kind="stable")
        ordered = squares[ascending]
        rest = np.cumsum(ordered[::-1])[::-1]
        scores = np.empty(group.size)
        scores[ascending] = np.divide(ordered, rest, out=np.zeros(group.size), where=rest > 0)
        return scores

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence if the group has no member of the roles asked for."""
        return roles_remark(group, self.roles)


@dataclass(frozen=True)
class Fpgm:
    """Distance to the geometric median of the filters (He et al., "Filter Pruning via Geometric Median", 2019).

    As in the paper's implementation, ``sum over k of ||w_j - w_k||_2``, where ``w_j`` is everything that unit ``j``
    owns in one tensor; then reduced over the members and normalised as in ``magnitude``. A unit near the median can
    be replaced by the others. By default over producers only, since filters are what the paper compares.
    """

    name: ClassVar[str] = "fpgm"
    reduce: Reduction = "mean"
    normalize: Normalizer = "mean"
    roles: tuple[Role, ...] = ("producer",)

    def __post_init__(self) -> None:
        one_of(self.name, "reduce", self.reduce, REDUCTIONS)
        one_of(self.name, "normalize", self.normalize, NORMALIZERS)
        check_roles(self.name, self.roles)

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Shape ``(group.size,)``."""
        members = members_to_score(group, self.roles)
        if not members:
            return np.ones(group.size)
        parts = []
        for member in members:
            index_sums(group, member, values_of(group, member, tensors), 2)  # refuses NaN and infinity
            parts.append(_distance_sums(unit_rows(group, member, tensors)))
        return normalize(reduce_members(parts, self.reduce), self.normalize)

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence if the group has no member of the roles asked for."""
        return roles_remark(group, self.roles)


def _distance_sums(rows: Floats) -> Floats:
    """Sum of the Euclidean distances from each row to all rows: ``(units, values)`` to ``(units,)``.

    Distances come from products in float64 of *centred* rows, block by block: exact enough, at the speed of a matrix
    product, and never more than a block of the ``units x units`` matrix at a time.
    """
    units, width = rows.shape
    height = max(1, min(units, PAIRS // max(1, units)))
    columns = max(1, PAIRS // max(1, units))
    result = np.zeros(units)
    for top in range(0, units, height):
        inside = min(height, units - top)
        # Distances are symmetric: only those to this block's rows and to later ones are computed.
        squared = np.zeros((inside, units - top))
        for left in range(0, width, columns):
            part = rows[top:, left : left + columns].astype(np.float64)
            part -= part.mean(axis=0)
            lengths = np.einsum("uv,uv->u", part, part)
            squared += lengths[:inside, None] + lengths[None, :] - 2 * (part[:inside] @ part.T)
        np.maximum(squared, 0, out=squared)
        np.fill_diagonal(squared, 0)
        distances = np.sqrt(squared, out=squared)
        result[top : top + inside] += distances.sum(axis=1)
        result[top + inside :] += distances[:, inside:].sum(axis=0)
    return result
