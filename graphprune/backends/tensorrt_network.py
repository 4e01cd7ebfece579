"""A network in TensorRT: parsed from a prepared ONNX file, described, and built into engines."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.backends.tensorrt_options import Profile, TensorRTOptions
from graphprune.errors import InputError, UsageError
from graphprune.ir.files import atomic_files

__all__ = ["Network", "Runtime", "parser_message", "plain"]

_log = logging.getLogger(__name__)
_LABELS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Runtime:
    """One of the two Python modules with TensorRT's interface.

    Attributes:
        name: of the module. module: itself.
        logger: what its objects log to: everything goes to this package's logging at debug level.
        errors: what was logged as an error since it was last emptied.
    """

    name: str
    module: Any
    logger: Any
    errors: list[str]

    @classmethod
    def of(cls, name: str, module: Any) -> Runtime:
        """A module with a logger of its own."""
        errors: list[str] = []
        bad = (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR)

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                _log.debug("%s: %s", severity.name, msg)
                if severity in bad:
                    errors.append(msg)

        return cls(name, module, Logger(), errors)

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{_LABELS[self.name]} {self.module.__version__}"

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.name == "tensorrt_rtx"

    def check(self, options: TensorRTOptions) -> None:
        """Refuses settings that this runtime has no use for.

        Raises:
            UsageError: one of them, or a target that it does not know.
        """
        if not self.rtx:
            if options.compute_capability:
                raise UsageError(
                    f"compute-capability: {self.label} builds for the GPU it runs on; TensorRT-RTX builds for others."
                )
            return
        useless = {
            "timing-cache": (options.timing_cache, "it times nothing while it builds"),
            "version-compatible": (options.version_compatible, "it comes without the lean runtime that this needs"),
            "hardware-compatible": (options.hardware_compatible, "its engines run on every GPU from sm80 on as it is"),
        }
        for name, (value, why) in useless.items():
            if value:
                raise UsageError(f"{name}: {self.label} does not have it: {why}. Leave it out.")
        known = [one for one in self.module.ComputeCapability.__members__ if one != "NONE"]
        for target in options.compute_capability:
            for one in target:
                if one.upper() not in known:
                    have = ", ".join(known).lower()
                    raise UsageError(f"compute-capability: {self.label} does not build for {one}; it knows {have}.")


class Network:
    """A strongly typed network definition; ``profiles`` has the sizes of its dynamic inputs."""

    def __init__(self, runtime: Runtime, options: TensorRTOptions, file: Path, label: str) -> None:
        """Parse.

        Args:
            runtime: TensorRT or TensorRT-RTX. options: of the build. file: the prepared network; external data beside.
            label: what messages call the network.

        Raises:
            InputError: the parser does not take it. UsageError: the shapes given do not fit its inputs.
        """
        self._runtime, self._options, self._label = runtime, options, label
        module = runtime.module
        runtime.errors.clear()
        self._builder = module.Builder(runtime.logger)
        flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(flags)
        parser = module.OnnxParser(self._network, runtime.logger)
        if not parser.parse_from_file(str(file)):
            errors = [parser.get_error(k) for k in range(parser.num_errors)]
            told = [(one.node_name(), one.node_operator(), one.desc()) for one in errors]
            raise InputError(f"{label}: {parser_message(told, runtime.label)}")
        self._parser = parser  # it owns the weights until the engine is built
        network = self._network
        self._inputs = [network.get_input(k) for k in range(network.num_inputs)]
        self._outputs = [network.get_output(k) for k in range(network.num_outputs)]
        names = [tensor.name for tensor in self._inputs]
        options.check_names(names, label)
        self.profiles: dict[str, Profile] = {}
        for tensor in self._inputs:
            if tensor.is_shape_tensor:
                declared = (-1,) * (tensor.shape[0] if len(tensor.shape) else 1)
            else:
                declared = tuple(tensor.shape)
            values = tensor.is_shape_tensor
            profile = options.profile_of(tensor.name, declared, label, alone=len(names) == 1, values=values)
            if profile is not None:
                self.profiles[tensor.name] = profile

    def build(self, target: Sequence[str], path: Path) -> None:
        """Build an engine and write it.

        Args:
            target: compute capabilities that one engine is for (TensorRT-RTX); none: its default.
            path: the file.

        Raises:
            InputError: the builder cannot build it. UsageError: a timing cache that cannot be used or written.
        """
        runtime, module = self._runtime, self._runtime.module
        config = self._configured(target)
        runtime.errors.clear()
        engine = self._builder.build_serialized_network(self._network, config)
        if engine is None:
            where = f" for {'+'.join(target)}" if target else ""
            raise InputError(f"{self._label}: {runtime.label} cannot build it{where}: {plain(runtime.errors)}")
        with atomic_files(path) as (out,):
            out.write(memoryview(engine))
        if self._options.timing_cache is not None:
            with atomic_files(self._options.timing_cache) as (out,):
                out.write(memoryview(config.get_timing_cache().serialize()))
        _log.debug("%s: %d bytes by %s", path, engine.nbytes, module.__name__)

    def bindings(self) -> list[dict[str, Any]]:
        """Inputs and outputs: name, mode, dtype, shape (a dynamic axis by its name, or -1)."""
        both = (("input", self._inputs), ("output", self._outputs))
        return [
            {"name": tensor.name, "mode": mode, "dtype": _dtype(tensor.dtype), "shape": _axes(tensor)}
            for mode, tensors in both
            for tensor in tensors
        ]

    def layers(self) -> list[dict[str, Any]]:
        """Layers of the definition: name, kind, types and shapes of the outputs."""
        found = []
        for index in range(self._network.num_layers):
            layer = self._network.get_layer(index)
            outputs = [layer.get_output(k) for k in range(layer.num_outputs)]
            told = [f"{_dtype(one.dtype)}[{_sizes(one)}]" for one in outputs if one is not None]
            found.append({"name": layer.name, "kind": layer.type.name.lower(), "outputs": told})
        return found

    def _configured(self, target: Sequence[str]) -> Any:
        module, options = self._runtime.module, self._options
        config = self._builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # so that layers can be told apart later
        if target:
            config.num_compute_capabilities = len(target)
            for index, name in enumerate(target):
                config.set_compute_capability(getattr(module.ComputeCapability, name.upper()), index)
        if options.workspace is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.timing_cache is not None:
            self._timing_cache(config, options.timing_cache)
        if self.profiles:
            profile = self._builder.create_optimization_profile()
            for tensor in self._inputs:
                if sizes := self.profiles.get(tensor.name):
                    set_shape = profile.set_shape_input if tensor.is_shape_tensor else profile.set_shape
                    set_shape(tensor.name, sizes.least, sizes.best, sizes.most)
            config.add_optimization_profile(profile)
        return config

    def _timing_cache(self, config: Any, path: Path) -> None:
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UsageError(f"timing-cache: '{path}' cannot be read: {error.strerror}.") from error
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            raise UsageError(
                f"timing-cache: '{path}' is none of {self._runtime.label} on this GPU; delete it or name another file."
            )


def parser_message(errors: Sequence[tuple[str, str, str]], runtime: str) -> str:
    """One sentence from a parser's errors, each with node name, operator and description."""
    if not errors:
        return f"{runtime} cannot parse it, and does not say why; its log (-v) may."
    name, operator, text = errors[0]
    lines = [line for line in text.splitlines() if not line.startswith(("[", "Invalid Node"))]
    text = re.sub(r"^Assertion failed: (?:[^:\"]|::)*: ", "", _bare(" ".join(lines)))
    if text in ("", "false"):
        text = "the operator is not supported"
    message = f"{runtime} cannot take node {name!r} ({operator}): {text}"
    rest = Counter(one[1] for one in errors[1:])
    if rest:
        others = ", ".join(f"{count}x {kind}" if count > 1 else kind for kind, count in rest.most_common(4))
        message += f"; and {len(errors) - 1} more ({others}{', ...' if len(rest) > 4 else ''})"
    return message + "."


def plain(errors: Sequence[str]) -> str:
    """The last thing a builder or loader complained of, without source files, on one line."""
    if not errors:
        return "it does not say why; its log (-v) may."
    return _bare(errors[-1]) + "."


def _bare(text: str) -> str:
    """A message without the functions and source files that it came from, and without a full stop."""
    text = " ".join(text.split())
    text = re.sub(r"^(?:I\w+::\w+: |\[[^\]]*\] )", "", text)
    if found := re.fullmatch(r"Error Code \d+: [\w ]+ \((.*)\)", text):
        text = re.sub(r"^\[[^\]]*\] ", "", found[1])
    text = re.sub(r"\.? In \w+ at \S+:\d+", "", text)
    return text.rstrip(".! ")


def _dtype(kind: Any) -> str:
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return names.get(kind.name, str(kind.name).lower())


def _axes(tensor: Any) -> list[int | str]:
    return [
        size if size >= 0 else tensor.get_dimension_name(axis) or -1 for axis, size in enumerate(tuple(tensor.shape))
    ]


def _sizes(tensor: Any) -> str:
    try:
        return ",".join("?" if size < 0 else str(size) for size in tuple(tensor.shape))
    except ValueError:  # rank not known before run time
        return "..."
