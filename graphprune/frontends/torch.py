"""PyTorch modules: traced with ``torch.export`` and translated by PyTorch's own ONNX exporter, unoptimised.

Unoptimised, every initialiser keeps its parameter's name and BatchNorm stays a node; folding comes after the cut.
PyTorch is imported inside the functions only.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import GraphpruneError, InputError, UsageError
from graphprune.frontends.attention import written_out
from graphprune.frontends.functions import inline_functions
from graphprune.frontends.modules import first_line, is_reference, missing_torch, resolve

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

__all__ = ["TracedModule", "drop_made_up_biases", "in_order", "is_reference", "read_module", "resolve"]

_log = logging.getLogger(__name__)

# What is kept of the exporter's metadata: which submodule a node came from, and what a value was. The rest holds
# stack traces with this machine's paths, and the whole FX graph as text.
_KEPT = frozenset(
    {
        "pkg.torch.onnx.name_scopes",
        "pkg.torch.export.graph_signature.InputSpec.kind",
        "pkg.torch.export.graph_signature.OutputSpec.kind",
    }
)
_LOGGERS = ("torch", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class TracedModule:
    """A module as an ONNX network.

    Attributes:
        model: no functions; the initialisers share their memory with the module's parameters.
        examples: the example input of each graph input, by name.
        parameter_names: the user's qualified name of each initialiser that is a parameter or buffer.
        notes: what the user should know: tied, unused and updated tensors.
    """

    model: ir.Model
    examples: dict[str, NDArray[Any]] = field(default_factory=dict)
    parameter_names: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_module(
    module: Any,
    *,
    inputs: Any = None,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> TracedModule:
    """Trace a module in eval mode on example inputs. The module and its training flags are left as they were.

    Args:
        module: a ``torch.nn.Module``, or what a factory returned: a module or ``(module, inputs)``.
        inputs: a tensor or array, a tuple of them in the order of ``forward()``'s arguments (a dict at its end holds
            arguments by name, as for ``torch.onnx.export``), or a dict of them by argument name.
        input_shapes: shapes by argument name (None: the only argument). An argument without an example gets standard
            normal numbers; one with an example of another shape gets numbers of that example's type and range.
        seed: of those numbers.

    Raises:
        InputError: PyTorch is not installed, the module does not run on the inputs, or cannot be exported; the
            sentence is the exporter's own, the exception chained.
        UsageError: no inputs, or shapes for arguments that ``forward()`` does not have.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise missing_torch("a PyTorch module") from error
    if isinstance(module, tuple) and len(module) == 2:
        module, inputs = module[0], module[1] if inputs is None else inputs
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"a torch.nn.Module is needed, not a {type(module).__name__}")
    args, kwargs, made = _arguments(module, inputs, input_shapes or {}, seed)
    _check_types(module, (args, kwargs))
    with _evaluating(module), _quiet(), torch.random.fork_rng(devices=[]):
        program = _export(module, args, kwargs, made)
    model: ir.Model = program.model
    traced = program.exported_program
    examples = _examples(traced, model)
    _strip(model)
    if model.functions:
        inline_functions(model)
    drop_made_up_biases(model)
    notes = _share_tied(model, module)
    _make_names_unique(model)
    parameter_names = _parameter_names(model, module)
    _remove_unused(model, parameter_names)
    used = set(parameter_names.values())
    unused = [name for name, _ in module.named_parameters() if name not in used]
    if unused:
        notes.append(f"the outputs do not depend on {', '.join(unused)}; left out")
    updated = sorted(set(traced.graph_signature.buffers_to_mutate.values()))
    if updated:
        notes.append(f"forward() updates {', '.join(updated)}; the exported network computes its outputs only")
    return TracedModule(model, examples, parameter_names, tuple(notes))


# --- Example inputs -------------------------------------------------------------------------------------------------


