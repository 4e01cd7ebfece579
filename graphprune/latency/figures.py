"""The figure of measured times that a target, the gate and the reports are on: the median, or the 90th percentile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graphprune.latency.statistics import Estimate, percentile_ratio, samples_for

if TYPE_CHECKING:
    from graphprune.latency.measure import MeasureOptions
    from graphprune.latency.results import Comparison, Measurement

__all__ = ["WORDS", "Figure", "Statistic", "enough_for", "figure_of", "recorded_ratio"]

Statistic = Literal["median", "p90"]

WORDS: Mapping[str, str] = {"median": "median", "p90": "90th percentile"}
_LEVEL = 90.0


@dataclass(frozen=True)
class Figure:
    """One figure of a comparison: that of both networks in milliseconds, and the ratio B / A with its interval."""

    statistic: Statistic
    a_ms: float
    b_ms: float
    ratio: Estimate

    @property
    def words(self) -> str:
        """What it is called."""
        return WORDS[self.statistic]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "statistic": self.statistic,
            "a_ms": self.a_ms,
            "b_ms": self.b_ms,
            "ratio": self.ratio.value,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
        }


def enough_for(options: MeasureOptions, statistic: Statistic) -> MeasureOptions:
    """The options under which a measurement gives the figure: a percentile takes single runs, and many of them."""
    if statistic == "median":
        return options
    return replace(options, single_runs=True, min_iterations=max(options.min_iterations, 2 * samples_for(_LEVEL)))


def figure_of(found: Comparison, statistic: Statistic) -> Figure:
    """The figure of a comparison that was measured as :func:`enough_for` says.

    The median's ratio is the median over blocks, a percentile's the quotient of both percentiles.

    Raises:
        ValueError: too few samples for a percentile.
    """
    if statistic == "median":
        ratio = Estimate(found.ratio, found.ratio_low, found.ratio_high)
        return Figure(statistic, found.a.median_ms, found.b.median_ms, ratio)
    first, second = (_rounds(one) for one in (found.a, found.b))
    ratio = percentile_ratio(first, second, _LEVEL, confidence=found.confidence, seed=0)
    a_ms, b_ms = (_percentile(one.samples_ns) / 1e6 for one in (found.a, found.b))
    return Figure(statistic, a_ms, b_ms, ratio)


def recorded_ratio(latency: Mapping[str, Any], statistic: Statistic) -> float:
    """The figure's ratio of what :meth:`Comparison.to_json` wrote into a manifest."""
    if statistic == "median":
        return float(latency["ratio"])
    return _percentile(latency["b"]["samples_ns"]) / _percentile(latency["a"]["samples_ns"])


def _rounds(one: Measurement) -> list[Any]:
    import numpy as np

    return np.split(np.array(one.samples_ns, dtype=np.float64), np.cumsum(one.round_sizes)[:-1])


def _percentile(samples: Any) -> float:
    import numpy as np

    return float(np.percentile(np.asarray(samples, dtype=np.float64), _LEVEL))
