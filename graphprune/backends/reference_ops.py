"""Operators of the float64 reference that replace those of ``onnx``'s reference evaluator.

Convolution and pooling, because there they walk every output in Python; Erf, because it rounds to float32; Gelu,
because it would be expanded into nodes that do; BatchNormalization (before opset 14 it is computed in training
mode there), GatherElements (it refuses indices that are smaller than the data), DequantizeLinear
(not there before opset 19), the recurrent ones (some attributes
are ignored) and loops, because results differ from the specification's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from graphprune.backends.reference_loops import loop_operators
from graphprune.errors import InputError

__all__ = ["average_pool", "convolve", "convolve_transposed", "max_pool", "reference_operators"]

Array = NDArray[Any]

_CHUNK = 1 << 26  # bytes of unfolded input at a time
_ALL = slice(None)


def reference_operators() -> list[type[Any]]:
    """Classes for the evaluator's ``new_ops``; a class's name is the operator's."""
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops.op_gru import GRU as PlainGRU
    from onnx.reference.ops.op_lstm import LSTM as PlainLSTM
    from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool
    from scipy.special import erf

    class Conv(OpRun):
        def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
            return (convolve(x, w, b, **attributes),)

    class ConvTranspose(OpRun):
        def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
            return (convolve_transposed(x, w, b, **attributes),)

    class MaxPool(SlowMaxPool):
        def _run(self, x: Array, **attributes: Any) -> tuple[Array, ...]:  # type: ignore[override]
            if len(self.output) > 1 and self.output[1]:  # the indices too
                found: tuple[Array, ...] = super()._run(x, **attributes)  # type: ignore[no-untyped-call]
                return found
            return (max_pool(x, **attributes),)

    class AveragePool(OpRun):
        def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
            return (average_pool(x, **attributes),)

    class BatchNormalization(OpRun):
        def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any) -> tuple[Array]:
            if attributes.get("training_mode") or any(self.output[1:]):
                raise InputError(
                    f"BatchNormalization {self.onnx_node.name!r} is in training mode; export for inference"
                )
            factor = scale / np.sqrt(var + attributes["epsilon"])
            shape = (-1, *(1,) * (x.ndim - 2))
            return (x * factor.reshape(shape) + (bias - mean * factor).reshape(shape),)

    class Erf(OpRun):
        def _run(self, x: Array) -> tuple[Array]:
            return (np.asarray(erf(x), dtype=x.dtype),)

    class Gelu(OpRun):
        def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
            if approximate == "tanh":
                return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
            return (0.5 * x * (1 + erf(x / math.sqrt(2))),)

    class GatherElements(OpRun):
        def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
            axis %= data.ndim
            within = tuple(_ALL if i == axis else slice(n) for i, n in enumerate(indices.shape))
            return (np.take_along_axis(data[within], indices, axis),)

    class DequantizeLinear(OpRun):
        def _run(self, x: Array, scale: Array, zero: Array | None = None, **attributes: Any) -> tuple[Array]:
            axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
            centred = x.astype(np.float64)
            if zero is not None:
                centred -= _along(zero.astype(np.float64), x.shape, axis, block)
            return (centred * _along(scale, x.shape, axis, block),)

    class LSTM(PlainLSTM):
        def _run(self, x: Array, *operands: Any, **attributes: Any) -> tuple[Array, ...]:  # type: ignore[override]
            _check_recurrent(self, x, operands, attributes, ("sigmoid", "tanh", "tanh"))
            found: tuple[Array, ...] = super()._run(x, *operands, **attributes)  # type: ignore[no-untyped-call]
            return found

    class GRU(PlainGRU):
        def _run(self, x: Array, *operands: Any, **attributes: Any) -> tuple[Array, ...]:  # type: ignore[override]
            _check_recurrent(self, x, operands, attributes, ("sigmoid", "tanh"))
            found: tuple[Array, ...] = super()._run(x, *operands, **attributes)  # type: ignore[no-untyped-call]
            return found

    return [
        Conv,
        ConvTranspose,
        MaxPool,
        AveragePool,
        BatchNormalization,
        Erf,
        Gelu,
        GatherElements,
        DequantizeLinear,
        LSTM,
        GRU,
        *loop_operators(),
    ]


