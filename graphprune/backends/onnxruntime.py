"""ONNX Runtime: the backend that is always there, and the plain runner used to observe and to verify networks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import Availability, BackendOptions, machine
from graphprune.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxRuntimeBackend", "OrtSession", "open_session", "run_model"]

_CPU = "CPUExecutionProvider"
_NUMPY_TYPES = {
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class OrtSession:
    """A network loaded by ONNX Runtime. ``label`` names it in messages."""

    def __init__(self, session: Any, label: str) -> None:
        self._session = session
        self._label = label
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
        """One whole inference as users call it, ``InferenceSession.run``; the feeds are checked by a first run."""
        self._check(feeds)
        given = dict(feeds)
        self._run(None, given)
        return partial(self._session.run, None, given)

    def _run(self, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[Any]:
        try:
            values: list[Any] = self._session.run(names, feeds)
        except MemoryError:
            raise
        except Exception as error:  # the runtime's exceptions have no common base but Exception
            raise InputError(f"{self._label}: onnxruntime cannot run it: {_plain(str(error))}") from error
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
        return Availability(True, onnxruntime.__version__, providers=tuple(onnxruntime.get_available_providers()))

    def load(self, path: Path, options: BackendOptions) -> OrtSession:
        """Loads with all graph optimisations, one thread between operators, and exactly the providers asked for.

        Raises:
            InputError: the file cannot be read or built.
            UsageError: a provider that this onnxruntime lacks, or that took no node of the model.
        """
        import onnxruntime

        self._check_providers(options.providers)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # errors are raised; onnxruntime would print them a second time, in colour
        settings.intra_op_num_threads = options.thread_count()
        settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
        if options.providers != (_CPU,):
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = _create(path, settings, options.providers)
        label = str(path)
        _check_placement(session, label, options.providers)
        return OrtSession(session, label)

    def fingerprint(self, options: BackendOptions) -> dict[str, Any]:
        """See :meth:`graphprune.backends.base.Backend.fingerprint`."""
        import onnxruntime

        self._check_providers(options.providers)
        return {
            "backend": self.name,
            "version": onnxruntime.__version__,
            **machine(),
            "threads": options.thread_count(),
            "inter_op_threads": 1,
            "spinning": options.spinning,
            "providers": list(options.providers),
            "precision": "as stored",  # the CPU provider computes in the types of the file
        }

    def _check_providers(self, asked: tuple[str, ...]) -> None:
        import onnxruntime

        known = onnxruntime.get_available_providers()
        for provider in asked:
            if provider not in known:
                raise UsageError(
                    f"onnxruntime {onnxruntime.__version__} has no execution provider {provider!r} here; "
                    f"available: {', '.join(known)}."
                )


def open_session(
    model: bytes | Path,
    *,
    optimize: bool = False,
    prepack: bool = False,
    threads: int | None = None,
    data_folder: Path | None = None,
) -> OrtSession:
    """Loads a model on the CPU to look at its values, not at its speed: see :func:`run_model` for the arguments.

    ``data_folder`` is where a model given as bytes finds its external data.
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
    return OrtSession(_create(model, settings, (_CPU,)), _label(model))


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


def _create(model: bytes | Path, settings: Any, providers: tuple[str, ...]) -> Any:
    import onnxruntime

    if isinstance(model, Path) and not model.is_file():
        raise InputError(f"{model}: there is no such file.")
    try:
        # Without enable_fallback=0 a provider that fails is replaced by the CPU with nothing but a printed line.
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            settings,
            providers=list(providers),
            enable_fallback=0,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(_load_message(_label(model), str(error), onnxruntime.__version__)) from error


def _check_placement(session: Any, label: str, asked: tuple[str, ...]) -> None:
    """Refuses a session whose first provider does no work: its time would be reported under the wrong device."""
    used = session.get_providers()
    placed: Counter[str] = Counter()
    if asked != (_CPU,) and hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            placed[part.ep_name] += len(part.get_nodes())
    absent = [provider for provider in asked if provider not in used]
    idle = placed and not placed[asked[0]]
    if absent or idle:
        where = ", ".join(f"{count} on {name}" for name, count in placed.most_common()) or ", ".join(used)
        raise UsageError(
            f"{label}: onnxruntime does not run it on {absent[0] if absent else asked[0]} (nodes placed: {where}); "
            "ask for a provider that supports its operators."
        )


def _label(model: bytes | Path) -> str:
    return f"model in memory ({len(model)} bytes)" if isinstance(model, bytes) else str(model)


def _signature(spec: Any) -> str:
    kind = _NUMPY_TYPES.get(spec.type, spec.type)
    return f"{kind}[{','.join('?' if size is None else str(size) for size in spec.shape)}]"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, list(known)[:8])) or 'none'}."


_OPSET = re.compile(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL)
_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_SOURCE = re.compile(r"\S*\.(?:h|hpp|cc|cpp|cxx|cu|cuh):\d+:? ")


def _load_message(label: str, text: str, version: str) -> str:
    if found := _OPSET.search(text):
        opset, domain, limit = found.groups()
        return (
            f"{label}: it uses opset {opset} of {domain}, which onnxruntime {version} does not accept (up to {limit}); "
            f"export it with opset {limit} or lower, or install a newer onnxruntime."
        )
    if found := _IR.search(text):
        have, limit = found.groups()
        return (
            f"{label}: it has IR version {have}, which onnxruntime {version} does not accept (up to {limit}); "
            f"save it with IR version {limit} or lower, or install a newer onnxruntime."
        )
    if "INVALID_PROTOBUF" in text or "No graph was found" in text:
        return f"{label}: this is not a whole ONNX file (it is truncated, or something else); fetch or export it again."
    return f"{label}: onnxruntime {version} cannot load it: {_plain(text)}"


def _plain(text: str) -> str:
    """The runtime's message on one line, without its error code and the C++ file, line and signature it came from."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    parts = _SOURCE.split(text)
    kept = [parts[0], *(_drop_signature(part) for part in parts[1:])]
    text = " ".join(" ".join(kept).split())
    if len(text) > 600:
        text = f"{text[:600]} ..."
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _drop_signature(text: str) -> str:
    """Cuts ``ret ns::Class::method(args) const [with T = x]``, or a lone function name, off the beginning."""
    start = text.find("(")
    if start < 0 or "::" not in text[:start]:
        return re.sub(r"^[A-Za-z_]\w* (?=\S)", "", text)
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return re.sub(r"^\s*(?:const)?\s*(?:\[with [^\]]*\])?\s*", "", text[position + 1 :])
    return text
