"""Options that several verbs share, and the readers of their values.

A reader takes the words as the user wrote them and raises ``UsageError`` with those words and an example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from graphprune.errors import UsageError

__all__ = [
    "atol_option",
    "calibration_options",
    "duration_option",
    "exclude_option",
    "include_option",
    "input_shapes_option",
    "json_option",
    "parse_duration",
    "parse_input_shapes",
    "rtol_option",
    "seed_option",
    "threads_option",
    "warm_up_ms_option",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_Decorator = Callable[[_F], _F]

_SHAPE = r"\[[^\[\]]*\]|[0-9]+(?:,[0-9]+)+|[0-9]+(?:x[0-9]+)*"
# The shortest name wins whose ':' is followed by a shape and then by the end or by a separator, so names may hold ':'.
_ENTRY = re.compile(rf"(?:(?P<name>[^\s,]+?):)?(?P<shape>{_SHAPE})(?:[\s,;]+|$)")
# What an entry that cannot be read was meant to be, for the message.
_MEANT = re.compile(r"(?:[^\s,]+:)?(?:\[[^\[\]]*\]?|[^\s,]*)")
_EXAMPLE = "write for example x:1x3x224x224, x:[1,3,224,224] or, for a model with one input, 1x3x224x224"


def parse_input_shapes(texts: Sequence[str]) -> dict[str | None, tuple[int, ...]]:
    """Read ``--input-shapes`` in any of the three spellings that users know.

    trtexec ``x:1x3x224x224,y:1x16``; Polygraphy ``x:[1,3,224,224] y:[1,16]``; ONNX Runtime ``x:1,3,224,224``; and a
    bare ``1x3x224x224`` for a model with one input. Entries are separated by commas or blanks, or stand in several
    texts. Names may contain ``:``, ``.`` and ``/``; quotes around a name, a shape or a whole text are dropped.
    ``x:[]`` is a scalar.

    Returns:
        input name -> dimensions; the name is None where none was given.

    Raises:
        UsageError: a text cannot be read, a dimension is not a whole number of at least 1, or a name comes twice.
    """
    shapes: dict[str | None, tuple[int, ...]] = {}
    for text in texts:
        plain = text.replace('"', "").replace("'", "").strip()
        position = 0
        while position < len(plain):
            entry = _ENTRY.match(plain, position)
            if entry is None:
                meant = _MEANT.match(plain, position)
                raise _bad(text, f"cannot read {meant[0] if meant else plain[position:]!r}")
            name, shape = entry["name"], _dimensions(entry["shape"], text)
            if name in shapes:
                raise _bad(text, f"{'a shape without a name' if name is None else repr(name)} is given twice")
            shapes[name] = shape
            position = entry.end()
        if not plain:
            raise _bad(text, "nothing is given")
    if None in shapes and len(shapes) > 1:
        raise _bad(" ".join(texts), "give every shape its input's name, or one shape alone")
    return shapes


def _dimensions(shape: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in re.split("[x,]", shape.strip("[]"))]
    if words == [""]:
        return ()
    for word in words:
        if not re.fullmatch(r"\d+", word, re.ASCII) or int(word) == 0:
            raise _bad(text, f"{word!r} is not a whole number of at least 1")
    return tuple(int(word) for word in words)


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"--input-shapes {text!r}: {why}; {_EXAMPLE}")


_DURATION = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>ms|s|min|)", re.ASCII)
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0}


def parse_duration(text: str, option: str = "--duration") -> float:
    """Read a length of time: ``3``, ``3s``, ``500ms``, ``2min``. Returns seconds.

    Raises:
        UsageError: not a number with one of these units, or not above 0.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match["number"]) * _SECONDS[match["unit"]] if match else 0.0
    if not 0.0 < seconds < math.inf:
        raise UsageError(f"{option} {text!r}: not a length of time above 0; write for example 3s, 500ms or 2min")
    return seconds


def _input_shapes(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str | None, tuple[int, ...]]:
    return parse_input_shapes(texts)


