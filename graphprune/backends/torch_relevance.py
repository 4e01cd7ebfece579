"""Layer-wise relevance propagation through a network's PyTorch graph, written as gradient times value.

Every function keeps its value and gets another gradient, such that value times gradient is the relevance that
arrives (Ancona et al., "Towards better understanding of gradient-based attribution methods", 2018):

- contractions with weights pass it in proportion to what each input gives, damped where little comes out (the epsilon
  rule: Bach et al., "On Pixel-Wise Explanations", 2015);
- functions of single elements pass it on as it is;
- products of two computed values give half to each; of a quotient, all goes to the dividend; norms hold their
  spread fixed (Achtibat et al., "AttnLRP", 2024);
- all else (sums, pooling, softmax, views) has its own gradient already.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

__all__ = ["Relevance"]

_CONTRACTIONS = frozenset(
    (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.matmul,
     torch.einsum)
)  # fmt: skip
_PRODUCTS = _CONTRACTIONS | {operator.mul}
_ELEMENTWISE = frozenset(
    (F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.leaky_relu, F.mish, F.relu, F.selu, F.silu, F.softplus,
     F.softsign, torch.clamp, torch.erf, torch.exp, torch.sigmoid, torch.sqrt, torch.tanh)
)  # fmt: skip
_TINY = 1e-9


class Relevance(fx.Interpreter):
    """Runs a module; the gradients of what it returns are relevances over values.

    Args:
        epsilon: of the damping, in root mean squares of what a contraction gives (Montavon et al., "Layer-Wise
            Relevance Propagation: An Overview", 2019).
    """

    def __init__(self, module: fx.GraphModule, epsilon: float) -> None:
        super().__init__(module)
        self.epsilon = epsilon
        self.computed: set[fx.Node] = set()
        for node in module.graph.nodes:
            read = node.args[:1] if node.target == "type_as" else node.all_input_nodes  # of the other, the type alone
            if node.op == "placeholder" or any(one in self.computed for one in read):
                self.computed.add(node)

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, with the gradient of its rule."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = [one for one in n.all_input_nodes if one in self.computed]
        if n.target in _NORMS:
            return _NORMS[n.target](*args, **kwargs)
        if n.target is operator.truediv and n.args[1] in given:
            return args[0] / args[1].detach()
        made = super().run_node(n)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            return made
        if n.target in _PRODUCTS and len(given) > 1:
            return _scaled(made, made.new_tensor(1 / len(given)))
        if n.target in _CONTRACTIONS:
            return self._damped(made)
        if n.target in _ELEMENTWISE and len(given) == 1 and given[0] is n.args[0]:
            return _through(made, args[0])
        return made

    def _damped(self, made: Tensor) -> Tensor:
        size = made.detach()
        limit = self.epsilon * size.square().mean().sqrt() + _TINY
        return _scaled(made, size.abs() / (size.abs() + limit))


def _scaled(made: Tensor, factor: Tensor) -> Tensor:
    """The same value, its gradient times a factor."""
    return made.detach() + (made - made.detach()) * factor


def _through(made: Tensor, x: Tensor) -> Tensor:
    """The value, made of x by a factor."""
    held = x.detach()
    factor = torch.where(held.abs() > _TINY, made.detach() / torch.where(held == 0, 1.0, held), 0.0)
    return made.detach() + (x - held) * factor


def _layer_norm(
    x: Tensor, sizes: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    axes = tuple(range(-len(sizes), 0))
    centred = x - x.mean(axes, keepdim=True)
    made = centred * (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()
    made = made if weight is None else made * weight
    return made if bias is None else made + bias


def _rms_norm(x: Tensor, sizes: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = tuple(range(-len(sizes), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    made = x * (x.detach().square().mean(axes, keepdim=True) + least).rsqrt()
    return made if weight is None else made * weight


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    made = _layer_norm(x.reshape(x.shape[0], groups, -1), [x.numel() // (x.shape[0] * groups)], eps=eps)
    made, along = made.reshape(x.shape), (-1, *[1] * (x.ndim - 2))
    made = made if weight is None else made * weight.reshape(along)
    return made if bias is None else made + bias.reshape(along)


def _instance_norm(x: Tensor, *, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return _group_norm(x, x.shape[1], weight, bias, eps)


_NORMS: Mapping[Any, Any] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
}
