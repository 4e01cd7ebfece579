"""Fused attention, rotary embeddings and the normalisations that runtimes fuse around them."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, declare, rule
from graphprune.coupling.rules.quantized import scale_of, silent_in

_MS = "com.microsoft"

declare(
    """
SkipLayerNormalization            b* c, b* c, c, c?, c? -> b* c, b* y?, b* y?, b* c?  | stat: c | scale: 2
SkipSimplifiedLayerNormalization  b* c, b* c, c, c? -> b* c, b* y?, b* y?, b* c?      | stat: c | scale: 2
BiasGelu                          b* c, c -> b* c
FastGelu                          b* c, c? -> b* c
Gelu|QuickGelu                    x* -> x*
""",
    domain=_MS,
)
declare("SwiGLU  x*, x* -> x*")
declare("SimplifiedLayerNormalization  b* c, c -> b* c, b* y?  | stat: c | scale: 1")


def _mask(node: NodeView, k: int, heads: str) -> str:
    """A mask or bias of 2 to 4 axes that broadcasts to ``b heads s t``."""
    if not node.has(k):
        return ".?"
    shape = node.shape(k)
    if len(shape) > 4:
        raise Refuse(f"operand {k} has {len(shape)} axes")
    if len(shape) > 2 and shape[-3] == 1:
        heads = "1"
    return " ".join(["b", heads, "s", "t"][4 - len(shape) :])


@rule("Attention")
def _attention(node: NodeView) -> str:
    """b s (k r d), b t (k d), b t (k v) -> b s (k r v) | whole: t, or with heads on an axis of their own"""
    flat, cached = len(node.shape(0)) == 3, node.has(4) or node.has(5)
    n = "n" if cached else "t"
    if flat:
        operands = ["b s (k r d)", f"b {n} (k d)", f"b {n} (k v)"]
        result, sizes = "b s (k r v)", " | (k r)=@q_num_heads | k=@kv_num_heads"
    else:
        operands = ["b (k r) s d", f"b k {n} d", f"b k {n} v"]
        result, sizes = "b (k r) s v", f" | k={node.shape(1)[1]}"
    operands.append(_mask(node, 3, "(k r)"))
    if cached:
        operands += ["b k p d", "b k p v"]
    elif node.has(6):
        operands += [".?", ".?", "."]
    results = [result, "b k t d?", "b k t v?", "b (k r) s t?"][: len(node.node.outputs)]
    # of the keys that the softmax runs over only their number is left to say: it is a sequence's
    whole = ["t", *["n p"] * cached, *["b"] * node.has(6)]
    windows = any(int(node.attr(name, -1)) >= 0 for name in ("left_window_size", "right_window_size"))
    if node.attr("is_causal", 0) or node.has(6) or windows:
        whole.append("s")
    zero = " | zero: d" if cached or len(results) > 1 else ""  # keys are contracted, and handed on as well
    return (
        f"{', '.join(operands)} -> {', '.join(results)}{sizes} | whole: {' '.join(whole)}{zero} "
        "| macs: b s t k r d + b s t k r v"
    )


@rule("Attention", domain=_MS)
def _attention_contrib(node: NodeView) -> str:
    """b s i, i (h d + h d + h v), (h d + h d + h v) -> b s (h v) | h=@num_heads | whole: s"""
    _packed(node, 3, 4)
    heads, given = int(node.attr("num_heads", 1)), node.attr("qkv_hidden_sizes")
    d = (int(given[0]) if given else node.shape(1)[1] // 3) // heads
    parts = "(h d + h d + h v)"
    whole = "s" + " b" * node.has(3) + " t" * node.has(5)
    return (
        f"b s i, i {parts}, {parts}?, .?, .?, {_mask(node, 5, 'h')} -> b s (h v) "
        f"| h=@num_heads | d={d} | whole: {whole} | zero: d "
        "| macs: b s i h d + b s i h d + b s i h v"
    )


@rule("QAttention", domain=_MS)
def _attention_quantized(node: NodeView) -> str:
    """b s i, i (h d + h d + h d), (h d + h d + h d) -> b s (h d) | h=@num_heads | whole: d, with a scale each"""
    _packed(node, 5, 8)
    parts = "(h d + h d + h d)"
    scale, zero, silent = scale_of(node, 4, parts), scale_of(node, 7, parts), silent_in(node, (0, 6), (1, 7))
    whole = "s d" + " b" * node.has(5)
    return (
        f"b s i, i {parts}, {parts}, .?, {scale}, .?, .?, {zero} -> b s (h d) | h=@num_heads | whole: {whole} "
        f"| macs: b s i h d + b s i h d + b s i h d{silent}"
    )


def _packed(node: NodeView, mask: int, past: int) -> None:
    """Refuse what is not described where projections to queries, keys and values lie side by side in one weight."""
    if node.has(past) or len(node.node.outputs) > 1:
        raise Refuse("it keeps keys and values of earlier steps")
    if node.attr("do_rotary", 0):
        raise Refuse("it rotates its queries and keys")
    if node.has(mask) and len(node.shape(mask)) > 2:
        raise Refuse("its mask has a size for every pair of positions")


@rule("MultiHeadAttention", domain=_MS)
def _multi_head_attention(node: NodeView) -> str:
    """b s (h d), b t (h d), b t (h v), (h d + h d + h v)? -> b s (h v) | h=@num_heads | whole: t"""
    if not node.has(1) or not node.has(2) or len(node.shape(1)) != 3 or len(node.shape(2)) != 3:
        raise Refuse("its keys and values are packed or already split into heads")
    if any(node.has(k) for k in (6, 7, 8, 9)) or len(node.node.outputs) > 1:
        raise Refuse("it keeps keys and values of earlier steps")
    # a bias is added before the contraction: it has to be silenced as well
    bias, zero = ("(h d + h d + h v)", " | zero: d") if node.has(3) else (".?", "")
    whole = " s" * bool(node.attr("unidirectional", 0)) + " b" * node.has(4)
    return (
        f"b s (h d), b t (h d), b t (h v), {bias}, .?, {_mask(node, 5, 'h')} -> b s (h v) "
        f"| h=@num_heads | whole: t{whole}{zero} | macs: b s t h d + b s t h v"
    )


@rule("GroupQueryAttention", domain=_MS)
def _group_query_attention(node: NodeView) -> str:
    """b s (k r d), b s (k d), b s (k d), caches b k p d -> b s (k r d), b k t d, b k t d | whole: b s d p t"""
    if not node.has(1) or not node.has(2):
        raise Refuse("its queries, keys and values are packed")
    if any(node.has(k) for k in (11, 12, 13, 14, 15)) or len(node.node.outputs) > 3:
        raise Refuse("it has sinks, quantised caches or norms of its own")
    cached = node.has(3)
    past = "b k p d, b k p d" if cached else ".?, .?"
    made = ", b k t d, b k t d" * (len(node.node.outputs) > 1)
    whole = "b s d" + " p" * cached + " t" * (len(node.node.outputs) > 1 or node.has(10))
    return (
        f"b s (k r d), b s (k d), b s (k d), {past}, ., ., .?, .?, .?, {_mask(node, 10, '(k r)')} -> b s (k r d){made} "
        f"| (k r)=@num_heads | k=@kv_num_heads | whole: {whole} | macs: b s s k r d + b s s k r d"
    )


@rule("RotaryEmbedding")
def _rotary(node: NodeView) -> str:
    """b h s (2 e), s e, s e -> b h s (2 e): halves, or (e 2) where interleaved; what is beyond passes"""
    return _rotated(node, cache=1, positions=3, rotary=int(node.attr("rotary_embedding_dim", 0)))


@rule("RotaryEmbedding", domain=_MS)
def _rotary_contrib(node: NodeView) -> str:
    """b h s (2 e), positions, m e, m e -> b h s (2 e): halves, or (e 2) where interleaved"""
    return _rotated(node, cache=2, positions=1, rotary=int(node.attr("rotary_embedding_dim", 0)))


def _rotated(node: NodeView, *, cache: int, positions: int, rotary: int) -> str:
    shape, table = node.shape(0), node.shape(cache)
    pairs = "e 2" if node.attr("interleaved", 0) else "2 e"
    flat = len(shape) == 3
    heads = int(node.attr("num_heads", 0)) if flat else shape[1]
    if flat and not heads:
        raise Refuse("its number of heads is not said")
    if rotary:  # the kernels check the attribute against the caches, and it cannot say a cut
        pairs = f"({pairs} + f)"
    inner = f"(h {pairs})" if flat else pairs if pairs.startswith("(") else f"({pairs})"
    data = f"b s {inner}" if flat else f"b h s {inner}"
    caches = "b s e" if len(table) == 3 else "m e"
    operands = [""] * 4
    offset = node.has(positions) and len(node.shape(positions)) < 2  # where the positions begin to count
    where = ".?" if not node.has(positions) else "." if offset else "b s"
    operands[0], operands[cache], operands[cache + 1], operands[positions] = data, caches, caches, where
    sizes = f" | e={table[-1]}" + (" | h=@num_heads" if flat else "")
    whole = " m" * (caches[0] == "m") + " s" * offset + " e" * bool(rotary)
    return f"{', '.join(operands)} -> {data}{sizes}{f' | whole:{whole}' if whole else ''}"


@rule("EmbedLayerNormalization", domain=_MS)
def _embed_layer_norm(node: NodeView) -> str:
    """., ., v c, p c, q c?, c, c -> b s c | stat: c | whole: v p q b s"""
    return ".?, .?, v c, p c, q c?, c, c, .?, .? -> b s c, .?, b s c? | stat: c | whole: v p q b s | scale: 5"
