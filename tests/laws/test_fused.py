"""Small networks around fused and quantised operators: whatever is cut, they equal their masked originals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.coupling.groups import Grouping, group
from graphprune.coupling.solve import couple
from graphprune.coupling.space import free_leaves
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.passes.files import members_of
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verify

from .bench import run
from .test_chains import Builder

MS = "com.microsoft"
B, S, C, H, D = 2, 3, 8, 3, 4


class Network(Builder):
    """A builder that knows ONNX Runtime's domain and integers."""

    def fused(self, op: str, *inputs: ir.Value | None, results: int = 1, **attributes: object) -> tuple[ir.Value, ...]:
        made = self.node(op, *inputs, results=results, **attributes)  # type: ignore[arg-type]
        self.nodes[-1].domain = MS
        return made

    def integers(self, *shape: int, low: int = -60, high: int = 60, dtype: str = "int8") -> ir.Value:
        return self.constant(self.rng.integers(low, high, shape).astype(dtype))

    def scalar(self, content: float, dtype: str = "float32") -> ir.Value:
        return self.constant(np.array(content, dtype=dtype))

    def linear(self, x: ir.Value, n: int, m: int) -> ir.Value:
        return self.node("MatMul", x, self.weight(n, m))[0]

    def dynamic(self, x: ir.Value, n: int, m: int) -> ir.Value:
        """As dynamic quantisation writes a linear layer."""
        q, scale, zero = self.node("DynamicQuantizeLinear", x, results=3)
        total = self.node("MatMulInteger", q, self.integers(n, m), zero, self.scalar(0, "int8"))[0]
        back = self.node("Mul", scale, self.scalar(0.02))[0]
        return self.node("Mul", self.node("Cast", total, to=1)[0], back)[0]


def dynamic(b: Network, x: ir.Value) -> ir.Value:
    return b.dynamic(b.node("Relu", b.dynamic(x, C, 12))[0], 12, 5)


def multi_head(b: Network, x: ir.Value) -> ir.Value:
    q, k, v = (b.linear(x, C, H * n) for n in (D, D, 5))
    made = b.fused("MultiHeadAttention", q, k, v, b.weight(H * (2 * D + 5)), num_heads=H)[0]
    return b.linear(made, H * 5, 7)


def packed(b: Network, x: ir.Value) -> ir.Value:
    made = b.fused("Attention", x, b.weight(C, 3 * H * D), b.weight(3 * H * D), num_heads=H)[0]
    return b.linear(made, H * D, 7)


def grouped(b: Network, x: ir.Value) -> ir.Value:
    q, k, v = b.linear(x, C, 6 * D), b.linear(x, C, 2 * D), b.linear(x, C, 2 * D)
    made = b.node("Attention", q, k, v, q_num_heads=6, kv_num_heads=2)[0]
    return b.linear(made, 6 * D, 7)


def rotary(b: Network, x: ir.Value) -> ir.Value:
    q, k, v = (b.linear(x, C, H * D) for _ in range(3))
    tables = b.weight(1, S, D // 2), b.weight(1, S, D // 2)
    full = [b.node("Expand", table, b.vector(B, S, D // 2))[0] for table in tables]
    q, k = (b.node("RotaryEmbedding", one, *full, num_heads=H)[0] for one in (q, k))
    made = b.node("Attention", q, k, v, q_num_heads=H, kv_num_heads=H)[0]
    return b.linear(made, H * D, 7)


def experts(b: Network, x: ir.Value) -> ir.Value:
    flat = b.node("Reshape", b.linear(x, C, C), b.vector(B * S, C))[0]
    router = b.linear(flat, C, 3)
    layers = b.weight(3, 6, C), b.weight(3, 6), b.weight(3, C, 6), b.weight(3, C)
    return b.fused("MoE", flat, router, *layers, k=2, activation_type="gelu")[0]


def blocks(b: Network, x: ir.Value) -> ir.Value:
    wide = b.node("Relu", b.linear(x, C, 64))[0]
    weight, scales = b.integers(10, 4, 8, low=0, high=255, dtype="uint8"), b.weight(10, 4)
    made = b.fused("MatMulNBits", wide, weight, scales, K=64, N=10, bits=4, block_size=16)[0]
    return b.linear(b.fused("BiasGelu", made, b.weight(10))[0], 10, 5)


def quantized(b: Network, x: ir.Value) -> ir.Value:
    scale, zero, none = b.scalar(0.05), b.scalar(120, "uint8"), b.scalar(0, "int8")
    q = b.node("QuantizeLinear", b.node("Unsqueeze", x, b.vector(3))[0], scale, zero)[0]
    for n, m in ((S, 6), (6, 4)):
        q = b.node("QLinearConv", q, scale, zero, b.integers(m, n, 1, 1), b.scalar(0.03), none, scale, zero)[0]
    return b.node("DequantizeLinear", q, scale, zero)[0]


def skip(b: Network, x: ir.Value) -> ir.Value:
    norm = b.fused("SkipLayerNormalization", b.linear(x, C, C), x, b.weight(C), b.weight(C))[0]
    wide = b.fused("FastGelu", b.fused("FusedMatMul", norm, b.weight(C, 12), alpha=0.5)[0], b.weight(12))[0]
    return b.linear(wide, 12, C)


@pytest.mark.parametrize(
    ("make", "units"),
    [
        (dynamic, {"neurons"}),
        (multi_head, {"heads", "Q/K dimensions", "V/O dimensions"}),
        (packed, {"heads", "Q/K dimensions", "V/O dimensions"}),
        (grouped, {"kv heads", "query heads", "Q/K dimensions", "V/O dimensions"}),
        (rotary, {"heads", "Q/K rotary pairs", "V/O dimensions"}),
        (experts, {"neurons"}),
        (blocks, {"neuron blocks", "neurons"}),
        (quantized, {"channels"}),
        (skip, {"neurons"}),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
def test_networks_equal_their_masked_originals(make: Callable[[Network, ir.Value], ir.Value], units: set[str]) -> None:
    b = Network(np.random.default_rng(1))
    x = ir.Value(name="x", shape=ir.Shape([B, S, C]), type=ir.TensorType(ir.DataType.FLOAT))
    y = make(b, x)
    imports = {"": 23, MS: 1}
    model = ir.Model(
        ir.Graph([x], [y], nodes=b.nodes, initializers=b.held, opset_imports=imports, name="net"), ir_version=10
    )
    clean(model)
    grouping = group(couple(observe(model, run)))
    assert units <= {one.kind for one in grouping.groups if one.exact}
    for one in grouping.groups:
        verify(grouping, [one.id])
    for seed in range(3):
        verify(grouping, [one.id for one in grouping.groups], seed)


def verify(grouping: Grouping, ids: list[str], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    keep = {}
    for one in grouping.groups:
        if one.id in ids and one.exact and one.size > 1:
            keep[one.id] = np.arange(one.size) >= rng.integers(1, one.size)
            rng.shuffle(keep[one.id])
    for name, axis in grouping.emptied(keep):
        for part in free_leaves(grouping.coupling.of(name)[axis]):
            keep.get(grouping.place[part][0], np.ones(1))[:] = True
    pruned = Shrink(keep)(grouping)
    verdict = Verify(samples=2)(grouping.coupling.program, members_of(grouping, keep), pruned, run)
    assert verdict.passed, (keep, verdict)
