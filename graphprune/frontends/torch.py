"""PyTorch modules: traced with ``torch.export`` and translated by PyTorch's own ONNX exporter, unoptimised.

Unoptimised, every initialiser keeps its parameter's name and BatchNorm stays a node; folding comes after the cut.
PyTorch is imported inside the functions only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphpruneError, InputError
from graphprune.frontends.attention import written_out
from graphprune.frontends.functions import inline_functions
from graphprune.frontends.module_inputs import arguments, check_types, examples
from graphprune.frontends.modules import first_line, is_reference, missing_torch, resolve

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

__all__ = ["TracedModule", "drop_made_up_biases", "is_reference", "read_module", "resolve"]

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
    args, kwargs, made = arguments(module, inputs, input_shapes or {}, seed)
    check_types(module, (args, kwargs))
    with _evaluating(module), _quiet(), torch.random.fork_rng(devices=[]):
        program = _export(module, args, kwargs, made)
    model: ir.Model = program.model
    traced = program.exported_program
    feeds = examples(traced, model)
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
    return TracedModule(model, feeds, parameter_names, tuple(notes))


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
