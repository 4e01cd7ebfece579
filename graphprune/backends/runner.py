"""Runs models held in memory: the runner that observation and verification are given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from graphprune.backends.onnxruntime import OrtSession, open_session
from graphprune.errors import InputError
from graphprune.ir.mapped import MappedTensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.ir.program import Array

__all__ = ["OrtRunner"]

_INLINE = 1 << 26  # bytes of tensors in memory up to which a model is handed over as one message, with a copy of each
_LARGE = 1 << 16  # bytes from which a tensor of a larger model is handed over as it is
_MESSAGE = 1 << 30  # bytes of tensors that a message may hold at all
_STAND_IN = "weights"


class OrtRunner:
    """Runs an ``onnx_ir`` model on ONNX Runtime's CPU provider with its graph as it is.

    The last model's session is kept, so that running it again costs nothing more. External data stay in their file:
    the runtime maps them. ``optimize`` is for many runs of one model: the runtime fuses nodes and packs weights.
    """

    def __init__(self, threads: int | None = None, *, optimize: bool = False) -> None:
        self._how: dict[str, Any] = {"threads": threads, "optimize": optimize, "prepack": optimize}
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
        inside = sum(one.nbytes for one in tensors if not isinstance(one, ir.ExternalTensor))
        handed = _to_hand_over(model) if inside > _INLINE and not folders else []
        if inside - sum(tensor.nbytes for _, tensor in handed) > _MESSAGE or len(folders) > 1:
            return self._through_file(model)
        if handed:
            return self._hand_over(model, handed)
        message = ir.serde.serialize_model(model).SerializeToString()
        return open_session(message, data_folder=next(iter(folders), None), **self._how)

    def _hand_over(self, model: ir.Model, handed: Sequence[tuple[ir.Value, ir.TensorProtocol]]) -> OrtSession:
        """Give the runtime a message without the large tensors, and their arrays to use where they are."""
        import numpy as np
        import onnx_ir as ir

        arrays = {}
        for value, tensor in handed:
            array = np.require(tensor.numpy(), requirements=["C", "A"])  # within a file nothing is aligned: then a copy
            arrays[value.name or ""] = (int(tensor.dtype), array.view(f"u{array.itemsize}"))
            if isinstance(tensor, MappedTensor):
                tensor.release()
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            # The runtime wants to see a file that is long enough before it takes the arrays instead; it takes no room.
            with (Path(folder) / _STAND_IN).open("wb") as file:
                file.truncate(max(tensor.nbytes for _, tensor in handed))
            with _as_references(handed):
                message = ir.serde.serialize_model(model).SerializeToString()
            return open_session(message, data_folder=Path(folder), initializers=arrays, **self._how)

    def _through_file(self, model: ir.Model) -> OrtSession:
        from graphprune.ir.store import write_onnx

        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            path = Path(folder) / "model.onnx"
            try:
                write_onnx(model, path, external=True)
            except OSError as error:
                raise InputError(f"no room to run a model of this size: {error}") from error
            return open_session(path, **self._how)  # mapped files outlive their names


def _to_hand_over(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """Large initialisers in memory (or mapped) that the runtime can be given as arrays, with no message around them."""
    import onnx_ir as ir

    inputs = set(model.graph.inputs)
    strange = (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
    return [
        (value, tensor)
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and value not in inputs
        and tensor.dtype not in strange
        and not isinstance(tensor, ir.ExternalTensor)
        and tensor.nbytes > _LARGE
        and tensor.dtype.bitwidth % 8 == 0
    ]


@contextmanager
def _as_references(handed: Sequence[tuple[ir.Value, ir.TensorProtocol]]) -> Iterator[None]:
    """Put references to the file that stands in for them in the place of tensors for the length of a block."""
    import onnx_ir as ir

    try:
        for value, tensor in handed:
            value.const_value = ir.ExternalTensor(
                _STAND_IN,
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )
        yield
    finally:
        for value, tensor in handed:
            value.const_value = tensor
