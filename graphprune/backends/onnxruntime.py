"""ONNX Runtime: the backend that is always there, and the plain runner used to observe and to verify networks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import Availability, BackendOptions, Build, LayerTime, machine
from graphprune.backends.memory import bounded_memory
from graphprune.backends.ort_messages import load_message, plain
from graphprune.backends.ort_options import CPU, check_engines, check_placement, split_settings
from graphprune.errors import InputError, RunTimeoutError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxRuntimeBackend", "OrtSession", "open_session", "run_model"]

#: Seconds after which one run is ended: far above what any network takes for an example, so a loop has no end.
RUN_SECONDS = 600.0
_GRACE = 10.0  # seconds for the node that is being computed

# Providers of NVIDIA's GPUs: inputs and outputs stay in the device's memory while they are timed.
_ON_CUDA = ("NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider")
_PROFILE_WARM_UPS = 3
_NUMPY_TYPES = {
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class OrtSession:
    """A network loaded by ONNX Runtime. ``label`` names it in messages; ``held`` must live as long as the session."""

    def __init__(
        self, session: Any, label: str, device: tuple[str, int] | None = None, held: object | None = None
    ) -> None:
        self._session = session
        self._label = label
        self._held = held
        self._device = device  # type and number of the device whose memory inputs and outputs are bound to
        self._inputs = {spec.name: spec for spec in session.get_inputs()}
        self._outputs = {spec.name: spec for spec in session.get_outputs()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that must be fed (initialisers that may be overridden are not among them)."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(self._outputs)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Runs once and returns the asked outputs (None: all) by name.

        Raises:
            InputError: feeds missing, unknown or of a wrong type or shape; an operator fails; an output is no tensor.
            RunTimeoutError: it took more than ``RUN_SECONDS``.
            UsageError: an output that the model does not have.
        """
        names = list(self._outputs) if outputs is None else list(outputs)
        for name in names:
            if name not in self._outputs:
                raise UsageError(f"{self._label}: there is no output {name!r}{_nearest(name, self._outputs)}")
            if not self._outputs[name].type.startswith("tensor("):
                kind = self._outputs[name].type
                raise InputError(f"{self._label}: output {name!r} is a {kind}; only tensors can be read and compared.")
        self._check(feeds)
        values = self._run(names, dict(feeds))
        return dict(zip(names, values, strict=True))

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One whole inference as users call it, ``InferenceSession.run``; the feeds are checked by a first run.

        On a GPU inputs and outputs are bound to its memory once, and the runs wait for it to finish.
        """
        self._check(feeds)
        given = dict(feeds)
        self._run(None, given)
        return partial(self._session.run, None, given) if self._device is None else self._bound(given, self._device)

    def _bound(self, feeds: Mapping[str, np.ndarray], device: tuple[str, int]) -> Callable[[], object]:
        import onnxruntime

        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, *device))
        for name in self._outputs:
            binding.bind_output(name, *device)

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def end_profiling(self) -> Path:
        """Ends the trace of a session that writes one, and says where it is."""
        return Path(self._session.end_profiling())

    def _run(self, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[Any]:
        """In a thread of its own, so that an endless loop can be ended and Ctrl-C is heard while it runs."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        answers: list[Any] = []
        done = Event()

        def work() -> None:
            try:
                answers.append(self._session.run(names, feeds, options))
            except BaseException as error:
                answers.append(error)
            finally:
                done.set()

        with bounded_memory():
            try:
                # Not Thread.join: until Python 3.13, when a signal interrupts it, it takes the thread for ended
                # (bpo-45274), and the interpreter would go while the runtime computes, which aborts the process.
                Thread(target=work, daemon=True).start()
                late = not done.wait(RUN_SECONDS)
            finally:
                options.terminate = True  # heard before the next node, within loops too
                done.wait(_GRACE)
        if late:
            raise RunTimeoutError(
                f"{self._label}: one run did not end within {RUN_SECONDS:g} s; a loop in it may have no end, or the "
                "example inputs are too large (--input-shapes)"
            )
        answer = answers[0]
        if isinstance(answer, MemoryError) or (isinstance(answer, BaseException) and not isinstance(answer, Exception)):
            raise answer
        if isinstance(answer, Exception):  # the runtime's exceptions have no common base but Exception
            raise InputError(f"{self._label}: onnxruntime cannot run it: {plain(str(answer))}") from answer
        values: list[Any] = answer
        return values

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        for name in feeds:
            if name not in self._inputs:
                raise InputError(f"{self._label}: there is no input {name!r}{_nearest(name, self._inputs)}")
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            wanted = ", ".join(f"{name!r} ({_signature(self._inputs[name])})" for name in missing[:4])
            raise InputError(f"{self._label}: no value given for input {wanted}{' ...' if missing[4:] else ''}.")
        for name, value in feeds.items():
            spec = self._inputs[name]
            wanted_type = _NUMPY_TYPES.get(spec.type)
            # The runtime says [] of a scalar and of a shape that is not declared; it checks the rank itself.
            fits = not spec.shape or (
                len(spec.shape) == value.ndim
                and all(
                    size == have for size, have in zip(spec.shape, value.shape, strict=True) if isinstance(size, int)
                )
            )
            if not fits or (wanted_type is not None and wanted_type != value.dtype.name):
                given = f"{value.dtype.name}[{','.join(map(str, value.shape))}]"
                raise InputError(f"{self._label}: input {name!r} takes {_signature(spec)}, but {given} was given.")


