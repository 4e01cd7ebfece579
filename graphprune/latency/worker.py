"""The process that measures: ``python -m graphprune.latency.worker FOLDER``, started by ``measure``.

FOLDER holds ``job.json`` and ``feeds.npz``; ``result.json`` (and ``samples.npz``) is left there. A process of its own
because a parent's threads, allocator state and denormal flags would be part of the time otherwise.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphprune.errors import GraphpruneError, UsageError
from graphprune.latency.disturbance import disturbance, snapshot

__all__ = ["main"]

Run = Callable[[], object]

_SAMPLE_NS = 200_000  # a shorter sample would be dominated by the clock and by the loop around it
_WINDOW_NS = 50_000_000
_WINDOW_RUNS = 3
_SETTLED = 0.05
# Refilling the caches after the other model ran costs about a millisecond, which is below 5 % beyond this time.
_LEAD_IN_NS = 20_000_000


@dataclass(frozen=True)
class _Timed:
    """A warmed-up model: how many runs make one sample, whether it needs a run that is not timed, and its warm-up."""

    run: Run
    repeats: int
    lead_in: bool
    warm_up: dict[str, Any]


def _time(run: Run, repeats: int) -> int:
    """Nanoseconds of ``repeats`` runs."""
    start = time.perf_counter_ns()
    for _ in range(repeats):
        run()
    return time.perf_counter_ns() - start


def _warm_up(run: Run, minimum_ms: float, cap_ms: float, repeats: int | None) -> _Timed:
    """Runs until two windows in a row have medians within 5 %, at least ``minimum_ms`` and at most about ``cap_ms``.

    ``repeats`` is what an earlier round found, so that all samples of a model are of one kind.
    """
    start = time.perf_counter_ns()
    window: list[int] = []
    previous: float | None = None
    median = 0.0
    runs = 0
    settled = False
    while not settled:
        window.append(_time(run, 1))
        runs += 1
        elapsed_ms = (time.perf_counter_ns() - start) / 1e6
        full = len(window) >= _WINDOW_RUNS and sum(window) >= _WINDOW_NS
        if full or elapsed_ms >= cap_ms:
            median = statistics.median(window)
            near = previous is not None and abs(median - previous) <= _SETTLED * previous
            settled = full and near and elapsed_ms >= minimum_ms
            previous, window = median, []
        if elapsed_ms >= cap_ms:
            break
    warm_up = {"ms": (time.perf_counter_ns() - start) / 1e6, "runs": runs, "settled": settled}
    return _Timed(run, repeats or math.ceil(_SAMPLE_NS / max(median, 1.0)), median < _LEAD_IN_NS, warm_up)


def _sample_one(model: _Timed, duration: float, fewest: int) -> list[int]:
    samples: list[int] = []
    end = time.perf_counter() + duration
    while len(samples) < fewest or time.perf_counter() < end:
        samples.append(_time(model.run, model.repeats))
    return samples


def _sample_in_turn(models: list[_Timed], duration: float, fewest_blocks: int, seed: int) -> list[list[int]]:
    """Interleaves in blocks such as ABBA, BAAB or CABBAC: an order drawn at random, then the same backwards.

    A fixed order can lock in with a periodic disturbance, such as the scheduler's time slices under an outside load:
    one model then always gets the bad half, and the ratio is wrong with a narrow interval. Backwards, so that each of
    the two samples that a model has in a block is balanced by the other, and a drift cancels. After a change of model
    one short run is not timed, because it would pay for caches that the other model has filled.
    """
    draw = random.Random(seed)
    samples: list[list[int]] = [[] for _ in models]
    last = -1
    end = time.perf_counter() + duration
    while len(samples[0]) < 2 * fewest_blocks or time.perf_counter() < end:
        order = draw.sample(range(len(models)), len(models))
        for which in (*order, *reversed(order)):
            model = models[which]
            if which != last and model.lead_in:
                model.run()
            last = which
            samples[which].append(_time(model.run, model.repeats))
    return samples


def _measure(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from graphprune.backends import BackendOptions, get_backend

    with np.load(folder / "feeds.npz", allow_pickle=False) as stored:
        feeds = {name: stored[f"feed{index}"] for index, name in enumerate(job["inputs"])}
    backend = get_backend(job["backend"])
    options = BackendOptions.from_json(job["options"])
    runs: dict[int, Run] = {}
    for index in job["load_order"]:
        runs[index] = backend.load(Path(job["models"][index]), options).prepare(feeds)

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    gc.collect()
    gc.disable()
    models = [
        _warm_up(runs[index], job["warm_up_ms"], job["warm_up_cap_ms"], repeats)
        for index, repeats in enumerate(job["repeats"])
    ]
    before = snapshot()
    if len(models) == 1:
        samples = [_sample_one(models[0], job["duration"], job["fewest"])]
    else:
        samples = _sample_in_turn(models, job["duration"], job["fewest"], job["seed"])
    noise = {**disturbance(before, snapshot()), "load_average": load}

    arrays = {f"samples{index}": np.asarray(values, dtype=np.int64) for index, values in enumerate(samples)}
    np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
    return {
        "warm_ups": [model.warm_up for model in models],
        "repeats": [model.repeats for model in models],
        "noise": noise,
        "fingerprint": backend.fingerprint(options),
    }


def _profile(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Times of the layers of candidates, and of each candidate as a whole in turn with the first model."""
    import numpy as np

    from graphprune.backends import BackendOptions, get_backend

    with np.load(folder / "feeds.npz", allow_pickle=False) as stored:
        feeds = {name: stored[f"feed{index}"] for index, name in enumerate(job["inputs"])}
    backend = get_backend(job["backend"])
    options = BackendOptions.from_json(job["options"])
    source, *candidates = (Path(model) for model in job["models"])
    base = _warm_up(backend.load(source, options).prepare(feeds), job["warm_up_ms"], job["warm_up_cap_ms"], None)
    arrays, found = {}, []
    for index, path in enumerate(candidates):
        warm = _warm_up(backend.load(path, options).prepare(feeds), job["warm_up_ms"], job["warm_up_cap_ms"], None)
        samples = _sample_in_turn([base, warm], job["duration"], job["fewest"], job["seed"] + index)
        arrays[f"samples{2 * index}"], arrays[f"samples{2 * index + 1}"] = (
            np.asarray(values, dtype=np.float64) / repeats
            for values, repeats in zip(samples, (base.repeats, warm.repeats), strict=True)
        )
        del warm
        found.append([asdict(layer) for layer in backend.profile(path, feeds, options, job["runs"])])
    np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
    return {"layers": found, "fingerprint": backend.fingerprint(options)}


def _bind(cpus: list[int]) -> None:
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("affinity: this system cannot bind a process to CPUs.")
    allowed = os.sched_getaffinity(0)
    if missing := [cpu for cpu in cpus if cpu not in allowed]:
        known = ", ".join(map(str, sorted(allowed)))
        raise UsageError(f"affinity: CPU {missing[0]} may not be used by this process; it may use {known}.")
    os.sched_setaffinity(0, cpus)


def _die_with_parent() -> None:
    """Ends this process when its standard input closes, that is when the parent is gone, for whatever reason."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(folder: Path) -> None:
    """Does the job in ``folder``; an error that graphprune raises on purpose is part of the result."""
    # The terminal sends Ctrl-C to both processes: the parent reports it, this one goes without a traceback, at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        _bind(job["options"]["affinity"])  # before anything starts threads: they inherit it
        result = (_profile if job.get("task") == "profile" else _measure)(folder, job)
    except GraphpruneError as error:
        result = {"error": {"kind": type(error).__name__, "text": str(error)}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
