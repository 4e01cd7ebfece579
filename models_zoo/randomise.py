"""Random weights that hide no error: untrained networks come with zero biases and all-one scales.

A cut that forgets a bias, mixes up two norms or drops a class token leaves such a network's outputs as they were. So
every parameter and statistic is drawn, and layers are rescaled so that activations keep a size at which an error shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["randomise", "seeded"]

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int) -> M:
    """``build()`` under its own seeded random state (the caller's is restored)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def randomise(module: M, seed: int, example_inputs: tuple[Tensor, ...] = ()) -> M:
    """Draw every parameter and norm statistic of ``module`` in place; returns it in eval mode.

    ======================================  =====================================
    one-dimensional weights, layer scales    U(0.5, 1.5)
    biases, running means                    N(0, 0.1)
    running variances                        U(0.5, 1.5)
    other weights                            N(0, 1 / fan_in)
    tokens, positions, bias tables           N(0, 0.3)
    ======================================  =====================================

    With ``example_inputs`` the module is run once, and each convolution's and linear layer's weight is divided by the
    standard deviation of its output: inference-mode BatchNorm does not normalise, so deep networks would vanish or
    overflow (the layer-sequential idea of Mishkin and Matas 2016, https://arxiv.org/abs/1511.06422).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _draw(name.rpartition(".")[2], parameter, generator)
        for name, buffer in module.named_buffers():
            leaf = name.rpartition(".")[2]
            if leaf == "running_mean":
                buffer.normal_(0, 0.1, generator=generator)
            elif leaf == "running_var":
                buffer.uniform_(0.5, 1.5, generator=generator)
        module.eval()
        if example_inputs:
            _rescale(module, example_inputs)
    return module


def _draw(leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
    if "layer_scale" in leaf or (leaf.endswith("weight") and parameter.ndim == 1):
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif leaf.endswith("bias"):
        parameter.normal_(0, 0.1, generator=generator)
    elif leaf.endswith("weight"):
        parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    else:
        parameter.normal_(0, 0.3, generator=generator)


def _rescale(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    def to_unit(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor):  # a router gives scores and choices
            return output
        deviation = output.std()
        if not torch.isfinite(deviation) or deviation < 1e-6:
            return output
        layer.weight.div_(deviation)  # type: ignore[operator]
        return layer.forward(*inputs)

    # By shape, not by class: transformers has linear layers of its own. An embedding's output needs no rescaling.
    layers = [
        layer
        for layer in module.modules()
        if isinstance(getattr(layer, "weight", None), Tensor)
        and layer.weight.ndim >= 2  # type: ignore[operator]
        and not isinstance(layer, nn.Embedding)
    ]
    hooks = [layer.register_forward_hook(to_unit) for layer in layers]
    try:
        module(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
