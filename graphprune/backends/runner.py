"""Runs models held in memory: the runner that observation and verification are given."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

from graphprune.backends.onnxruntime import OrtSession, open_session
from graphprune.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.ir.program import Array

__all__ = ["OrtRunner"]

_INLINE = 1 << 30  # bytes of tensors in memory up to which a model is handed over as one message


class OrtRunner:
    """Runs an ``onnx_ir`` model on ONNX Runtime's CPU provider with its graph as it is.

    The last model's session is kept, so that running it again costs nothing more. External data stay in their file:
    the runtime maps them.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._last: tuple[ref[ir.Model], OrtSession] | None = None

    def __call__(
        self, model: ir.Model, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Outputs by name for inputs by name; see :func:`graphprune.backends.onnxruntime.run_model` for the errors."""
        if self._last is None or self._last[0]() is not model:
            self._last = None  # one session at a time: the old one's memory goes first
            self._last = (ref(model), self._open(model))
        return self._last[1].run(feeds, outputs)

    def forget(self) -> None:
        """Let go of the last session's memory."""
        self._last = None

    def _open(self, model: ir.Model) -> OrtSession:
        import onnx_ir as ir

        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        folders = {Path(one.base_dir) for one in tensors if isinstance(one, ir.ExternalTensor)}
        held = sum(one.nbytes for one in tensors if not isinstance(one, ir.ExternalTensor))
        if held > _INLINE or len(folders) > 1:
            return self._through_file(model)
        message = ir.serde.serialize_model(model).SerializeToString()
        return open_session(message, threads=self._threads, data_folder=next(iter(folders), None))

    def _through_file(self, model: ir.Model) -> OrtSession:
        from graphprune.ir.store import write_onnx

        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            path = Path(folder) / "model.onnx"
            try:
                write_onnx(model, path, external=True)
            except OSError as error:
                raise InputError(f"no room to run a model of this size: {error}") from error
            return open_session(path, threads=self._threads)  # mapped files outlive their names
