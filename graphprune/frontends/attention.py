"""PyTorch's fused attention written out, for networks whose fused form its ONNX exporter does not know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["written_out"]


@contextmanager
def written_out() -> Iterator[None]:
    """``scaled_dot_product_attention`` as products and a softmax, while a module is traced.

    The exporter takes the fused form with four axes only, and results of another layout in memory than it has itself.
    The formula is that of PyTorch's documentation of the function, without dropout.
    """
    import torch
    from torch.nn import functional

    fused = functional.scaled_dot_product_attention

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        if enable_gqa:
            key, value = (one.repeat_interleave(query.size(-3) // one.size(-3), -3) for one in (key, value))
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
        if is_causal:
            length, size = scores.shape[-2:]
            attn_mask = torch.ones(length, size, dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        return torch.softmax(scores, dim=-1) @ value

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused
