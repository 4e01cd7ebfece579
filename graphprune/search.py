"""Search: which groups the outputs mind most, found by cutting and looking, since the errors of layers do not add up.

Scores say what a cut loses where the units are read. What that does to the outputs differs from group to group; the
search finds one factor per group for it. First each group alone is cut by a quarter, its readers are refitted, and the
divergence of the outputs over the loss that the scores foresaw is its factor (additive output distortion, as in
rate-distortion pruning). Then whole candidates with factors changed at random are allocated, cut, repaired and looked
at, and the best is changed further (SPDY: Frantar and Alistarh 2022; ZipLM: Kurtic et al. 2023).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import progress
from graphprune._version import __version__
from graphprune.accuracy import Metric, distance, fidelity, outputs_of
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.matched import restore
from graphprune.coupling.groups import Group, Grouping, Keep
from graphprune.errors import TargetError, UsageError
from graphprune.ir.files import cache_folder
from graphprune.ir.program import Array
from graphprune.passes.files import keep_of
from graphprune.passes.plan import Plan
from graphprune.passes.repair import Repair
from graphprune.passes.score import Scores
from graphprune.passes.shrink import Shrink

__all__ = ["JUDGES", "Budget", "Found", "Judge", "Search"]

_log = logging.getLogger(__name__)
Feeds = Mapping[str, Array]
Floats = NDArray[np.float64]

Judge = Literal["outputs", "mse", "eval"]
JUDGES: tuple[Judge, ...] = get_args(Judge)
_SHARE = 0.25  # of a group's units that go when it is looked at alone
_LOOKED = 16  # runs that are looked at; the others are fitted to
_MOST = 20.0  # nats: an output that is not finite is no worse than one that is all wrong
_FLOOR = 0.1  # of the mean over the groups
_FITTED = 16, 64  # runs that a single group, and a whole candidate, are fitted to at most
_SPREAD = 0.5  # standard deviation of a change of a factor's logarithm
_CHANGED = 0.1  # of the factors, at least two
_TEXT = re.compile(r"(?P<number>\d+\.?\d*)\s*(?P<unit>s|min|h)?", re.ASCII)
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """How long to search: seconds, or a number of whole candidates (the same on every machine)."""

    seconds: float = float("inf")
    candidates: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``5min``, ``90s`` or ``20`` (candidates). Raises UsageError."""
        found = _TEXT.fullmatch(text.strip())
        if found is None or not float(found["number"]):
            raise UsageError(
                f"--search-budget {text!r}: write a time as 5min or 90s, a number of candidates as 20, or 0 for none"
            )
        if found["unit"]:
            return cls(float(found["number"]) * _SECONDS[found["unit"]])
        if "." in found["number"]:
            raise UsageError(f"--search-budget {text!r}: a number of candidates is whole; a time has a unit, as 5min")
        return cls(candidates=int(found["number"]))


@dataclass(frozen=True)
class Found:
    """``scores`` to allocate with; ``first`` and ``best`` divergence (nats or one less the cosine, a share of the
    squared outputs, or what the metric lost), and how many candidates were looked at, single groups and whole ones.
    """

    judge: Judge
    scores: Scores
    factors: Mapping[str, float]
    first: float
    best: float
    singles: int
    candidates: int

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "judge": self.judge, "divergence_before": self.first, "divergence": self.best,
            "groups_looked_at": self.singles, "candidates": self.candidates,
            "factors": {name: round(one, 5) for name, one in self.factors.items()},
        }  # fmt: skip


