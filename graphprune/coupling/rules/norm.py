"""Normalisations, softmax and reductions: what computes a statistic over an axis."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, declare, rule

declare("""
InstanceNormalization  n c x*, c, c -> n c x*   | stat: x | scale: 1
LRN                    n c x* -> n c x*         | stat: c
""")


def letters(rank: int, prefix: str = "a") -> list[str]:
    """``a0 a1 ...``, one name per axis."""
    return [f"{prefix}{i}" for i in range(rank)]


def clause(kind: str, names: list[str]) -> str:
    """A clause of a line, or nothing where it names nothing."""
    return f" | {kind}: {' '.join(names)}" if names else ""


@rule("BatchNormalization")
def _batch_norm(node: NodeView) -> str:
    """n c x*, c, c, c, c -> n c x* | scale: 1 | mean: 3 | variance: 4"""
    if node.attr("training_mode", 0):
        raise Refuse("it is in training mode and computes statistics of the batch")
    return "n c x*, c, c, c, c -> n c x*, c?, c?, c?, c? | scale: 1 | mean: 3 | variance: 4"


def _over(node: NodeView, first: int, last: int | None = None) -> str:
    names = letters(len(node.shape(0)))
    return f"{' '.join(names)} -> {' '.join(names)}{clause('stat', names[first:last])}"


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: NodeView) -> str:
    """x* -> x* | stat over the axis (before opset 13: over it and all that follow)"""
    if (node.node.version or node.program.model.opset_imports.get("", 13)) < 13:
        return _over(node, node.axis(1))
    axis = node.axis(-1)
    return _over(node, axis, axis + 1)


@rule("LpNormalization")
def _lp_norm(node: NodeView) -> str:
    """x* -> x* | zero: the axis, whose norm zeros leave as it is"""
    axis, names = node.axis(-1), letters(len(node.shape(0)))
    return f"{' '.join(names)} -> {' '.join(names)} | zero: {names[axis]}"


@rule("MeanVarianceNormalization")
def _mean_variance(node: NodeView) -> str:
    """x* -> x* | stat over the axes"""
    names = letters(len(node.shape(0)))
    axes = [names[int(a)] for a in node.attr("axes", (0, 2, 3))]
    return f"{' '.join(names)} -> {' '.join(names)}{clause('stat', axes)}"


@rule("LayerNormalization", "RMSNormalization")
def _layer_norm(node: NodeView) -> str:
    """a* c*, c*, c*? -> a* c* | stat: c | scale: 1"""
    axis, names = node.axis(-1), letters(len(node.shape(0)))
    outer, inner = names[:axis], names[axis:]
    whole = " ".join(names)
    seen = " ".join(outer + ["1"] * len(inner))
    scales = [" ".join(inner[len(inner) - len(node.shape(k)) :]) for k in (1, 2) if node.has(k)]
    bias = f", {scales[1]}" if len(scales) > 1 else ""
    extra = f", {seen}?, {seen}?" if len(node.node.outputs) > 1 else ""
    return f"{whole}, {scales[0]}{bias} -> {whole}{extra}{clause('stat', inner)} | scale: 1"


@rule("GroupNormalization")
def _group_norm(node: NodeView) -> str:
    """n (g c) x*, (g c), (g c) -> n (g c) x* | g=@num_groups | stat: c x (before opset 21 the scales are per group)"""
    scale = "(g c)" if node.shape(1)[0] == node.shape(0)[1] else "g"
    return f"n (g c) x*, {scale}, {scale} -> n (g c) x* | g=@num_groups | stat: c x | scale: 1"


def _reduced(node: NodeView) -> list[int]:
    rank = len(node.shape(0))
    axes = node.attr("axes")
    if axes is None and node.has(1):
        axes = node.value(1)
        if axes is None:
            raise Refuse("its axes are computed")
    if axes is None or len(axes) == 0:
        return [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return [int(axis) % rank for axis in axes]


def _reduction(node: NodeView, kind: str) -> str:
    names, axes = letters(len(node.shape(0))), _reduced(node)
    after = ["1" if a in axes else name for a, name in enumerate(names)]
    if not node.attr("keepdims", 1):
        after = [name for name in after if name != "1"]
    marked = clause(kind, [names[a] for a in axes]) if kind else ""
    return f"{' '.join(names)}, .? -> {' '.join(after)}{marked}"


@rule("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum")
def _reduce_sum(node: NodeView) -> str:
    """x* -> kept: the reduced axes are contracted"""
    return _reduction(node, "")


@rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
def _reduce_stat(node: NodeView) -> str:
    """x* -> kept | stat: reduced"""
    return _reduction(node, "stat")


@rule("ArgMax", "ArgMin")
def _arg(node: NodeView) -> str:
    """x* -> kept | whole: reduced"""
    rank, axis = len(node.shape(0)), node.axis(0)
    names = letters(rank)
    after = [*names[:axis], *(["1"] if node.attr("keepdims", 1) else []), *names[axis + 1 :]]
    return f"{' '.join(names)} -> {' '.join(after)} | whole: {names[axis]}"


@rule("CumSum")
def _cumsum(node: NodeView) -> str:
    """x* -> x* | zero: the axis"""
    return _cumulate(node, "zero")


@rule("CumProd")
def _cumprod(node: NodeView) -> str:
    """x* -> x* | stat: the axis"""
    return _cumulate(node, "stat")


def _cumulate(node: NodeView, kind: str) -> str:
    axis = node.value(1)
    if axis is None:
        raise Refuse("its axis is computed")
    names = letters(len(node.shape(0)))
    return f"{' '.join(names)}, . -> {' '.join(names)} | {kind}: {names[int(axis.reshape(-1)[0])]}"
