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
    for path, owner in module.named_modules():
        if isinstance(owner, nn.MultiheadAttention):
            prefix = f"{path}." if path else ""
            for name, axis, _, removed in cuts:
                if name == f"{prefix}out_proj.weight" and axis == 1:  # set even if no head went: see CutAttention
                    found[path, "num_heads"] = heads_left(owner, removed)
    for path in dict.fromkeys(name.rpartition(".")[0] for name, _, _, _ in cuts):
        owner = module.get_submodule(path)
        for name, value in _standard(owner, path, network, cut).items():
            if getattr(owner, name) != value:
                found[path, name] = value
    return [(path, name, value) for (path, name), value in found.items()]


def recurrent_biases(module: nn.Module, gone: dict[tuple[str, int], NDArray[np.bool_]]) -> None:
    """The biases of recurrent layers lose what their weights lose: the exporter mixes them before they are read."""
    for path, owner in module.named_modules():
        if isinstance(owner, nn.RNNBase):
            for name in [one for one in owner._parameters if one.startswith("bias")]:
                prefix = f"{path}." if path else ""
                rows = gone.get((f"{prefix}{name.replace('bias', 'weight', 1)}", 0))
                if rows is not None:
                    gone[f"{prefix}{name}", 0] = rows


def _standard(owner: nn.Module, path: str, network: Network, cut: Network) -> dict[str, Any]:
    held: Any = owner
    if isinstance(owner, nn.Linear):
        return {"out_features": held.weight.shape[0], "in_features": held.weight.shape[1]}
    if isinstance(owner, _CONVS):
        groups = _groups(f"{path}.weight", network, cut) or held.groups
        return {"out_channels": held.weight.shape[0], "in_channels": held.weight.shape[1] * groups, "groups": groups}
    if isinstance(owner, _TRANSPOSED):
        groups = _groups(f"{path}.weight", network, cut) or held.groups
        return {"in_channels": held.weight.shape[0], "out_channels": held.weight.shape[1] * groups, "groups": groups}
    if isinstance(owner, _NORMS):
        first = held.weight if held.weight is not None else held.running_mean
        return {} if first is None else {"num_features": first.shape[0]}
    if isinstance(owner, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(held.weight.shape)}
    if isinstance(owner, nn.GroupNorm):
        per_group = held.num_channels // held.num_groups
        channels = held.weight.shape[0]
        same = channels % held.num_groups == 0
        return {"num_channels": channels, "num_groups": held.num_groups if same else channels // per_group}
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": held.weight.shape[0], "embedding_dim": held.weight.shape[1]}
    if isinstance(owner, nn.PReLU):
        return {"num_parameters": held.weight.shape[0]}
    if isinstance(owner, nn.RNNBase):
        return {"input_size": held.weight_ih_l0.shape[1], "hidden_size": held.weight_hh_l0.shape[1]}
    return {}


def _groups(parameter: str, network: Network, cut: Network) -> int | None:
    """How many groups the node that reads a parameter has in the cut network."""
    tensors = {name for name, path in network.program.parameter_names.items() if path == parameter}
    for node in cut.program.model.graph:
        if any(value is not None and value.name in tensors for value in node.inputs) and "group" in node.attributes:
            held = node.attributes["group"]
            assert isinstance(held, ir.Attr)
            return int(held.as_int())
    return None