def _along(scale: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point for every element: one for all, one per index of an axis, or one per block of them."""
    if block:
        return np.repeat(scale, block, axis=axis)[tuple(slice(n) for n in shape)]
    if scale.size == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _check_recurrent(
    operator: Any, x: Array, operands: Sequence[Array | None], attributes: dict[str, Any], usual: tuple[str, ...]
) -> None:
    """Refuse what the evaluator would ignore."""
    activations = [str(name).lower() for name in attributes.get("activations") or usual]
    lengths = operands[3] if len(operands) > 3 else None
    steps = x.shape[1 if attributes.get("layout") else 0]
    ignored = {
        "other activations than the usual ones": activations != list(usual) * (len(activations) // len(usual)),
        "clip": bool(attributes.get("clip")),
        "input_forget": bool(attributes.get("input_forget")),
        "sequences of different lengths": lengths is not None and bool(np.any(lengths != steps)),
    }
    for what, present in ignored.items():
        if present:
            raise InputError(
                f"{operator.op_type} {operator.onnx_node.name!r} has no float64 reference for {what}; "
                "verify in float32 instead"
            )


# --- Windows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Windows:
    """How windows lie on the spatial axes: their size, spacing, reach, and the padding before and after each axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from a window's first to its last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        kernel: Sequence[int],
        *,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        **_: Any,
    ) -> _Windows:
        """From an operator's attributes and the input's spatial ``sizes``."""
        rank = len(sizes)
        steps = tuple(strides or (1,) * rank)
        plain = cls(tuple(kernel), steps, tuple(dilations or (1,) * rank), ((0, 0),) * rank)
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, plain.reach, steps, strict=True)]
            around = tuple((t // 2, t - t // 2) for t in total)
            if auto_pad == "SAME_LOWER":
                around = tuple((after, before) for before, after in around)
        elif auto_pad == "VALID" or not pads:
            return plain
        else:
            around = tuple((int(pads[i]), int(pads[i + rank])) for i in range(rank))
        return cls(plain.kernel, steps, plain.dilations, around)

    def positions(self, counts: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every position in the kernel, and what ``counts`` windows meet there on the padded spatial axes."""
        for position in itertools.product(*(range(k) for k in self.kernel)):
            starts = [p * d for p, d in zip(position, self.dilations, strict=True)]
            yield (
                position,
                tuple(slice(a, a + (n - 1) * s + 1, s) for a, s, n in zip(starts, self.strides, counts, strict=True)),
            )


def _pad(x: Array, pads: Sequence[tuple[int, int]], fill: Any = 0) -> Array:
    """Pad the spatial axes; a negative padding cuts."""
    if any(before or after for before, after in pads):
        grow = [(max(before, 0), max(after, 0)) for before, after in pads]
        x = np.pad(x, [(0, 0), (0, 0), *grow], constant_values=fill)
        cut = [slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape[2:], pads, strict=True)]
        x = x[(_ALL, _ALL, *cut)]
    return x


def convolve(x: Array, w: Array, b: Array | None, *, group: int | None = None, **attributes: Any) -> Array:
    """Convolution of ``x`` (n, g i, spatial...) with ``w`` (g o, i, kernel...): (n, g o, spatial...).

    The input is unfolded, a part of its first spatial axis at a time, and multiplied as a matrix.
    """
    rank, groups, batch = x.ndim - 2, group or 1, x.shape[0]
    attributes.pop("kernel_shape", None)  # the weight has it
    windows = _Windows.of(x.shape[2:], w.shape[2:], **attributes)
    padded = _pad(x, windows.pads)
    view = sliding_window_view(padded, windows.reach, axis=tuple(range(2, 2 + rank)))
    view = view[(_ALL, _ALL, *(slice(None, None, n) for n in (*windows.strides, *windows.dilations)))]
    counts = view.shape[2 : 2 + rank]
    # (n, c, spatial..., kernel...) to (n, c, kernel..., spatial...)
    view = view.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    weights = w.reshape(groups, w.shape[0] // groups, -1)
    y = np.empty((batch, w.shape[0], *counts), dtype=x.dtype)
    rows = max(1, _CHUNK // max(1, view.nbytes // max(1, counts[0])))
    for start in range(0, counts[0], rows):
        part = slice(start, start + rows)
        unfolded = view[(_ALL,) * (2 + rank) + (part,)]
        product = weights @ unfolded.reshape(batch, groups, weights.shape[2], -1)
        y[:, :, part] = product.reshape(batch, w.shape[0], -1, *counts[1:])
    return y if b is None else y + b.reshape(-1, *(1,) * rank)


def convolve_transposed(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    auto_pad: str | None = None,
    group: int | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    **attributes: Any,
) -> Array:
    """Transposed convolution of ``x`` (n, g i, spatial...) with ``w`` (g i, o, kernel...): (n, g o, spatial...).

    One matrix product per position in the kernel, added into the output with the strides.
    """
    rank, groups, batch, sizes = x.ndim - 2, group or 1, x.shape[0], x.shape[2:]
    attributes.pop("kernel_shape", None)
    windows = _Windows.of(sizes, w.shape[2:], **attributes)
    extra = output_padding or (0,) * rank
    full = [s * (n - 1) + k + e for s, n, k, e in zip(windows.strides, sizes, windows.reach, extra, strict=True)]
    pads = windows.pads
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [n * s for n, s in zip(sizes, windows.strides, strict=True)]
    if output_shape is not None:
        total = [f - int(n) for f, n in zip(full, list(output_shape)[-rank:], strict=True)]
        # The specification: the smaller half in front for SAME_UPPER, the larger one otherwise.
        pads = tuple((t // 2, t - t // 2) if auto_pad == "SAME_UPPER" else (t - t // 2, t // 2) for t in total)
    each, filters = x.shape[1] // groups, w.shape[1]
    weights = np.swapaxes(w.reshape(groups, each, filters, *windows.kernel), 1, 2)
    flat = x.reshape(batch, groups, each, -1)
    y = np.zeros((batch, groups * filters, *full), dtype=x.dtype)
    for position, where in windows.positions(sizes):
        at: tuple[Any, ...] = (_ALL, _ALL, _ALL, *position)
        part = weights[at] @ flat
        y[(_ALL, _ALL, *where)] += part.reshape(batch, groups * filters, *sizes)
    y = _pad(y, [(-before, -after) for before, after in pads])
    return y if b is None else y + b.reshape(-1, *(1,) * rank)


def _pool(
    x: Array,
    reduce: Callable[[Array, Array], Array],
    fill: Any,
    *,
    kernel_shape: Sequence[int],
    ceil_mode: int | None = None,
    padding: Any = None,
    **attributes: Any,
) -> Array:
    """Reduce every window. ``padding`` is what the operator's own padding holds, ``fill`` what rounding up adds."""
    windows = _Windows.of(x.shape[2:], kernel_shape, **attributes)
    counts, tails = [], []
    for n, (before, after), reach, step in zip(x.shape[2:], windows.pads, windows.reach, windows.strides, strict=True):
        room = n + before + after - reach
        count = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and (count - 1) * step >= n + before:  # the last window must start within the input
            count -= 1
        counts.append(count)
        tails.append((0, max((count - 1) * step - room, 0)))
    padded = _pad(_pad(x, windows.pads, fill if padding is None else padding), tails, fill)
    y: Array | None = None
    for _, where in windows.positions(counts):
        part = padded[(_ALL, _ALL, *where)]
        y = part.copy() if y is None else reduce(y, part)
    assert y is not None
    return y


def max_pool(x: Array, **attributes: Any) -> Array:
    """MaxPool's first output for ``x`` (n, c, spatial...); padding never wins."""
    lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    return _pool(x, np.maximum, lowest, **attributes)


def average_pool(x: Array, *, count_include_pad: int | None = None, **attributes: Any) -> Array:
    """AveragePool of ``x`` (n, c, spatial...): what rounding up adds is never counted, padding if asked to."""
    total = _pool(x, np.add, 0, **attributes)
    ones = np.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    return np.asarray(total / _pool(ones, np.add, 0, padding=1 if count_include_pad else 0, **attributes))
