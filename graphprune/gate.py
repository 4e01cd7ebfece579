"""The regression gate: is an artefact still what its manifest says, and still as fast?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graphprune.backends.base import BackendOptions
from graphprune.errors import InputError, NoiseError, TargetError, UsageError, VerificationError
from graphprune.frontends.onnx import read_onnx
from graphprune.ir.files import sha256_of
from graphprune.latency.figures import WORDS, Figure, Statistic, enough_for, figure_of, recorded_ratio
from graphprune.latency.measure import Comparison, MeasureOptions, measure
from graphprune.passes.files import keep_of, read_plan, replay, saved_members
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verdict, Verify
from graphprune.pipeline import load, verify_program

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["GateResult", "LatencyLimit", "gate"]

_SPELLINGS = "write a share of the original's time as 0.65x, or how much slower than recorded it may be as +5%"
_LIMIT = re.compile(r"(?P<share>\d+\.?\d*|\.\d+)\s*x|\+\s*(?P<percent>\d+\.?\d*|\.\d+)\s*%", re.ASCII)
_WIDTH = 0.03  # of the measured ratio: measured longer while its interval is wider


@dataclass(frozen=True)
class LatencyLimit:
    """The most that an artefact may take: ``value`` times the original's time, or times the ratio in the manifest.

    Both are of the time that the original takes beside it, here and now.
    """

    value: float
    recorded: bool = False

    @classmethod
    def parse(cls, text: str) -> LatencyLimit:
        """Read ``0.65x`` or ``+5%``. Raises ``UsageError`` that names these spellings."""
        found = _LIMIT.fullmatch(text.strip().lower())
        if found is None or float(found["share"] or 1) <= 0:
            raise UsageError(f"--max-latency {text!r}: {_SPELLINGS}.")
        if found["share"]:
            return cls(float(found["share"]))
        return cls(1 + float(found["percent"]) / 100, recorded=True)

    def ratio(self, recorded: float | None) -> float:
        """The limit as a share of the original's time. Raises ``UsageError`` where no ratio was recorded."""
        if not self.recorded:
            return self.value
        if recorded is None:
            raise UsageError(
                "--max-latency: the manifest holds no measured ratio that a percentage could be of (the export was not "
                "measured); give a share of the original's time, for example 0.65x."
            )
        return self.value * recorded


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        artefact: the file that was held to its manifest; its hash, its plan's and its source's are right.
        verdict: of the masked equivalence; None where the export was not verified either.
        comparison: measured latency against the source; None without a limit on it. ``figure`` is the figure of it
            that the export's target was on (``statistic``), which the limit is on as well.
        limit: the largest ratio to the original's time allowed; ``recorded``: the ratio in the manifest.
        notes: what a reader should know.
    """

    artefact: Path
    verdict: Verdict | None
    comparison: Comparison | None
    figure: Figure | None
    limit: float | None
    recorded: float | None
    notes: tuple[str, ...]

    def check(self) -> None:
        """Raises what is wrong: VerificationError, TargetError, or NoiseError where the machine cannot tell."""
        if self.verdict is not None and not self.verdict.passed:
            one = self.verdict
            raise VerificationError(
                f"'{self.artefact}' differs from its masked original by {one.max_rel:.2e} relative in {one.worst!r}; "
                f"accepted are {one.rtol:g} relative and {one.atol:g} absolute"
            )
        if self.comparison is None or self.figure is None or self.limit is None:
            return
        found = self.figure.ratio
        of = "" if self.figure.statistic == "median" else f" ({self.figure.words})"
        said = f"{found.value:.3f}x of the original's time{of}, within [{found.low:.3f}, {found.high:.3f}]"
        if found.low > self.limit:
            raise TargetError(f"'{self.artefact}' takes {said}, where at most {self.limit:.3f}x is allowed")
        if found.high > self.limit:
            raise NoiseError(
                f"cannot tell whether '{self.artefact}' keeps the limit of {self.limit:.3f}x: it takes {said} "
                f"({self.comparison.noise}). Measure longer (--duration), on an idle machine, or allow more."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "artefact": str(self.artefact),
            "verification": None if self.verdict is None else asdict(self.verdict),
            "latency": None if self.comparison is None else self.comparison.to_json(),
            "figure": None if self.figure is None else self.figure.to_json(),
            "limit": self.limit,
            "recorded": self.recorded,
            "notes": list(self.notes),
        }


def gate(
    manifest: Path,
    limit: LatencyLimit | None = None,
    *,
    source: Path | None = None,
    duration: float | None = None,
    threads: int | None = None,
) -> GateResult:
    """Hold an artefact to its manifest: hashes first, then the masked equivalence, then the time.

    Artefact and plan lie beside the manifest. The check's inputs and tolerances, the backend and its options are those
    of the export, and so is the figure of the times that the limit is on (``--statistic``).

    Args:
        manifest: ``manifest.json`` of an export.
        limit: on the time; None: it is not measured.
        source: the original; by default the file beside the manifest that has its name.
        duration: of the measurement in seconds, instead of the export's.
        threads: instead of the export's.

    Raises:
        InputError: a file cannot be read, or is no manifest.
        VerificationError: a file is not the one that the manifest was written for.
        UsageError: a limit relative to a ratio that was not recorded.
    """
    document = _read(manifest)
    folder = manifest.parent
    statistic = _statistic(document)
    recorded = None if document["latency"] is None else recorded_ratio(document["latency"], statistic)
    allowed = None if limit is None else limit.ratio(recorded)
    artefact = folder / next(iter(document["artefact"]["sha256"]))
    original = source if source is not None else folder / next(iter(document["source"]["sha256"]))
    _same_files(artefact, document["artefact"]["sha256"], "the artefact")
    built = (document.get("build") or {}).get("sha256")
    if built:
        _same_files(folder / next(iter(built)), built, "what was built")
    if source is None and (not original.is_file() or original == artefact):
        raise InputError(
            f"the original, '{original.name}', does not lie beside '{manifest}'; say where with "
            "--source (of a module, export writes it with --keep-source)"
        )
    _same_files(original, document["source"]["sha256"], "the original")
    if "plan" in document:  # older manifests do not know
        _same_files(folder / "plan.json", document["plan"]["sha256"], "the plan")
    plan = read_plan(folder / "plan.json")
    if plan["source_sha256"] != next(iter(document["source"]["sha256"].values())):
        raise VerificationError(f"'{folder / 'plan.json'}' was made for another original than '{original}'")

    options = document["options"]
    shapes = {name: tuple(shape) for name, shape in document["input_shapes"].items()}
    network = load(original, input_shapes=shapes, seed=options["seed"])
    notes: list[str] = []
    verdict = None
    if document["verification"] is None:
        notes.append("the export was not verified, so the artefact is not either")
    else:
        check = Verify(options["samples"], options["atol"], options["rtol"], options["seed"])
        members = saved_members(plan)
        pruned = read_onnx(artefact)
        if document.get("repair") is not None:  # the proof is of the cut; repair then changed what constants hold
            cut = Shrink(keep_of(replay(plan, network.grouping), network.grouping))(network.grouping)
            _same_shapes(cut, pruned, artefact)
            pruned = cut
            notes.append("repaired after the cut: the cut was made again from the original and proved")
        verdict = verify_program(network.program, members, pruned, check, options["verify_dtype"])
    comparison = figure = None
    if allowed is not None and (verdict is None or verdict.passed):
        timing = _timing(options, duration, threads)
        found = measure(original, artefact, network.program.examples, enough_for(timing, statistic))
        assert isinstance(found, Comparison)
        comparison, figure = found, figure_of(found, statistic)
        before = {} if document["latency"] is None else document["latency"]["fingerprint"]
        if other := sorted(key for key in before if before[key] != found.fingerprint.get(key)):
            notes.append(f"measured under other conditions than the export: {', '.join(other)} differ")
    return GateResult(artefact, verdict, comparison, figure, allowed, recorded, tuple(notes))


_KEYS = ("source", "artefact", "options", "input_shapes", "verification", "latency")
_OPTIONS = ("seed", "samples", "atol", "rtol", "verify_dtype", "measure", "backend", "backend_options")


def _read(path: Path) -> dict[str, Any]:
    try:
        document: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the manifest '{path}': {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is no manifest of an export: it is not JSON") from error
    held = isinstance(document, dict) and document.get("format") == 1 and all(key in document for key in _KEYS)
    if not held or not isinstance(document["options"], dict) or any(key not in document["options"] for key in _OPTIONS):
        raise InputError(f"'{path}' is no manifest of an export that this version reads (docs/manifest.md)")
    for key in ("source", "artefact"):
        names = document[key].get("sha256") if isinstance(document[key], dict) else None
        if not isinstance(names, dict) or not names or Path(next(iter(names))).name != next(iter(names)):
            raise InputError(f"'{path}' is no manifest of an export: '{key}' names no file")
    return dict(document)


def _statistic(document: Mapping[str, Any]) -> Statistic:
    """The figure that the export's latency target was on; the median where it had none."""
    said = document["options"].get("statistic", "median") if document.get("latency_target") else "median"
    if said not in WORDS:
        raise InputError(f"the manifest's statistic is {said!r}; this version knows {' and '.join(WORDS)}")
    return cast("Statistic", said)


