"""A float64 reference: ``onnx``'s own reference evaluator on a widened copy of the network.

It is for comparing, not for speed: what differs here between two networks is not rounding. Operators that the
evaluator computes slowly, in float32, or not as the specification says are replaced: see ``reference_ops``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.backends.reference_ops import reference_operators
from graphprune.errors import InputError, RunTimeoutError
from graphprune.ir.program import inputs_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

__all__ = ["run_float64"]

Array = NDArray[Any]

_UNTIL: ContextVar[float | None] = ContextVar("until", default=None)

# Attributes that hold an element type; one that says float is made to say double.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision"})
_CONSTANT_FLOATS = ("value_float", "value_floats")
_DEFAULT_DOMAINS = ("", "ai.onnx")


def run_float64(
    model: ir.Model, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None, *, until: float | None = None
) -> dict[str, Array]:
    """Run a model once with every float of it (weights, constants, inputs, casts) in float64.

    The call of ``graphprune.ir.program.Runner``. The model is not changed. Whatever its inputs' float types, they are
    widened, and float outputs are float64; the other types stay. Float attributes keep their float32 values.

    Args:
        model: functions inlined or not.
        feeds: an array per input.
        outputs: names of values of the outer graph; None: the model's outputs.
        until: of ``time.monotonic()``: no node is begun after it; None: it may take as long as it takes.

    Raises:
        RunTimeoutError: it is not done by ``until``.
        InputError: an input is missing or unknown, an operator has no reference implementation (the message names
            it), or the network does not run on these inputs.
    """
    import onnx_ir as ir

    needed = [str(value.name) for value in inputs_of(model)]
    missing = [name for name in needed if name not in feeds]
    unknown = [name for name in feeds if name not in needed and name not in model.graph.initializers]
    if missing or unknown:
        text = f"input {missing[0]!r} is not given" if missing else f"there is no input {unknown[0]!r}"
        raise InputError(f"{text}; the model has {', '.join(map(repr, needed)) or 'no inputs'}")
    clone = model.clone()
    casts = _casts_of_constants(clone.graph)
    _widen(clone.graph)
    for node, dtype in casts:
        _round_before(clone.graph, node, dtype)
    for function in clone.functions.values():
        _widen(function)
    # Weights are fed, not stored: the message of a model has a limit of 2 GiB, and a copy in it would be a second one.
    held = {name: _tensor(value) for name, value in clone.graph.initializers.items()}
    clone.graph.initializers.clear()
    fed = {name: _wide(np.asarray(array)) for name, array in feeds.items()}
    wanted = list(outputs) if outputs is not None else [str(value.name) for value in model.graph.outputs]
    token = _UNTIL.set(until)
    try:
        with np.errstate(all="ignore"):  # masks add infinities, padding divides 0 by 0: as in any runtime
            found = _evaluator_class()(ir.serde.serialize_model(clone)).run(wanted, held | fed)
    except (InputError, RunTimeoutError):
        raise
    except Exception as error:
        raise InputError(f"the network does not run in float64: {_first_line(error)}") from error
    finally:
        _UNTIL.reset(token)
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


def _casts_of_constants(graph: ir.Graph) -> list[tuple[ir.Node, int]]:
    """Casts to 16 bits of what follows from weights alone, with the type.

    They lose bits for good, and a network in which they were folded away has lost them too.
    """
    import onnx_ir as ir

    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    constant = set(graph.initializers)
    found = []
    for node in graph:
        if all(value is None or value.name in constant for value in node.inputs):
            constant.update(str(value.name) for value in node.outputs)
            wanted = node.attributes.get("to")
            if wanted is not None and node.inputs and ir.DataType(wanted.as_int()) in halves:
                found.append((node, wanted.as_int()))
    return found


def _round_before(graph: ir.Graph, node: ir.Node, dtype: int) -> None:
    import onnx_ir as ir

    rounded = ir.node("Cast", inputs=[node.inputs[0]], attributes={"to": dtype})
    rounded.outputs[0].name = f"{node.outputs[0].name}/rounded"
    graph.insert_before(node, rounded)
    node.replace_input_with(0, rounded.outputs[0])


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
        elif (
            standard
            and attribute.type is kinds.INT
            and name in _TYPE_ATTRIBUTES
            and _is_narrow(ir.DataType(attribute.as_int()))
        ):
            node.attributes.add(ir.AttrInt64(name, int(ir.DataType.DOUBLE)))


# --- The evaluator --------------------------------------------------------------------------------------------------


@cache
def _evaluator_class() -> type[ReferenceEvaluator]:
    """The evaluator with our operators, also inside the functions that it expands operators into."""
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    operators = reference_operators()

    class Evaluator(ReferenceEvaluator):
        def __init__(self, proto: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(proto, onnx.FunctionProto):
                function = ir.serde.deserialize_function(proto)
                _widen(function)
                proto = ir.serde.serialize_function(function)
            kwargs["new_ops"] = operators
            super().__init__(proto, *args, **kwargs)

        def _log(self, level: int, pattern: str, *args: Any) -> None:
            # called before every node, also of bodies and functions: there is no other place to stop at
            until = _UNTIL.get()
            if until is not None and time.monotonic() > until:
                raise RunTimeoutError("the float64 reference is too slow for this network")
            super()._log(level, pattern, *args)

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
