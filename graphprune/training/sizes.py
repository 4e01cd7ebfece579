"""Sizes that PyTorch's layers keep as attributes, after a cut of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from graphprune.pipeline import Network
from graphprune.training.attention import heads_left

__all__ = ["Change", "attribute_changes", "recurrent_biases"]

Change = tuple[str, str, Any]  # path of the submodule, attribute, new value
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def attribute_changes(
    module: nn.Module, cuts: Sequence[tuple[str, int, int, tuple[int, ...]]], network: Network, cut: Network
) -> list[Change]:
    """The attributes of standard layers to set, once the parameters are cut: they follow from these."""
    found: dict[tuple[str, str], Any] = {}
    removed = {(name, axis): indices for name, axis, _, indices in cuts}
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(owner, nn.MultiheadAttention) and any(name.startswith(prefix) for name, _ in removed):
            heads = heads_left(owner, removed.get((f"{prefix}out_proj.weight", 1), ()))
            found[path, "num_heads"] = heads  # set even if no head went: see CutAttention
            found.update(
                {(path, name): width for name, width in _widths(owner).items() if width != getattr(owner, name)}
            )
    held = dict(module.named_parameters(remove_duplicate=False))
    touched = {id(held[name]) for name, _ in removed if name in held}  # under every name that a tied one has
    aliases = {name: id(one) for name, one in held.items() if id(one) in touched}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in (*(name for name, _ in removed), *aliases)):
        owner = module.get_submodule(path)
        weight = f"{path}.weight" if path else "weight"
        names = {name for name, one in aliases.items() if one == aliases.get(weight)} | {weight}
        gone = next((removed[name, 0] for name in sorted(names) if (name, 0) in removed), ())
        for name, value in _standard(owner, _groups(names, network, cut), gone).items():
            if getattr(owner, name) != value:
                found[path, name] = value
    return [(path, name, value) for (path, name), value in found.items()]


def _widths(owner: nn.MultiheadAttention) -> dict[str, int]:
    """What it calls the widths of its inputs and its result."""
    packed: Any = owner._parameters["in_proj_weight"]
    parts: tuple[Any, ...] = (packed, packed) if packed is not None else (owner.k_proj_weight, owner.v_proj_weight)
    return {"embed_dim": owner.out_proj.weight.shape[0], "kdim": parts[0].shape[1], "vdim": parts[1].shape[1]}


def recurrent_biases(module: nn.Module, gone: dict[tuple[str, int], NDArray[np.bool_]]) -> None:
    """The biases of recurrent layers lose what their weights lose: the exporter mixes them before they are read."""
    for path, owner in module.named_modules():
        if isinstance(owner, nn.RNNBase):
            for name in [one for one in owner._parameters if one.startswith("bias")]:
                prefix = f"{path}." if path else ""
                rows = gone.get((f"{prefix}{name.replace('bias', 'weight', 1)}", 0))
                if rows is not None:
                    gone[f"{prefix}{name}", 0] = rows


def _standard(owner: nn.Module, groups: int | None, gone: Sequence[int]) -> dict[str, Any]:
    """Attributes by name. ``groups``: of a convolution after the cut; ``gone``: what the weight lost on axis 0."""
    held: Any = owner
    if isinstance(owner, nn.Linear):
        return {"out_features": held.weight.shape[0], "in_features": held.weight.shape[1]}
    if isinstance(owner, _CONVS):
        groups = groups or held.groups
        return {"out_channels": held.weight.shape[0], "in_channels": held.weight.shape[1] * groups, "groups": groups}
    if isinstance(owner, _TRANSPOSED):
        groups = groups or held.groups
        return {"in_channels": held.weight.shape[0], "out_channels": held.weight.shape[1] * groups, "groups": groups}
    if isinstance(owner, _NORMS):
        first = held.weight if held.weight is not None else held.running_mean
        return {} if first is None else {"num_features": first.shape[0]}
    if isinstance(owner, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(held.weight.shape)}
    if isinstance(owner, nn.GroupNorm):
        each, channels = held.num_channels // held.num_groups, held.weight.shape[0]
        lost = np.bincount(np.asarray(gone, dtype=np.int64) // each, minlength=held.num_groups)
        whole = bool(np.isin(lost, (0, each)).all())  # some groups went and the others are as they were
        return {"num_channels": channels, "num_groups": channels // each if whole else held.num_groups}
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": held.weight.shape[0], "embedding_dim": held.weight.shape[1]}
    if isinstance(owner, nn.PReLU):
        return {"num_parameters": held.weight.shape[0]}
    if isinstance(owner, nn.RNNBase):
        return {"input_size": held.weight_ih_l0.shape[1], "hidden_size": held.weight_hh_l0.shape[1]}
    return {}


def _groups(parameters: set[str], network: Network, cut: Network) -> int | None:
    """How many groups the node that reads a parameter, known by these names, has in the cut network."""
    tensors = {name for name, path in network.program.parameter_names.items() if path in parameters}
    for node in cut.program.model.graph:
        if any(value is not None and value.name in tensors for value in node.inputs) and "group" in node.attributes:
            held = node.attributes["group"]
            assert isinstance(held, ir.Attr)
            return int(held.as_int())
    return None