def _same_files(path: Path, expected: Mapping[str, str], what: str) -> None:
    """Hash a file and those beside it that the manifest names, none of which may lie elsewhere."""
    first, *others = expected
    found = sha256_of(path, others)
    for name, digest in zip(found, found.values(), strict=True):
        if digest != expected[first if name == path.name else name]:
            raise VerificationError(
                f"'{path.parent / name}' is not {what} that the manifest was written for: their SHA-256 differ"
            )


def _same_shapes(cut: ir.Model, artefact: ir.Model, path: Path) -> None:
    """Repair changes what constants hold, and adds biases; nothing that the cut left has another shape."""
    left, held = ({name: value.shape for name, value in one.graph.initializers.items()} for one in (cut, artefact))
    if other := [name for name in left if name in held and left[name] != held[name]]:
        raise VerificationError(
            f"'{path}' is not the cut network repaired: '{other[0]}' has the shape {held[other[0]]}, the cut leaves "
            f"{left[other[0]]}"
        )


def _timing(options: Mapping[str, Any], duration: float | None, threads: int | None) -> MeasureOptions:
    """The export's own way to measure, longer where the interval stays wide."""
    said = options["measure"]
    if said is None:
        timing = MeasureOptions(backend=options["backend"], backend_options=_backend(options["backend_options"]))
    else:
        fields = {
            **said,
            "backend_options": _backend(said["backend_options"]),
            "percentiles": tuple(said["percentiles"]),
        }
        timing = MeasureOptions(**fields)
    if threads is not None:
        timing = replace(timing, backend_options=replace(timing.backend_options, threads=threads))
    return replace(timing, max_width=_WIDTH, duration=timing.duration if duration is None else duration)


def _backend(said: Mapping[str, Any]) -> BackendOptions:
    return BackendOptions.from_json(said)
