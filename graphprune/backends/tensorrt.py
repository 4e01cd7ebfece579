"""TensorRT (from version 10) and TensorRT-RTX: engines built from ONNX files, and run where there is a CUDA device.

Both have the same interface in two Python modules. TensorRT times kernels on the GPU that it builds for; TensorRT-RTX
builds ahead of time for any of its targets, without a GPU, and compiles kernels when the engine is first run.
Networks are strongly typed: precision is what the graph says, so fp16 and bf16 are cast into the graph
(:mod:`graphprune.backends.precision`).
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import Availability, BackendOptions, Build, LayerTime
from graphprune.backends.precision import narrow
from graphprune.backends.tensorrt_graph import prepare
from graphprune.backends.tensorrt_network import Network, Runtime, plain
from graphprune.backends.tensorrt_options import RUNTIMES, TensorRTOptions
from graphprune.backends.tensorrt_session import TensorRTSession, cuda_devices, cuda_runtime
from graphprune.errors import InputError, UsageError
from graphprune.ir.files import atomic_files, output_folder, sha256_of
from graphprune.ir.store import external_locations, write_onnx

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

__all__ = ["TensorRTBackend", "check_engine"]

_ENGINES = (".engine", ".plan", ".trt")
_FORMAT = "graphprune.engine/1"


class TensorRTBackend:
    """TensorRT or TensorRT-RTX; see :class:`graphprune.backends.tensorrt_options.TensorRTOptions` for its settings."""

    name = "tensorrt"

    def available(self) -> Availability:
        """What is installed, and whether there is a CUDA device: without one TensorRT-RTX builds, and nothing times."""
        modules, why = _installed()
        if not modules:
            return Availability(usable=False, reason=f"{why}; install it with: pip install graphprune[tensorrt]")
        devices = cuda_devices()
        builds = bool(devices.names) or "tensorrt_rtx" in modules
        version = ", ".join(f"{name} {module.__version__}" for name, module in modules.items())
        reason = devices.reason
        if reason:
            reason += "; engines are built, not measured" if builds else "; TensorRT builds on the GPU it builds for"
        return Availability(builds, version, reason, devices.names, builds, bool(devices.names))

    def build(self, model: Path, folder: Path, options: BackendOptions) -> Build:
        """Writes ``model.engine`` (``model.sm86.engine`` for a target) and ``engine.json`` into ``folder``.

        ``engine.json`` holds layers (of the network as parsed, before the builder fuses them), bindings, profiles,
        hashes of the engines and of the ONNX file, versions and settings; seconds stand in ``facts`` alone.

        Raises:
            InputError: the file cannot be read, or holds what the parser or the builder does not support.
            UsageError: a setting that the backend does not have or that does not fit, or no GPU where one is needed.
        """
        import onnx_ir as ir

        start = time.perf_counter()
        asked = _asked(options)
        runtime = _choose(asked)
        runtime.check(asked)
        output_folder(folder)
        prepared = prepare(model)
        _check_ranks(prepared, str(model))
        narrowing = None if asked.precision == "fp32" else narrow(prepared, asked.precision, asked.keep_fp32)
        with tempfile.TemporaryDirectory(prefix=".tensorrt-", dir=folder) as scratch:
            file = write_onnx(prepared, Path(scratch) / "prepared.onnx")[-1]
            network = Network(runtime, asked, file, str(model))
        before = time.perf_counter() - start
        engines: list[dict[str, Any]] = []
        seconds: dict[str, float] = {}
        paths = []
        for target in asked.compute_capability or ((),):
            path = folder / ".".join(("model", *(("+".join(target),) if target else ()), "engine"))
            began = time.perf_counter()
            network.build(target, path)
            seconds[path.name] = time.perf_counter() - began
            entry = {"file": path.name, "sha256": sha256_of(path)[path.name], "bytes": path.stat().st_size}
            engines.append({**entry, "compute_capability": list(target)})
            paths.append(path)
        layers = network.layers()
        shared = {
            "runtime": runtime.name,
            "version": runtime.module.__version__,
            "precision": {"precision": "fp32"} if narrowing is None else narrowing.to_json(),
            "profiles": [{name: profile.to_json() for name, profile in network.profiles.items()}],
        }
        document = {
            "format": _FORMAT,
            **shared,
            "settings": _settings(asked),
            "source": sha256_of(model, external_locations(ir.load(model))),
            "engines": engines,
            "bindings": network.bindings(),
            "metadata": dict(prepared.metadata_props),
            "layers": {"of": "the network as parsed, before the builder fuses it", "list": layers},
        }
        with atomic_files(folder / "engine.json") as (out,):
            out.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
        facts = {
            **shared,
            "engines": [{**engine, "seconds": seconds[engine["file"]]} for engine in engines],
            "seconds_before": before,
            "layers": len(layers),
            "trust": "an engine is executable code: load only what you built or trust",
        }
        if reason := cuda_devices().reason:
            facts["measured"] = f"built, not measured: {reason}"
        return Build((*paths, folder / "engine.json"), time.perf_counter() - start, facts)

    def load(self, path: Path, options: BackendOptions) -> TensorRTSession:
        """Builds an ONNX file and loads the (first) engine, or loads an engine file.

        Raises:
            UsageError: an engine file without ``trust-engine=true``; no CUDA device.
            InputError: as in :meth:`build`; an engine file that is not what its ``engine.json`` says, or that this
                version of TensorRT or this GPU does not take.
        """
        asked = _asked(options)
        is_engine = path.suffix in _ENGINES
        if is_engine:
            check_engine(path, asked)
        devices = cuda_devices()
        if not devices.names:
            raise UsageError(f"{path}: {devices.reason}. An engine can be built here, but neither run nor measured.")
        runtime = _choose(asked)
        if is_engine:
            return _deserialise(runtime, path)
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            return _deserialise(runtime, self.build(path, Path(folder), options).files[0])

    def fingerprint(self, options: BackendOptions) -> dict[str, Any]:
        """See :meth:`graphprune.backends.base.Backend.fingerprint`. Settings that cannot be met here are refused."""
        asked = _asked(options)
        runtime = _choose(asked)
        runtime.check(asked)
        devices = cuda_devices().names
        return {
            "backend": self.name,
            "runtime": runtime.name,
            "version": runtime.module.__version__,
            "device": devices[0] if devices else "none",
            "threads": 1,
            "providers": list(devices[:1]),
            "precision": asked.precision,
            "settings": _settings(asked),
        }

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], options: BackendOptions, runs: int
    ) -> tuple[LayerTime, ...]:
        """See :meth:`graphprune.backends.base.Backend.profile`; it needs a CUDA device."""
        if runs < 1:
            raise UsageError(f"runs={runs}: give 1 or more.")
        return self.load(path, options).profile(feeds, runs)


def _asked(options: BackendOptions) -> TensorRTOptions:
    """The backend's own options; a choice of devices is refused, since the engine runs on the first one."""
    if options.providers:
        raise UsageError(
            f"the tensorrt backend runs on the first CUDA device and takes no {', '.join(options.providers)}; choose "
            "the device with the environment variable CUDA_VISIBLE_DEVICES."
        )
    return TensorRTOptions.parse(options.settings)


