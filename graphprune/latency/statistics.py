"""What timing samples mean: robust intervals by bootstrap, and percentiles only where there are samples enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Estimate",
    "block_ratios",
    "coefficient_of_variation",
    "fewest",
    "median_estimate",
    "percentile_ratio",
    "percentiles",
    "ratio_of_medians",
    "samples_for",
]

_BEYOND = 10  # samples that must lie beyond a percentile before it is worth a figure
_CHUNK = 4_000_000  # resampled values held at once


@dataclass(frozen=True)
class Estimate:
    """A median with its confidence interval, in the unit of the samples. ``low <= value <= high``."""

    value: float
    low: float
    high: float


def fewest(confidence: float) -> int:
    """The fewest samples whose own range holds the median with that confidence: ``n`` with ``2 * 0.5**n <= 1 - c``."""
    return math.ceil(math.log2(2.0 / (1.0 - confidence)))


def block_ratios(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    """``time of B / time of A`` of each ABBA block, shape ``(blocks,)``; samples ``2i`` and ``2i + 1`` are block ``i``.

    Both halves of a block share the machine's state of that moment, and a drift that is linear within the block
    cancels.
    """
    sums = [np.asarray(samples, dtype=np.float64).reshape(-1, 2).sum(axis=1) for samples in (a, b)]
    ratios: np.ndarray = sums[1] / sums[0]
    return ratios


def median_estimate(
    rounds: Sequence[np.ndarray], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The median of all samples, with a percentile interval by a bootstrap in two stages.

    Rounds are drawn with replacement, because where a process happens to lay its memory speeds up or slows down all
    that it measures (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong!"), then
    samples within them. There, runs of ``n ** (1/3)`` consecutive ones stay together (Politis and Romano 1992, "A
    circular block-resampling procedure for stationary data"), because what disturbs a machine outlasts one sample. A
    bootstrap over few clusters is too sure of itself: for ``k`` rounds the interval is widened by ``t(k - 1) / z *
    sqrt(k / (k - 1))``, and it is never narrower than that of the sign test over all samples. One round alone says
    nothing about other processes.

    Args:
        rounds: One array of positive samples, in order of time, per measuring process; all of about one size.
        confidence: Of the interval.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Raises:
        ValueError: fewer samples than :func:`fewest` says.
    """
    from scipy import stats

    values = np.concatenate([np.asarray(samples, dtype=np.float64) for samples in rounds])
    n, k = values.size, len(rounds)
    if n < fewest(confidence):
        raise ValueError(f"{n} samples: a {confidence:.0%} interval of a median takes {fewest(confidence)} or more.")
    tail = (1.0 - confidence) / 2.0
    medians = _bootstrap_medians(values, np.array([len(samples) for samples in rounds]), resamples, seed)
    low, high = np.quantile(medians, [tail, 1.0 - tail])
    value = np.median(values)
    if k > 1:
        wider = stats.t.ppf(1.0 - tail, k - 1) / stats.norm.ppf(1.0 - tail) * math.sqrt(k / (k - 1))
        low, high = value * (low / value) ** wider, value * (high / value) ** wider  # never below 0
    ordered = np.sort(values)
    rank = max(1, int(stats.binom.ppf(tail, n, 0.5)))
    return Estimate(float(value), float(min(low, ordered[rank - 1], value)), float(max(high, ordered[n - rank], value)))


def _bootstrap_medians(values: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Medians of resampled data, shape ``(resamples,)``; as many samples are drawn from each round drawn."""
    k = len(sizes)
    offsets = np.cumsum(sizes) - sizes
    drawn = max(1, round(values.size / k))
    length = max(1, round(drawn ** (1 / 3)))
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // (drawn * k))
    results = []
    for done in range(0, resamples, step):
        which = generator.integers(0, k, (min(step, resamples - done), k, 1))
        starts = generator.integers(0, sizes[which], (*which.shape[:2], math.ceil(drawn / length)))
        within = (starts[..., None] + np.arange(length)).reshape(*which.shape[:2], -1)[..., :drawn]
        index = offsets[which] + within % sizes[which]
        results.append(np.median(values[index].reshape(len(which), -1), axis=1))
    return np.concatenate(results)


def ratio_of_medians(a: Estimate, b: Estimate) -> Estimate:
    """``a / b`` of two independent measurements, with an interval out of both of theirs.

    On the logarithms, by the method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence
    intervals about a sum or difference"): no samples are paired, so a drift between the two is not cancelled.
    """
    value = a.value / b.value
    below = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value))
    above = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low))
    return Estimate(value, value * math.exp(-below), value * math.exp(above))


def percentile_ratio(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    level: float,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The ``level`` percentile of ``b`` over that of ``a``, by a bootstrap over rounds and, within them, samples.

    Args:
        a, b: One array of positive samples per measuring process; the two networks of a comparison.
        level: Such as 90.
        confidence, resamples, seed: As in :func:`median_estimate`, whose widening for few rounds is used as well.

    Raises:
        ValueError: fewer samples than :func:`samples_for` says.
    """
    from scipy import stats

    fewest_of = min(sum(len(samples) for samples in rounds) for rounds in (a, b))
    if fewest_of < samples_for(level):
        raise ValueError(f"{fewest_of} samples: a {level:g}th percentile takes {samples_for(level)} or more.")
    generator = np.random.default_rng(seed)
    k = len(a)
    ratios = np.empty(resamples)
    for index in range(resamples):
        drawn = generator.integers(0, k, k)
        first, second = (
            np.percentile(np.concatenate([generator.choice(rounds[one], len(rounds[one])) for one in drawn]), level)
            for rounds in (a, b)
        )
        ratios[index] = second / first
    value = float(np.percentile(np.concatenate(b), level) / np.percentile(np.concatenate(a), level))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    wider = 1.0
    if k > 1:
        wider = stats.t.ppf(1.0 - tail, k - 1) / stats.norm.ppf(1.0 - tail) * math.sqrt(k / (k - 1))
    return Estimate(
        value, float(value * min(low / value, 1.0) ** wider), float(value * max(high / value, 1.0) ** wider)
    )


def samples_for(level: float) -> int:
    """Samples from which a percentile is given, so that 10 lie beyond it on its nearer side."""
    return math.ceil(round(100.0 * _BEYOND / min(level, 100.0 - level), 6))


def percentiles(samples: Sequence[float] | np.ndarray, levels: Sequence[float] = (90, 95, 99)) -> dict[str, float]:
    """Percentiles by name (``p90`` ...), each only when at least 10 samples lie beyond it: p99 takes 1000 samples."""
    values = np.asarray(samples, dtype=np.float64)
    known = [level for level in levels if values.size >= samples_for(level)]
    return {f"p{level:g}": float(np.percentile(values, level)) for level in known}


def coefficient_of_variation(samples: Sequence[float] | np.ndarray) -> float:
    """Standard deviation over mean; 0 for a single sample."""
    values = np.asarray(samples, dtype=np.float64)
    return float(values.std(ddof=1) / values.mean()) if values.size > 1 else 0.0
