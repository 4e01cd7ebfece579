"""PyTorch: a network as a trainable ``torch.fx.GraphModule``, and trained values back into it.

>>> import graphprune
>>> network = graphprune.load("rec.onnx")
>>> module = graphprune.to_torch(network)
>>> print(module.code)
>>> ...  # train it
>>> trained = graphprune.load_state(network, module)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphprune.errors import InputError, UsageError
from graphprune.ir.clean import clean
from graphprune.ir.files import atomic_files
from graphprune.ir.observe import observe
from graphprune.ir.program import Array, Program, constant_tensor, inputs_of
from graphprune.ir.values import with_values

if TYPE_CHECKING:
    from torch import fx

__all__ = ["load_state", "save_torch", "to_torch"]


def to_torch(source: Any) -> fx.GraphModule:
    """A network as a PyTorch module that computes the same, in eval mode, on the CPU.

    Args:
        source: a :class:`~graphprune.Program` or anything that has one (:class:`~graphprune.Network`), an
            ``onnx_ir.Model``, or the path of an ONNX file. The last two are run once, to observe their sizes.

    Returns:
        Its ``forward`` takes the network's inputs in their order and returns its output, or a tuple of them. Weights
        are parameters under their own names; BatchNorm is a module that trains in ``train()`` and is frozen in
        ``eval()``; what else is constant are buffers. ``meta`` says what is what: ``parameters`` (name in the module's
        state -> names of the initialisers that it holds), ``inputs`` and ``outputs`` (the network's names).

    Raises:
        UnsupportedError: operators without a counterpart in PyTorch; the sentence lists all of them.
        InputError: PyTorch is not installed, or the network cannot be read or run.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("a torch module needs PyTorch: pip install graphprune[torch]") from error
    from graphprune.backends.torch_emit.module import build

    return build(_program(source))


def load_state(source: Any, module: fx.GraphModule) -> Program:
    """The network with the values that a module of :func:`to_torch` holds now, in their original types.

    Args:
        source: the :class:`~graphprune.Program`, or what has one, that the module was made of, or an equal one. It
            stays as it is, and so does the file it came from.
        module: trained or not, on any device and of any float type.

    Returns:
        A program of its own; initialisers whose values did not change are shared.

    Raises:
        UsageError: the module was not made by :func:`to_torch`.
        InputError: an initialiser is missing in the network or has another shape.
    """
    program = _program(source)
    named = getattr(module, "meta", {}).get("parameters")
    if named is None:
        raise UsageError("the module has no meta['parameters']; give one that graphprune.to_torch made")
    state = module.state_dict(keep_vars=True)
    changed: dict[str, Array] = {}
    for path, names in named.items():
        if path not in state:
            raise InputError(f"the module has no parameter or buffer '{path}' any more; nothing was written back")
        for name in names:
            array = _fitting(program, name, path, state[path])
            if array.tobytes() != program.tensor(name).tobytes():
                changed[name] = array
    return with_values(program, changed)


def save_torch(source: Any, path: str | os.PathLike[str]) -> Path:
    """Write a network as a PyTorch artefact, which ``torch.export.load(path).module()`` reads without graphprune.

    Sizes that the network leaves open stay open where PyTorch can trace them so; an axis of one index stays as it is.

    Args:
        source: as for :func:`to_torch`.
        path: of the file (``.pt2``); it appears when it is whole.

    Raises:
        UsageError: the file cannot be written.
        UnsupportedError, InputError: as of :func:`to_torch`; PyTorch cannot trace the module.
    """
    program = _program(source)
    module = to_torch(program).eval()
    import torch

    names = [value.name or "" for value in inputs_of(program.model)]
    given = tuple(torch.from_numpy(np.array(program.examples[name])) for name in names)
    moving = tuple(
        {axis: torch.export.Dim.AUTO for axis in program.moving.get(name, ()) if one.shape[axis] > 1}
        for name, one in zip(names, given, strict=True)
    )
    try:
        exported = torch.export.export(module, given, dynamic_shapes=moving)
    except Exception as error:
        raise InputError(f"PyTorch cannot export the module of this network: {error}") from error
    with atomic_files(Path(path)) as (file,):
        torch.export.save(exported, file)
    return Path(path)


def _program(source: Any) -> Program:
    if isinstance(source, Program):
        return source
    held = getattr(source, "program", None)
    if isinstance(held, Program):
        return held
    if isinstance(source, (str, os.PathLike)):
        from graphprune.frontends.onnx import read_onnx

        path = Path(source)
        found = _observed(read_onnx(path))
        found.source = path
        return found
    if isinstance(source, ir.Model):
        return _observed(source.clone())
    raise UsageError(f"a network, a program, an ONNX model or its path is needed, not a {type(source).__name__}")


def _observed(model: ir.Model) -> Program:
    from graphprune.backends.runner import OrtRunner

    clean(model)
    return observe(model, OrtRunner(), keep=lambda node: node.op_type.startswith("Random"))


def _fitting(program: Program, name: str, path: str, tensor: Any) -> Array:
    """A tensor's contents in the type of an initialiser, if it has its shape."""
    value = program.values().get(name)
    held = None if value is None else constant_tensor(value)
    if held is None:
        raise InputError(f"the network has no initialiser '{name}' for the module's '{path}'; give its own network")
    shape = tuple(int(n) for n in held.shape.numpy())
    if shape != tuple(tensor.shape):
        raise InputError(
            f"'{path}' has shape {list(tensor.shape)} in the module but '{name}' has {list(shape)} in the network; "
            "write it back to the network that the module was made of"
        )
    import torch

    plain = tensor.detach().cpu()
    plain = plain.to(torch.float32) if plain.dtype is torch.bfloat16 else plain
    return np.ascontiguousarray(plain.numpy().astype(held.numpy().dtype, copy=False)).reshape(shape)
