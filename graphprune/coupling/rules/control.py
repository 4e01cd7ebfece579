"""Control flow, operators that are never cut through, each with its reason, and those that are never folded.

The outputs of a body are further operands of its node, its inputs are further results (``graphprune.ir.nested``): the
branches of an If give what the node gives, and what a Loop or a Scan carries is one thing before, inside and after.
"""

from __future__ import annotations

import onnx_ir as ir

from graphprune.coupling.registry import NodeView, Refuse, barrier, rule
from graphprune.coupling.rules.norm import clause
from graphprune.ir.nested import bodies, operands, results, scan_axes

_Place = tuple[str, int, int | None]  # "operand" or "result", which, and the axis that the others do not have, if any


class _Ties:
    """A line in the making: values whose axes are the same, as far as their observed sizes agree; others stay whole."""

    def __init__(self, node: NodeView) -> None:
        self.program = node.program
        self.sides = {"operand": operands(node.node), "result": results(node.node)}
        self.axes: dict[tuple[str, int], str] = {}
        self.whole: list[str] = []
        self.count = 0

    def shape(self, side: str, k: int) -> tuple[int, ...] | None:
        """The observed shape of a value; ``None`` where there is no value."""
        value = self.sides[side][k]
        if value is None or not value.name:
            return None
        try:
            return self.program.shapes[value.name]
        except KeyError:
            raise Refuse(f"{value.name!r} is not a tensor") from None

    def tie(self, *places: _Place) -> None:
        """Values that are the same in all axes but the extra ones, which are never cut."""
        letter = chr(ord("a") + self.count) if self.count < 26 else f"v{self.count}_"
        self.count += 1
        known = [(*place, shape) for place in places if (shape := self.shape(*place[:2])) is not None]
        common: list[tuple[int, ...]] = []
        for _, _, extra, shape in known:
            at = len(shape) if extra is None else extra % len(shape)
            common.append(shape[:at] + shape[at + 1 :])
        if len({len(shape) for shape in common}) > 1:
            ranks = " and ".join(sorted({str(len(shape)) for shape in common}))
            raise Refuse(f"result {self.count - 1} is given with {ranks} axes")
        same = [len(set(sizes)) == 1 for sizes in zip(*common, strict=True)]
        for i, (side, k, extra, shape) in enumerate(known):
            names = [f"{letter}{axis}" if same[axis] else f"{letter}{axis}_{i}" for axis in range(len(same))]
            self.whole += [name for name, one in zip(names, same, strict=True) if not one]
            if extra is not None:
                names.insert(extra % len(shape), f"{letter}s_{i}")
                self.whole.append(f"{letter}s_{i}")
            self.axes[side, k] = " ".join(names)

    def line(self) -> str:
        """The line: conditions, trip counts and what was not tied do not matter."""
        parts = {
            side: ", ".join(
                self.axes.get((side, k), other if value is not None else f"{other}?") for k, value in enumerate(values)
            )
            for (side, values), other in zip(self.sides.items(), ("_", "."), strict=True)
        }
        return f"{parts['operand']} -> {parts['result']}{clause('whole', self.whole)}"


def _reason(node: NodeView, graph: ir.Graph) -> str:
    return node.program.bodies[graph].reason


@rule("If")
def _if(node: NodeView) -> str:
    """cond; inside: a0 ..., a0 ... -> a0 ... (both branches give what the node gives)"""
    both = list(zip(("then", "else"), bodies(node.node), strict=True))
    used = [not node.program.bodies[graph].idle for _, graph in both]
    for (name, graph), taken in zip(both, used, strict=True):
        if taken and _reason(node, graph):
            raise Refuse(f"its {name} branch cannot be run on its own: {_reason(node, graph)}")
    ties, n = _Ties(node), len(node.node.outputs)
    first = len(node.node.inputs)
    for i in range(n):
        branches = [("operand", first + n * branch + i, None) for branch in range(2) if used[branch]]
        ties.tie(("result", i, None), *branches)
    return ties.line()


@rule("Loop")
def _loop(node: NodeView) -> str:
    """trips, cond, a0 ...; inside: cond, a0 ..., b0 ... -> a0 ..., stack b0 ...; inside: trip, cond, a0 ...

    whole: the stacked axes, and those of carried values that grow
    """
    (graph,) = bodies(node.node)
    if _reason(node, graph):
        raise Refuse(f"its body cannot be run on its own: {_reason(node, graph)}")
    ties, given, made = _Ties(node), len(node.node.inputs), len(node.node.outputs)
    carried = len(graph.inputs) - 2
    for i in range(carried):
        inside = ("result", made + 2 + i, None), ("operand", given + 1 + i, None)
        ties.tie(("operand", 2 + i, None), *inside, ("result", i, None))
    for i in range(carried, made):
        ties.tie(("operand", given + 1 + i, None), ("result", i, 0))
    return ties.line()


@rule("Scan")
def _scan(node: NodeView) -> str:
    """a0 ..., scan b0 ...; inside: a0 ..., c0 ... -> a0 ..., stack c0 ...; inside: a0 ..., b0 ...

    whole: the scanned and stacked axes, which stand where the attributes say
    """
    (graph,) = bodies(node.node)
    if (node.node.version or node.program.model.opset_imports.get("", 9)) < 9:
        raise Refuse("before opset 9 it has an axis for the batch of its own")
    if _reason(node, graph):
        raise Refuse(f"its body cannot be run on its own: {_reason(node, graph)}")
    ties, given, made = _Ties(node), len(node.node.inputs), len(node.node.outputs)
    states, ins, outs = scan_axes(node.node, graph)
    for i in range(states):
        inside = ("result", made + i, None), ("operand", given + i, None)
        ties.tie(("operand", i, None), *inside, ("result", i, None))
    for i, axis in enumerate(ins):
        ties.tie(("operand", states + i, axis), ("result", made + states + i, None))
    for i, axis in enumerate(outs):
        ties.tie(("operand", given + states + i, None), ("result", states + i, axis))
    return ties.line()


barrier("SequenceMap", "its body is not looked into")
barrier(
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence "
    "ConcatFromSequence Optional OptionalGetElement OptionalHasElement",
    "sequences and optionals have no axes",
)
barrier(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial", "it is random", keep=True
)
barrier("NonMaxSuppression NonZero TopK Unique Compress", "the size or order of its result depends on the data")
barrier("OneHot EyeLike TfIdfVectorizer MelWeightMatrix", "its result counts something, no axis of it can go")
barrier("BlackmanWindow HammingWindow HannWindow DFT STFT", "every index of its axis takes part in every result")
barrier(
    "AffineGrid Col2Im CenterCropPad ImageDecoder MaxUnpool MaxRoiPool RoiAlign", "its results are positions in space"
)
barrier("DeformConv Det", "its operands are cut into parts that the notation does not describe")
barrier("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", "it is a loss: classes are never cut")
barrier("CausalConvWithState LinearAttention TensorScatter", "it carries state from run to run")
barrier("Constant", "it is a weight, cut where it is used, and states nothing of its own")
barrier("BitCast", "one element may become several")
barrier("RegexFullMatch StringConcat StringNormalizer StringSplit", "its elements are texts")
