"""The size of an axis as a polynomial of how many units each group keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphprune.coupling.groups import Grouping
from graphprune.coupling.space import Form, Space, find

__all__ = ["Amount", "Counts", "Size", "Sizer", "product", "total"]

Amount = float | NDArray[np.float64]
Counts = Mapping[str, Amount]  # kept units by group id; numbers, or arrays that broadcast to one shape


@dataclass(frozen=True)
class Size:
    """The size of an axis as a function of kept units: ``sum(product of group shares and a number)``.

    ``terms`` holds ``(number, ((group id, share), ...))``; ``share`` is the part of a group's units that stand in one
    leaf of the axis (1 but where a group's units are spread over several places).
    """

    terms: tuple[tuple[int, tuple[tuple[str, float], ...]], ...]

    def __call__(self, counts: Counts) -> Amount:
        """The size, where every group in :attr:`groups` has a count; an array where one of them is."""
        whole: Amount = 0.0
        for number, factors in self.terms:
            value: Amount = float(number)
            for name, share in factors:
                value = value * (counts[name] * share)
            whole = whole + value
        return whole

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Ids of the groups it depends on, in order of appearance."""
        return tuple(dict.fromkeys(name for _, factors in self.terms for name, _ in factors))

    def apart(self) -> tuple[Size, ...]:
        """Its summands."""
        return tuple(Size((term,)) for term in self.terms)

    def text(self, names: Mapping[str, str]) -> str:
        """The polynomial, with groups called by ``names``."""
        return "+".join(
            "*".join(
                [str(number)] * (number != 1 or not factors)
                + [names[name] + ("" if share == 1.0 else f"({share:.6g})") for name, share in factors]
            )
            for number, factors in self.terms
        )


class Sizer:
    """Turns spaces into polynomials; remembers them."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping
        self.units = {one.id: one.size for one in grouping.groups}
        self._known: dict[Space, Size] = {}

    def __call__(self, space: Space) -> Size:
        """The size of a space."""
        space = find(space)
        if space not in self._known:
            self._known[space] = self._size(space)
        return self._known[space]

    def _size(self, space: Space) -> Size:
        if space.form is Form.LEAF:
            placed = self.grouping.place.get(space)
            if placed is None:
                return Size(((space.n, ()),))
            return Size(((1, ((placed[0], space.n / self.units[placed[0]]),)),))
        parts = [self(kid) for kid in space.kids]
        return total(parts) if space.form is Form.SUM else product(parts)


def total(sizes: Iterable[Size]) -> Size:
    """The sum of sizes."""
    return _collected(term for size in sizes for term in size.terms)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes; 1 where there are none."""
    whole: tuple[tuple[int, tuple[tuple[str, float], ...]], ...] = ((1, ()),)
    for size in sizes:
        whole = tuple((a * b, tuple(sorted((*left, *right)))) for a, left in whole for b, right in size.terms)
    return _collected(whole)


def _collected(terms: Iterable[tuple[int, tuple[tuple[str, float], ...]]]) -> Size:
    """Equal products added up."""
    found: dict[tuple[tuple[str, float], ...], int] = {}
    for number, factors in terms:
        found[factors] = found.get(factors, 0) + number
    return Size(tuple((number, factors) for factors, number in found.items()))
