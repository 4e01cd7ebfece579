"""Measures a network, or compares several: fresh processes, warm-up, interleaving, bootstrap interval, raw samples.

The time is split over rounds, each a process of its own, because where a process lays its memory is drawn once and
shifts every sample in it: one process found a recogniser 4.1 % faster than itself, with an interval 1.2 % wide.

A comparison interleaves the networks in one process and judges each block (ABBA, ABCCBA) by itself, so that a machine
that gets slower or faster meanwhile does so for all. Idle threads must not spin then: the pool of the network that
waits would take the cores of the one that runs. On two cores, two equal recognisers with spinning pools took 42 ms
instead of 21 ms each; a pool that only spins while it runs keeps that for a quiet machine but gave ratios of
2.06 +- 0.03 between equal networks under an outside load. What comparisons give up for it is in the fingerprint
(``spinning``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune import progress
from graphprune.backends.base import BackendOptions
from graphprune.errors import UsageError
from graphprune.latency.process import run_worker
from graphprune.latency.results import Comparison, Measurement, Noise, WarmUp

if TYPE_CHECKING:
    import numpy as np

    from graphprune.latency.statistics import Estimate

__all__ = [
    "Comparison",
    "MeasureOptions",
    "Measurement",
    "Noise",
    "WarmUp",
    "compare_if_worth",
    "measure",
    "measure_in_turn",
]


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        duration: Least seconds of timed work, of all rounds and networks together, warm-up apart.
        rounds: Processes that share the work. With one, the interval is blind to what differs between processes.
        min_iterations: Least samples of each network.
        warm_up_ms: Least milliseconds of warm-up of each network in each round, until two windows agree within 5 %.
        warm_up_cap_ms: When warming up stops even if they do not agree.
        max_width: Add rounds while the interval is wider than this share of the median (or ratio), and measure in every
            round for at least as long as loading and warming up take; None: neither.
        max_duration: Seconds, loading and warm-up included, after which no more rounds are added.
        confidence: Of the intervals, e.g. 0.95.
        resamples: Bootstrap resamples.
        seed: Of the order of the blocks and of the bootstrap.
        backend: A name that :func:`graphprune.backends.get_backend` takes.
        backend_options: Threads, providers, affinity. ``spinning`` holds for one network; comparisons turn it off.
        percentiles: Which percentiles to give where there are samples enough for them.
        single_runs: Time every run by itself, however short: percentiles of short networks, but a coarser median.
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
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    single_runs: bool = False
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
        if not all(0 < level < 100 for level in self.percentiles):
            raise UsageError(f"percentiles={self.percentiles}: give numbers between 0 and 100, such as 99.")
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"timeout={self.timeout}: give seconds above 0, or leave it out.")


def measure(
    model_a: Path,
    model_b: Path | None,
    feeds: Mapping[str, np.ndarray] | None,
    options: MeasureOptions | None = None,
) -> Measurement | Comparison:
    """Times ``model_a``, or compares ``model_b`` with it, on ``feeds``, in fresh processes.

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
    models = [model for model in (model_a, model_b) if model is not None]
    measured, comparisons = measure_in_turn(models, feeds, options)
    return measured[0] if model_b is None else comparisons[0]


