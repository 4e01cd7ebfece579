"""Weights that stay in the ONNX file they came in: mapped, copied by nobody, and let go of when they were read."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["MappedTensor"]


class MappedTensor(ir.Tensor[NDArray[Any]]):
    """A tensor whose bytes lie within a mapped file. Its array is read-only and need not be aligned to its type."""

    def __init__(self, mapping: mmap.mmap, offset: int, dtype: ir.DataType, shape: ir.Shape, **named: Any) -> None:
        """Args: ``mapping``, ``offset`` of its bytes in it, element type, sizes; ``named`` as ``onnx_ir.Tensor``'s."""
        count = int(np.prod(shape.numpy(), dtype=np.int64))
        array: NDArray[Any] = np.frombuffer(mapping, dtype.numpy(), count, offset).reshape(shape.numpy())
        super().__init__(array, dtype=dtype, shape=shape, **named)
        self._mapping, self._offset = mapping, offset

    def release(self) -> None:
        """Let go of the resident pages; they are read from the file again when they are next looked at."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self._offset - self._offset % mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_DONTNEED, start, self._offset + self.nbytes - start)
