"""How good a network is: the user's own metric, or how near its outputs are to those of another network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import math
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import GraphpruneError, InputError, TargetError, Terminated, UsageError
from graphprune.frontends.modules import first_line, named
from graphprune.ir.program import Array

__all__ = ["Fidelity", "Figure", "Metric", "distance", "fidelity", "outputs_of", "read_metric"]

Feeds = Mapping[str, Array]
Run = Callable[[Feeds], dict[str, Array]]
_DRAWS = 2000
_CONFIDENCE = 0.95
_SMALLEST = 0.1  # share of the original's time


@dataclass(frozen=True)
class Figure:
    """A mean over samples with its bootstrap interval (None where a metric gave a single number)."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: NDArray[np.float64], seed: int = 0) -> Figure:
        """The mean of one number per sample, with its 95 % interval."""
        if values.size < 2:
            return cls(float(values.mean()), count=int(values.size))
        draws = np.random.default_rng(seed).integers(0, values.size, (_DRAWS, values.size))
        low, high = np.quantile(values[draws].mean(axis=1), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
        return cls(float(values.mean()), float(low), float(high), int(values.size))

    def to_json(self) -> dict[str, float | int | None]:
        """All fields, rounded."""
        rounded = (None if one is None else round(one, 6) for one in (self.value, self.low, self.high))
        return {**dict(zip(("value", "low", "high"), rounded, strict=True)), "samples": self.count}


@dataclass(frozen=True)
class Fidelity:
    """How near a network's outputs are to another one's, on samples that nothing was fitted to.

    Attributes:
        cosine: of all outputs of a sample taken as one vector; where none is of floats the share of equal entries.
        top1: share of the positions at which the largest entry on the last axis of the first output is the same one.
        kl: Kullback-Leibler divergence on that axis, in nats, from the other network's (softmax where the output's
            rows are no probabilities); None where the axis has one entry, infinite where an output is not finite and
            the other network's is.
    """

    cosine: Figure
    top1: Figure | None
    kl: Figure | None

    def to_json(self) -> dict[str, Any]:
        """All figures; None for those that are not finite."""
        return {
            name: None if one is None or not math.isfinite(one.value) else one.to_json()
            for name, one in (("cosine", self.cosine), ("top1", self.top1), ("kl", self.kl))
        }


def outputs_of(run: Run, samples: Sequence[Feeds]) -> list[dict[str, Array]]:
    """What a network gives for every sample."""
    return [run(one) for one in samples]


def fidelity(expected: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> Fidelity:
    """Compare outputs, sample by sample; outputs of another shape have nothing in common."""
    cosines, same, divergences = [], [], []
    for want, have in zip(expected, found, strict=True):
        floats = [name for name in want if np.issubdtype(want[name].dtype, np.floating)]
        if not floats:  # labels: equal or not
            alike = [np.mean(want[name] == have[name]) for name in want if want[name].shape == have[name].shape]
            share = float(np.mean(alike)) if alike and len(alike) == len(want) else 0.0
            cosines.append(share)
            same.append(share)
            divergences.append(1.0 - share)
            continue
        if not all(np.isfinite(want[name]).all() for name in floats):
            continue  # where the original itself is not finite nothing can be told
        if not all(np.isfinite(have[name]).all() for name in floats):
            cosines.append(0.0)
            same.append(0.0)
            divergences.append(math.inf)
            continue
        a, b = (
            np.concatenate([one[name].astype(np.float64).ravel() for name in floats] or [np.ones(1)])
            for one in (want, have)
        )
        scale = float(np.linalg.norm(a) * np.linalg.norm(b)) if a.shape == b.shape else 0.0
        cosines.append(float(a @ b) / scale if scale else float(np.array_equal(a, b)))
        first = want[floats[0]] if floats else np.ones(())
        if first.ndim and first.shape[-1] > 1 and first.size:
            if first.shape != have[floats[0]].shape:  # as many entries as the contents make
                same.append(0.0)
                continue
            p, q = (_probabilities(one[floats[0]].astype(np.float64)) for one in (want, have))
            same.append(float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean()))
            tiny = np.finfo(np.float32).tiny
            divergences.append(float((p * (np.log(p + tiny) - np.log(q + tiny))).sum(axis=-1).mean()))
    if not cosines:
        raise InputError("the network gives NaN or infinity on every sample that was to be compared")
    return Fidelity(
        Figure.of(np.asarray(cosines)),
        Figure.of(np.asarray(same)) if same else None,
        _divergence(divergences),
    )


def _divergence(values: list[float]) -> Figure | None:
    if not all(map(math.isfinite, values)):
        return Figure(math.inf, count=len(values))
    return Figure.of(np.asarray(values)) if values else None


def distance(expected: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> float:
    """Squared distance of each output over its squared length, of all samples together, summed over the outputs; NaN
    where what was found is NaN.
    """
    apart: dict[str, float] = {}
    length: dict[str, float] = {}
    for want, have in zip(expected, found, strict=True):
        for name, one in want.items():
            if np.issubdtype(one.dtype, np.floating) and one.shape == have[name].shape and np.isfinite(one).all():
                a, b = one.astype(np.float64), have[name].astype(np.float64)
                apart[name] = apart.get(name, 0.0) + float(np.square(a - b).sum())
                length[name] = length.get(name, 0.0) + float(np.square(a).sum())
    return sum(one / max(length[name], 1e-30) for name, one in apart.items())


def _probabilities(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if (rows >= 0).all() and np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
        return rows
    lifted = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(lifted / lifted.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Metric:
    """The user's own figure of a network, higher is better.

    The function is called with ``run``, which maps inputs by name to outputs by name, and returns a number, an array of
    one number per sample, or a dictionary of such; of a dictionary the first entry is the one that counts.
    """

    function: Callable[[Run], Any] = field(repr=False)
    source: str

    def __call__(self, run: Run) -> dict[str, Figure]:
        """Its figures. Raises InputError: it raised, or returned something else."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                made = self.function(run)
        except GraphpruneError as error:
            raise type(error)(f"'{self.source}': {error}") from error
        except Terminated:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"'{self.source}' raised {first_line(error)}") from error
        named_figures = made if isinstance(made, Mapping) else {self.source.rpartition(":")[2].rpartition(".")[2]: made}
        found = {}
        for name, one in named_figures.items():
            try:
                values = np.atleast_1d(np.asarray(one, dtype=np.float64)).ravel()
            except (TypeError, ValueError) as error:
                raise InputError(f"'{self.source}' returned a {type(one).__name__} for {name!r}, no number") from error
            if not values.size or not np.isfinite(values).all():
                raise InputError(f"'{self.source}' returned no finite number for {name!r}")
            found[str(name)] = Figure.of(values)
        if not found:
            raise InputError(f"'{self.source}' returned an empty dictionary; it must return a figure")
        return found

    def words(self) -> str:
        """What it is kept under: its name and, as far as there is one, the contents of the file that it stands in."""
        function: Any = inspect.unwrap(self.function)
        with contextlib.suppress(OSError, TypeError):
            path = inspect.getsourcefile(function if inspect.isfunction(function) else type(function))
            return f"{self.source} {hashlib.sha256(Path(path or '').read_bytes()).hexdigest()}"
        return self.source

    def exhibits(self, runs: Mapping[str, Run]) -> list[dict[str, Any]]:
        """Samples to look at, where the function has an attribute ``show``: what each network says of them.

        ``show(run)`` gives pairs of an image (uint8, ``(height, width)`` or ``(height, width, 3)``, or None) and a
        text, the same images for every network. Each row has ``png`` (base64) and ``says`` (network -> text).
        """
        show = getattr(self.function, "show", None)
        if show is None:
            return []
        rows: list[dict[str, Any]] = []
        for which, run in runs.items():
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    shown = list(show(run))
            except (GraphpruneError, Terminated):
                raise
            except (Exception, SystemExit) as error:
                raise InputError(f"'{self.source}' show raised {first_line(error)}") from error
            for i, (image, text) in enumerate(shown):
                if len(rows) <= i:
                    rows.append({"png": None if image is None else _png(np.asarray(image)), "says": {}})
                rows[i]["says"][which] = str(text)
        return rows


def _png(image: NDArray[Any]) -> str:
    """A PNG file of grey levels or colours, in base64 (PNG specification, RFC 2083: one IDAT, no filter)."""
    pixels = image.astype(np.uint8)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    height, width = pixels.shape[:2]
    kind = 0 if pixels.ndim == 2 else 2
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()

    def chunk(name: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, held) for name, held in parts)
    return base64.b64encode(file).decode()


@dataclass(frozen=True)
class Drop:
    """The fastest network within a bound: its ``share``, the original's ``value``, and what was tried as
    (share, value, within).
    """

    share: float
    bound: float
    value: float
    rounds: tuple[tuple[float, float, bool], ...]

    @property
    def least(self) -> float:
        """The lowest figure that is within the bound."""
        return self.value - self.bound * abs(self.value)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        rounds = [
            {"share": share, "value": value if math.isfinite(value) else None, "within": within}
            for share, value, within in self.rounds
        ]
        return {"bound": self.bound, "original": self.value, "share": self.share, "rounds": rounds}


def parse_drop(text: str) -> float:
    """Read ``1%`` or ``0.01``, a share of the original's figure. Raises UsageError."""
    plain = text.strip()
    try:
        found = float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1:
        raise UsageError(f"--max-drop {text!r}: write a share of the original's figure, as 1% or 0.01")
    return found


def fastest_within(bound: float, value: Callable[[float | None], float]) -> Drop:
    """Halve the interval of shares until the smallest one is known within 3 % at which the figure still holds.

    Args:
        bound: the most that may be lost, as a share of the original's figure.
        value: the figure at a share of the original's time, and of the original (None).

    Raises:
        TargetError: nothing faster holds.
    """
    original = value(None)
    least = original - bound * abs(original)
    low, high, rounds = _SMALLEST, 1.0, []
    share = 0.7
    while high - low > 0.03 * high:
        found = value(share)  # minus infinity: it cannot be cut so far
        within = found >= least
        rounds.append((round(share, 4), found, within))
        low, high = (low, share) if within else (share, high)
        share = (low + high) / 2
    if not any(within for *_, within in rounds):
        best = max(rounds, key=lambda one: one[1])
        if not math.isfinite(best[1]):
            raise TargetError(f"nothing that can be cut makes the network faster than {best[0]:g}x; lower --floor")
        raise TargetError(
            f"nothing faster keeps {least:.4g} of {original:.4g}: at {best[0]:g}x the figure is {best[1]:.4g}; allow a "
            "larger --max-drop, or give more calibration data"
        )
    return Drop(high, bound, original, tuple(rounds))


@dataclass(frozen=True)
class Accuracy:
    """How good the networks are: ``original``, ``cut`` (before repair) and ``artefact``.

    Attributes:
        metric: the user's figures of each; empty without a metric.
        fidelity: of the cut network and of the artefact to the original, on samples that nothing was fitted to; empty
            without calibration data.
        exhibits: samples with what each network says of them, see :meth:`Metric.exhibits`.
    """

    metric: Mapping[str, Mapping[str, Figure]]
    fidelity: Mapping[str, Fidelity]
    exhibits: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "metric": {
                which: {name: one.to_json() for name, one in figures.items()} for which, figures in self.metric.items()
            },
            "fidelity": {which: one.to_json() for which, one in self.fidelity.items()},
            "exhibits": [dict(one) for one in self.exhibits],
        }


def assess(models: Mapping[str, Run], held: Sequence[Feeds], metric: Metric | None) -> Accuracy:
    """How good networks are, ``original`` first; where none is named ``artefact``, the one that was cut is it.

    Args:
        models: what runs each of them.
        held: samples that nothing was fitted to; may be none.
        metric: the user's own; may be none.
    """
    outputs = {which: outputs_of(run, held) for which, run in models.items()} if held else {}
    figures = {} if metric is None else {which: metric(run) for which, run in models.items()}
    shown = [] if metric is None else metric.exhibits(models)
    near = {which: fidelity(outputs["original"], one) for which, one in outputs.items() if which != "original"}
    names = {} if "artefact" in models else {"cut": "artefact"}
    for row in shown:
        row["says"] = {names.get(which, which): text for which, text in row["says"].items()}
    return Accuracy(
        {names.get(which, which): one for which, one in figures.items()},
        {names.get(which, which): one for which, one in near.items()},
        shown,
    )


def read_metric(source: str | Callable[[Run], Any]) -> Metric:
    """The metric that ``module:function`` names, or a function itself. Raises UsageError, InputError."""
    if callable(source):
        return Metric(source, getattr(source, "__name__", "metric"))
    found = named(source)
    if not callable(found):
        raise UsageError(f"'{source}' is a {type(found).__name__}, not a function of a network")
    return Metric(found, source)