@dataclass
class Search:
    """Looks for factors of the scores.

    Args:
        grouping: of the original.
        groups: that may be cut.
        scores: of their units.
        allocate: the plan for some scores.
        samples: calibration data; most to refit on, the others to look at.
        budget: how long.
        judge: what a candidate is judged by: ``outputs`` (their divergence from the original's: Kullback-Leibler, or
            the cosine where there is no last axis to take it on), ``mse`` (their squared distance) or ``eval``.
        metric: the user's own, for ``eval``.
        own: the network itself where ``grouping`` is of one that was matched to noise: the metric is of that.
        seed: of the changes.
        resume: what was looked at is kept there, and read when the same search is made again; None: in the cache.
    """

    grouping: Grouping
    groups: Sequence[Group]
    scores: Scores
    allocate: Callable[[Scores], Plan]
    samples: Sequence[Feeds]
    budget: Budget
    judge: Judge = "outputs"
    metric: Metric | None = None
    own: Grouping | None = None
    seed: int = 0
    resume: Path | None = None
    _known: dict[str, float] = field(default_factory=dict)

    def run(self) -> Found:
        """The best factors found."""
        began = time.monotonic()
        if len(self.samples) < 2:
            raise UsageError("a search needs two samples at least; --search-budget 0 leaves it out")
        # Whole candidates are fitted to many samples: what few give differs by more than what is to be told apart.
        every = max(2, len(self.samples) // min(_LOOKED, len(self.samples) // 2))
        self._look = self.samples[::every][:_LOOKED]
        self._fit = [one for i, one in enumerate(self.samples) if i % every or i // every >= _LOOKED]
        self._model = self.grouping.coupling.program.model
        self._expected = outputs_of(partial(OrtRunner(), self._model), self._look)
        self._figure = (
            None if self.judge != "eval" else self._measured((self.own or self.grouping).coupling.program.model)
        )
        self._file = self.resume or cache_folder() / "search" / f"{self._digest()}.jsonl"
        self._read()
        names = [one.id for one in self.groups if one.size > 1]
        factors = dict(self._single(names, began))
        singles = len(factors)
        plain = dict.fromkeys(names, 1.0)
        damped = {name: factors.get(name, 1.0) ** 0.5 for name in names}
        tried: list[tuple[float, dict[str, float]]] = []
        for one in self._proposals(plain, damped, {**plain, **factors}, tried):
            over = time.monotonic() - began > self.budget.seconds and len(tried) >= 2
            if over or (self.budget.candidates is not None and len(tried) >= max(1, self.budget.candidates)):
                break
            tried.append((self._whole(one), one))
            progress.advance(min(1.0, (time.monotonic() - began) / self.budget.seconds))
        best = min(tried, key=lambda one: one[0])
        _log.info("search: by %s %.4g is lost, %.4g without", self.judge, best[0], tried[0][0])
        return Found(self.judge, self._weighed(best[1]), best[1], tried[0][0], best[0], singles, len(tried))

    def _proposals(
        self, plain: dict[str, float], damped: dict[str, float], full: dict[str, float],
        tried: list[tuple[float, dict[str, float]]],
    ) -> Iterator[dict[str, float]]:  # fmt: skip
        yield plain
        yield damped
        yield full
        rng = np.random.default_rng(self.seed)
        names = list(plain)
        while True:
            base = min(tried, key=lambda one: one[0])[1]
            chosen = rng.choice(len(names), min(len(names), max(2, int(_CHANGED * len(names)))), replace=False)
            change = rng.normal(0, _SPREAD, len(chosen))
            yield {**base, **{names[i]: base[names[i]] * float(np.exp(d)) for i, d in zip(chosen, change, strict=True)}}

    def _single(self, names: Sequence[str], began: float) -> Iterator[tuple[str, float]]:
        """Per group its divergence over what the scores foresaw, of geometric mean 1."""
        seen: dict[str, tuple[float, float]] = {}
        for name in names:
            if time.monotonic() - began > self.budget.seconds / 2:
                break  # the rest of the time is for whole candidates
            values = self.scores.values[name]
            gone = np.argsort(values, kind="stable")[: max(1, int(_SHARE * len(values)))]
            keep = np.ones(len(values), dtype=np.bool_)
            keep[gone] = False
            if self.grouping.emptied({name: keep}):
                continue
            found = self._divergence({name: keep}, f"single {name}", whole=False)
            seen[name] = (min(max(found, 0.0), _MOST), float(values[gone].sum()))
        if not seen:
            return
        # what is below a tenth of the mean cannot be told from nothing on a few samples
        least = [max(_FLOOR * float(np.mean(one)), 1e-12) for one in zip(*seen.values(), strict=True)]
        ratios = {name: (found + least[0]) / (lost + least[1]) for name, (found, lost) in seen.items()}
        mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
        yield from ((name, ratio / mean) for name, ratio in ratios.items())

    def _whole(self, factors: Mapping[str, float]) -> float:
        try:
            plan = self.allocate(self._weighed(factors))
        except TargetError:
            return float("inf")
        key = (
            "plan "
            + hashlib.sha256(
                b"".join(name.encode() + kept.tobytes() for name, kept in sorted(plan.kept.items()))
            ).hexdigest()
        )
        return self._divergence(keep_of(plan, self.grouping), key, whole=True)

    def _weighed(self, factors: Mapping[str, float]) -> Scores:
        values = {name: one * factors.get(name, 1.0) for name, one in self.scores.values.items()}
        return replace(self.scores, values=values)

    def _divergence(self, keep: Keep, key: str, *, whole: bool) -> float:
        if key not in self._known:
            cut = Shrink(keep)(self.grouping)
            fit = self._fit[: _FITTED[whole]]
            repaired = Repair(only_cut=not whole)(self.grouping, keep, cut, fit, OrtRunner())
            if self._figure is not None and self.own is not None:
                restore(self.own, repaired.model, Shrink(keep)(self.own))
            found = self._lost(repaired.model)
            self._known[key] = found if np.isfinite(found) else float("inf")
            with suppress(OSError):  # a cache that cannot be written: it is looked at again next time
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]

    def _lost(self, model: ir.Model) -> float:
        if self._figure is not None:
            return self._figure - self._measured(model)
        outputs = outputs_of(partial(OrtRunner(), model), self._look)
        if self.judge == "mse":
            return distance(self._expected, outputs)
        near = fidelity(self._expected, outputs)
        return near.kl.value if near.kl is not None else 1.0 - near.cosine.value

    def _measured(self, model: ir.Model) -> float:
        assert self.metric is not None
        return next(iter(self.metric(partial(OrtRunner(), model)).values())).value

    def _digest(self) -> str:
        words = f"{__version__} {self.judge} {self._figure} {self.metric and self.metric.words()}"
        found = hashlib.sha256(words.encode())
        for name, one in sorted(self.scores.values.items()):
            found.update(name.encode() + one.tobytes())
        for feeds in (*self._fit, *self._look):
            for name in sorted(feeds):
                found.update(np.ascontiguousarray(feeds[name]).tobytes())
        for outputs in self._expected:
            for name in sorted(outputs):
                found.update(np.ascontiguousarray(outputs[name]).tobytes())
        return found.hexdigest()[:24]

    def _read(self) -> None:
        """What an earlier run of the same search has looked at."""
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                key, value = json.loads(line)
                self._known[str(key)] = float(value)
            except (ValueError, TypeError):  # the last line of a run that was killed
                continue
