"""PyTorch's attention after it has lost heads or head dimensions: its own ``forward`` cannot be told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CutAttention", "adapt", "heads_left"]


class CutAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose inner width is no longer its ``embed_dim``.

    Arguments, results and names of parameters are those of ``nn.MultiheadAttention``. Sizes follow from the parameters
    and ``num_heads``; ``head_dim`` is that before the cut, for the scale.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        inner = self.out_proj.weight.shape[1]
        q, k, v = (
            functional.linear(given, weight, bias).view(*given.shape[:2], self.num_heads, -1).transpose(1, 2)
            for given, weight, bias in zip((query, key, value), *self._projections(inner), strict=True)
        )
        mask = self._mask(q, attn_mask, key_padding_mask)
        scale, drop = self.head_dim**-0.5, self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = scale * q @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, drop)
            made = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            made = functional.scaled_dot_product_attention(q, k, v, mask, drop, scale=scale)
        made = self.out_proj(made.transpose(1, 2).flatten(2))
        if not batched:
            return made.squeeze(0), None if weights is None else weights.squeeze(0)
        return made if self.batch_first else made.transpose(0, 1), weights

    def _projections(self, inner: int) -> tuple[list[Any], list[Any]]:
        packed: Tensor | None = self._parameters["in_proj_weight"]
        if packed is not None:
            weights = list(torch.split(packed, _parts(packed.shape[0], inner)))
        else:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        bias = self.in_proj_bias
        return weights, [None] * 3 if bias is None else list(torch.split(bias, _parts(bias.shape[0], inner)))

    def _mask(self, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores, to be broadcast to (n, heads, queries, keys)."""
        found: Tensor | None = None
        for given in (attn_mask, padding):
            if given is None:
                continue
            one = given.to(q.dtype) if given.dtype != torch.bool else _minus_infinity(given, q.dtype)
            if given is padding:
                one = one[:, None, None, :]
            elif one.dim() == 3:
                one = one.view(-1, self.num_heads, *one.shape[1:])
            found = one if found is None else found + one
        return found


def _minus_infinity(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def _parts(rows: int, values: int) -> list[int]:
    """Rows of queries, keys and values."""
    return [(rows - values) // 2, (rows - values) // 2, values]


def heads_left(owner: nn.MultiheadAttention, removed: Any) -> int:
    """How many heads stay, if these inputs of its output projection are gone."""
    kept = torch.ones(owner.out_proj.weight.shape[1] + len(removed), dtype=torch.bool)
    kept[torch.as_tensor(removed, dtype=torch.long)] = False
    return int(kept.view(owner.num_heads, -1).any(1).sum())


def adapt(owner: nn.MultiheadAttention) -> Callable[[], None]:
    """Make a module whose parameters were cut a :class:`CutAttention`; returns how to undo it.

    With biases for further keys and values, or a zero key, it stays what it is, and will refuse its parameters.
    """
    kind, same = type(owner), owner._qkv_same_embed_dim

    def back() -> None:
        owner.__class__, owner._qkv_same_embed_dim = kind, same

    if kind is nn.MultiheadAttention and owner.bias_k is None and not owner.add_zero_attn:
        owner.__class__ = CutAttention
        owner._qkv_same_embed_dim = False  # encoder layers have a fast path that reads the weights itself
    return back
