"""Step curves: the time of each layer as a function of the widths it has, fitted to what was measured.

A layer's time is a sum of a start-up time, its multiply-accumulates, the elements it moves and its weights, each with a
coefficient that is never negative (a roofline whose terms add up instead of hiding behind each other). What makes the
curve a step curve is the *grain*: kernels work in blocks, so an axis of 36 takes as long as one of 48, and some are
given up for slower ones where an axis is no multiple of a number. Neither is assumed: for every operator and every axis
of its contraction (``o`` and ``i`` of a convolution), the block and the alignment that explain the measurements best
are looked for. On an AVX-512 machine ONNX Runtime's convolutions are found to work in blocks of 16 and to fall back to
a slower kernel where the input channels are no multiple of 4, which is what its source says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.coupling.widths import Amount, Counts
from graphprune.errors import GraphpruneError
from graphprune.latency.layers import Layer

__all__ = ["Grain", "Points", "StepCurves", "fit_curves"]

Floats = NDArray[np.float64]

_BLOCKS = (1, 2, 4, 8, 16, 32, 64)
_ALIGNMENTS = (1, 2, 4, 8, 16)
_GAIN = 0.02  # share of the squared error that a coarser grain must explain before it is believed
_SMALL = 0.05  # of a layer's longest time: shorter ones do not weigh more than this


@dataclass(frozen=True)
class Points:
    """What was measured of layers of one signature: ``widths`` of shape ``(points, groups)`` in units kept, in the
    order of the layer's groups, and ``ns`` of shape ``(points,)``.
    """

    widths: Floats
    ns: Floats

    def __add__(self, other: Points) -> Points:
        return Points(np.concatenate([self.widths, other.widths]), np.concatenate([self.ns, other.ns]))


@dataclass(frozen=True, order=True)
class Grain:
    """How one axis of an operator's contraction enters its time: in blocks of ``block``, with a slower kernel where the
    size is no multiple of ``alignment``.
    """

    operator: str
    letter: str
    block: int = 1
    alignment: int = 1


@dataclass(frozen=True)
class StepCurves:
    """The fitted curves of a network's layers. ``coefficients`` has shape ``(layers, features)``, in nanoseconds."""

    layers: tuple[Layer, ...]
    grains: tuple[Grain, ...]
    coefficients: Floats = field(repr=False)

    def time(self, counts: Counts) -> Amount:
        """Nanoseconds of one inference; ``counts`` holds the kept units of every group that the layers depend on."""
        total: Amount = 0.0
        for index in range(len(self.layers)):
            total = total + self.layer_time(index, counts)
        return total

    def layer_time(self, index: int, counts: Counts) -> Amount:
        """Nanoseconds of one layer."""
        row = self.coefficients[index]
        value: Amount = 0.0
        for coefficient, feature in zip(row, self.features(index, counts), strict=True):
            if coefficient:
                value = value + coefficient * feature
        return value

    def features(self, index: int, counts: Counts) -> tuple[Amount, ...]:
        """What a layer's time is a sum of, each with its coefficient."""
        return _features(self.layers[index], counts, self._grain)

    def sweep(self, group: str, widths: Floats, counts: Mapping[str, float]) -> Floats:
        """Nanoseconds of the layers that a group is in, at each of its widths, everything else at ``counts``."""
        total = np.zeros(len(widths))
        for index in self.touching.get(group, ()):
            total = total + self.layer_time(index, {**counts, group: widths})
        return total

    @cached_property
    def touching(self) -> dict[str, tuple[int, ...]]:
        """Per group id the indices of the layers that depend on it."""
        found: dict[str, list[int]] = {}
        for index, layer in enumerate(self.layers):
            for name in layer.groups:
                found.setdefault(name, []).append(index)
        return {name: tuple(indices) for name, indices in found.items()}

    @cached_property
    def _grain(self) -> dict[tuple[str, str], Grain]:
        return {(grain.operator, grain.letter): grain for grain in self.grains}


