"""Options of the ``tensorrt`` backend: typed, checked, read from the plain text that the command line hands over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError

__all__ = ["PRECISIONS", "RUNTIMES", "TensorRTOptions"]

PRECISIONS = ("fp32", "fp16", "bf16")
#: Python modules with the TensorRT API.
RUNTIMES = ("tensorrt", "tensorrt_rtx")

Shapes = Mapping[str, tuple[int, ...]]

_SHAPE = re.compile(r"(?:(?P<name>[^,]+):)?(?P<dims>\d+(?:x\d+)*|scalar)", re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class TensorRTOptions:
    """How an engine is built and whether one may be loaded. As a setting, every name is written with hyphens.

    Attributes:
        min_shapes, opt_shapes, max_shapes: sizes of inputs with dynamic axes in the one optimisation profile: the
            least, the one that is tuned for, the largest; ``x:1x3x224x224,y:1x16``, or ``1x3x224x224`` for a network
            with one input (its name is then ``""`` here), or ``x:scalar``. Where one or two of the three are given for
            an input, the others follow as in trtexec. Of an input that holds sizes (a shape tensor) they are values.
        precision: ``fp32``, or ``fp16`` or ``bf16`` by casting the graph; the network's inputs and outputs stay.
        keep_fp32: patterns of node names or operators (``*norm*,Softmax``) that stay in float32 in any precision.
        compute_capability: targets of TensorRT-RTX: an engine for each of ``sm86,sm89``; one for both is
            ``sm86+sm89``. Empty: one engine that runs on every supported GPU from sm80 on.
        timing_cache: file that TensorRT's timings are read from and kept in (TensorRT-RTX has none).
        version_compatible: an engine for later versions of TensorRT as well (not TensorRT-RTX).
        hardware_compatible: an engine for every GPU from Ampere on (not TensorRT-RTX: its engines are that).
        workspace: limit of the builder's scratch memory in bytes; ``512m`` or ``2g`` as a setting.
        optimization_level: how long the builder searches, 0 to 5; None: the builder's default.
        trust_engine: engine files may be loaded. To load one is to run code that is in it.
        runtime: the Python module, ``tensorrt`` or ``tensorrt_rtx``; None: the first that is installed and can build.
    """

    min_shapes: Shapes = field(default_factory=dict)
    opt_shapes: Shapes = field(default_factory=dict)
    max_shapes: Shapes = field(default_factory=dict)
    precision: str = "fp32"
    keep_fp32: tuple[str, ...] = ()
    compute_capability: tuple[tuple[str, ...], ...] = ()
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace: int | None = None
    optimization_level: int | None = None
    trust_engine: bool = False
    runtime: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision={self.precision}: TensorRT networks are cast to {', '.join(PRECISIONS)}.")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise UsageError(f"runtime={self.runtime}: the modules with the TensorRT API are {', '.join(RUNTIMES)}.")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace={self.workspace}: give a number of bytes above 0, such as 512m or 2g.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization-level={self.optimization_level}: TensorRT knows the levels 0 to 5.")
        for target in self.compute_capability:
            for name in target:
                if not re.fullmatch(r"sm\d{2,3}|current", name, re.ASCII):
                    raise UsageError(f"compute-capability: {name!r} is none; write for example sm86,sm89 or sm86+sm89.")
        if len({frozenset(target) for target in self.compute_capability}) < len(self.compute_capability):
            raise UsageError("compute-capability: a target is given twice; give each once.")

    @classmethod
    def parse(cls, settings: Iterable[tuple[str, str]]) -> TensorRTOptions:
        """Read ``(name, value)`` texts; ``trust_engine`` is the same name as ``trust-engine``.

        Raises:
            UsageError: an unknown name, or a value that cannot be read.
        """
        values: dict[str, Any] = {}
        for name, text in settings:
            key = name.strip().replace("-", "_")
            if key not in _READERS:
                known = [one.replace("_", "-") for one in _READERS]
                near = get_close_matches(key.replace("_", "-"), known, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UsageError(f"the tensorrt backend has no option {name!r}: {hint}it has {', '.join(known)}.")
            values[key] = _READERS[key](key.replace("_", "-"), text.strip())
        return cls(**values)

    def settings(self) -> tuple[tuple[str, str], ...]:
        """The texts that :meth:`parse` reads back to this; what has its default is left out."""
        default = TensorRTOptions()
        return tuple(
            (one.name.replace("_", "-"), _text(getattr(self, one.name)))
            for one in fields(self)
            if getattr(self, one.name) != getattr(default, one.name)
        )

    def profile_of(
        self, name: str, declared: Sequence[int], label: str, *, alone: bool = False, values: bool = False
    ) -> Profile | None:
        """Sizes of one input in the optimisation profile; None where the input has no dynamic axis.

        Where fewer than three shapes are given: the least and the largest follow the optimum, an optimum that is not
        given is the largest (as trtexec does it).

        Args:
            name: of the input. declared: its sizes, -1 where an axis is dynamic. label: what messages call the model.
            alone: the network has no other input, so that a shape without a name is meant for this one.
            values: it is a shape tensor: ``declared`` has a -1 for each of its values.

        Raises:
            UsageError: no shape is given, the ranks or fixed sizes differ, or they are not in order.
        """
        given = [self._shape(which, name, alone) for which in (self.min_shapes, self.opt_shapes, self.max_shapes)]
        least, best, most = given
        dynamic = any(size < 0 for size in declared)
        if least is best is most is None:
            if not dynamic:
                return None
            what = f"holds {len(declared)} sizes" if values else f"has dynamic axes {_dims(declared)}"
            raise UsageError(
                f"{label}: input {name!r} {what} and TensorRT must know the range of these "
                f"sizes: give --opt-shapes {name}:{_dims([max(size, 1) for size in declared])} with your sizes, and "
                "--min-shapes and --max-shapes where they vary."
            )
        best = best or most or least
        least, most = least or best, most or best
        assert least is not None and best is not None and most is not None
        for shape in (least, best, most):
            if len(shape) != len(declared) or any(
                want not in (-1, have) for want, have in zip(declared, shape, strict=True)
            ):
                raise UsageError(
                    f"{label}: input {name!r} is {_dims(declared)} (?: dynamic), which {_dims(shape)} does not fit."
                )
        for lower, upper in ((least, best), (best, most)):
            if any(low > high for low, high in zip(lower, upper, strict=True)):
                raise UsageError(
                    f"{label}: the shapes of input {name!r} are not in order: min {_dims(least)}, opt {_dims(best)}, "
                    f"max {_dims(most)}."
                )
        return Profile(least, best, most) if dynamic else None

    def check_names(self, inputs: Sequence[str], label: str) -> None:
        """Refuses shapes for inputs that the network does not have."""
        for which in (self.min_shapes, self.opt_shapes, self.max_shapes):
            for name in which:
                if name not in inputs and not (name == "" and len(inputs) == 1):
                    have = ", ".join(map(repr, inputs))
                    what = f"there is no input {name!r}" if name else "a shape without a name fits one input alone"
                    raise UsageError(f"{label}: {what}; the inputs are {have}.")

    def _shape(self, shapes: Shapes, name: str, alone: bool) -> tuple[int, ...] | None:
        found = shapes.get(name)
        return shapes.get("") if found is None and alone else found


@dataclass(frozen=True)
class Profile:
    """Least, best and largest sizes of one input."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    def to_json(self) -> dict[str, list[int]]:
        """In the words of TensorRT."""
        return {"min": list(self.least), "opt": list(self.best), "max": list(self.most)}


