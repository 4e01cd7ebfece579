"""Measures a network, or compares two: fresh processes, warm-up, interleaving, bootstrap interval, raw samples kept.

The time is split over rounds, each a process of its own, because where a process lays its memory is drawn once and
shifts every sample in it: one process found a recogniser 4.1 % faster than itself, with an interval 1.2 % wide.

A comparison interleaves both networks in one process and judges each ABBA block by itself, so that a machine that gets
slower or faster meanwhile does so for both. Idle threads must not spin then: the pool of the network that waits would
take the cores of the one that runs. On two cores, two equal recognisers with spinning pools took 42 ms instead of
21 ms each; a pool that only spins while it runs keeps that for a quiet machine but gave ratios of 2.06 +- 0.03 between
equal networks under an outside load. What comparisons give up for it is in the fingerprint (``spinning``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import BackendOptions
from graphprune.errors import NoiseError, UsageError
from graphprune.latency.process import run_worker

if TYPE_CHECKING:
    import numpy as np

    from graphprune.latency.statistics import Estimate

__all__ = ["Comparison", "MeasureOptions", "Measurement", "Noise", "WarmUp", "measure"]


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        duration: Least seconds of timed work, of all rounds and both networks together, warm-up apart.
        rounds: Processes that share the work. With one, the interval is blind to what differs between processes.
        min_iterations: Least samples of each network.
        warm_up_ms: Least milliseconds of warm-up of each network in each round, until two windows agree within 5 %.
        warm_up_cap_ms: When warming up stops even if they do not agree.
        max_width: Add rounds while the interval is wider than this share of the median (or ratio); None: never add.
        max_duration: Seconds, loading and warm-up included, after which no more rounds are added.
        confidence: Of the intervals, e.g. 0.95.
        resamples: Bootstrap resamples.
        seed: Of the order of the blocks and of the bootstrap.
        backend: A name that :func:`graphprune.backends.get_backend` takes.
        backend_options: Threads and providers. ``spinning`` holds for one network; comparisons turn it off.
        timeout: Seconds after which a round is ended as hanging; None: never.

    Raises:
        UsageError: a value out of its range.
    """

    duration: float = 3.0
    rounds: int = 6
    min_iterations: int = 10
    warm_up_ms: float = 200.0
    warm_up_cap_ms: float = 2000.0
    max_width: float | None = None
    max_duration: float = 30.0
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    backend: str = "onnxruntime"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("min_iterations", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)}: give {least} or more.")
        if not (self.duration >= 0 and 0 <= self.warm_up_ms <= self.warm_up_cap_ms):
            raise UsageError(
                f"duration={self.duration} s, warm_up_ms={self.warm_up_ms}, warm_up_cap_ms={self.warm_up_cap_ms}: "
                "none may be negative, and the cap not below the warm-up."
            )
        if not 0.5 <= self.confidence <= 0.999:
            raise UsageError(f"confidence={self.confidence}: give a share between 0.5 and 0.999, such as 0.95.")
        if self.max_width is not None and not self.max_width > 0:
            raise UsageError(f"max_width={self.max_width}: give a share above 0, such as 0.03, or leave it out.")
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"timeout={self.timeout}: give seconds above 0, or leave it out.")


@dataclass(frozen=True)
class WarmUp:
    """The warm-up of one network: milliseconds and runs of all rounds together, and whether two successive windows
    agreed before the cap in every round.
    """

    ms: float
    runs: int
    settled: bool


@dataclass(frozen=True)
class Noise:
    """What disturbed the machine while samples were taken; None where the system does not tell.

    Attributes:
        steal_share: Share of all processor time that the hypervisor gave to other machines.
        other_cores: Cores that other processes kept busy, on average.
        involuntary_switches: How often the scheduler took a core away from the measuring process.
        load_average: Of one minute, before the measurement.
    """

    steal_share: float | None
    other_cores: float | None
    involuntary_switches: int | None
    load_average: float | None

    def __str__(self) -> str:
        parts = []
        if self.other_cores is not None:
            parts.append(f"other processes kept {self.other_cores:.1f} cores busy")
        if self.steal_share is not None:
            parts.append(f"{self.steal_share:.1%} of the time was stolen by the hypervisor")
        if self.involuntary_switches is not None:
            parts.append(f"{self.involuntary_switches} involuntary context switches")
        return ", ".join(parts) or "nothing is known about the machine's load"


