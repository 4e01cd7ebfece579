"""OpenVINO: Intel's runtime for CPUs, GPUs and NPUs."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import Availability, BackendOptions, Build, LayerTime, machine
from graphprune.backends.layers import Layer, NodeTable
from graphprune.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenVinoBackend", "OpenVinoSession"]

_CPU = "CPU"
_PRECISION = "INFERENCE_PRECISION_HINT"
_PROFILE_WARM_UPS = 3
# What graphprune sets by options of its own, or that would make the fingerprint untrue.
_OWN = {"INFERENCE_NUM_THREADS": "--threads", "DEVICE_ID": "a device such as GPU.1", "PERF_COUNT": "profiling"}


@dataclass(frozen=True)
class _Input:
    """What an input of the file takes; ``dims`` has None where a size is free, and is None where the rank is."""

    dims: tuple[int | None, ...] | None
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, port: Any) -> _Input:
        shape = port.get_partial_shape()
        free = shape.rank.is_dynamic
        dims = None if free else tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)
        return cls(dims, port.get_element_type().to_dtype())

    def fits(self, array: np.ndarray) -> bool:
        same = self.dims is None or len(self.dims) == array.ndim
        return (
            array.dtype == self.dtype
            and same
            and all(dim in (None, size) for dim, size in zip(self.dims or (), array.shape, strict=False))
        )

    def __str__(self) -> str:
        sizes = "..." if self.dims is None else ",".join("?" if dim is None else str(dim) for dim in self.dims)
        return f"{self.dtype.name}[{sizes}]"


class OpenVinoSession:
    """A network loaded by OpenVINO; one with dynamic shapes is built for the shapes that it is fed, when it is fed.

    ``names`` are those of the inputs and of the outputs, ``build`` compiles the model for the device.
    """

    def __init__(
        self, model: Any, names: tuple[Sequence[str], Sequence[str]], build: Callable[[Any], Any], label: str
    ) -> None:
        self._model = model
        self._build = build
        self._label = label
        self._inputs = {name: _Input.of(port) for name, port in zip(names[0], model.inputs, strict=True)}
        self._outputs = tuple(names[1])
        static = all(port.get_partial_shape().is_static for port in model.inputs)
        self._compiled: Any = build(model) if static else None
        self._shapes = tuple(tuple(port.get_shape()) for port in model.inputs) if static else None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that must be fed (initialisers that may be overridden are not among them)."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return self._outputs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs once and returns the outputs by name.

        Raises:
            InputError: feeds missing, unknown or of a wrong type or shape; the device cannot build or run it on them.
        """
        request = self.request(feeds)
        return {name: request.get_output_tensor(k).data.copy() for k, name in enumerate(self._outputs)}

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One infer request whose inputs are bound once and whose outputs are not copied; it has run once."""
        return partial(self.request(feeds).infer, None, True, True)

    def request(self, feeds: Mapping[str, np.ndarray]) -> Any:
        """An ``openvino.InferRequest`` for the feeds, which it shares memory with, after one inference."""
        import openvino

        arrays = self._check(feeds)
        request = self._compile(tuple(array.shape for array in arrays)).create_infer_request()
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        try:
            request.infer(None, True, True)
        except MemoryError:
            raise
        except Exception as error:  # the runtime raises RuntimeError; its bindings also TypeError and ValueError
            raise InputError(f"{self._label}: OpenVINO cannot run it: {_plain(str(error))}") from error
        return request

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        if shapes != self._shapes:
            try:
                self._model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
            except Exception as error:
                sizes = ", ".join(f"{name} {list(shape)}" for name, shape in zip(self._inputs, shapes, strict=True))
                raise InputError(f"{self._label}: OpenVINO cannot take {sizes}: {_plain(str(error))}") from error
            self._compiled = self._build(self._model)
            self._shapes = shapes
        return self._compiled

    def _check(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The feeds in the model's order, as arrays that can be shared with the runtime."""
        import numpy as np

        for name in feeds:
            if name not in self._inputs:
                known = ", ".join(map(repr, self._inputs)) or "none"
                raise InputError(f"{self._label}: there is no input {name!r}; it has {known}.")
        arrays = []
        for name, wanted in self._inputs.items():
            if name not in feeds:
                raise InputError(f"{self._label}: no value given for input {name!r} ({wanted}).")
            value = np.asarray(feeds[name])
            if not wanted.fits(value):
                given = f"{value.dtype.name}[{','.join(map(str, value.shape))}]"
                raise InputError(f"{self._label}: input {name!r} takes {wanted}, but {given} was given.")
            arrays.append(np.require(value, requirements=["C", "W"]))
        return arrays