class OnnxRuntimeBackend:
    """ONNX Runtime with its default optimisations, as a user deploys it."""

    name = "onnxruntime"

    def available(self) -> Availability:
        """Whether onnxruntime can be imported, with its version and execution providers."""
        try:
            import onnxruntime
        except Exception as error:  # a broken shared library raises more than ImportError
            reason = f"onnxruntime cannot be imported ({error}); install it with: pip install onnxruntime"
            return Availability(usable=False, reason=reason)
        devices = tuple(onnxruntime.get_available_providers())
        reason = "" if set(devices) & set(_ON_CUDA) else "no NVIDIA GPU; for one: pip install onnxruntime-gpu"
        return Availability(True, onnxruntime.__version__, reason, devices, builds=True, times=True)

    def build(self, model: Path, folder: Path, options: BackendOptions) -> Build:
        """Writes nothing: the ONNX file is what ONNX Runtime runs. The session is built, so that errors show.

        Raises:
            InputError: the file cannot be read or built.
            UsageError: a provider or setting that this onnxruntime lacks, or a provider that took no node.
        """
        start = time.perf_counter()
        self.load(model, options)
        seconds = time.perf_counter() - start
        return Build(files=(), seconds=seconds, facts={"artefact": "the ONNX file itself", "seconds are of": "loading"})

    def load(self, path: Path, options: BackendOptions) -> OrtSession:
        """Loads with all graph optimisations, one thread between operators, and exactly the providers asked for.

        Raises:
            InputError: the file cannot be read or built.
            UsageError: a provider or setting that this onnxruntime lacks, a provider that took no node of the model,
                or nodes that would run on the CPU though it is not among the providers asked for.
        """
        return self._open(path, options, self._session_options(options))

    def fingerprint(self, options: BackendOptions) -> dict[str, Any]:
        """See :meth:`graphprune.backends.base.Backend.fingerprint`."""
        import onnxruntime

        providers = self._providers(options)
        split_settings(options, providers)
        return {
            "backend": self.name,
            "version": onnxruntime.__version__,
            **machine(),
            "threads": options.thread_count(),
            "inter_op_threads": 1,
            "spinning": options.spinning,
            "denormals": options.denormals,
            "affinity": list(options.affinity),
            "providers": list(providers),
            "settings": dict(options.settings),
            "precision": "as stored",  # the CPU provider computes in the types of the file
        }

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], options: BackendOptions, runs: int
    ) -> tuple[LayerTime, ...]:
        """Times of single nodes by the session's own trace, in whole microseconds; see ``base.Backend.profile``."""
        from graphprune.backends.ort_profile import OPTIMISED, layer_times

        if runs < 1:
            raise UsageError(f"runs={runs}: profile at least one run.")
        with tempfile.TemporaryDirectory(prefix="graphprune-profile-") as name:
            folder = Path(name)
            settings = self._session_options(options)
            settings.enable_profiling = True
            settings.profile_file_prefix = str(folder / "trace")
            if self._providers(options) == (CPU,):  # the only one whose rewritten graph can always be written
                settings.optimized_model_filepath = str(folder / OPTIMISED)
                settings.add_session_config_entry(
                    "session.optimized_model_external_initializers_file_name", f"{OPTIMISED}.data"
                )
            session = self._open(path, options, settings)
            run = session.prepare(feeds)
            for _ in range(_PROFILE_WARM_UPS - 1 + runs):  # ``prepare`` did the first
                run()
            return layer_times(session.end_profiling(), path, _PROFILE_WARM_UPS)

    def _open(self, path: Path, options: BackendOptions, settings: Any) -> OrtSession:
        providers = self._providers(options)
        _, of_provider = split_settings(options, providers)
        check_engines(path, options)
        session = _create(path, settings, providers, of_provider)
        check_placement(session, str(path), providers)
        device = ("cuda", int(of_provider.get("device_id", "0"))) if providers[0] in _ON_CUDA else None
        return OrtSession(session, str(path), device)

    def _session_options(self, options: BackendOptions) -> Any:
        import onnxruntime

        providers = self._providers(options)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # errors are raised; onnxruntime would print them a second time, in colour
        settings.intra_op_num_threads = options.thread_count()
        settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
        if not options.denormals:
            settings.add_session_config_entry("session.set_denormal_as_zero", "1")
        if 1 < options.thread_count() <= len(options.affinity):
            # One CPU per thread, counted from 1; the calling thread is the pool's first and is not in the list.
            pinned = options.affinity[1 : options.thread_count()]
            entry = ";".join(str(cpu + 1) for cpu in pinned)
            settings.add_session_config_entry("session.intra_op_thread_affinities", entry)
        if providers != (CPU,):
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name, value in split_settings(options, providers)[0].items():
            settings.add_session_config_entry(name, value)
        return settings

    def _providers(self, options: BackendOptions) -> tuple[str, ...]:
        """The providers asked for, or the CPU; UsageError for one that is not there."""
        import onnxruntime

        known = onnxruntime.get_available_providers()
        for provider in options.providers:
            if provider not in known:
                raise UsageError(
                    f"onnxruntime {onnxruntime.__version__} has no execution provider {provider!r} here; "
                    f"available: {', '.join(known)}."
                )
        return options.providers or (CPU,)