def _settings(options: TensorRTOptions) -> dict[str, str]:
    """The settings that an engine depends on."""
    return {name: value for name, value in options.settings() if name not in ("timing-cache", "trust-engine")}


def _check_ranks(model: ir.Model, label: str) -> None:
    """TensorRT's parser takes an input of unknown rank for one of -1 axes, and then complains of the node behind it."""
    for value in model.graph.inputs:
        if value.shape is None:
            raise InputError(
                f"{label}: input {value.name!r} is declared without its number of axes, which TensorRT has to know; "
                "write a shape for it into the file (its sizes may stay unknown)."
            )


def check_engine(path: Path, options: TensorRTOptions) -> None:
    """Refuses an engine file that may not be loaded, before a byte of it reaches TensorRT.

    Raises:
        UsageError: the user does not vouch for it. InputError: it is not there, or not what ``engine.json`` says.
    """
    if not options.trust_engine:
        raise UsageError(
            f"{path}: to load an engine is to run code that is in it. If you built it or trust who did, say so with "
            "trust-engine=true (--option trust-engine=true)."
        )
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    beside = path.with_name("engine.json")
    if not beside.is_file():
        return
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
        known = {engine["file"]: engine["sha256"] for engine in document["engines"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{beside}: it is no engine.json of graphprune ({type(error).__name__}: {error}).") from error
    if path.name in known and known[path.name] != sha256_of(path)[path.name]:
        raise InputError(f"{path}: its SHA-256 is not the one in engine.json; the file was changed since it was built.")


def _installed() -> tuple[dict[str, Any], str]:
    """The modules that can be imported, and why there is none."""
    modules, why = {}, ""
    for name in RUNTIMES:
        try:
            modules[name] = importlib.import_module(name)
        except Exception as error:  # a wrong shared library raises more than ImportError
            why = f"neither {' nor '.join(RUNTIMES)} can be imported ({error})"
    return modules, why


def _choose(options: TensorRTOptions) -> Runtime:
    """TensorRT where it is installed and has its GPU, else TensorRT-RTX, unless the settings say which.

    Raises:
        UsageError: it is not installed, or cannot build here.
    """
    modules, why = _installed()
    if options.runtime is not None and options.runtime not in modules:
        raise UsageError(f"runtime={options.runtime} is not installed or cannot be imported here.")
    if not modules:
        raise UsageError(f"{why}; install it with: pip install graphprune[tensorrt]")
    devices = cuda_devices()
    name = options.runtime or ("tensorrt" if "tensorrt" in modules and devices.names else "tensorrt_rtx")
    if name not in modules or (name == "tensorrt" and not devices.names):
        raise UsageError(
            f"{devices.reason}, and TensorRT builds only on the GPU that it builds for; TensorRT-RTX builds without "
            "one: pip install tensorrt-rtx-cu13"
        )
    return Runtime.of(name, modules[name])


def _deserialise(runtime: Runtime, path: Path) -> TensorRTSession:
    """Loads an engine that was built here or that the user vouches for."""
    loader = runtime.module.Runtime(runtime.logger)
    loader.engine_host_code_allowed = True  # version-compatible engines bring their runtime with them
    runtime.errors.clear()
    engine = loader.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise InputError(f"{path}: {runtime.label} cannot load it here: {plain(runtime.errors)}")
    return TensorRTSession(runtime.module, engine, str(path), cuda_runtime())
