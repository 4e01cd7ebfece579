"""Running engines: CUDA devices, memory and streams (cuda-python), and what a loaded engine tells of its layers.

Nothing here works without a CUDA device, so what can be decided without one stands in functions of its own. CUDA and
the engine are handed in, so that the rest can be run against stand-ins.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import LayerTime
from graphprune.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Binding", "Devices", "TensorRTSession", "cuda_devices", "cuda_runtime", "layer_times"]

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\[]|$)")


@dataclass(frozen=True)
class Devices:
    """CUDA devices here: a name each (with its compute capability), or why there is none."""

    names: tuple[str, ...]
    reason: str = ""


def cuda_runtime() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        UsageError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise UsageError("to run TensorRT engines install cuda-python: pip install cuda-python") from error
    return runtime


def cuda_devices() -> Devices:
    """What the CUDA runtime says. Never raises."""
    try:
        cuda = cuda_runtime()
        count = _ok(cuda, cuda.cudaGetDeviceCount())
        found = [_ok(cuda, cuda.cudaGetDeviceProperties(index)) for index in range(count)]
    except Exception as error:  # a broken driver may raise anything
        return Devices((), f"no CUDA device ({str(error).removeprefix('CUDA: ').rstrip('.')})")
    if not found:
        return Devices((), "no CUDA device")
    return Devices(tuple(f"{_text(one.name)} (sm{one.major}{one.minor})" for one in found))


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else name


def _ok(cuda: Any, answer: tuple[Any, ...]) -> Any:
    """What a call of the CUDA runtime returned, without its error code.

    Raises:
        InputError: the call failed.
    """
    code, *values = answer
    if code != cuda.cudaError_t.cudaSuccess:
        said = cuda.cudaGetErrorString(code)[1]
        raise InputError(f"CUDA: {_text(said) if said else code}.")
    return values[0] if len(values) == 1 else tuple(values)


@dataclass(frozen=True)
class Binding:
    """An input or output of an engine: its type and its declared shape (-1 where an axis is dynamic)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def check(self, value: np.ndarray, label: str) -> None:
        """Refuses an array of another type or shape.

        Raises:
            InputError: it does not fit.
        """
        fits = len(value.shape) == len(self.shape) and all(
            size in (-1, have) for size, have in zip(self.shape, value.shape, strict=True)
        )
        if not fits or value.dtype != self.dtype:
            given = f"{value.dtype.name}[{','.join(map(str, value.shape))}]"
            wanted = f"{self.dtype.name}[{','.join('?' if size < 0 else str(size) for size in self.shape)}]"
            raise InputError(f"{label}: input {self.name!r} takes {wanted}, but {given} was given.")


def _context(module: Any, engine: Any) -> Any:
    """An execution context; TensorRT-RTX compiles kernels for new shapes at once instead of beside later inferences."""
    eager = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
    if eager is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = eager.EAGER
    return engine.create_execution_context(config)


