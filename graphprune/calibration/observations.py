"""What the linear maps of the original network read on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphprune import progress
from graphprune.calibration.linear import Linear, Pairing, linears_of, pairings_of
from graphprune.calibration.moments import Moments
from graphprune.calibration.rows import Reader
from graphprune.coupling.groups import Grouping, units
from graphprune.coupling.notation import Letter
from graphprune.coupling.space import Space, find, free_leaves
from graphprune.errors import InputError
from graphprune.ir.program import Array, Runner, with_outputs

__all__ = ["LARGEST", "Observations", "chosen_rows", "rows_each"]

Feeds = Mapping[str, Array]
Floats = NDArray[np.float64]
LARGEST = 1 << 13  # columns of a map: its covariance takes half a gigabyte
_MEMORY = 1 << 30  # bytes of covariances that are held at a time
_ROWS = (8, 8192, 65536)  # per column, at least and at most, over all samples


def rows_each(columns: int, samples: int) -> int:
    """How many rows of each sample are looked at, so that there are several for each of ``columns``."""
    return -(-min(max(_ROWS[0] * columns, _ROWS[1]), _ROWS[2]) // samples)


def chosen_rows(rows: int, each: int, *seed: int) -> NDArray[np.int64] | None:
    """Which rows of a sample are looked at, in order; None for all. The same for the same seed."""
    if rows <= each:
        return None
    return np.sort(np.random.default_rng((*seed, rows)).choice(rows, each, replace=False))


@dataclass(frozen=True)
class Observations:
    """Samples, and what a network makes of them. Nothing is run before it is asked for.

    Args:
        grouping: the network and its groups.
        samples: inputs by name, one dictionary per run.
        run: executes a model.
        seed: of the rows that are looked at where there are more than needed.
    """

    grouping: Grouping
    samples: Sequence[Feeds] = field(repr=False)
    run: Runner = field(repr=False)
    seed: int = 0

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Maps that read units of some group, of a size that can be handled."""
        size = (one for one in linears_of(self.grouping) if one.groups(self.grouping))
        return tuple(one for one in size if self.columns(one) <= LARGEST)

    @cached_property
    def pairings(self) -> tuple[Pairing, ...]:
        """Contractions of two computed values."""
        return pairings_of(self.grouping)

    def columns(self, linear: Linear) -> int:
        """How many columns a map has."""
        return linear.units({}).size

    def offsets(self, group: str) -> dict[Space, int]:
        """Where the units of each leaf of a group begin."""
        return {space: at for space, (name, at) in self.grouping.place.items() if name == group}

    def weights(self, linear: Linear) -> Floats:
        """The map's constant, shape ``(B, out, columns)``."""
        return linear.matrix(self.grouping.coupling.program.tensor(linear.weight), linear.sizes(self.grouping))

    @cached_property
    def diagonal(self) -> dict[str, Moments]:
        """Means and variances of the columns of every map, by its name."""
        return self._pass(self.linears, full=False)

    @cached_property
    def energies(self) -> dict[tuple[str, str], tuple[Floats, Floats]]:
        """Mean squares of both values of every pairing, over the indices of its letter."""
        found: dict[tuple[str, str], list[Floats]] = {}
        for held in self._runs([name for one in self.pairings for name in one.values]):
            for one in self.pairings:
                key = (one.binding.node.outputs[0].name or "", one.letter)
                for k, (name, place) in enumerate(zip(one.values, one.places, strict=True)):
                    axes = one.binding.layout.operands[place] or ()
                    at = axes.index(Letter(one.letter))
                    square = np.asarray(held[name], dtype=np.float64) ** 2
                    mean = square.mean(axis=tuple(i for i in range(square.ndim) if i != at)) / len(self.samples)
                    both = found.setdefault(key, [])
                    if len(both) <= k:
                        both.append(np.zeros_like(mean))
                    both[k] += mean
        return {key: (both[0], both[1]) for key, both in found.items()}

    def covariances(self, linears: Sequence[Linear]) -> dict[str, Moments]:
        """Moments with the covariances of some maps' columns; one pass over the samples."""
        return self._pass(linears, full=True)

    def portions(self) -> list[list[Linear]]:
        """The maps in portions whose covariances fit into memory together."""
        portions: list[list[Linear]] = []
        room = 0
        for one in self.linears:
            batch = self.weights(one).shape[0]
            need = 8 * batch * self.columns(one) ** 2
            if not portions or need > room:
                portions.append([])
                room = _MEMORY
            portions[-1].append(one)
            room -= need
        return portions

    def pairing_units(self, pairing: Pairing, group: str) -> NDArray[np.int64]:
        """The unit of each index of the letter, ``-1`` for none."""
        return units(pairing.binding.spaces[pairing.letter], self.offsets(group))

    def pairing_groups(self, pairing: Pairing) -> frozenset[str]:
        """Ids of the groups whose units are contracted in a pairing."""
        space = find(pairing.binding.spaces[pairing.letter])
        place = self.grouping.place
        return frozenset(place[one][0] for one in free_leaves(space) if one in place)

    def _pass(self, linears: Sequence[Linear], *, full: bool) -> dict[str, Moments]:
        program = self.grouping.coupling.program
        nodes = {node.outputs[0].name: node for node in program.model.graph if node.outputs}
        readers = {
            one.name: Reader(one, nodes[one.name], one.sizes(self.grouping), self.run, program.model) for one in linears
        }
        found = {one.name: Moments(full) for one in linears}
        for i, held in enumerate(self._runs([one.value for one in linears])):
            for one in linears:
                reader = readers[one.name]
                value = held[one.value]
                chosen = chosen_rows(reader.count(value), rows_each(self.columns(one), len(self.samples)), self.seed, i)
                rows = reader.rows(value, chosen)
                if not np.isfinite(rows).all():
                    raise InputError(f"sample {i} makes '{one.value}' infinite or NaN; it cannot be calibrated on")
                found[one.name].add(rows)
        return found

    def _runs(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """For each sample the values asked for."""
        program = self.grouping.coupling.program
        inner = list(dict.fromkeys(names))
        inputs = {value.name for value in program.model.graph.inputs}
        outputs = {value.name for value in program.model.graph.outputs}
        wanted = [name for name in inner if name not in inputs]
        model = with_outputs(program.model, [name for name in wanted if name not in outputs])
        for i, sample in enumerate(self.samples):
            progress.advance(i / len(self.samples))
            yield {**sample, **(self.run(model, sample, wanted) if wanted else {})}
