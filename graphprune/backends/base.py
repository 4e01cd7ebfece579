"""What a backend is, and how one is found by its name.

A third party adds a backend through an entry point of the group ``graphprune.backends``: its name is the backend's
name, its object a :class:`Backend` or a function without arguments that returns one.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graphprune.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ENTRY_POINTS",
    "Availability",
    "Backend",
    "BackendOptions",
    "Build",
    "LayerTime",
    "Session",
    "backend_names",
    "get_backend",
    "machine",
    "physical_cores",
    "survey",
]

ENTRY_POINTS = "graphprune.backends"
# name -> module, class
_BUILT_IN = {
    "onnxruntime": ("graphprune.backends.onnxruntime", "OnnxRuntimeBackend"),
    "openvino": ("graphprune.backends.openvino", "OpenVinoBackend"),
    "tensorrt": ("graphprune.backends.tensorrt", "TensorRTBackend"),
}
_PARTS = ("name", "available", "load", "fingerprint")

# Extensions that decide which kernels a CPU runtime takes; a virtual machine's model name alone does not tell them.
_ISA = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here, and for what.

    Attributes:
        usable: True when it can build or run a model now.
        version: The runtime's version, where it could be found out.
        reason: Why it cannot be used (or only in part), and what would change that; empty when all of it can.
        devices: The devices or execution providers that it offers here, in its own order of preference.
        builds: Whether an artefact can be built here.
        times: Whether a model can be run, and so timed, here.
    """

    usable: bool
    version: str | None = None
    reason: str = ""
    devices: tuple[str, ...] = ()
    builds: bool = False
    times: bool = False


@dataclass(frozen=True)
class BackendOptions:
    """How a network is built and run. Part of every fingerprint.

    Attributes:
        threads: Threads inside one operator; None: as many as physical cores may be used by this process.
        providers: Execution providers or devices in the order of preference, by the backend's own names; none: the
            backend's default.
        spinning: Whether idle threads of the pool may wait actively for work, which most runtimes do by default.
        settings: The backend's own options as (name, value), such as options of a provider. A backend refuses those
            that it does not know.
        affinity: Logical CPUs that the process is bound to while it measures; none: as it was started.
        denormals: Whether numbers below the normal range count, as they do by default, or are taken for 0. Processors
            are slow with them: where a cut is not repaired yet, a softmax over its wild values can take eight times as
            long. Backends that cannot choose ignore it.

    Raises:
        UsageError: threads below 1, a setting given twice, or a negative CPU.
    """

    threads: int | None = None
    providers: tuple[str, ...] = ()
    spinning: bool = True
    settings: tuple[tuple[str, str], ...] = ()
    affinity: tuple[int, ...] = ()
    denormals: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads}: give 1 or more, or leave it out for one per physical core.")
        names = [name for name, _ in self.settings]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"settings: {twice[0]!r} is given twice; give it once.")
        if any(cpu < 0 for cpu in self.affinity):
            raise UsageError(f"affinity={self.affinity}: CPUs are counted from 0.")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BackendOptions:
        """The options that :meth:`to_json` wrote."""
        return cls(
            threads=data["threads"],
            providers=tuple(data["providers"]),
            spinning=data["spinning"],
            settings=tuple((name, value) for name, value in data["settings"]),
            affinity=tuple(data["affinity"]),
            denormals=data.get("denormals", True),
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, in JSON types."""
        return {
            "threads": self.threads,
            "providers": list(self.providers),
            "spinning": self.spinning,
            "settings": [list(pair) for pair in self.settings],
            "affinity": list(self.affinity),
            "denormals": self.denormals,
        }

    def for_curves(self) -> BackendOptions:
        """What layers are timed under: in turn with the original, so without spinning, and whatever their values."""
        return replace(self, spinning=False, denormals=False)

    def thread_count(self) -> int:
        """The number of threads that is really used."""
        return self.threads if self.threads is not None else physical_cores()


@dataclass(frozen=True)
class Build:
    """An artefact that a backend built.

    Attributes:
        files: What was written, the artefact itself first; all inside the folder that was given. Empty where the
            backend runs the ONNX file as it is.
        seconds: Wall time of the build.
        facts: What is worth telling about it, in JSON types.
    """

    files: tuple[Path, ...]
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class LayerTime:
    """Time that one layer of the built network takes within a whole inference.

    Attributes:
        name: The runtime's own name of the layer.
        kind: The runtime's own word for what it is, such as ``FusedConv``.
        nodes: Names of the ONNX nodes that it computes, in the file's order, as far as the runtime tells.
        ns: Nanoseconds in one inference, without those of layers inside it; median over the runs.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    ns: float


class Session(Protocol):
    """A network loaded by a backend."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that must be fed."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs once. Raises InputError when the feeds do not fit or an operator fails."""
        ...

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """A function without arguments that does one whole inference on ``feeds``: what is timed.

        Everything that a caller in production does once (checks, binding, copies to the device) is done here.
        """
        ...


class Backend(Protocol):
    """A runtime."""

    @property
    def name(self) -> str:
        """The name that ``--backend`` takes."""
        ...

    def available(self) -> Availability:
        """Whether it can be used here. Never raises."""
        ...

    def build(self, model: Path, folder: Path, options: BackendOptions) -> Build:
        """Builds the artefact of an ONNX file that is deployed with this runtime, and writes it into ``folder``.

        Raises:
            InputError: the file cannot be read, or the backend cannot build it.
            UsageError: an option that the backend does not have.
        """
        ...

    def load(self, path: Path, options: BackendOptions) -> Session:
        """Builds an ONNX file (external data are looked for beside it) with the backend's own optimisations on.

        Raises:
            InputError: the file cannot be read, or the backend cannot build it.
            UsageError: an option that the backend does not have, such as an unknown provider.
        """
        ...

    def fingerprint(self, options: BackendOptions) -> dict[str, Any]:
        """All that a time depends on besides the network: figures with different fingerprints are not comparable.

        JSON types only; at least ``backend``, ``version``, ``device``, ``threads``, ``providers`` and ``precision``.
        """
        ...

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], options: BackendOptions, runs: int
    ) -> tuple[LayerTime, ...]:
        """Times every layer of the built network over ``runs`` inferences on ``feeds``, after a warm-up.

        Layers stand in the order in which they run. Being watched costs time: the sum is not the latency.

        Raises:
            InputError: the file cannot be read, built or run on the feeds.
            UsageError: an option that the backend does not have, or ``runs`` below 1.
        """
        ...


