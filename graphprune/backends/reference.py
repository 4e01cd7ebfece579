"""A float64 reference: ``onnx``'s own reference evaluator on a widened copy of the network.

It is for comparing, not for speed: what differs here between two networks is not rounding. The evaluator's slow
operators (convolution and pooling walk every output in Python) and those that round to float32 on the way are
replaced by numpy and scipy in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError
from graphprune.ir.program import inputs_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

__all__ = ["run_float64"]

Array = NDArray[Any]

# Attributes that hold an element type; one that says float is made to say double.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision"})
_CONSTANT_FLOATS = ("value_float", "value_floats")
_DEFAULT_DOMAINS = ("", "ai.onnx")


def run_float64(
    model: ir.Model, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run a model once with every float of it (weights, constants, inputs, casts) in float64.

    The call of ``graphprune.ir.program.Runner``. The model is not changed. Whatever its inputs' float types, they are
    widened, and float outputs are float64; the other types stay. Float attributes keep their float32 values.

    Args:
        model: functions inlined or not.
        feeds: an array per input.
        outputs: names of values of the outer graph; None: the model's outputs.

    Raises:
        InputError: an input is missing or unknown, an operator has no reference implementation (the message names
            it), or the network does not run on these inputs.
    """
    needed = [str(value.name) for value in inputs_of(model)]
    missing = [name for name in needed if name not in feeds]
    unknown = [name for name in feeds if name not in needed and name not in model.graph.initializers]
    if missing or unknown:
        text = f"input {missing[0]!r} is not given" if missing else f"there is no input {unknown[0]!r}"
        raise InputError(f"{text}; the model has {', '.join(map(repr, needed)) or 'no inputs'}")
    clone = model.clone()
    _widen(clone.graph)
    for function in clone.functions.values():
        _widen(function)
    # Weights are fed, not stored: the message of a model has a limit of 2 GiB, and a copy in it would be a second one.
    held = {name: _tensor(value) for name, value in clone.graph.initializers.items()}
    clone.graph.initializers.clear()
    fed = {name: _wide(np.asarray(array)) for name, array in feeds.items()}
    evaluator = _evaluator_class()(_proto(clone))
    wanted = list(outputs) if outputs is not None else [str(value.name) for value in model.graph.outputs]
    try:
        with np.errstate(all="ignore"):  # masks add infinities, padding divides 0 by 0: as in any runtime
            found = evaluator.run(wanted, held | fed)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the network does not run in float64: {_first_line(error)}") from error
    return {name: np.asarray(array) for name, array in zip(wanted, found, strict=True)}


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)[:300]


# --- Widening -------------------------------------------------------------------------------------------------------


def _is_narrow(dtype: ir.DataType) -> bool:
    import onnx_ir as ir

    return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _wide(array: Array) -> Array:
    """float16, bfloat16 and float32 as float64, all else as it is; float8 and float4 are codes and stay."""
    return array.astype(np.float64) if array.dtype.name in ("float32", "float16", "bfloat16") else array


def _tensor(value: ir.Value) -> Array:
    if value.const_value is None:
        raise InputError(f"initialiser {value.name!r} has no contents")
    return _wide(value.const_value.numpy())


def _widen(graph: ir.Graph | ir.Function) -> None:
    """Make every float of a graph, its subgraphs included, a double; in place. The outer graph's weights are left."""
    for value in graph.inputs:
        _widen_type(value)
    for node in graph:
        for value in node.outputs:
            _widen_type(value)
        _widen_attributes(node)
        for attribute in list(node.attributes.values()):
            for inner in _subgraphs(attribute):
                _widen(inner)
                _widen_initializers(inner)


def _subgraphs(attribute: ir.Attr) -> Iterator[ir.Graph]:
    import onnx_ir as ir

    if attribute.type is ir.AttributeType.GRAPH and attribute.value is not None:
        yield attribute.as_graph()
    elif attribute.type is ir.AttributeType.GRAPHS and attribute.value is not None:
        yield from attribute.as_graphs()


def _widen_initializers(graph: ir.Graph) -> None:
    import onnx_ir as ir

    for name, value in graph.initializers.items():
        value.const_value = ir.tensor(_tensor(value), name=name)
        _widen_type(value)


def _widen_type(value: ir.Value) -> None:
    import onnx_ir as ir

    kind: Any = value.type
    while kind is not None and not isinstance(kind, ir.DataType):
        if isinstance(kind.elem_type, ir.DataType) and _is_narrow(kind.elem_type):
            # Types may be shared between values: a sequence's inner type is written in a copy.
            value.type = _double(value.type)
            return
        kind = kind.elem_type


def _double(kind: Any) -> Any:
    import onnx_ir as ir

    return type(kind)(ir.DataType.DOUBLE if isinstance(kind.elem_type, ir.DataType) else _double(kind.elem_type))