def in_order(module: torch.nn.Module, inputs: Any) -> tuple[Any, ...]:
    """Example inputs in the order of ``forward()``'s arguments, those by name in a dictionary at the end.

    Their tensors are in the order of the traced network's inputs. Raises as :func:`read_module`.
    """
    args, kwargs, _ = _arguments(module, inputs, {}, 0)
    return *args, kwargs


def _arguments(
    module: torch.nn.Module, inputs: Any, shapes: Mapping[str | None, tuple[int, ...]], seed: int
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]:
    """Positional and named arguments of ``forward()``, and the names of those whose contents were made up."""
    import torch

    args, kwargs = _given(inputs)
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit forward({_listed(signature)}): {error}") from error
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = {name: parameter for name, parameter in signature.parameters.items() if parameter.kind not in variadic}
    required = [name for name, parameter in known.items() if parameter.default is parameter.empty]
    rng = np.random.default_rng(seed)
    place = next((tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()), None)
    made: list[str] = []
    for asked, shape in shapes.items():
        name = asked if asked is not None else _only_argument(known, required)
        if name not in known:
            near = get_close_matches(name, known, n=3) or list(known)
            raise UsageError(f"forward() has no argument {name!r}; it has {', '.join(map(repr, near)) or 'none'}")
        example = bound.arguments.get(name)
        if isinstance(example, torch.Tensor):
            if tuple(example.shape) == tuple(shape):
                continue
            array, dtype, device = _like(example, shape, rng), example.dtype, example.device
        elif example is None:
            array, made = rng.standard_normal(shape), [*made, name]
            dtype = place.dtype if place is not None else torch.float32
            device = place.device if place is not None else torch.device("cpu")
        else:
            raise UsageError(f"argument {name!r} is a {type(example).__name__}: a shape can be given for a tensor only")
        bound.arguments[name] = torch.from_numpy(np.asarray(array)).to(device=device, dtype=dtype)
    missing = [name for name in required if name not in bound.arguments]
    if missing:
        raise UsageError(
            f"forward({_listed(signature)}) needs example inputs for {', '.join(missing)}: give --input-shapes "
            f"{missing[0]}:1x3x224x224, or let the factory return (module, inputs)"
        )
    # Arguments in the signature's order, whatever order they were given in: BoundArguments walks the signature.
    return bound.args, bound.kwargs, tuple(made)


def _listed(signature: inspect.Signature) -> str:
    return ", ".join(str(part.replace(annotation=part.empty)) for part in signature.parameters.values())


def _given(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch
    from torch.utils import _pytree as tree

    seen: set[int] = set()

    def tensor(leaf: Any) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic)):
            return torch.from_numpy(np.array(leaf))
        if isinstance(leaf, torch.Tensor) and id(leaf) in seen:
            return leaf.detach().clone()  # torch.export takes arguments that are one tensor for one input
        seen.add(id(leaf))
        return leaf

    inputs = tree.tree_map(tensor, inputs)
    if inputs is None:
        return (), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if not isinstance(inputs, (tuple, list)):
        return (inputs,), {}
    if inputs and isinstance(inputs[-1], dict):
        return tuple(inputs[:-1]), dict(inputs[-1])
    return tuple(inputs), {}


def _only_argument(known: Mapping[str, Any], required: Sequence[str]) -> str:
    names = required or list(known)
    if len(names) != 1:
        raise UsageError(
            f"forward() has {len(names)} arguments ({', '.join(names)}): write --input-shapes NAME:DIMS for each"
        )
    return names[0]