def _dims(sizes: Sequence[int]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in sizes) or "scalar"


def _shapes(name: str, text: str) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in text.split(","):
        found = _SHAPE.fullmatch(entry.strip())
        if found is None:
            raise UsageError(f"{name}={text}: cannot read {entry!r}; write for example x:1x3x224x224,y:1x16.")
        key = found["name"] or ""
        if key in shapes:
            raise UsageError(f"{name}={text}: {key or 'a shape without a name'} is given twice.")
        shapes[key] = () if found["dims"] == "scalar" else tuple(int(size) for size in found["dims"].split("x"))
    return shapes


def _flag(name: str, text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise UsageError(f"{name}={text}: write true or false.")


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise UsageError(f"{name}={text}: this is no whole number.")
    return int(text)


def _size(name: str, text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg]?)(?:i?b)?", text.lower(), re.ASCII)
    if found is None:
        raise UsageError(f"{name}={text}: write a number of bytes, 512m or 2g.")
    return int(found[1]) * _UNITS[found[2]]


def _list(name: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise UsageError(f"{name}={text}: an entry of the list is empty.")
    return words


def _targets(name: str, text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(one.strip().lower() for one in target.split("+")) for target in _list(name, text))


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "min_shapes": _shapes,
    "opt_shapes": _shapes,
    "max_shapes": _shapes,
    "precision": lambda _, text: text.lower(),
    "keep_fp32": _list,
    "compute_capability": _targets,
    "timing_cache": lambda _, text: Path(text),
    "version_compatible": _flag,
    "hardware_compatible": _flag,
    "workspace": _size,
    "optimization_level": _integer,
    "trust_engine": _flag,
    "runtime": lambda _, text: text.replace("-", "_"),
}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join((f"{name}:" if name else "") + _dims(shape) for name, shape in value.items())
    if isinstance(value, tuple):
        return ",".join("+".join(one) if isinstance(one, tuple) else one for one in value)
    return str(value)