class TensorRTSession:
    """An engine on the first CUDA device, with one execution context and one stream."""

    def __init__(self, module: Any, engine: Any, label: str, cuda: Any) -> None:
        import numpy as np

        self._module, self._engine, self._label, self._cuda = module, engine, label, cuda
        self._context = _context(module, engine)
        if self._context is None:
            raise InputError(f"{label}: no execution context can be made of the engine; is the GPU's memory full?")
        self._stream = _ok(cuda, cuda.cudaStreamCreate())
        self._memory: dict[str, tuple[int, int]] = {}  # tensor -> address, bytes
        self._inputs: dict[str, Binding] = {}
        self._outputs: dict[str, Binding] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = np.dtype(module.nptype(engine.get_tensor_dtype(name)))
            binding = Binding(name, kind, tuple(engine.get_tensor_shape(name)))
            is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = binding

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that must be fed."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the engine's order."""
        return tuple(self._outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs once: copies in, infers, copies out.

        Raises:
            InputError: the feeds do not fit, are outside the optimisation profile, or CUDA or TensorRT fails.
        """
        import numpy as np

        shapes = self._bind(feeds)
        self._infer()
        results = {}
        cuda = self._cuda
        for name, shape in shapes.items():
            array = np.empty(shape, self._outputs[name].dtype)
            kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            if array.nbytes:
                _ok(cuda, cuda.cudaMemcpy(array.ctypes.data, self._memory[name][0], array.nbytes, kind))
            results[name] = array
        return results

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One inference on the device, from launch to the end of its stream; the copies are done here, once."""
        self._bind(feeds)
        self._infer()
        return self._infer

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int) -> tuple[LayerTime, ...]:
        """Times of all layers over ``runs`` inferences, see :meth:`graphprune.backends.base.Backend.profile`."""
        module = self._module
        samples: dict[str, list[float]] = {}

        class Profiler(module.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                module.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                samples.setdefault(layer_name, []).append(ms)

        self._bind(feeds)
        for _ in range(3):
            self._infer()
        profiler = Profiler()
        self._context.profiler = profiler
        for _ in range(runs):
            self._infer()
        inspector = self._engine.create_engine_inspector()
        told = inspector.get_engine_information(module.LayerInformationFormat.JSON)
        return layer_times(samples, told)

    def close(self) -> None:
        """Gives memory and stream back."""
        cuda = self._cuda
        for address, _ in self._memory.values():
            cuda.cudaFree(address)
        self._memory.clear()
        if self._stream is not None:
            cuda.cudaStreamDestroy(self._stream)
            self._stream = None

    def __del__(self) -> None:
        if getattr(self, "_stream", None) is not None:
            self.close()

    def _bind(self, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """Copies the feeds to the device, gives every tensor its memory; shapes of the outputs."""
        import numpy as np

        cuda, context = self._cuda, self._context
        for name in feeds:
            if name not in self._inputs:
                raise InputError(f"{self._label}: there is no input {name!r}; it has {', '.join(self._inputs)}.")
        for name, binding in self._inputs.items():
            if name not in feeds:
                raise InputError(f"{self._label}: no value given for input {name!r}.")
            value = np.ascontiguousarray(feeds[name])
            binding.check(value, self._label)
            if not context.set_input_shape(name, tuple(value.shape)):
                raise InputError(
                    f"{self._label}: shape {list(value.shape)} of input {name!r} is outside the engine's profile; "
                    "build it with --min-shapes and --max-shapes that include it."
                )
            address = self._allocate(name, value.nbytes)
            if value.nbytes:
                kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
                _ok(cuda, cuda.cudaMemcpy(address, value.ctypes.data, value.nbytes, kind))
        if missing := context.infer_shapes():
            raise InputError(f"{self._label}: the shapes of {', '.join(missing)} cannot be told from the inputs'.")
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in shapes.items():
            if any(size < 0 for size in shape):
                raise InputError(f"{self._label}: the size of output {name!r} depends on values; it cannot be timed.")
            self._allocate(name, int(np.prod(shape, dtype=np.int64)) * self._outputs[name].dtype.itemsize)
        return shapes

    def _allocate(self, name: str, size: int) -> int:
        cuda = self._cuda
        address, have = self._memory.get(name, (0, 0))
        if have < size or not address:
            if address:
                _ok(cuda, cuda.cudaFree(self._memory.pop(name)[0]))
            address = int(_ok(cuda, cuda.cudaMalloc(max(size, 1))))
            self._memory[name] = address, size
        if not self._context.set_tensor_address(name, address):
            raise InputError(f"{self._label}: TensorRT does not take the memory of tensor {name!r}.")
        return address

    def _infer(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise InputError(f"{self._label}: TensorRT cannot run the engine; its log (-v) says why.")
        _ok(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))


def layer_times(samples: Mapping[str, Sequence[float]], inspected: str) -> tuple[LayerTime, ...]:
    """Median times of layers, with what the engine's inspector tells of them.

    Args:
        samples: layer name -> milliseconds in each run, in the order in which the layers run.
        inspected: the inspector's JSON; with ``ProfilingVerbosity.DETAILED`` a layer's ``Metadata`` names its nodes.
    """
    told = {
        layer["Name"]: layer
        for layer in json.loads(inspected or "{}").get("Layers", ())
        if isinstance(layer, dict) and "Name" in layer
    }
    times = []
    for name, values in samples.items():
        layer = told.get(name, {})
        nodes = tuple(_NODE.findall(layer.get("Metadata", "")))
        times.append(LayerTime(name, layer.get("LayerType", "layer"), nodes, statistics.median(values) * 1e6))
    return tuple(times)
