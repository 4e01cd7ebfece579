"""A large ONNX file without the bytes of its weights: what protobuf then reads is small, and the weights stay on disk.

protobuf reads a file as a whole and holds a copy of every tensor. The outermost fields, the graph's and the
initialisers' are therefore walked here (a field is its tag, its length and its bytes), and ``raw_data`` is left out.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from graphprune.ir.wire import field_head, varint

__all__ = ["Outline", "outline"]

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_LEAST = 1 << 12  # bytes of a tensor that stay in the file


@dataclass(frozen=True)
class Outline:
    """A model file without the bytes of its large weights.

    Attributes:
        content: the message without them.
        mapping: the whole file.
        spans: index of an initialiser of the main graph -> offset and length in bytes of its data in the file.
    """

    content: bytes
    mapping: mmap.mmap
    spans: Mapping[int, tuple[int, int]]


def outline(path: Path) -> Outline | None:
    """Map a file and leave its large weights out; None where it is not laid out as expected (protobuf will say why)."""
    if sys.byteorder != "little":  # stored values would have to be swapped
        return None
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    spans: dict[int, tuple[int, int]] = {}
    content = bytearray()
    graphs = 0
    for number, start, value, end in _fields(mapping, 0, len(mapping)):
        if number < 0:
            return None
        if number == _GRAPH:
            graphs += 1
            body = _graph(mapping, value, end, spans)
            if body is None or graphs > 1:  # several would be merged
                return None
            content += field_head(_GRAPH, len(body)) + body
        else:
            content += mapping[start:end]
    return Outline(bytes(content), mapping, spans) if spans else None


def _graph(mapping: mmap.mmap, begin: int, stop: int, spans: dict[int, tuple[int, int]]) -> bytearray | None:
    body = bytearray()
    index = 0
    for number, start, value, end in _fields(mapping, begin, stop):
        if number < 0:
            return None
        if number == _INITIALIZER:
            tensor = _tensor(mapping, value, end, spans, index) if end - value > _LEAST else mapping[value:end]
            if tensor is None:
                return None
            body += field_head(_INITIALIZER, len(tensor)) + tensor
            index += 1
        else:
            body += mapping[start:end]
    return body


def _tensor(
    mapping: mmap.mmap, begin: int, stop: int, spans: dict[int, tuple[int, int]], index: int
) -> bytes | bytearray | None:
    tensor = bytearray()
    for number, start, value, end in _fields(mapping, begin, stop):
        if number < 0 or (number == _RAW_DATA and index in spans):
            return None
        if number == _RAW_DATA and end - value > _LEAST:
            spans[index] = (value, end - value)
        else:
            tensor += mapping[start:end]
    return tensor


def _fields(content: mmap.mmap, position: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, start, start of the value and end of every field; number -1 where none can be read."""
    while position < stop:
        start = position
        tag, position = varint(content, position)
        number, wire = tag >> 3, tag & 7
        if position < 0 or number < 1 or wire not in (0, 1, 2, 5):
            yield -1, start, start, start
            return
        value, end = position, position + {1: 8, 5: 4}.get(wire, 0)
        if wire in (0, 2):
            length, position = varint(content, position)
            value, end = (value, position) if wire == 0 else (position, position + length)
        if position < 0 or end > stop:
            yield -1, start, start, start
            return
        # Only messages and bytes have these numbers; as another kind they would be skipped by protobuf.
        yield number if wire == 2 or number not in (_GRAPH, _INITIALIZER, _RAW_DATA) else -1, start, value, end
        position = end
