"""Example inputs of a module: as they are given, of a given shape, or made up."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import InputError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

__all__ = ["arguments", "check_types", "examples", "in_order"]


def in_order(module: torch.nn.Module, inputs: Any) -> tuple[Any, ...]:
    """Example inputs in the order of ``forward()``'s arguments, those by name in a dictionary at the end.

    Their tensors are in the order of the traced network's inputs. Raises as :func:`arguments`.
    """
    args, kwargs, _ = arguments(module, inputs, {}, 0)
    return *args, kwargs


def arguments(
    module: torch.nn.Module, inputs: Any, shapes: Mapping[str | None, tuple[int, ...]], seed: int
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]:
    """Positional and named arguments of ``forward()``, and the names of those whose contents were made up.

    Args:
        inputs: a tensor, an array, or a tuple or dictionary of them, as ``torch.export`` takes them; None: none.
        shapes: by the names of arguments, of tensors to be made up; the name None stands for the only argument.
        seed: of what is made up.

    Raises:
        InputError, UsageError: they do not fit ``forward()``, or some are missing.
    """
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


def examples(traced: Any, model: ir.Model) -> dict[str, NDArray[Any]]:
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


def check_types(module: torch.nn.Module, inputs: Any) -> None:
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
