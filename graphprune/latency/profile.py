"""Measures what step curves are fitted to: whole networks of several widths, layer by layer.

Layers are timed where they will run: within the whole network, with the fusions, layouts and caches that they have
there. A network alone gives one width per layer, so it is cut to many *scenarios*. The runtime's own trace tells how a
scenario's time is shared among its layers, but being watched costs time; how much the whole takes is therefore
measured unwatched, in turn with the original network, so that a machine that gets slower meanwhile does not matter.

New scenarios are added until the curves predict those that they have not seen.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune import progress
from graphprune.backends.base import BackendOptions
from graphprune.errors import UsageError
from graphprune.latency.curves import Floats, Points, StepCurves, fit_curves
from graphprune.latency.layers import Layer
from graphprune.latency.process import run_worker

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group, Keep, Mask

__all__ = [
    "ProfileOptions",
    "Profiled",
    "Scenario",
    "measure_scenarios",
    "profile_network",
    "random_plans",
    "scenarios",
    "spread",
]

# Multiples in which random widths are drawn, in turn: most where kernels like them, some to see what the others cost.
_GRAINS = (16, 8, 32, 4, 16, 1, 8, 2)
_BATCH = 8
_SECONDS = 0.25  # of each scenario
_BATCH_BYTES = 1 << 30


@dataclass(frozen=True)
class ProfileOptions:
    """How to profile.

    Attributes:
        backend, backend_options: see :class:`graphprune.latency.measure.MeasureOptions`.
        seconds: Wall time after which no more scenarios are added.
        fewest, most: Scenarios.
        error, tail: Stop when the median and the 90th percentile of the relative errors of the last few predicted
            times are below these.
        floor: Least share of a group's units in a scenario.
        seed: Of the scenarios.
    """

    backend: str = "onnxruntime"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    seconds: float = 240.0
    fewest: int = 24
    most: int = 72
    error: float = 0.03
    tail: float = 0.08
    floor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.fewest <= self.most:
            raise UsageError(f"fewest={self.fewest}, most={self.most}: give 2 or more, and not more than the most.")
        if not (self.seconds > 0 and self.error > 0 and self.tail > 0 and 0 <= self.floor < 1):
            raise UsageError("seconds, error and tail are above 0, and floor is a share below 1.")


@dataclass(frozen=True)
class Scenario:
    """One network of other widths, measured.

    ``counts``: kept units of every group; ``ratio``: its time over the original's; ``layer_ns``: its time shared among
    the layers, shape ``(layers,)``, which sum up to ``ratio`` times the original's.
    """

    counts: Mapping[str, int]
    ratio: float
    layer_ns: Floats


@dataclass(frozen=True)
class Profiled:
    """What was measured of a network.

    Attributes:
        points: By layer signature.
        original_ns: Median time of the original.
        errors: Relative errors of the scenarios' predicted times, each by curves that had not seen it.
        seconds: Wall time.
        fingerprint: What the times are valid for.
    """

    points: Mapping[str, Points]
    original_ns: float
    errors: tuple[float, ...]
    seconds: float
    fingerprint: Mapping[str, Any]


def profile_network(
    layers: Sequence[Layer],
    groups: Sequence[Group],
    sizes: Mapping[str, int],
    source: Path,
    write: Callable[[Keep, Path], None],
    feeds: Mapping[str, np.ndarray],
    options: ProfileOptions,
) -> Profiled:
    """Measure scenarios until the curves predict what comes next.

    Args:
        layers: of the network, see :func:`graphprune.latency.layers.layers_of`.
        groups: those that may be cut.
        sizes: units of every group of the network.
        source: the original's file.
        write: writes the network that keeps the given units to a file.
        feeds: one array per input.
        options: see :class:`ProfileOptions`.
    """
    start = time.monotonic()
    measured: list[Scenario] = []
    errors: list[float] = []
    original: list[float] = []
    fingerprint: Mapping[str, Any] = {}
    draw = scenarios(groups, options.floor, options.seed)
    with progress.step("profile"):
        while len(measured) < options.most:
            count = _BATCH if measured else 2 * _BATCH  # nothing can be predicted before
            found, base, fingerprint = _measure(layers, sizes, source, write, feeds, options, islice(draw, count))
            if measured:
                curves = fit_curves(layers, points_of(layers, measured, float(np.median(original))))
                errors += [abs(_predict(curves, one, float(np.median(original))) / one.ratio - 1) for one in found]
            measured += found
            original += base
            progress.advance(len(measured) / options.most)
            late = errors[-_BATCH:]
            settled = late and np.median(late) <= options.error and np.quantile(late, 0.9) <= options.tail
            if (settled and len(measured) >= options.fewest) or time.monotonic() - start > options.seconds:
                break
    original_ns = float(np.median(original))
    points = points_of(layers, measured, original_ns)
    return Profiled(points, original_ns, tuple(errors), time.monotonic() - start, fingerprint)


def measure_scenarios(
    layers: Sequence[Layer],
    sizes: Mapping[str, int],
    source: Path,
    write: Callable[[Keep, Path], None],
    feeds: Mapping[str, np.ndarray],
    options: ProfileOptions,
    plans: Sequence[Mapping[str, Mask]],
) -> list[Scenario]:
    """Measure given plans as :func:`profile_network` does its own, but longer: to hold curves to what they did not see.

    Curves are fitted to many scenarios and average out what a single one scatters; here each one counts by itself.
    """
    found: list[Scenario] = []
    draw = iter(plans)
    while len(found) < len(plans):
        found += _measure(layers, sizes, source, write, feeds, options, islice(draw, _BATCH), 4 * _SECONDS)[0]
    return found


def random_plans(groups: Sequence[Group], count: int, seed: int) -> dict[str, list[dict[str, Mask]]]:
    """Random plans by kind, ``count`` in all: widths of any kind, and multiples of 8; for holding curves to them."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[dict[str, Mask]]] = {"any": [], "multiples of 8": []}
    for index in range(count):
        kind, grain = ("any", 1) if index % 3 == 0 else ("multiples of 8", 8)
        shares = np.clip(generator.uniform(0.3, 1.0) * generator.uniform(0.6, 1.4, len(groups)), 0.1, 1.0)
        found[kind].append(
            {one.id: spread(one, _rounded(one, float(x), grain, 0.1)) for one, x in zip(groups, shares, strict=True)}
        )
    return found