def _widen_attributes(node: ir.Node) -> None:
    import onnx_ir as ir

    kinds = ir.AttributeType
    standard = node.domain in _DEFAULT_DOMAINS
    if standard and node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes.add(ir.AttrTensor("value", ir.tensor(np.zeros(1))))
    for name, attribute in list(node.attributes.items()):
        if attribute.value is None:  # it refers to an attribute of the function around it
            continue
        if attribute.type is kinds.TENSOR:
            held = attribute.as_tensor()
            if held.dtype is not ir.DataType.STRING:
                node.attributes.add(ir.AttrTensor(name, ir.tensor(_wide(held.numpy()), name=held.name)))
        elif standard and node.op_type == "Constant" and name in _CONSTANT_FLOATS:
            del node.attributes[name]
            array = np.asarray(np.asarray(attribute.value, dtype=np.float32), dtype=np.float64)
            node.attributes.add(ir.AttrTensor("value", ir.tensor(array)))
        elif standard and attribute.type is kinds.INT and name in _TYPE_ATTRIBUTES:
            if _is_narrow(ir.DataType(attribute.as_int())):
                node.attributes.add(ir.AttrInt64(name, int(ir.DataType.DOUBLE)))


def _proto(model: ir.Model) -> Any:
    import onnx_ir as ir

    return ir.serde.serialize_model(model)


# --- The evaluator --------------------------------------------------------------------------------------------------


