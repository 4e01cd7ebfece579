"""protobuf's wire format, as far as large files need it that protobuf itself would copy as a whole."""

from __future__ import annotations

import mmap

__all__ = ["field_head", "varint"]


def varint(content: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """The number at a position and where it ends; -1 where none ends."""
    value = 0
    for index, byte in enumerate(content[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    return 0, -1


def field_head(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    encoded = bytearray()
    for value in (number << 3 | 2, length):
        while value > 0x7F:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        encoded.append(value)
    return bytes(encoded)
