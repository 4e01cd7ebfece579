"""Torch-Pruning on one module: cut it, run it, and compare it with the original in which what it removed is zero."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import ENOUGH, SMALL, Incomparable

__all__ = ["last_layer", "torch_pruning"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def torch_pruning(module: nn.Module, example: tuple[Tensor, ...], tell: Callable[..., None]) -> None:
    """Tell how far it comes (builds, steps, runs), what is kept, whether it is equal, and the seconds it took."""
    import torch_pruning as tp  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # it traces by autograd
    original = copy.deepcopy(module)
    names = {id(part): name for name, part in module.named_modules()}
    names |= {id(parameter): name for name, parameter in module.named_parameters()}
    dense = sum(parameter.numel() for parameter in module.parameters())
    start = time.process_time()
    stage = "build"
    try:
        pruner = tp.pruner.BasePruner(
            module,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=0.5,
            ignored_layers=[last_layer(module, example)],
        )
        tell(builds=True, seconds=time.process_time() - start)
        stage = "step"
        removed = _Removed(original, names)
        for group in pruner.step(interactive=True):
            removed.note(pruner.DG, group)
            group.prune()
        kept = sum(parameter.numel() for parameter in module.parameters()) / dense
        tell(steps=True, seconds=time.process_time() - start, kept=kept)
        stage = "run"
        with torch.no_grad():
            cut = list(_tensors(module.double()(*map(_double, example))))
        tell(runs=True)
    except Exception as error:  # whatever it raises is its answer for this network
        said = str(error).strip().splitlines()
        tell(failed=f"{stage}: {type(error).__name__}: {said[0] if said else ''}")
        return
    try:
        masked = removed.silenced().double()
    except Incomparable as why:
        tell(not_compared=str(why))
        return
    with torch.no_grad():
        wanted = list(_tensors(masked(*map(_double, example))))
    error = max(map(_difference, wanted, cut), default=float("inf")) if len(wanted) == len(cut) else float("inf")
    tell(error=min(error, 1e30), equal=error <= ENOUGH)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list)):
        for one in outputs:
            yield from _tensors(one)
    elif isinstance(outputs, dict):
        yield from _tensors(list(outputs.values()))


def _difference(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    gap = float((wanted - found).abs().max()) / (float(wanted.abs().max()) + SMALL)
    return gap if np.isfinite(gap) else float("inf")


def last_layer(module: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """The layer with weights that runs last: the classifier."""
    seen: list[nn.Module] = []
    layers = [one for one in module.modules() if isinstance(one, (nn.Linear, *_CONVS))]
    hooks = [one.register_forward_hook(lambda layer, *_: seen.append(layer)) for one in layers]
    with torch.no_grad():
        module(*example)
    for hook in hooks:
        hook.remove()
    return seen[-1]


class _Removed:
    """What was removed from whom, as indices of the original."""

    def __init__(self, original: nn.Module, names: dict[int, str]) -> None:
        self.original = original
        self.names = names
        self.left: dict[tuple[str, bool], Any] = {}
        self.gone: dict[tuple[str, bool], list[int]] = {}
        self.dims: dict[str, int] = {}

    def note(self, graph: Any, group: Any) -> None:
        """Take a group down before it is cut: its indices are of the network as it is now."""
        for dependency, indices in group:
            part = dependency.target.module
            name = self.names.get(id(part))
            if name is None:
                continue  # an operation without weights
            out = bool(graph.is_out_channel_pruning_fn(dependency.handler))
            # Norms, embeddings and depthwise convolutions have one axis, whoever names it.
            single = not isinstance(part, (nn.Linear, *_CONVS)) or _depthwise(part)
            key = (name, out or single)
            if isinstance(part, nn.Parameter):
                self.dims[name] = getattr(dependency.target, "pruning_dim", None) or _parameter_dim(part)
            size = self._size(name, out or single)
            left = self.left.setdefault(key, np.arange(size))
            places = sorted({int(i) for i in indices})
            if places and places[-1] >= len(left):
                raise Incomparable(f"indices of {name} beyond its size")
            self.gone.setdefault(key, []).extend(left[places].tolist())
            self.left[key] = np.delete(left, places)

    def _find(self, name: str) -> Any:
        parts = dict(self.original.named_modules())
        return parts[name] if name in parts else dict(self.original.named_parameters())[name]

    def _size(self, name: str, out: bool) -> int:
        part = self._find(name)
        if isinstance(part, nn.Parameter):
            return part.shape[self.dims[name]]
        if isinstance(part, nn.Linear):
            return part.out_features if out else part.in_features
        if isinstance(part, _CONVS):
            return part.out_channels if out else part.in_channels
        if isinstance(part, nn.Embedding):
            return part.embedding_dim
        weight = getattr(part, "weight", None)
        if weight is None:
            return 1 << 20  # nothing to silence
        return int(weight.shape[-1])

    def silenced(self) -> nn.Module:
        """The original with all that was removed set to zero. Raises Incomparable for what cannot be silenced."""
        with torch.no_grad():
            for (name, out), gone in self.gone.items():
                self._zero(self._find(name), name, out, torch.tensor(gone, dtype=torch.long))
        return self.original

    def _zero(self, part: Any, name: str, out: bool, gone: Tensor) -> None:
        if isinstance(part, nn.Parameter):
            part.index_fill_(self.dims[name], gone, 0.0)
        elif isinstance(part, nn.Embedding):
            part.weight.index_fill_(1, gone, 0.0)
        elif isinstance(part, (nn.Linear, *_CONVS)):
            if getattr(part, "groups", 1) > 1 and not _depthwise(part):
                self._zero_grouped(part, name, out, gone)
                return
            transposed = "Transpose" in type(part).__name__
            part.weight.index_fill_(int(out == transposed) if not _depthwise(part) else 0, gone, 0.0)
            if out and part.bias is not None:
                part.bias.index_fill_(0, gone, 0.0)
        elif isinstance(part, _NORMS):
            for held in (part.weight, getattr(part, "bias", None)):
                if held is not None and held.shape[-1] > 1:
                    held.index_fill_(held.ndim - 1, gone, 0.0)
        elif any(True for _ in part.parameters(recurse=False)):
            raise Incomparable(f"{name} is a {type(part).__name__}")

    def _zero_grouped(self, part: Any, name: str, out: bool, gone: Tensor) -> None:
        if "Transpose" in type(part).__name__:
            raise Incomparable(f"{name} is a grouped transposed convolution")
        if out:
            part.weight.index_fill_(0, gone, 0.0)
            if part.bias is not None:
                part.bias.index_fill_(0, gone, 0.0)
            return
        width, rows = part.in_channels // part.groups, part.out_channels // part.groups
        for channel in gone.tolist():  # an input channel is read by its group's rows alone
            first = channel // width * rows
            part.weight[first : first + rows, channel % width] = 0.0


def _depthwise(part: Any) -> bool:
    return isinstance(part, _CONVS) and part.groups > 1 and part.groups == part.in_channels


def _parameter_dim(part: nn.Parameter) -> int:
    return max((i for i in range(part.ndim) if part.shape[i] > 1), default=0)