@cache
def _evaluator_class() -> type[ReferenceEvaluator]:
    """The evaluator with our operators, also inside the functions that it expands operators into."""
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    operators = _operators()

    class Evaluator(ReferenceEvaluator):  # type: ignore[misc, unused-ignore]
        def __init__(self, proto: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(proto, onnx.FunctionProto):
                function = ir.serde.deserialize_function(proto)
                _widen(function)
                proto = ir.serde.serialize_function(function)
            kwargs["new_ops"] = operators
            super().__init__(proto, *args, **kwargs)

        def _load_impl(self, node: Any, *args: Any, **kwargs: Any) -> Any:
            from onnx.reference.op_run import RuntimeContextError

            try:
                return super()._load_impl(node, *args, **kwargs)
            except (RuntimeContextError, InputError):  # the first is the evaluator's own way of asking for types
                raise
            except Exception as error:
                called = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                raise InputError(
                    f"operator {called} (node {node.name or node.output[0]!r}) has no float64 reference; "
                    "verify in float32 instead"
                ) from error

    return Evaluator


def _operators() -> list[type[Any]]:
    """Operators of the standard domain that replace the evaluator's own."""
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool
    from scipy.special import erf

    class Conv(OpRun):  # type: ignore[misc, unused-ignore]
        def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
            return (_convolve(x, w, b, **attributes),)

    class ConvTranspose(OpRun):  # type: ignore[misc, unused-ignore]
        def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
            return (_convolve_transposed(x, w, b, **attributes),)

    class MaxPool(SlowMaxPool):  # type: ignore[misc, unused-ignore]
        def _run(self, x: Array, **attributes: Any) -> tuple[Array, ...]:
            if len(self.output) > 1 and self.output[1]:  # the indices too
                found: tuple[Array, ...] = super()._run(x, **attributes)
                return found
            attributes.pop("storage_order", None)
            return (_max_pool(x, **attributes),)

    class AveragePool(OpRun):  # type: ignore[misc, unused-ignore]
        def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
            return (_average_pool(x, **attributes),)

    class Erf(OpRun):  # type: ignore[misc, unused-ignore]
        def _run(self, x: Array) -> tuple[Array]:
            return (np.asarray(erf(x), dtype=x.dtype),)

    class Gelu(OpRun):  # type: ignore[misc, unused-ignore]
        def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
            if approximate == "tanh":
                return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
            return (0.5 * x * (1 + erf(x / np.sqrt(2))),)

    return [Conv, ConvTranspose, MaxPool, AveragePool, Erf, Gelu]


# --- Windows --------------------------------------------------------------------------------------------------------
# All sums over windows walk the kernel's positions (9 for 3 x 3), each a strided view of the whole padded input: one
# matrix product per position instead of one Python step per output.


def _pads(
    auto_pad: str | None,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis of ``sizes``, for windows that span ``spans`` elements."""
    rank = len(sizes)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, spans, strides, strict=True)]
        small = [t // 2 for t in total]
        both = [(a, t - a) for a, t in zip(small, total, strict=True)]
        return both if auto_pad == "SAME_UPPER" else [(b, a) for a, b in both]
    if auto_pad == "VALID" or not pads:
        return [(0, 0)] * rank
    return [(int(pads[i]), int(pads[i + rank])) for i in range(rank)]


def _spans(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def _windows(
    kernel: Sequence[int], dilations: Sequence[int], strides: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Every position in the kernel, and the slices of the padded axes that it meets."""
    for position in itertools.product(*(range(k) for k in kernel)):
        starts = [p * d for p, d in zip(position, dilations, strict=True)]
        yield (
            position,
            tuple(slice(a, a + (n - 1) * s + 1, s) for a, s, n in zip(starts, strides, counts, strict=True)),
        )


def _convolve(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    auto_pad: str | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of ``x`` (n, g i, spatial...) with ``w`` (g o, i, kernel...): (n, g o, spatial...)."""
    kernel, rank, groups = w.shape[2:], x.ndim - 2, group or 1
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    spans = _spans(kernel, dilations)
    around = _pads(auto_pad, pads, x.shape[2:], spans, strides)
    padded = np.pad(x, [(0, 0), (0, 0), *around])
    counts = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], spans, strides, strict=True)]
    batch, each = x.shape[0], w.shape[1]
    weights = w.reshape(groups, w.shape[0] // groups, each, *kernel)
    y = np.zeros((batch, groups, w.shape[0] // groups, int(np.prod(counts))), dtype=x.dtype)
    for position, where in _windows(kernel, dilations, strides, counts):
        part = padded[(slice(None), slice(None), *where)].reshape(batch, groups, each, -1)
        factor = weights[(slice(None), slice(None), slice(None), *position)]
        y += factor * part if each == 1 else factor @ part  # depthwise: a product of one is slow as a matrix product
    if b is not None:
        y += b.reshape(groups, -1, 1)
    return y.reshape(batch, w.shape[0], *counts)


def _convolve_transposed(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    auto_pad: str | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Transposed convolution of ``x`` (n, g i, spatial...) with ``w`` (g i, o, kernel...): (n, g o, spatial...)."""
    kernel, rank, groups = w.shape[2:], x.ndim - 2, group or 1
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    extra = output_padding or (0,) * rank
    spans, sizes = _spans(kernel, dilations), x.shape[2:]
    full = [s * (n - 1) + k + e for s, n, k, e in zip(strides, sizes, spans, extra, strict=True)]
    around = _pads(None, pads, sizes, spans, strides) if auto_pad in (None, "", "NOTSET") else [(0, 0)] * rank
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [n * s for n, s in zip(sizes, strides, strict=True)]
    if output_shape is not None:
        total = [f - int(n) for f, n in zip(full, output_shape[-rank:], strict=True)]
        # The specification's own rule: the larger half in front unless SAME_UPPER.
        around = [(t // 2, t - t // 2) if auto_pad == "SAME_UPPER" else (t - t // 2, t // 2) for t in total]
    batch, each, filters = x.shape[0], x.shape[1] // groups, w.shape[1]
    weights = np.swapaxes(w.reshape(groups, each, filters, *kernel), 1, 2)
    flat = x.reshape(batch, groups, each, -1)
    # A negative padding lengthens the output with what no input reaches.
    room = [max(f, f - a) for f, (a, _) in zip(full, around, strict=True)]
    y = np.zeros((batch, groups * filters, *room), dtype=x.dtype)
    for position, where in _windows(kernel, dilations, strides, sizes):
        part = weights[(slice(None), slice(None), slice(None), *position)] @ flat
        y[(slice(None), slice(None), *where)] += part.reshape(batch, groups * filters, *sizes)
    before = [(max(-a, 0), max(-c, 0)) for a, c in around]
    y = np.pad(y[(slice(None), slice(None), *(slice(f) for f in full))], [(0, 0), (0, 0), *before])
    cut = [slice(max(a, 0), n - max(c, 0)) for n, (a, c) in zip(y.shape[2:], around, strict=True)]
    y = y[(slice(None), slice(None), *cut)]
    return y if b is None else y + b.reshape(-1, *(1,) * rank)


def _pool(
    x: Array,
    reduce: Callable[[Array, Array], Array],
    fill: Any,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str | None,
    ceil_mode: int | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    padding: Any = None,
) -> Array:
    """Reduce every window. ``padding`` fills what the operator pads, ``fill`` what rounding up adds at the end."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    spans = _spans(kernel_shape, dilations)
    around = _pads(auto_pad, pads, x.shape[2:], spans, strides)
    counts, tails = [], []
    for n, (before, after), k, s in zip(x.shape[2:], around, spans, strides, strict=True):
        room = n + before + after - k
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:  # the last window must start inside the input
            count -= 1
        counts.append(count)
        tails.append(max((count - 1) * s + k - (n + before + after), 0))
    padded = np.pad(x, [(0, 0), (0, 0), *around], constant_values=fill if padding is None else padding)
    padded = np.pad(padded, [(0, 0), (0, 0), *((0, tail) for tail in tails)], constant_values=fill)
    y: Array | None = None
    for _, where in _windows(kernel_shape, dilations, strides, counts):
        part = padded[(slice(None), slice(None), *where)]
        y = part.copy() if y is None else reduce(y, part)
    assert y is not None
    return y


def _max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str | None = None,
    ceil_mode: int | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    return _pool(
        x,
        np.maximum,
        lowest,
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )


def _average_pool(x: Array, *, count_include_pad: int | None = None, **options: Any) -> Array:
    options = {"auto_pad": None, "ceil_mode": None, "dilations": None, "pads": None, "strides": None} | options
    total = _pool(x, np.add, 0, **options)
    ones = np.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    count = _pool(ones, np.add, 0, padding=1 if count_include_pad else 0, **options)
    return np.asarray(total / count)