@dataclass(frozen=True)
class Measurement:
    """Times of one network.

    Attributes:
        samples_ns: Nanoseconds of one inference, in order of time. Each is the mean of ``repeats`` runs. In a
            comparison samples ``2i`` and ``2i + 1`` of both networks belong to block ``i``.
        round_sizes: Samples of each round, in order; rounds are processes of their own.
        repeats: Runs per sample: 1, or as many as make 200 microseconds.
        median_ms, mean_ms, min_ms, max_ms: Of the samples, in milliseconds.
        cov: Coefficient of variation of the samples (trtexec warns above 0.025).
        percentiles_ms: ``p90``, ``p95``, ``p99`` in milliseconds, each only where at least 10 samples lie beyond it,
            and none where a sample is the mean of several runs, for that hides the tail.
        interval_ms: Confidence interval of the median.
        confidence: Of the interval.
        iterations: Number of samples.
        warm_up: What was run before.
        noise: What disturbed the measurement.
        fingerprint: Device, backend, version, threads, providers, precision: what the times are valid for.
    """

    samples_ns: tuple[int, ...]
    round_sizes: tuple[int, ...]
    repeats: int
    median_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    cov: float
    percentiles_ms: dict[str, float]
    interval_ms: tuple[float, float]
    confidence: float
    iterations: int
    warm_up: WarmUp
    noise: Noise
    fingerprint: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All fields, in JSON types."""
        return {key: _json_types(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Two networks measured against each other.

    Attributes:
        a, b: Their own times.
        ratio: Median over the ABBA blocks of (time of B / time of A): below 1, B is faster.
        ratio_low, ratio_high: Its confidence interval, by bootstrap over rounds and blocks.
        confidence: Of the interval.
        blocks: Number of ABBA blocks.
        noise: What disturbed the measurement.
        fingerprint: What the ratio is valid for.
    """

    a: Measurement
    b: Measurement
    ratio: float
    ratio_low: float
    ratio_high: float
    confidence: float
    blocks: int
    noise: Noise
    fingerprint: dict[str, Any]

    @property
    def width(self) -> float:
        """Width of the interval relative to the ratio: 0.03 for 0.600 within [0.591, 0.609]."""
        return (self.ratio_high - self.ratio_low) / self.ratio

    def too_noisy(self, max_width: float) -> bool:
        """Whether the interval is wider than ``max_width``, relative to the ratio."""
        return self.width > max_width

    def require_quiet(self, max_width: float) -> None:
        """Raises NoiseError, with what disturbed the machine, when :meth:`too_noisy`."""
        if self.too_noisy(max_width):
            raise NoiseError(
                f"the machine is too noisy to compare: the ratio {self.ratio:.3f} has the interval "
                f"[{self.ratio_low:.3f}, {self.ratio_high:.3f}], {self.width:.1%} of the ratio wide where "
                f"{max_width:.1%} is allowed ({self.noise}). Measure longer, or on an idle machine."
            )

    def to_json(self) -> dict[str, Any]:
        """All fields, in JSON types."""
        return {key: _json_types(value) for key, value in asdict(self).items()}


def measure(
    model_a: Path,
    model_b: Path | None,
    feeds: Mapping[str, np.ndarray] | None,
    options: MeasureOptions | None = None,
) -> Measurement | Comparison:
    """Times ``model_a``, or compares ``model_b`` with it, on ``feeds``, in a fresh process.

    Args:
        model_a: ONNX file.
        model_b: ONNX file with the same inputs, or None.
        feeds: One array per input; None for networks without inputs.
        options: See :class:`MeasureOptions`.

    Raises:
        InputError: a model cannot be read or run on the feeds, or the measuring process crashed on it.
        UsageError: an unknown backend or provider.
        GraphpruneError: the measuring process failed otherwise, or took longer than the timeout.
    """
    options = options or MeasureOptions()
    models = [Path(model).resolve() for model in (model_a, model_b) if model is not None]
    rounds = _run_rounds(models, feeds or {}, options)
    noise = _mean_noise([Noise(**result["noise"]) for result, _ in rounds])
    measured = [_summarise(rounds, index, noise, options) for index in range(len(models))]
    if model_b is None:
        return measured[0]
    a, b = measured
    estimate = _estimate(rounds, options)
    return Comparison(
        a=a,
        b=b,
        ratio=estimate.value,
        ratio_low=estimate.low,
        ratio_high=estimate.high,
        confidence=options.confidence,
        blocks=a.iterations // 2,
        noise=noise,
        fingerprint=a.fingerprint,
    )