def backend_names() -> tuple[str, ...]:
    """Every name that :func:`get_backend` takes: the built-in ones first, then those of installed packages."""
    found = {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    return (*_BUILT_IN, *sorted(found - _BUILT_IN.keys()))


def get_backend(name: str) -> Backend:
    """The backend of that name. A built-in backend is never replaced by an installed package's.

    An installed package's backend that lacks ``build`` or ``profile`` gets one that says so when it is called.

    Raises:
        UsageError: no such backend, or the package that declares it cannot be imported.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        built_in: Backend = getattr(importlib.import_module(module), attribute)()
        return built_in
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return _load_entry(entry)
    names = backend_names()
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown backend {name!r}: {hint}known here: {', '.join(names)}.")


def survey() -> tuple[tuple[str, Availability], ...]:
    """Every backend with its availability; one that cannot even be imported is listed with the reason."""
    rows = []
    for name in backend_names():
        try:
            rows.append((name, get_backend(name).available()))
        except UsageError as error:
            rows.append((name, Availability(usable=False, reason=str(error))))
    return tuple(rows)


def _load_entry(entry: EntryPoint) -> Backend:
    try:
        found = entry.load()
        backend: Backend = found() if callable(found) else found
        missing = [part for part in _PARTS if not hasattr(backend, part)]
    except Exception as error:  # a plug-in may fail in any way, and must not take the others with it
        raise UsageError(
            f"backend {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}. "
            "Repair or uninstall the package that declares it."
        ) from error
    if missing:
        raise UsageError(f"backend {entry.name!r} ({entry.value}) is no backend: it lacks {', '.join(missing)}.")
    return backend if hasattr(backend, "build") and hasattr(backend, "profile") else _Partial(backend, entry)


class _Partial:
    """A plug-in's backend without ``build`` or ``profile``: what it lacks is refused in words."""

    def __init__(self, backend: Backend, entry: EntryPoint) -> None:
        self._backend = backend
        self._label = f"backend {entry.name!r} ({entry.value})"
        self.name = backend.name
        self.available = backend.available
        self.load = backend.load
        self.fingerprint = backend.fingerprint

    def build(self, model: Path, folder: Path, options: BackendOptions) -> Build:
        if not hasattr(self._backend, "build"):
            raise UsageError(f"{self._label} cannot build an artefact: it has no build(); it can only run ONNX files.")
        return self._backend.build(model, folder, options)

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], options: BackendOptions, runs: int
    ) -> tuple[LayerTime, ...]:
        if not hasattr(self._backend, "profile"):
            raise UsageError(f"{self._label} cannot time single layers: it has no profile(); time whole networks.")
        return self._backend.profile(path, feeds, options, runs)


def physical_cores() -> int:
    """Physical cores this process may use: its CPU affinity without hyper-threads, limited by the cgroup's quota."""
    allowed = _allowed_cpus()
    cores = set()
    for cpu in allowed:
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings if siblings else str(cpu))
    count = len(cores) or 1
    quota = _cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cpu_quota() -> float | None:
    """Processors' worth of time that the control group grants, or None without a limit (versions 2 and 1)."""
    period: str | None
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota, period = (_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{part}_us") for part in ("quota", "period"))
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no control group at all
        return None
    return share if share > 0 else None


@cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return model, tuple(flag for flag in _ISA if flag in flags)


def machine() -> dict[str, Any]:
    """What a CPU time depends on: ``device`` (CPU model), ``isa``, ``architecture``, ``os``, ``cores`` usable."""
    model, isa = _cpu()
    return {
        "device": model,
        "architecture": platform.machine(),
        "isa": list(isa),
        "os": platform.system(),
        "cores": physical_cores(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