def points_of(layers: Sequence[Layer], measured: Sequence[Scenario], original_ns: float) -> dict[str, Points]:
    """The scenarios' layer times by signature, in nanoseconds."""
    points: dict[str, Points] = {}
    for index, layer in enumerate(layers):
        widths = np.array([[one.counts[name] for name in layer.groups] for one in measured], dtype=np.float64)
        found = Points(
            widths.reshape(len(measured), len(layer.groups)),
            np.array([one.layer_ns[index] for one in measured]) * original_ns,
        )
        points[layer.signature] = points[layer.signature] + found if layer.signature in points else found
    return points


def _predict(curves: StepCurves, one: Scenario, original_ns: float) -> float:
    return float(curves.time({name: float(count) for name, count in one.counts.items()})) / original_ns


def scenarios(groups: Sequence[Group], floor: float, seed: int) -> Iterator[dict[str, Mask]]:
    """Kept units of the groups, without end: the original, even cuts, then random ones of every grain."""
    yield {one.id: np.ones(one.size, dtype=np.bool_) for one in groups}
    for share in (0.75, 0.5, 0.25, 0.875, 0.625, 0.375):
        yield {one.id: spread(one, _rounded(one, share, 32, floor)) for one in groups}
    generator = np.random.default_rng(seed)
    index = 0
    while True:
        grain = _GRAINS[index % len(_GRAINS)]
        level = generator.uniform(0.25, 1.0)
        shares = np.clip(level * generator.uniform(0.5, 1.5, len(groups)), floor, 1.0)
        yield {
            one.id: spread(one, _rounded(one, float(share), grain, floor))
            for one, share in zip(groups, shares, strict=True)
        }
        index += 1


