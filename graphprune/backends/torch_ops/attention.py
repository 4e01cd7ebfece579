"""Attention and rotary positions as ONNX and ONNX Runtime define them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attention", "rotary_embedding"]


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(b, s, h d)`` to ``(b, h, s, d)``."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) if x.dim() == 3 else x


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    heads: int,
    kv_heads: int,
    causal: bool,
    scale: float | None,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX Attention.

    Args:
        query: ``(b, h, s, d)`` or ``(b, s, h d)``; ``key`` and ``value`` likewise with their own number of heads.
        key: see ``query``.
        value: see ``query``.
        mask: broadcast to ``(b, h, s, t)``; true where a pair counts, or what is added to its score.
        past_key: ``(b, h, p, d)``, stands before ``key``.
        past_value: like ``past_key``.
        heads: of the queries.
        kv_heads: of keys and values; each serves ``heads / kv_heads`` queries.
        causal: no query sees a later key.
        scale: of the scores, by default ``1 / sqrt(d)``.
        softcap: scores are bent to within it, where it is not 0.

    Returns:
        The result in the query's form, all keys and all values.
    """
    flat = query.dim() == 3
    q, k, v = _heads(query, heads), _heads(key, kv_heads), _heads(value, kv_heads)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    all_keys, all_values = k, v
    if q.shape[1] != k.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = torch.repeat_interleave(k, repeat, dim=1), torch.repeat_interleave(v, repeat, dim=1)
    factor = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = torch.matmul(q * factor, k.transpose(2, 3) * factor)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril(past)
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    made = torch.matmul(torch.softmax(scores, dim=-1), v)
    if flat:
        made = made.transpose(1, 2).reshape(made.shape[0], made.shape[2], -1)
    return made, all_keys, all_values


def rotary_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, size: int, interleaved: bool
) -> Tensor:
    """Rotates pairs of elements by their position; ``size``: elements of a head that are rotated (0: all)."""
    flat = x.dim() == 3
    held = _heads(x, heads) if flat else x  # (b, h, s, d)
    size = size or held.shape[-1]
    turned, rest = held[..., :size], held[..., size:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[:, None, :, : size // 2], sin[:, None, :, : size // 2]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : size // 2], turned[..., size // 2 :]
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    made = torch.stack([real, imaginary], dim=-1).flatten(-2) if interleaved else torch.cat([real, imaginary], dim=-1)
    made = torch.cat([made, rest], dim=-1)
    return made.transpose(1, 2).reshape(x.shape) if flat else made
