"""Attention, rotary positions, and the fused operators that ONNX Runtime makes."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from graphprune.backends.torch_emit.norm import normalised
from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import attention

_MS = "com.microsoft"


@emits("Attention")
def _attention(v: View) -> Any:
    if v.used(3) or v.has(6):
        raise Refuse("its scores are read, or it is told the lengths of keys")
    softcap = float(v.attr("softcap", 0.0))
    if softcap and (v.has(3) or v.attr("is_causal", 0)):
        raise Refuse("it bends scores that are masked")
    heads = int(v.attr("q_num_heads") or v.shape(0)[1])
    kv_heads = int(v.attr("kv_num_heads") or v.shape(1)[1])
    scale = v.attr("scale")
    operands = (v.x(0), v.x(1), v.x(2), *(v.maybe(k) for k in (3, 4, 5)))
    return v.outputs(
        v.call(
            attention.attention,
            *operands,
            heads,
            kv_heads,
            bool(v.attr("is_causal", 0)),
            None if scale is None else float(scale),
            softcap,
        )
    )


@emits("MultiHeadAttention", domain=_MS)
def _multi_head_attention(v: View) -> Any:
    heads = int(v.attr("num_heads"))
    if any(v.has(k) for k in (4, 6, 7, 8, 9)) or not (v.has(1) and v.has(2)) or v.rank(1) != 3 or v.rank(2) != 3:
        raise Refuse("only queries, keys and values of three axes, a bias and an attention bias are translated")
    if v.used(1) or v.used(2) or v.attr("unidirectional", 0):
        raise Refuse("it is causal, or its keys and values are read")
    held: list[Any] = [v.x(0), v.x(1), v.x(2)]
    if v.has(3):
        sizes = [v.shape(0)[2], v.shape(1)[2], v.shape(2)[2]]
        parts = v.call(torch.split, v.x(3), sizes)
        held = [v.call(operator.add, one, v.item(parts, k)) for k, one in enumerate(held)]
    scale = v.attr("scale", 0.0) or None
    made = v.call(attention.attention, *held, v.maybe(5), None, None, heads, heads, False, scale, 0.0)
    return v.item(made, 0)


@emits("RotaryEmbedding")
def _rotary(v: View) -> fx.Node:
    heads = int(v.attr("num_heads", 0)) or (v.shape(0)[1] if v.rank() == 4 else 0)
    size, pairs = int(v.attr("rotary_embedding_dim", 0)), bool(v.attr("interleaved", 0))
    return v.call(attention.rotary_embedding, v.x(0), v.x(1), v.x(2), v.maybe(3), heads, size, pairs)


@emits("Gelu", domain=_MS)
def _gelu(v: View) -> fx.Node:
    return v.call(F.gelu, v.x())


@emits("FastGelu", "BiasGelu", domain=_MS)
def _bias_gelu(v: View) -> fx.Node:
    x = v.call(operator.add, v.x(0), v.x(1)) if v.has(1) else v.x()
    return v.call(F.gelu, x, approximate="tanh" if v.op == "FastGelu" else "none")


@emits("QuickGelu", domain=_MS)
def _quick_gelu(v: View) -> fx.Node:
    gate = v.call(torch.sigmoid, v.call(operator.mul, v.x(), float(v.attr("alpha", 1.702))))
    return v.call(operator.mul, v.x(), gate)


@emits("SimplifiedLayerNormalization")
@emits("SimplifiedLayerNormalization", domain=_MS)
def _simplified(v: View) -> fx.Node:
    if v.used(1):
        raise Refuse("its statistics are read")
    return normalised(v, F.rms_norm, v.axis(-1), float(v.attr("epsilon", 1e-5)))


@emits("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_MS)
def _skip_norm(v: View) -> Any:
    simple = v.op.startswith("SkipSimplified")
    if v.used(1) or v.used(2):
        raise Refuse("its statistics are read")
    total = v.call(operator.add, v.x(0), v.x(1))
    at = 3 if simple else 4
    if v.has(at):
        total = v.call(operator.add, total, v.x(at))
    sizes, epsilon = [v.shape(0)[-1]], float(v.attr("epsilon", 1e-12 if not simple else 1e-5))
    if simple:
        made = v.call(F.rms_norm, total, sizes, weight=v.x(2), eps=epsilon)
    else:
        made = v.call(F.layer_norm, total, sizes, weight=v.x(2), bias=v.maybe(3), eps=epsilon)
    return made, None, None, total


@emits("FusedMatMul", "TransposeMatMul", domain=_MS)
def _fused_matmul(v: View) -> fx.Node:
    if v.attr("transBatchA", 0) or v.attr("transBatchB", 0):
        raise Refuse("it transposes batch axes")
    a, b = (
        v.call(torch.transpose, v.x(k), -2, -1) if v.attr(name, 0) else v.x(k)
        for k, name in ((0, "transA"), (1, "transB"))
    )
    made, alpha = v.call(torch.matmul, a, b), float(v.attr("alpha", 1.0))
    return made if alpha == 1.0 else v.call(operator.mul, made, alpha)