def _rounded(group: Group, share: float, grain: int, floor: float) -> int:
    """A count near ``share`` of the group: a multiple of ``grain`` channels where the group is large enough for it."""
    while grain > 1 and group.size < 2 * grain:
        grain //= 2
    count = round(share * group.size / grain) * grain
    least = max(1, math.ceil(floor * group.size))
    return min(group.size, max(count, -(-least // grain) * grain))


def spread(group: Group, count: int) -> Mask:
    """``count`` units spread evenly, with one of each set of which one has to stay."""
    kept = np.zeros(group.size, dtype=np.bool_)
    for units in group.covers:
        if not kept[units].any():
            kept[units[0]] = True
    free = np.flatnonzero(~kept)
    missing = count - int(kept.sum())
    if missing > 0:
        kept[free[np.linspace(0, len(free) - 1, missing).round().astype(int)]] = True
    return kept


def _measure(
    layers: Sequence[Layer],
    sizes: Mapping[str, int],
    source: Path,
    write: Callable[[Keep, Path], None],
    feeds: Mapping[str, np.ndarray],
    options: ProfileOptions,
    draw: Iterable[Mapping[str, Mask]],
    seconds: float = _SECONDS,
) -> tuple[list[Scenario], list[float], Mapping[str, Any]]:
    """One process that measures a batch, each network ``seconds`` long in turn with the original.

    Also gives the original's times in nanoseconds, one per scenario, and the fingerprint. The batch ends early where
    its files would take too much of the disk.
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-profile-") as name:
        models: list[Path] = []
        batch: list[Mapping[str, Mask]] = []
        space = _BATCH_BYTES
        for kept in draw:
            models.append(Path(name) / f"{len(batch)}" / "model.onnx")
            models[-1].parent.mkdir()
            write({key: mask for key, mask in kept.items() if not mask.all()}, models[-1])
            batch.append(kept)
            space -= sum(file.stat().st_size for file in models[-1].parent.iterdir())
            if space <= 0:
                break
        job = {
            "task": "profile",
            "models": [str(source.resolve()), *map(str, models)],
            "inputs": list(feeds),
            "backend": options.backend,
            "options": options.backend_options.for_curves().to_json(),
            "duration": seconds,
            "fewest": 2,
            "runs": 8,
            "warm_up_ms": 20.0,
            "warm_up_cap_ms": 400.0,
            "seed": options.seed,
        }
        result, samples = run_worker(job, feeds, None)
    found = []
    for index, kept in enumerate(batch):
        base, own = samples[2 * index], samples[2 * index + 1]
        ratio = float(np.median(_blocks(own) / _blocks(base)))
        shares = _shares(layers, result["layers"][index])
        counts = {**sizes, **{key: int(mask.sum()) for key, mask in kept.items()}}
        found.append(Scenario(counts, ratio, shares * ratio))
    return found, [float(np.median(samples[2 * index])) for index in range(len(batch))], result["fingerprint"]


def _blocks(samples: np.ndarray) -> Floats:
    sums: Floats = np.asarray(samples, dtype=np.float64).reshape(-1, 2).sum(axis=1)
    return sums


def _shares(layers: Sequence[Layer], times: Sequence[Mapping[str, Any]]) -> Floats:
    """How a run's time is shared among the layers. What the runtime puts in between (a change of layout) counts for the
    layer that ran before it.
    """
    place = {node: index for index, layer in enumerate(layers) for node in layer.nodes}
    total = np.zeros(len(layers))
    last = 0
    for one in times:
        # A node of a body has no place in the file's own graph, but the runtime calls its layer after it.
        last = next((place[node] for node in (*one["nodes"], one["name"]) if node in place), last)
        total[last] += one["ns"]
    if not total.any():  # every layer is shorter than what the runtime's clock can tell
        total += 1.0
    shares: Floats = total / total.sum()
    return shares