def _like(example: torch.Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """Numbers of an example's type; integers within the range that it spans."""
    if example.is_floating_point():
        return np.asarray(rng.standard_normal(shape))
    values = example.detach().cpu().numpy()
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return np.asarray(rng.integers(low, high + 1, size=shape))


def _examples(traced: Any, model: ir.Model) -> dict[str, NDArray[Any]]:
    """The example of each graph input, in the order of the graph's signature."""
    from torch.utils import _pytree as tree

    leaves = tree.tree_leaves(traced.example_inputs)
    kind = type(traced.graph_signature.input_specs[0].kind).USER_INPUT if traced.graph_signature.input_specs else None
    specs = [spec for spec in traced.graph_signature.input_specs if spec.kind is kind]
    by_name = {spec.arg.name: leaf for spec, leaf in zip(specs, leaves, strict=True)}
    return {
        value.name: np.array(by_name[value.name].detach().cpu().numpy())
        for value in model.graph.inputs
        if value.name is not None
    }


def _check_types(module: torch.nn.Module, inputs: Any) -> None:
    """Raises InputError for bfloat16, which ONNX Runtime has next to no operators for on a CPU."""
    import torch
    from torch.utils import _pytree as tree

    given = {leaf.dtype for leaf in tree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)}
    held = {value.dtype for value in module.parameters() if value.is_floating_point()}
    if torch.bfloat16 in given or held == {torch.bfloat16}:
        raise InputError(
            "the module or an example input is in bfloat16, in which ONNX Runtime does not run networks here: give "
            "both in float32 (module.float()) or float16 (module.half()), and cast the result to bfloat16 afterwards"
        )


# --- Export ---------------------------------------------------------------------------------------------------------


def _export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: tuple[str, ...]) -> Any:
    import torch

    if args and isinstance(args[-1], dict) and not kwargs:
        args = (*args, {})  # the exporter takes a dict at the end for the named arguments

    def exported() -> Any:
        return torch.onnx.export(
            module, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False, external_data=False
        )

    try:
        program = exported()
    except Exception as error:
        failure = _failure(module, args, kwargs, made, error)
        try:
            with written_out():
                program = exported()
        except Exception:  # not the attention, then
            raise failure from error
    assert program is not None
    return program


def _failure(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: tuple[str, ...], error: Exception
) -> GraphpruneError:
    """One sentence: the module's own error where it does not even run, the exporter's otherwise."""
    import torch

    guess = (
        f"; {', '.join(made)} got random float numbers from --input-shapes, and integer inputs such as token ids "
        "cannot be guessed: let the factory return (module, inputs)"
        if made
        else ""
    )
    if args and args[-1] == {}:
        args = args[:-1]
    try:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}  # forward() may write to them
        with torch.no_grad():
            torch.func.functional_call(module, buffers, args, kwargs)
    except Exception as own:
        return InputError(f"the module does not run on its example inputs: {first_line(own)}{guess}")
    # The outermost errors are the exporter's general advice; what went wrong is at the end of the chain.
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return InputError(f"PyTorch cannot export the module {type(module).__name__}: {first_line(cause)}")


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own flag back."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


class _Forward(logging.Handler):
    """Hands records on as debug messages."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.debug("%s: %s", record.name, record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends what the exporter and the user's ``forward()`` log, warn of and print to our log; all settings restored."""
    names = [
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _LOGGERS
    ]
    loggers = [logging.getLogger(name) for name in dict.fromkeys((*_LOGGERS, *names))]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    printed = io.StringIO()
    caught: list[warnings.WarningMessage] = []
    try:
        for logger in loggers:
            top = logger.name in _LOGGERS
            logger.handlers = [_Forward()] if top else []
            logger.propagate = not top
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        for warning in caught:
            _log.debug("%s: %s", warning.category.__name__, warning.message)
        for line in printed.getvalue().splitlines():
            _log.debug("printed: %s", line)


# --- What the exporter leaves behind ---------------------------------------------------------------------------------