class OpenVinoBackend:
    """OpenVINO for latency: one stream, the threads asked for, and float32 arithmetic unless something else is asked.

    By itself OpenVINO computes in bfloat16 or float16 where the device is faster at it, which makes the times of two
    machines (and the outputs) hard to compare; ``INFERENCE_PRECISION_HINT=bf16`` asks for it. Whether idle threads
    spin cannot be chosen.
    """

    name = "openvino"

    def available(self) -> Availability:
        """Whether openvino can be imported, with its version and devices."""
        try:
            import openvino

            devices = tuple(openvino.Core().available_devices)
        except Exception as error:  # a broken shared library raises more than ImportError
            reason = f"openvino cannot be imported ({error}); install it with: pip install graphprune[openvino]"
            return Availability(usable=False, reason=reason)
        reason = "" if devices else "openvino finds no device here, not even the CPU; install it anew."
        version = _version()
        return Availability(bool(devices), version, reason, devices, builds=True, times=bool(devices))

    def build(self, model: Path, folder: Path, options: BackendOptions) -> Build:
        """Writes OpenVINO IR, ``model.xml`` and ``model.bin``, with the weights in the precision of the file.

        Raises:
            InputError: the file cannot be read or holds operators that OpenVINO does not know.
            UsageError: a device or setting that this OpenVINO does not have.
        """
        import openvino

        start = time.perf_counter()
        self._settings(options)
        read = _read(model)
        folder.mkdir(parents=True, exist_ok=True)
        files = tuple(folder / name for name in ("model.xml", "model.bin"))
        with tempfile.TemporaryDirectory(prefix=".openvino-", dir=folder) as name:
            openvino.save_model(read, Path(name) / files[0].name, compress_to_fp16=False)
            for file in reversed(files):  # the part that names the other comes last
                (Path(name) / file.name).replace(file)
        facts = {
            "artefact": "OpenVINO IR",
            "version": _version(),
            "weights": "as stored",
            "bytes": {file.name: file.stat().st_size for file in files},
        }
        return Build(files=files, seconds=time.perf_counter() - start, facts=facts)

    def load(self, path: Path, options: BackendOptions) -> OpenVinoSession:
        """Builds an ONNX file, or OpenVINO IR by its ``.xml``, for the device.

        Raises:
            InputError: the file cannot be read, or the device cannot build it.
            UsageError: a device or setting that this OpenVINO does not have.
        """
        return self._open(path, options, {})

    def fingerprint(self, options: BackendOptions) -> dict[str, Any]:
        """See :meth:`graphprune.backends.base.Backend.fingerprint`."""
        import openvino

        device, settings = self._settings(options)
        host = machine()
        on_cpu = device == _CPU
        return {
            "backend": self.name,
            "version": _version(),
            **host,
            "device": host["device"] if on_cpu else openvino.Core().get_property(device, "FULL_DEVICE_NAME"),
            "threads": options.thread_count(),
            "denormals": options.denormals,
            "affinity": list(options.affinity),
            "providers": [device],
            "settings": dict(options.settings),
            "precision": settings.get(_PRECISION, "the device's own"),
        }

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], options: BackendOptions, runs: int
    ) -> tuple[LayerTime, ...]:
        """Times of single layers by OpenVINO's own counters, in whole microseconds; see ``base.Backend.profile``.

        Layers that the device left out (fused into others, or constant) are not given.
        """
        if runs < 1:
            raise UsageError(f"runs={runs}: profile at least one run.")
        session = self._open(path, options, {"PERF_COUNT": "YES"})
        request = session.request(feeds)
        for _ in range(_PROFILE_WARM_UPS - 1):
            request.infer(None, True, True)
        times: dict[str, list[float]] = {}
        kinds: dict[str, str] = {}
        for run in range(runs):
            request.infer(None, True, True)
            for one in request.profiling_info:
                if one.status == one.Status.EXECUTED:
                    kinds.setdefault(one.node_name, one.node_type)
                    each = times.setdefault(one.node_name, [0.0] * runs)
                    each[run] += one.real_time.total_seconds() * 1e9
        found = _attributed(list(times), request.get_compiled_model().get_runtime_model(), path)
        return tuple(
            LayerTime(name, kinds[name], nodes, statistics.median(each))
            for (name, each), nodes in zip(times.items(), found, strict=True)
        )

    def _open(self, path: Path, options: BackendOptions, extra: Mapping[str, str]) -> OpenVinoSession:
        import openvino

        device, settings = self._settings(options)
        core = openvino.Core()

        def build(model: Any) -> Any:
            try:
                return core.compile_model(model, device, {**settings, **extra})
            except MemoryError:
                raise
            except Exception as error:
                text = f"{path}: OpenVINO {_version()} cannot build it for {device}: {_plain(str(error))}"
                raise InputError(text) from error

        model = _read(path)
        return OpenVinoSession(model, _names(model, path), build, str(path))

    def _settings(self, options: BackendOptions) -> tuple[str, dict[str, str]]:
        """The device, and what it is told; UsageError for a device or an option that is not there."""
        import openvino

        core = openvino.Core()
        devices = list(core.available_devices)
        device = options.providers[0] if options.providers else _CPU
        if device not in devices or len(options.providers) > 1:
            raise UsageError(
                f"openvino {_version()} has no device {','.join(options.providers)!r} here; "
                f"give one of: {', '.join(devices)}."
            )
        allowed = {
            str(name) for name, mode in core.get_property(device, "SUPPORTED_PROPERTIES").items() if mode == "RW"
        }
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", _PRECISION: "f32"}
        settings["INFERENCE_NUM_THREADS"] = str(options.thread_count())
        if not options.denormals:
            settings["CPU_DENORMALS_OPTIMIZATION"] = "YES"
        settings = {name: value for name, value in settings.items() if name in allowed}
        if _PRECISION in settings and "FP32" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
            del settings[_PRECISION]
        for name, value in options.settings:
            if name in _OWN:
                raise UsageError(f"openvino's option {name} is set by {_OWN[name]}.")
            if name not in allowed:
                near = get_close_matches(name, allowed, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                known = ", ".join(sorted(allowed - _OWN.keys()))
                raise UsageError(f"openvino has no option {name!r} for {device}: {hint}it takes {known}.")
            settings[name] = value
        return device, settings


def _version() -> str:
    """``2026.4.1`` of ``2026.4.1-22982-e213a147257-releases/2026/4``."""
    import openvino

    return str(openvino.__version__).partition("-")[0]


def _read(path: Path) -> Any:
    import openvino

    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        return openvino.Core().read_model(path)
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if "Unable to read the model" in text:
            why = "this is neither a whole ONNX file nor OpenVINO IR (it is truncated, or something else)"
            raise InputError(f"{path}: {why}; fetch or export it again.") from error
        raise InputError(f"{path}: OpenVINO {_version()} cannot read it: {_plain(text)}") from error


def _names(model: Any, path: Path) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs. A port may bear several where tensors were merged: then the file tells."""
    ports = model.inputs, model.outputs
    if path.suffix != ".xml" and any(len(port.get_names()) != 1 for each in ports for port in each):
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        given = {one.name for one in graph.initializer}
        return [one.name for one in graph.input if one.name not in given], [one.name for one in graph.output]
    names = [
        [port.get_any_name() if port.get_names() else port.node.get_friendly_name() for port in one] for one in ports
    ]
    return names[0], names[1]


def _attributed(layers: Sequence[str], runtime: Any, path: Path) -> tuple[tuple[str, ...], ...]:
    """Per layer the ONNX nodes that it computes: the runtime keeps the names of what it fused."""
    if path.suffix == ".xml":
        return ((),) * len(layers)
    fused: dict[str, list[str]] = {}
    for one in runtime.get_ordered_ops():
        info = one.get_rt_info()
        if "originalLayersNames" in info:
            fused[one.get_friendly_name()] = info["originalLayersNames"].astype(str).split(",")
    table = NodeTable.read(path)
    found = []
    for layer in layers:  # a node is called after its first result where it has no name, or is the last
        names = (layer, *fused.get(layer, ()))
        found.append(Layer(names, outputs=tuple(name for name in names if name in table.producer)))
    return table.attribute(found)


_WHERE = re.compile(
    r"Exception from src/\S+:\d+:|Check '.*?' failed at src/\S+:\d+:|FrontEnd API failed with \w+:|Summary:"
)


def _plain(text: str) -> str:
    """The runtime's message on one line, without the C++ files, lines and checks that it came through."""
    text = " ".join(_WHERE.sub(" ", text).split())
    text = text.replace("Model wasn't fully converted. -- ", "")
    if len(text) > 600:
        text = f"{text[:600]} ..."
    return text if text.endswith((".", "!", "?")) else f"{text}."