def _duration(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    return None if text is None else parse_duration(text)


def _tolerance(_ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0.0 <= value < math.inf:
        raise UsageError(f"{param.opts[0]} {value}: not a tolerance; write a number of at least 0, for example 1e-4")
    return value


def input_shapes_option() -> _Decorator[Any]:
    """``--input-shapes``, repeatable; the verb gets ``input_shapes: dict[str | None, tuple[int, ...]]``."""
    return click.option(
        "--input-shapes",
        metavar="NAME:SHAPE",
        multiple=True,
        callback=_input_shapes,
        help="Shapes of the inputs: x:1x3x224x224,y:1x16 or 'x:[1,3,224,224] y:[1,16]' or x:1,3,224,224; "
        "1x3x224x224 for a model with one input. Repeatable.",
    )


def json_option() -> _Decorator[Any]:
    """``--json``; the verb gets ``json_output: bool``."""
    return click.option("--json", "json_output", is_flag=True, help="Print the result as JSON on stdout.")


def seed_option(default: int = 0) -> _Decorator[Any]:
    """``--seed``; the verb gets ``seed: int``."""
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=default,
        show_default=True,
        metavar="N",
        help="Seed of everything random; the same seed gives the same bytes.",
    )


def threads_option(default: int | None = None) -> _Decorator[Any]:
    """``--threads``; the verb gets ``threads: int | None`` (None: the backend's own choice)."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        metavar="N",
        help="Threads that the runtime may use.",
    )


def atol_option(default: float | None) -> _Decorator[Any]:
    """``--atol``; the verb gets ``atol: float`` (or None, if that is the default)."""
    return click.option(
        "--atol",
        type=float,
        default=default,
        show_default=default is not None,
        callback=_tolerance,
        metavar="X",
        help="Largest absolute difference allowed.",
    )


def rtol_option(default: float | None) -> _Decorator[Any]:
    """``--rtol``; the verb gets ``rtol: float`` (or None, if that is the default)."""
    return click.option(
        "--rtol",
        type=float,
        default=default,
        show_default=default is not None,
        callback=_tolerance,
        metavar="X",
        help="Largest relative difference allowed; by default 1e-4; 5e-3 in float16, 2e-2 in int8, 4e-2 in bfloat16.",
    )


def duration_option(default: str | None = None) -> _Decorator[Any]:
    """``--duration``; the verb gets ``duration: float`` in seconds (or None, if that is the default)."""
    return click.option(
        "--duration",
        default=default,
        show_default=default is not None,
        callback=_duration,
        metavar="TIME",
        help="How long to measure, for example 3s or 500ms; a bare number is in seconds.",
    )


def warm_up_ms_option(default: float = 200.0) -> _Decorator[Any]:
    """``--warm-up-ms``; the verb gets ``warm_up_ms: float`` in milliseconds."""
    return click.option(
        "--warm-up-ms",
        type=click.FloatRange(min=0.0),
        default=default,
        show_default=True,
        metavar="MS",
        help="Shortest warm-up before measuring, in milliseconds.",
    )


def include_option() -> _Decorator[Any]:
    """``--include``, repeatable; the verb gets ``include: tuple[str, ...]``."""
    return click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Prune only what touches a tensor, node or parameter whose name fits this pattern. Repeatable.",
    )


def exclude_option() -> _Decorator[Any]:
    """``--exclude``, repeatable; the verb gets ``exclude: tuple[str, ...]``."""
    return click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave alone what touches a tensor, node or parameter whose name fits this pattern. Repeatable.",
    )


def calibration_options() -> _Decorator[_F]:
    """``--calib``, ``--calib-samples``, ``--calib-images``, ``--repair``, ``--eval`` and what looks at them."""
    options = (
        click.option(
            "--calib", metavar="DATA",
            help="Samples to rank and repair on, without labels: an .npz file, a folder of .npy, .npz or image files, "
            "module:function that yields dictionaries of arrays, or none: noise.",
        ),
        click.option(
            "--calib-samples", type=click.IntRange(min=1), metavar="N", help="Use at most N samples of them.",
        ),
        click.option(
            "--calib-images", metavar="HOW",
            help="How images are read; the default is mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb.",
        ),
        click.option(
            "--repair", type=click.Choice(["refit", "bias", "none"]),
            help="Put what was cut into what is left, by least squares on the samples, or into the biases alone.  "
            "[default: refit with --calib]",
        ),
        click.option(
            "--eval", "metric", metavar="FUNCTION",
            help="module:function of your own metric: called with run(inputs) -> outputs, gives a number, or one per "
            "sample; higher is better.",
        ),
        click.option(
            "--max-drop", metavar="X",
            help="Instead of a target: the fastest network that loses at most X (1%) of that metric, or of the "
            "agreement with the original.",
        ),
        click.option(
            "--search-budget", metavar="B",
            help="Look for what the outputs mind most, then cut: for a time (5min) or a number of candidates (20); 0: "
            "do not.  [default: 3 for obs]",
        ),
        click.option(
            "--search-by", type=click.Choice(["outputs", "mse", "eval"]), default="outputs", show_default=True,
            help="What candidates are judged by: the divergence of their outputs from the original's, the squared "
            "distance, or your own metric (--eval).",
        ),
        click.option(
            "--quantize", type=click.Choice(["int8"]),
            help="Also write model.int8.onnx, and compare dense and pruned, float and int8.",
        ),
    )  # fmt: skip

    def decorate(command: _F) -> _F:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate
