"""What measuring gives: times of one network, of one against another, and what disturbed the machine meanwhile."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from graphprune.errors import NoiseError

__all__ = ["Comparison", "Measurement", "Noise", "WarmUp"]

# From where a disturbance is worth a warning. trtexec warns above this coefficient of variation, too.
_COV = 0.025
_STEAL = 0.01
_OTHER_CORES = 0.25
_FREQUENCY = 0.02
_THROTTLED = 0.001


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
        megahertz: Mean clock of the CPUs that could be used, before and after.
        heat_throttles: How often a core was slowed down because it was too hot.
        quota_share: Share of the time that the control group's limit of processor time stopped the process.
    """

    steal_share: float | None
    other_cores: float | None
    involuntary_switches: int | None
    load_average: float | None
    megahertz: tuple[float, float] | None = None
    heat_throttles: int | None = None
    quota_share: float | None = None

    def warnings(self) -> tuple[str, ...]:
        """What of it is enough to doubt the times, a sentence each."""
        said = []
        if self.other_cores is not None and self.other_cores >= _OTHER_CORES:
            said.append(f"other processes kept {self.other_cores:.1f} cores busy; measure on an idle machine")
        if self.steal_share is not None and self.steal_share >= _STEAL:
            said.append(f"the hypervisor took {self.steal_share:.1%} of the processor time for other machines")
        if self.megahertz is not None and abs(self.megahertz[1] / self.megahertz[0] - 1.0) >= _FREQUENCY:
            before, after = self.megahertz
            said.append(
                f"the clock went from {before:.0f} to {after:.0f} MHz; fix it, or warm up longer (--warm-up-ms)"
            )
        if self.heat_throttles:
            said.append(f"cores were slowed down {self.heat_throttles} times because they were too hot")
        if self.quota_share is not None and self.quota_share >= _THROTTLED:
            said.append(f"the container's limit of processor time stopped the process for {self.quota_share:.1%} of it")
        return tuple(said)

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
        percentiles_ms: Those asked for (``p90``, ``p95``, ``p99``) in milliseconds, each only where at least 10
            samples lie beyond it, and none where a sample is the mean of several runs, for that hides the tail.
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

    @property
    def throughput(self) -> float:
        """Inferences per second, one after the other."""
        return 1000.0 / self.mean_ms

    @property
    def width(self) -> float:
        """Width of the median's interval relative to it."""
        return (self.interval_ms[1] - self.interval_ms[0]) / self.median_ms

    def require_quiet(self, max_width: float) -> None:
        """Raises NoiseError, with what disturbed the machine, when the interval is wider than ``max_width``."""
        if self.width > max_width:
            low, high = self.interval_ms
            raise NoiseError(
                f"cannot tell: the machine is too noisy. The median {self.median_ms:.3f} ms has the interval "
                f"[{low:.3f}, {high:.3f}], {self.width:.1%} of it wide where {max_width:.1%} is allowed "
                f"({self.noise}). Measure longer, or on an idle machine."
            )

    def warnings(self) -> tuple[str, ...]:
        """Why the times themselves may not be trusted, a sentence each; see :meth:`Noise.warnings` for the machine."""
        said = []
        if not self.warm_up.settled:
            said.append("the warm-up ended before the times were steady; warm up longer (--warm-up-ms)")
        if self.cov > _COV:
            said.append(f"the times vary by {self.cov:.1%} (coefficient of variation; at most {_COV:.1%} is quiet)")
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the throughput, in JSON types."""
        return {**_fields(self), "throughput_per_s": self.throughput}


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
                f"cannot tell: the machine is too noisy. The ratio {self.ratio:.3f} has the interval "
                f"[{self.ratio_low:.3f}, {self.ratio_high:.3f}], {self.width:.1%} of the ratio wide where "
                f"{max_width:.1%} is allowed ({self.noise}). Measure longer, or on an idle machine."
            )

    def to_json(self) -> dict[str, Any]:
        """All fields, in JSON types."""
        return {**_fields(self), "a": self.a.to_json(), "b": self.b.to_json()}


def _fields(one: Measurement | Comparison) -> dict[str, Any]:
    return {key: _json_types(value) for key, value in asdict(one).items()}


def _json_types(value: Any) -> Any:
    """Tuples become lists, so that what is compared after a round trip is equal."""
    if isinstance(value, dict):
        return {key: _json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_types(item) for item in value]
    return value
