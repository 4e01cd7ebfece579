"""Options that say on which runtimes, devices and CPUs a network is built or timed.

With several backends a word that is meant for one of them begins with its name: ``--device openvino:GPU``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from graphprune.cli.options import threads_option
from graphprune.errors import UsageError

if TYPE_CHECKING:
    from graphprune.backends import BackendOptions

__all__ = ["runtime_options", "runtimes"]

_F = TypeVar("_F", bound=Callable[..., Any])
_Decorator = Callable[[_F], _F]


def _backend_option() -> _Decorator[Any]:
    """``--backend``, repeatable; the verb gets ``backend: tuple[str, ...]``."""
    return click.option(
        "--backend", multiple=True, metavar="NAME", default=("onnxruntime",), show_default=True,
        help="Runtime, see graphprune backends. Repeatable.",
    )  # fmt: skip


def _device_option() -> _Decorator[Any]:
    """``--device`` and ``--providers``, which are the same; the verb gets ``device: tuple[str, ...]``."""
    return click.option(
        "--device", "--providers", multiple=True, metavar="NAMES",
        help="Devices of OpenVINO (CPU, GPU, NPU) or execution providers of ONNX Runtime, separated by commas; "
        "the CPU by default. BACKEND:NAMES with several backends.",
    )  # fmt: skip


def _setting_option() -> _Decorator[Any]:
    """``--option``, repeatable; the verb gets ``setting: tuple[str, ...]``."""
    return click.option(
        "--option", "setting", multiple=True, metavar="KEY=VALUE",
        help="An option of the backend's own, such as INFERENCE_PRECISION_HINT=bf16 for OpenVINO. Repeatable; "
        "BACKEND:KEY=VALUE with several backends.",
    )  # fmt: skip


# Options that are settings of the TensorRT backend under the names that trtexec's users know: flag, metavar (none where
# it takes no value), help.
_TENSORRT = (
    ("--min-shapes", "NAME:SHAPE", "TensorRT: least sizes of inputs with dynamic axes, x:1x3x224x224,y:1x16."),
    ("--opt-shapes", "NAME:SHAPE", "TensorRT: the sizes that the engine is tuned for."),
    ("--max-shapes", "NAME:SHAPE", "TensorRT: largest sizes."),
    ("--precision", "NAME", "TensorRT: fp32 (default), fp16 or bf16, to which the graph is cast."),
    ("--compute-capability", "LIST", "TensorRT-RTX: an engine for each of sm86,sm89,sm120; needs no GPU here."),
    ("--timing-cache", "FILE", "TensorRT: timings to read and keep (TensorRT-RTX times nothing while it builds)."),
    ("--version-compatible", None, "TensorRT: an engine for later versions as well (not TensorRT-RTX)."),
    ("--hardware-compatible", None, "TensorRT: an engine for every GPU from Ampere on (TensorRT-RTX's are that)."),
)


def _tensorrt_options() -> _Decorator[Any]:
    """The flags of the TensorRT backend; the verb gets each as a text, True or None, for :func:`runtimes`."""

    def add(command: _F) -> _F:
        for flag, metavar, text in reversed(_TENSORRT):
            kind: dict[str, Any] = {"is_flag": True, "default": None} if metavar is None else {"metavar": metavar}
            command = click.option(flag, help=text, **kind)(command)
        return command

    return add


def _affinity_option() -> _Decorator[Any]:
    """``--affinity``; the verb gets ``affinity: tuple[int, ...]``."""
    return click.option(
        "--affinity", metavar="CPUS", default="", callback=lambda _ctx, _param, text: _cpus(text),
        help="CPUs that the measuring process is bound to, for example 0,2-3.",
    )  # fmt: skip


def runtime_options() -> _Decorator[Any]:
    """All of these and ``--threads``; the verb gets what they say as ``chosen: dict[str, BackendOptions]``."""

    def add(command: _F) -> _F:
        @functools.wraps(command)
        def reading(*args: Any, **given: Any) -> Any:
            chosen = runtimes(**{name: given.pop(name) for name in names})
            return command(*args, chosen=chosen, **given)

        read: Any = reading
        before = len(getattr(read, "__click_params__", ()))
        for one in (
            _affinity_option(), threads_option(), _tensorrt_options(), _setting_option(), _device_option(),
            _backend_option(),
        ):  # fmt: skip
            read = one(read)
        names = [str(one.name) for one in read.__click_params__[before:]]
        return read  # type: ignore[no-any-return]

    return add


def runtimes(
    backend: Sequence[str],
    device: Sequence[str],
    setting: Sequence[str],
    *,
    threads: int | None = None,
    affinity: tuple[int, ...] = (),
    **tensorrt: Any,
) -> dict[str, BackendOptions]:
    """The options of each backend by its name, in the order given.

    Args: what :func:`runtime_options` read.

    Raises:
        UsageError: a backend that is not known or is given twice, a word for a backend that was not asked for, or one
            that does not say which of several it is for.
    """
    from graphprune.backends import BackendOptions, get_backend

    if twice := [name for name in backend if backend.count(name) > 1]:
        raise UsageError(f"--backend {twice[0]} is given twice; give it once.")
    for name in backend:
        get_backend(name)
    providers: dict[str, tuple[str, ...]] = {}
    for text in device:
        name, words = _scoped(text, backend, "--device")
        if name in providers:
            raise UsageError(f"--device: {name} has two lists of devices; give one, separated by commas.")
        providers[name] = tuple(word.strip() for word in words.split(",") if word.strip())
    given: dict[str, list[tuple[str, str]]] = {}
    for text in (*setting, *_tensorrt_settings(tensorrt, backend)):
        name, words = _scoped(text, backend, "--option")
        key, equals, value = words.partition("=")
        if not (key and equals):
            raise UsageError(f"--option {text!r}: write KEY=VALUE, for example INFERENCE_PRECISION_HINT=bf16.")
        given.setdefault(name, []).append((key.strip(), value.strip()))
    return {
        name: BackendOptions(
            threads=threads,
            providers=providers.get(name, ()),
            settings=tuple(given.get(name, ())),
            affinity=affinity,
        )
        for name in backend
    }


def _tensorrt_settings(flags: Mapping[str, Any], backends: Sequence[str]) -> tuple[str, ...]:
    """The flags of TensorRT as words of ``--option``.

    Raises:
        UsageError: one is given, but the backend is another.
    """
    words = []
    for flag, _, _ in _TENSORRT:
        value = flags.get(flag.strip("-").replace("-", "_"))
        if value is not None:
            if "tensorrt" not in backends:
                raise UsageError(f"{flag} is an option of TensorRT; add --backend tensorrt, or leave it out.")
            words.append(
                f"{'tensorrt:' if len(backends) > 1 else ''}{flag.strip('-')}={'true' if value is True else value}"
            )
    return tuple(words)


def _scoped(text: str, backends: Sequence[str], option: str) -> tuple[str, str]:
    """Which backend a word is for, and the word without its name."""
    from graphprune.backends import backend_names

    before, colon, rest = text.partition(":")
    if colon and before in backends:
        return before, rest
    if colon and before in backend_names():
        raise UsageError(f"{option} {text!r}: {before} is not among the backends asked for ({', '.join(backends)}).")
    if len(backends) > 1:
        raise UsageError(f"{option} {text!r}: say which backend it is for: {option} {backends[0]}:{text}")
    return backends[0], text


def _cpus(text: str) -> tuple[int, ...]:
    """Reads ``0,2-3``: CPUs in the order given, each once."""
    found: list[int] = []
    for part in filter(None, (word.strip() for word in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 65535:
            raise UsageError(f"--affinity {text!r}: {part!r} is no CPU or range of CPUs; write for example 0,2-3.")
        found.extend(range(first, last + 1))
    return tuple(dict.fromkeys(found))