def open_session(
    model: bytes | Path,
    *,
    optimize: bool = False,
    prepack: bool = False,
    threads: int | None = None,
    data_folder: Path | None = None,
    initializers: Mapping[str, tuple[int, np.ndarray]] | None = None,
) -> OrtSession:
    """Loads a model on the CPU to look at its values, not at its speed: see :func:`run_model` for the arguments.

    ``data_folder`` is where a model given as bytes finds its external data. ``initializers`` are arrays to be used,
    where they are, instead of what is stored: name -> ONNX data type and array of unsigned integers of its width.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    settings.intra_op_num_threads = BackendOptions(threads=threads).thread_count()
    settings.inter_op_num_threads = 1
    # Memory stays near the model's own size: weights are not copied into packed layouts, so external data stay
    # mapped, and what a node no longer needs goes back to the system instead of into an arena.
    settings.enable_cpu_mem_arena = False
    settings.enable_mem_pattern = False
    # In the file's order: the default order runs everything that needs no input first, so that all the masked weights
    # of a verification would be held at once.
    settings.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if data_folder is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_folder))
    given = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
        for name, (kind, array) in (initializers or {}).items()
    }
    for name, value in given.items():
        settings.add_initializer(name, value)
    return OrtSession(_create(model, settings, (CPU,), {}), _label(model), held=given)


def run_model(
    model: bytes | Path,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    *,
    optimize: bool = False,
    prepack: bool = False,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Runs a model once on the CPU: the runner for observing and verifying.

    Args:
        model: A path (external data are found beside the file), or a small model's bytes.
        feeds: One array per input, of the declared type and shape.
        outputs: The graph outputs to return; None: all.
        optimize: Let onnxruntime rewrite the graph. Off, every node computes what the file says.
        prepack: Let it copy weights into packed layouts: faster from the second run on, for more memory.
        threads: Threads inside one operator; None: one per physical core.

    Raises:
        InputError: the model cannot be read, built or run, or the feeds do not fit. One line.
        UsageError: an output that the model does not have.
    """
    return open_session(model, optimize=optimize, prepack=prepack, threads=threads).run(feeds, outputs)


def _create(model: bytes | Path, settings: Any, providers: tuple[str, ...], of_first: dict[str, str]) -> Any:
    import onnxruntime

    if isinstance(model, Path) and not model.is_file():
        raise InputError(f"{model}: there is no such file.")
    try:
        # Without enable_fallback=0 a provider that fails is replaced by the CPU with nothing but a printed line.
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            settings,
            providers=[(name, of_first if index == 0 else {}) for index, name in enumerate(providers)],
            enable_fallback=0,
        )
    except MemoryError:
        raise
    except Exception as error:
        if of_first and "provider option" in str(error):
            given = ", ".join(f"{name}={value}" for name, value in of_first.items())
            raise UsageError(f"{providers[0]} does not take these options ({given}): {plain(str(error))}") from error
        raise InputError(load_message(_label(model), str(error), onnxruntime.__version__)) from error


def _label(model: bytes | Path) -> str:
    return f"model in memory ({len(model)} bytes)" if isinstance(model, bytes) else str(model)


def _signature(spec: Any) -> str:
    kind = _NUMPY_TYPES.get(spec.type, spec.type)
    return f"{kind}[{','.join('?' if size is None else str(size) for size in spec.shape)}]"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, list(known)[:8])) or 'none'}."
