"""ONNX Runtime's own options, what may be loaded, and where nodes must run."""

from __future__ import annotations

import mmap
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from graphprune.backends.base import BackendOptions
from graphprune.errors import UsageError

__all__ = ["CPU", "check_engines", "check_placement", "split_settings"]

CPU = "CPUExecutionProvider"
# Entries of the session's configuration that change how fast it runs; the others are for debugging or for files.
_SESSION_SETTINGS = (
    "mlas.disable_kleidiai",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "mlas.qnbit.force_fp32",
    "mlas.use_lut_gemm",
    "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation",
    "session.disable_double_qdq_remover",
    "session.disable_prepacking",
    "session.disable_quant_qdq",
    "session.dynamic_block_base",
    "session.enable_quant_qdq_cleanup",
    "session.force_spinning_stop",
    "session.graph_optimizations_loop_level",
    "session.intra_op.spin_backoff_max",
    "session.intra_op.spin_duration_us",
    "session.qdqisint8allowed",
    "session.set_denormal_as_zero",
)
_TRUST = "trust-engine"


def _trusted(options: BackendOptions) -> bool:
    value = dict(options.settings).get(_TRUST, "false")
    if value not in ("true", "false"):
        raise UsageError(f"{_TRUST}={value!r}: say true or false.")
    return value == "true"


def check_engines(path: Path, options: BackendOptions) -> None:
    """Refuses a file with a compiled engine in it (EPContext nodes): the provider that loads it runs its code.

    Raises:
        UsageError: there is one, and ``trust-engine=true`` was not said.
    """
    import onnx

    if _trusted(options) or not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(b"EPContext") < 0:
            return
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type == "EPContext":
            raise UsageError(
                f"{path}: node {node.name!r} holds an engine, which is executable code. If you built it or trust who "
                f"did, say so with {_TRUST}=true (--option {_TRUST}=true)."
            )


def split_settings(options: BackendOptions, providers: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Entries of the session's configuration, and options of the first provider, which knows its own names."""
    of_session, of_provider = {}, {}
    for name, value in options.settings:
        if name == _TRUST:
            continue
        if name in _SESSION_SETTINGS:
            of_session[name] = value
        elif "." in name or providers[0] == CPU:
            near = get_close_matches(name, _SESSION_SETTINGS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"onnxruntime has no option {name!r} for {providers[0]}: {hint}of the session's configuration "
                f"{', '.join(_SESSION_SETTINGS)} can be set."
            )
        else:
            of_provider[name] = value
    return of_session, of_provider


def check_placement(session: Any, label: str, asked: tuple[str, ...]) -> None:
    """Refuses a session that does not run where it was asked to: its time would stand under the wrong device.

    The first provider must do some work, and the CPU none unless it was asked for.
    """
    used = session.get_providers()
    placed: dict[str, list[str]] = {}
    if asked != (CPU,) and hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            placed.setdefault(part.ep_name, []).extend(f"{node.op_type} {node.name!r}" for node in part.get_nodes())
    absent = [provider for provider in asked if provider not in used]
    if absent or (placed and asked[0] not in placed):
        where = ", ".join(f"{len(nodes)} on {name}" for name, nodes in placed.items()) or ", ".join(used)
        raise UsageError(
            f"{label}: onnxruntime does not run it on {absent[0] if absent else asked[0]} (nodes placed: {where}); "
            "ask for a provider that supports its operators."
        )
    if CPU not in asked and placed.get(CPU):
        nodes = placed[CPU]
        raise UsageError(
            f"{label}: {len(nodes)} of its nodes would run on the CPU ({', '.join(nodes[:3])}"
            f"{' ...' if nodes[3:] else ''}); to accept that, ask for the providers {','.join((*asked, CPU))}."
        )