def compare_if_worth(
    model_a: Path,
    model_b: Path,
    feeds: Mapping[str, np.ndarray] | None,
    options: MeasureOptions,
    worth: Callable[[Comparison], bool],
) -> Comparison:
    """Compares as :func:`measure` does, but asks once, after half of the rounds (two at least), whether to go on.

    Until then rounds are no longer than ``duration`` says. Arguments and errors are those of :func:`measure`.
    """
    options = replace(options, rounds=max(2, options.rounds))
    models = [Path(model).resolve() for model in (model_a, model_b)]
    half = max(2, -(-options.rounds // 2))

    def look(rounds: list[_Round]) -> bool:
        return worth(_results(rounds, options)[1][0])

    with progress.step("measure"):
        rounds = _run_rounds(models, feeds or {}, options, half, look)
    return _results(rounds, options)[1][0]


def measure_in_turn(
    models: Sequence[Path], feeds: Mapping[str, np.ndarray] | None, options: MeasureOptions | None = None
) -> tuple[tuple[Measurement, ...], tuple[Comparison, ...]]:
    """Times several networks in turn: each one's times, and every one but the first against the first.

    All of them are loaded at once. Arguments and errors are those of :func:`measure`.
    """
    options = options or MeasureOptions()
    with progress.step("measure"):
        return _results(_run_rounds([Path(model).resolve() for model in models], feeds or {}, options), options)


_Round = tuple[dict[str, Any], list["np.ndarray"]]


def _results(rounds: list[_Round], options: MeasureOptions) -> tuple[tuple[Measurement, ...], tuple[Comparison, ...]]:
    noise = _mean_noise([_noise(result["noise"]) for result, _ in rounds])
    count = len(rounds[0][1])
    measured = tuple(_summarise(rounds, index, noise, options) for index in range(count))
    comparisons = []
    for index in range(1, count):
        estimate = _estimate(rounds, options, _ratio_to_first(index))
        comparisons.append(
            Comparison(
                a=measured[0],
                b=measured[index],
                ratio=estimate.value,
                ratio_low=estimate.low,
                ratio_high=estimate.high,
                confidence=options.confidence,
                blocks=measured[0].iterations // 2,
                noise=noise,
                fingerprint=measured[0].fingerprint,
            )
        )
    return measured, tuple(comparisons)


def _run_rounds(
    models: list[Path],
    feeds: Mapping[str, np.ndarray],
    options: MeasureOptions,
    asked: int = 0,
    go_on: Callable[[list[_Round]], bool] | None = None,
) -> list[_Round]:
    """Rounds, as many as the options say; ``go_on`` is asked after the first ``asked`` ones whether to."""
    from graphprune.latency import statistics

    backend_options = options.backend_options
    least = options.min_iterations
    if len(models) > 1:
        backend_options = replace(backend_options, spinning=False)
        least = -(-least // 2)  # a block holds two samples of each
    least = max(least, statistics.fewest(options.confidence))
    repeats: list[int | None] = [1 if options.single_runs else None] * len(models)
    rounds: list[_Round] = []
    ready = 0.0
    start = time.monotonic()
    each = options.duration / options.rounds
    for index in itertools.count():
        began = time.monotonic()
        order = list(range(len(models)))
        job = {
            "models": [str(model) for model in models],
            "load_order": order if index % 2 == 0 else order[::-1],
            "repeats": repeats,
            "inputs": list(feeds),
            "backend": options.backend,
            "options": backend_options.to_json(),
            "duration": each,
            "fewest": -(-least // options.rounds),
            "warm_up_ms": options.warm_up_ms,
            "warm_up_cap_ms": options.warm_up_cap_ms,
            "seed": options.seed + index,
        }
        result, samples = run_worker(job, feeds, options.timeout)
        repeats = result["repeats"]
        rounds.append((result, samples))
        progress.advance(len(rounds) / options.rounds)
        if index == 0:
            ready = min(time.monotonic() - began - each, options.max_duration / options.rounds)
        if go_on is not None and len(rounds) == asked and not go_on(rounds):
            break
        if len(rounds) >= asked and options.max_width is not None:  # then measure for as long as it takes to get ready
            each = max(each, ready)
        if len(rounds) < options.rounds:
            continue
        # Going on depends on the width alone, never on the value, so that it does not favour a result.
        if options.max_width is None:
            break
        if _width(rounds, options) <= options.max_width or time.monotonic() - start >= options.max_duration:
            break
    return rounds


_Samples = list["np.ndarray"]  # milliseconds of one inference, by model


def _ratio_to_first(index: int) -> Callable[[_Samples], np.ndarray]:
    from graphprune.latency import statistics

    return lambda samples: statistics.block_ratios(samples[0], samples[index])


def _estimate(rounds: list[_Round], options: MeasureOptions, of: Callable[[_Samples], np.ndarray]) -> Estimate:
    """The median of what ``of`` makes of each round's samples, with its interval."""
    from graphprune.latency import statistics

    values = []
    for result, samples in rounds:
        values.append(of([totals / (count * 1e6) for totals, count in zip(samples, result["repeats"], strict=True)]))
    return statistics.median_estimate(
        values, confidence=options.confidence, resamples=options.resamples, seed=options.seed
    )


def _width(rounds: list[_Round], options: MeasureOptions) -> float:
    """The widest interval of what the measurement is about: the ratios, or the median of a single network."""
    count = len(rounds[0][1])
    about = [_ratio_to_first(index) for index in range(1, count)] or [lambda samples: samples[0]]
    estimates = [_estimate(rounds, options, of) for of in about]
    return max((one.high - one.low) / one.value for one in estimates)


def _noise(told: Mapping[str, Any]) -> Noise:
    clock = told.get("megahertz")
    return Noise(**{**told, "megahertz": None if clock is None else (clock[0], clock[1])})


def _mean_noise(noises: list[Noise]) -> Noise:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    clocks = [noise.megahertz for noise in noises if noise.megahertz is not None]
    return Noise(
        steal_share=mean([noise.steal_share for noise in noises]),
        other_cores=mean([noise.other_cores for noise in noises]),
        involuntary_switches=total([noise.involuntary_switches for noise in noises]),
        load_average=noises[0].load_average,
        megahertz=(clocks[0][0], clocks[-1][1]) if clocks else None,
        heat_throttles=total([noise.heat_throttles for noise in noises]),
        quota_share=mean([noise.quota_share for noise in noises]),
    )


def _summarise(rounds: list[_Round], index: int, noise: Noise, options: MeasureOptions) -> Measurement:
    import numpy as np

    from graphprune.latency import statistics

    first = rounds[0][0]
    repeats = first["repeats"][index]
    totals_ns = [samples[index] for _, samples in rounds]
    ms = np.concatenate(totals_ns) / (repeats * 1e6)
    estimate = _estimate(rounds, options, lambda samples: samples[index])
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
        percentiles_ms=statistics.percentiles(ms, options.percentiles) if repeats == 1 else {},
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
