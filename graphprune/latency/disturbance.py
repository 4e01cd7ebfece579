"""What disturbs a measurement, read from the system before and after it: other processes, heat, quotas, the clock."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["disturbance", "snapshot"]

_CPUS = Path("/sys/devices/system/cpu")


def snapshot() -> dict[str, Any]:
    """The counters of this process and of the machine, now; None where the system does not tell."""
    switches: int | None = None
    if sys.platform != "win32":
        import resource

        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return {
        "megahertz": _megahertz(),  # before the clocks below: reading it takes time
        "heat": _sum_of(_CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")),
        "quota_us": _quota_stopped_us(),
        "switches": switches,
        "stat": _proc_stat(),
        "cpu": time.process_time(),
        "wall": time.perf_counter(),
    }


def disturbance(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`graphprune.latency.results.Noise` but the load average, between two snapshots."""
    wall = max(after["wall"] - before["wall"], 1e-9)
    steal_share = other_cores = None
    if before["stat"] and after["stat"]:
        busy, steal, total = (new - old for new, old in zip(after["stat"], before["stat"], strict=True))
        steal_share = steal / total if total else 0.0
        own = after["cpu"] - before["cpu"]
        other_cores = max(0.0, (busy / os.sysconf("SC_CLK_TCK") - own) / wall)
    stopped = _difference(before["quota_us"], after["quota_us"])
    clocks = (before["megahertz"], after["megahertz"])
    return {
        "steal_share": steal_share,
        "other_cores": other_cores,
        "involuntary_switches": _difference(before["switches"], after["switches"]),
        "megahertz": None if None in clocks else clocks,
        "heat_throttles": _difference(before["heat"], after["heat"]),
        "quota_share": None if stopped is None else stopped / 1e6 / wall,
    }


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _proc_stat() -> tuple[int, int, int] | None:
    """Ticks of the whole machine since boot: busy, stolen by the hypervisor, all. None where /proc/stat is missing."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in fields[1:9])
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + softirq
    return busy, steal, busy + idle + iowait + steal


def _megahertz() -> float | None:
    """Mean clock of the CPUs that this process may use: by the kernel's frequency driver, else by /proc/cpuinfo."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    told = [_number(_CPUS / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in allowed]
    known = [kilohertz / 1000.0 for kilohertz in told if kilohertz]
    if not known:
        cpu = -1
        for line in _text(Path("/proc/cpuinfo")).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "processor":
                cpu = int(value)
            elif key.strip() == "cpu MHz" and cpu in allowed:
                known.append(float(value))
    return statistics.fmean(known) if known else None


def _quota_stopped_us() -> int | None:
    """Microseconds for which the control group's quota has stopped its processes so far (versions 2 and 1)."""
    for path, key, scale in (("/sys/fs/cgroup/cpu.stat", "throttled_usec", 1), *_VERSION_1):
        for line in _text(Path(path)).splitlines():
            name, _, value = line.partition(" ")
            if name == key and value.isdigit():
                return int(value) // scale
    return None


_VERSION_1 = (("/sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1000),)


def _sum_of(paths: Iterable[Path]) -> int | None:
    known = [value for value in map(_number, paths) if value is not None]
    return sum(known) if known else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