def _strip(model: ir.Model) -> None:
    """Remove machine paths and everything that keeps the traced FX graph alive."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        parts: list[Any] = [graph, *graph.inputs, *graph.initializers.values()]
        for node in graph.all_nodes():
            parts += [node, *node.outputs]
        for part in parts:
            part.meta.clear()
            for key in set(part.metadata_props) - _KEPT:
                del part.metadata_props[key]
            if isinstance(getattr(part, "doc_string", None), str):
                part.doc_string = None
    model.meta.clear()


def _identity(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Equal for two views of the same memory; None where there is none to compare."""
    if not tensor.numel():
        return None
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name it has."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _share_tied(model: ir.Model, module: torch.nn.Module) -> list[str]:
    """Make initialisers that are one tensor of the module one initialiser, called by its first name there."""
    initializers = model.graph.initializers
    names: dict[tuple[Any, ...] | None, list[str]] = {}
    for name, tensor in _named_tensors(module).items():
        names.setdefault(_identity(tensor), []).append(name)
    held: dict[tuple[Any, ...], list[ir.Value]] = {}
    for value in initializers.values():
        key = _memory(value)
        if key is not None:
            held.setdefault(key, []).append(value)
    notes: list[str] = []
    for key, (kept, *others) in held.items():
        for other in others:
            other.replace_all_uses_with(kept, replace_graph_outputs=True)
            del initializers[str(other.name)]
        aliases = names.get(key, [])
        if len(aliases) > 1:
            if kept.name != aliases[0] and aliases[0] not in initializers:
                _rename(model, kept, aliases[0])
            notes.append(f"{' and '.join(aliases)} are one tensor, here {kept.name}")
    return notes


def _memory(value: ir.Value) -> tuple[Any, ...] | None:
    raw: Any = getattr(value.const_value, "raw", None)
    return _identity(raw) if hasattr(raw, "data_ptr") else None


def _rename(model: ir.Model, value: ir.Value, name: str) -> None:
    model.graph.initializers.pop(str(value.name))
    value.name = name
    assert value.const_value is not None
    value.const_value.name = name
    model.graph.register_initializer(value)


def _make_names_unique(model: ir.Model) -> None:
    """Inputs keep their names, then parameters: PyTorch lets an argument, a parameter and a node share one."""
    graph = model.graph
    taken = {str(value.name) for value in graph.inputs}

    def free(name: str, suffix: str) -> str:
        while name in taken or name in graph.initializers:
            name += suffix
        return name

    for name in [name for name in graph.initializers if name in taken]:
        _rename(model, graph.initializers[name], free(name, ".parameter"))
    taken |= set(graph.initializers)
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name and value.name in taken:
                value.name = free(value.name, "_")
            if value.name:
                taken.add(value.name)


def _parameter_names(model: ir.Model, module: torch.nn.Module) -> dict[str, str]:
    tensors = _named_tensors(module)
    first: dict[tuple[Any, ...] | None, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(_identity(tensor), name)
    first.pop(None, None)
    named: dict[str, str] = {}
    for name, value in model.graph.initializers.items():
        key = _memory(value)
        if name in tensors and (key is None or key == _identity(tensors[name])):
            named[name] = name
        elif key in first:  # the exporter, or we, renamed it
            named[name] = first[key]
    return named


def drop_made_up_biases(model: ir.Model) -> None:
    """Remove the zeros that the exporter gives to convolutions without a bias (of a shape that does not run in 3-D)."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in model.graph:
        bias = node.inputs[2] if node.op_type.startswith("Conv") and len(node.inputs) == 3 else None
        made = bias.producer() if bias is not None else None
        if made is None or made.op_type != "Expand" or made.inputs[0] is None:
            continue
        source = made.inputs[0].producer()
        if source is not None and source.op_type in ("Cast", "CastLike") and source.inputs[0] is not None:
            source = source.inputs[0].producer()
        held = source.attributes.get("value") if source is not None and source.op_type == "Constant" else None
        if held is not None and not held.as_tensor().numpy().any():
            node.resize_inputs(2)
    RemoveUnusedNodesPass()(model)


def _remove_unused(model: ir.Model, parameter_names: dict[str, str]) -> None:
    """Remove initialisers that no node reads; they would only make the file larger."""
    initializers = model.graph.initializers
    unused = [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]
    for name in unused:
        del initializers[name]
        parameter_names.pop(name, None)
