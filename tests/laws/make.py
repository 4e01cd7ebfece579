"""Words that samples are written in.

``x(2, 3)`` is a computed operand of standard normal numbers, ``w(...)`` the same as an initialiser, ``sizes(...)`` an
int64 initialiser, ``given(...)`` the same as an input of the network, ``shape_of(...)`` a size vector read from another
input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graphprune.coupling.laws import Operand, Sample


def x(*shape: int, kind: str = "normal", moving: dict[int, str] | None = None, dtype: str = "float32") -> Operand:
    return Operand(shape, kind=kind, dtype=dtype, moving=tuple((moving or {}).items()))


def w(*shape: int, kind: str = "normal") -> Operand:
    return Operand(shape, kind=kind, fixed=True)


def ints(*shape: int, high: int, low: int = 0, dtype: str = "int64", fixed: bool = False) -> Operand:
    return Operand(shape, "int", dtype, low, high, fixed=fixed)


def sizes(*content: int, dtype: str = "int64") -> Operand:
    return Operand((len(content),), dtype=dtype, content=content, fixed=True)


def given(*content: int) -> Operand:
    return replace(sizes(*content), fixed=False)


def scalar(content: float, dtype: str = "float32") -> Operand:
    return Operand((), dtype=dtype, content=(content,), fixed=True)


def shape_of(*shape: int, moving: dict[int, str] | None = None) -> Operand:
    return replace(x(*shape, moving=moving), of_shape=True)


def one(
    op: str,
    *operands: Operand | None,
    opset: int = 18,
    results: int = 1,
    left_out: tuple[int, ...] = (),
    refused: str = "",
    domain: str = "",
    **attributes: Any,
) -> Sample:
    return Sample(op, operands, tuple(attributes.items()), opset, domain, results, refused, left_out)
