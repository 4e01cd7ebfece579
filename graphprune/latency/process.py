"""Starts the measuring process, hands it its job, and says plainly what became of it when it does not come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune import errors
from graphprune.errors import GraphpruneError, InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["run_worker"]


def run_worker(
    job: dict[str, Any], feeds: Mapping[str, np.ndarray], timeout: float | None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """One job in a fresh process: the worker's result, and its arrays of samples in nanoseconds, shape ``(n,)`` each.

    Measuring gives one array per model; profiling two per candidate, of the first model and of the candidate.

    Raises:
        InputError: the process was ended by a signal, or an input cannot be handed over.
        GraphpruneError: any error that the worker raised on purpose, by its own class; another exit; the timeout.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="graphprune-measure-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        arrays = {f"feed{index}": _storable(key, feeds[key]) for index, key in enumerate(job["inputs"])}
        np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
        with (folder / "stderr.txt").open("wb") as stderr:
            # Standard input is never written: the worker ends itself when it closes, even if this process is killed.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "graphprune.latency.worker", name],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                env=_environment(),
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise GraphpruneError(
                    f"measuring {_listed(job)} took longer than {timeout:g} s and was ended; "
                    "allow more time, or measure for a shorter duration."
                ) from error
            finally:  # Ctrl-C, too, must not leave the child behind
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        if code != 0 or not (folder / "result.json").is_file():
            raise _crash(job, code, (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace"))
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if "error" in result:
            raise _error_class(result["error"]["kind"])(result["error"]["text"])
        with np.load(folder / "samples.npz", allow_pickle=False) as stored:
            samples = [stored[f"samples{index}"] for index in range(len(stored.files))]
    return result, samples


def _environment() -> dict[str, str]:
    """The child finds modules where this process does, and not in whatever folder it happens to be started in."""
    paths = [path or os.getcwd() for path in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _storable(name: str, value: np.ndarray) -> np.ndarray:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind == "O":  # strings; objects would need pickle
        array = array.astype(np.str_)
    if array.dtype.kind == "V":
        raise InputError(f"input {name!r}: arrays of {array.dtype.name} cannot be handed to the measuring process.")
    return array


def _error_class(kind: str) -> type[GraphpruneError]:
    found = getattr(errors, kind, GraphpruneError)
    return found if isinstance(found, type) and issubclass(found, GraphpruneError) else GraphpruneError


def _crash(job: dict[str, Any], code: int, stderr: str) -> GraphpruneError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f"its last words: {lines[-1]}" if lines else "it said nothing"
    if code < 0:  # a signal: the runtime crashed on this model, or the system ended it for its memory
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (often: not enough memory)" if name == "SIGKILL" else ""
        return InputError(f"the process that measured {_listed(job)} was ended by {name}{hint}; {last}")
    return GraphpruneError(f"the process that measured {_listed(job)} failed with exit code {code}; {last}")


def _listed(job: dict[str, Any]) -> str:
    return " and ".join(job["models"])