def fit_curves(layers: Sequence[Layer], points: Mapping[str, Points]) -> StepCurves:
    """Fit the curves of ``layers`` to measured points by signature.

    Raises:
        GraphpruneError: a layer whose signature was never measured.
    """
    examples: dict[str, Layer] = {}
    for layer in layers:
        if layer.signature not in points:
            raise GraphpruneError(f"no time was measured for layer '{layer.name}' ({layer.signature})")
        examples.setdefault(layer.signature, layer)
    grains: dict[tuple[str, str], Grain] = {}
    for operator in sorted({one.operator for layer in examples.values() for one in layer.contractions}):
        own = [layer for layer in examples.values() if any(one.operator == operator for one in layer.contractions)]
        _search_grains(operator, own, points, grains)
    fitted = {key: _fit(layer, points[key], grains)[0] for key, layer in examples.items()}
    coefficients = np.array([fitted[layer.signature] for layer in layers])
    return StepCurves(tuple(layers), tuple(sorted(grains.values())), coefficients)


def _search_grains(
    operator: str, layers: Sequence[Layer], points: Mapping[str, Points], grains: dict[tuple[str, str], Grain]
) -> None:
    """Coordinate descent over the blocks and alignments of an operator's axes; what does not help stays 1."""
    letters = sorted(
        {
            letter
            for layer in layers
            for one in layer.contractions
            if one.operator == operator
            for letter, size in one.factors
            if size.groups
        }
    )
    for letter in letters:
        grains[operator, letter] = Grain(operator, letter)

    def error() -> float:
        return sum(_fit(layer, points[layer.signature], grains)[1] for layer in layers)

    best = error()
    for _ in range(2):
        before = dict(grains)
        for letter in letters:
            for name, options in (("block", _BLOCKS), ("alignment", _ALIGNMENTS)):
                kept = grains[operator, letter]
                for option in options:
                    block, alignment = (option, kept.alignment) if name == "block" else (kept.block, option)
                    tried = grains[operator, letter] = Grain(operator, letter, block, alignment)
                    found = error()
                    if found < best * (1 - _GAIN):
                        best, kept = found, tried
                    grains[operator, letter] = kept
        if grains == before:
            break


def _fit(layer: Layer, points: Points, grains: Mapping[tuple[str, str], Grain]) -> tuple[Floats, float]:
    """Coefficients, never negative, and the weighted squared error relative to the layer's size."""
    from scipy.optimize import nnls

    counts = {name: points.widths[:, index] for index, name in enumerate(layer.groups)}
    columns = [np.broadcast_to(np.asarray(one, float), points.ns.shape) for one in _features(layer, counts, grains)]
    matrix = np.stack(columns, axis=1)
    scale = matrix.max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0
    top = points.ns.max(initial=0.0)
    if top <= 0:
        return np.zeros(len(columns)), 0.0
    weight = 1.0 / np.sqrt(np.maximum(points.ns, _SMALL * top))
    solution, residual = nnls(matrix / scale * weight[:, None], points.ns * weight)
    return solution / scale, float(residual**2)


def _features(layer: Layer, counts: Counts, grains: Mapping[tuple[str, str], Grain]) -> tuple[Amount, ...]:
    """One, multiply-accumulates in whole blocks, elements moved, weights; and the middle two where misaligned."""
    work: Amount = 0.0
    misaligned: Any = False
    for one in layer.contractions:
        product: Amount = 1.0
        for letter, size in one.factors:
            value = size(counts)
            grain = grains.get((one.operator, letter))
            if grain is not None and size.groups:
                if grain.alignment > 1:
                    misaligned = misaligned | ((np.round(value) % grain.alignment != 0) & (value > 1))
                # Shares of groups that stand in several places are fractions; 15.999 is a whole block of 16.
                value = np.ceil(np.round(value, 3) / grain.block) * grain.block
            product = product * value
        work = work + product
    moved = layer.moved(counts)
    return 1.0, work, moved, layer.weights(counts), misaligned * work, misaligned * moved