_Round = tuple[dict[str, Any], list["np.ndarray"]]


def _run_rounds(models: list[Path], feeds: Mapping[str, np.ndarray], options: MeasureOptions) -> list[_Round]:
    from graphprune.latency import statistics

    backend_options = options.backend_options
    least = options.min_iterations
    if len(models) == 2:
        backend_options = replace(backend_options, spinning=False)
        least = -(-least // 2)  # a block holds two samples of each
    least = max(least, statistics.fewest(options.confidence))
    repeats: list[int | None] = [None] * len(models)
    rounds: list[_Round] = []
    start = time.monotonic()
    for index in itertools.count():
        order = list(range(len(models)))
        job = {
            "models": [str(model) for model in models],
            "load_order": order if index % 2 == 0 else order[::-1],
            "repeats": repeats,
            "inputs": list(feeds),
            "backend": options.backend,
            "threads": backend_options.threads,
            "providers": list(backend_options.providers),
            "spinning": backend_options.spinning,
            "duration": options.duration / options.rounds,
            "fewest": -(-least // options.rounds),
            "warm_up_ms": options.warm_up_ms,
            "warm_up_cap_ms": options.warm_up_cap_ms,
            "seed": options.seed + index,
        }
        result, samples = run_worker(job, feeds, options.timeout)
        repeats = result["repeats"]
        rounds.append((result, samples))
        if len(rounds) < options.rounds:
            continue
        # Going on depends on the width alone, never on the value, so that it does not favour a result.
        late = time.monotonic() - start >= options.max_duration
        if options.max_width is None or late or _width(rounds, options) <= options.max_width:
            break
    return rounds


def _estimate(rounds: list[_Round], options: MeasureOptions, index: int | None = None) -> Estimate:
    """Milliseconds of model ``index``; None: the ratio of the second to the first."""
    from graphprune.latency import statistics

    values = []
    for result, samples in rounds:
        each = [totals / (count * 1e6) for totals, count in zip(samples, result["repeats"], strict=True)]
        values.append(statistics.block_ratios(each[0], each[1]) if index is None else each[index])
    return statistics.median_estimate(
        values, confidence=options.confidence, resamples=options.resamples, seed=options.seed
    )


def _width(rounds: list[_Round], options: MeasureOptions) -> float:
    estimate = _estimate(rounds, options, None if len(rounds[0][1]) == 2 else 0)
    return (estimate.high - estimate.low) / estimate.value


def _mean_noise(noises: list[Noise]) -> Noise:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    switches = [noise.involuntary_switches for noise in noises if noise.involuntary_switches is not None]
    return Noise(
        steal_share=mean([noise.steal_share for noise in noises]),
        other_cores=mean([noise.other_cores for noise in noises]),
        involuntary_switches=sum(switches) if switches else None,
        load_average=noises[0].load_average,
    )


def _summarise(rounds: list[_Round], index: int, noise: Noise, options: MeasureOptions) -> Measurement:
    import numpy as np

    from graphprune.latency import statistics

    first = rounds[0][0]
    repeats = first["repeats"][index]
    totals_ns = [samples[index] for _, samples in rounds]
    ms = np.concatenate(totals_ns) / (repeats * 1e6)
    estimate = _estimate(rounds, options, index)
    warm_ups = [result["warm_ups"][index] for result, _ in rounds]
    return Measurement(
        samples_ns=tuple(round(total / repeats) for totals in totals_ns for total in totals.tolist()),
        round_sizes=tuple(len(totals) for totals in totals_ns),
        repeats=repeats,
        median_ms=estimate.value,
        mean_ms=float(ms.mean()),
        min_ms=float(ms.min()),
        max_ms=float(ms.max()),
        cov=statistics.coefficient_of_variation(ms),
        percentiles_ms=statistics.percentiles(ms) if repeats == 1 else {},
        interval_ms=(estimate.low, estimate.high),
        confidence=options.confidence,
        iterations=len(ms),
        warm_up=WarmUp(
            ms=sum(warm_up["ms"] for warm_up in warm_ups),
            runs=sum(warm_up["runs"] for warm_up in warm_ups),
            settled=all(warm_up["settled"] for warm_up in warm_ups),
        ),
        noise=noise,
        fingerprint=first["fingerprint"],
    )


def _json_types(value: Any) -> Any:
    """Tuples become lists, so that what is compared after a round trip is equal."""
    if isinstance(value, dict):
        return {key: _json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_types(item) for item in value]
    return value
