from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphprune
from graphprune.backends.runner import OrtRunner
from graphprune.errors import GraphpruneError, InputError, UsageError

torch = pytest.importorskip("torch")
nn = torch.nn

from graphprune.frontends.torch import TracedModule, read_module, resolve  # noqa: E402


def serialized(traced: TracedModule) -> bytes:
    return bytes(ir.serde.serialize_model(traced.model).SerializeToString(deterministic=True))


def outputs(traced: TracedModule) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(serialized(traced), providers=["CPUExecutionProvider"])
    return list(session.run(None, traced.examples))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        x = self.drop(torch.relu(self.bn(self.conv(image))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def block() -> Any:
    torch.manual_seed(0)
    return Block()


def test_a_module_keeps_its_names_and_its_batch_norm(block: Any) -> None:
    image = torch.randn(2, 3, 6, 6)
    block.train()
    block.drop.eval()
    before = dict(block.named_parameters())
    traced = read_module(block, inputs=image)
    assert [part.training for part in (block, block.bn, block.drop)] == [True, True, False]
    assert all(value is before[name] for name, value in block.named_parameters())
    kinds = [node.op_type for node in traced.model.graph]
    assert "BatchNormalization" in kinds
    norm = next(node for node in traced.model.graph if node.op_type == "BatchNormalization")
    assert norm.attributes.get("training_mode") is None or norm.attributes["training_mode"].value == 0
    names = {name for name, _ in block.named_parameters()} | {"bn.running_mean", "bn.running_var"}
    assert traced.parameter_names == {name: name for name in names}
    assert set(traced.model.graph.initializers) == names
    assert list(traced.examples) == ["image"]
    np.testing.assert_array_equal(traced.examples["image"], image.numpy())
    block.eval()
    np.testing.assert_allclose(outputs(traced)[0], block(image).detach().numpy(), atol=1e-5)
    assert traced.notes == ()


def test_weights_are_not_copied(block: Any) -> None:
    traced = read_module(block, inputs=torch.randn(2, 3, 6, 6))
    for name, tensor in block.named_parameters():
        assert np.shares_memory(traced.model.graph.initializers[name].const_value.numpy(), tensor.detach().numpy())


def test_tracing_twice_gives_the_same_bytes_without_paths(block: Any) -> None:
    one, two = (serialized(read_module(block, input_shapes={None: (1, 3, 6, 6)}, seed=3)) for _ in range(2))
    assert one == two
    for part in (str(Path(torch.__file__).parent), str(Path(__file__).parent), "site-packages", "test_torch_frontend"):
        assert part.encode() not in one
    assert b"pkg.torch.onnx.name_scopes" in one


def test_the_global_state_is_left_alone(
    block: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Loud(nn.Module):
        def forward(self, x: Any) -> Any:
            print("hello")
            warnings.warn("watch out", stacklevel=1)
            return x * 2

    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    state, filters = torch.random.get_rng_state(), list(warnings.filters)
    with caplog.at_level(logging.DEBUG, "graphprune"):
        read_module(Loud(), inputs=torch.ones(2))
    assert [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers] == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert warnings.filters == filters
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert {"printed: hello", "UserWarning: watch out"} <= set(caplog.messages)
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


class Named(nn.Module):
    """Its parameters are called like an argument and like a node's output."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(4))
        self.linear = nn.Parameter(torch.randn(4, 4))
        self.forgotten = nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.zeros(4))
        self.register_buffer("mask", torch.ones(4), persistent=False)

    def forward(self, x: Any, y: Any = None, *, scale: Any = None) -> Any:
        self.count.add_(1)
        x = nn.functional.linear(x + self.x, self.linear) * self.mask
        x = x if y is None else x - y
        return x if scale is None else x * scale


def test_names_that_meet_are_told_apart() -> None:
    module = Named()
    x, scale = torch.randn(2, 4), torch.randn(1, 4)
    traced = read_module(module, inputs={"scale": scale, "x": x})
    assert list(traced.examples) == ["x", "scale"]
    assert traced.parameter_names == {"x.parameter": "x", "linear": "linear", "mask": "mask"}
    assert traced.notes == (
        "the outputs do not depend on forgotten; left out",
        "forward() updates count; the exported network computes its outputs only",
    )
    assert not module.count.any()
    np.testing.assert_allclose(outputs(traced)[0], module(x, scale=scale).detach().numpy(), atol=1e-6)


def test_tied_parameters_are_one_initialiser_under_their_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Any) -> Any:
            return self.head(self.embed(ids))

    traced = read_module((Tied(), (torch.arange(6).reshape(2, 3),)))
    assert traced.parameter_names == {"embed.weight": "embed.weight"}
    assert traced.notes == ("embed.weight and head.weight are one tensor, here embed.weight",)
    assert outputs(traced)[0].shape == (2, 3, 7)


def test_branches_are_inlined() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return torch.cond(x.sum() > 0, self.a, self.b, (x,))

    traced = read_module(Branches(), inputs=torch.ones(2, 4))
    assert not traced.model.functions
    assert {"a.weight", "b.weight"} <= set(traced.parameter_names)
    assert outputs(traced)[0].shape == (2, 4)


@pytest.mark.parametrize(
    "inputs",
    [
        (np.ones((2, 4), np.float32), np.full((2, 4), 2, np.float32)),
        [torch.ones(2, 4), torch.full((2, 4), 2.0)],
        (torch.ones(2, 4), {"y": torch.full((2, 4), 2.0)}),
        {"y": torch.full((2, 4), 2.0), "x": torch.ones(2, 4)},
    ],
)
def test_inputs_in_all_their_forms(inputs: Any) -> None:
    traced = read_module(Named(), inputs=inputs)
    assert {name: array.flat[0] for name, array in traced.examples.items()} == {"x": 1, "y": 2}


def test_one_tensor_for_two_arguments_is_two_inputs() -> None:
    x = torch.ones(2, 4)
    for inputs in ((x, x), {"x": x, "y": x}):
        read = {value.name for node in read_module(Named(), inputs=inputs).model.graph for value in node.inputs}
        assert {"x", "y"} <= read


def test_inputs_within_containers() -> None:
    class Deep(nn.Module):
        def forward(self, d: Any, k: int = 2) -> Any:
            return d["a"] + d["b"][0] * k

    deep = {"a": torch.ones(2), "b": [torch.zeros(2)]}
    traced = read_module(Deep(), inputs={"d": deep, "k": 3})
    assert {name: array.flat[0] for name, array in traced.examples.items()} == {"d_a": 1, "d_b_0": 0}


def test_shapes_make_example_inputs() -> None:
    one, two = (read_module(nn.Linear(3, 4), input_shapes={None: (2, 3)}, seed=s) for s in (0, 1))
    assert one.examples["input"].shape == (2, 3) and one.examples["input"].dtype == np.float32
    assert not np.array_equal(one.examples["input"], two.examples["input"])
    half = read_module(nn.Linear(3, 4).half(), input_shapes={"input": (2, 3)})
    assert half.examples["input"].dtype == np.float16


def test_shapes_beside_examples() -> None:
    ids = torch.tensor([[3, 5, 9]])
    traced = read_module((nn.Embedding(10, 4), ids), input_shapes={"input": (4, 6)})
    array = traced.examples["input"]
    assert array.shape == (4, 6) and array.dtype == np.int64 and array.min() >= 3 and array.max() <= 9
    same = read_module((nn.Embedding(10, 4), ids), input_shapes={"input": (1, 3)})
    np.testing.assert_array_equal(same.examples["input"], ids.numpy())


class Decides(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + 1 if x.sum() > 0 else x


class Untranslatable(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.linalg.eigvals(x)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.count.add_(1)
        raise ValueError("too wide\nand more")


@pytest.mark.parametrize(
    ("module", "options", "kind", "message"),
    [
        (
            nn.Linear(3, 4),
            {},
            UsageError,
            r"forward\(input\) needs example inputs for input: give --input-shapes input:1x",
        ),
        (nn.Linear(3, 4), {"input_shapes": {"inptu": (1, 3)}}, UsageError, "no argument 'inptu'; it has 'input'"),
        (
            nn.Bilinear(2, 3, 4),
            {"input_shapes": {None: (1, 2)}},
            UsageError,
            r"has 2 arguments \(input1, input2\): write",
        ),
        (nn.Linear(3, 4), {"inputs": (1, 2)}, InputError, r"do not fit forward\(input\): too many positional"),
        (
            nn.Linear(3, 4),
            {"input_shapes": {None: (1, 5)}},
            InputError,
            "does not run on its example inputs: RuntimeError: mat1 and mat2 shapes",
        ),
        (
            nn.Embedding(5, 4),
            {"input_shapes": {None: (1, 5)}},
            InputError,
            "integer inputs such as token ids cannot be",
        ),
        (Raises(), {"inputs": torch.ones(2)}, InputError, "does not run on its example inputs: ValueError: too wide$"),
        (Decides(), {"inputs": torch.ones(2)}, InputError, "cannot export the module Decides: .*data-dependent"),
        (Untranslatable(), {"inputs": torch.rand(3, 3)}, InputError, "No ONNX function found for .*linalg_eig"),
        (torch.relu, {"inputs": torch.ones(2)}, InputError, "a torch.nn.Module is needed, not a builtin"),
        (
            nn.Linear(3, 4).bfloat16(),
            {"inputs": torch.ones(2, 3, dtype=torch.bfloat16)},
            InputError,
            r"is in bfloat16, .*: give both in float32 \(module.float\(\)\) or float16",
        ),
        (nn.Embedding(5, 4).bfloat16(), {"inputs": torch.ones(2, dtype=torch.int64)}, InputError, "is in bfloat16"),
    ],
)
def test_modules_that_cannot_be_read(
    module: Any, options: dict[str, Any], kind: type[GraphpruneError], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=message) as caught:
        read_module(module, **options)
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    if isinstance(module, Raises):
        assert not module.count.any()
        assert caught.value.__cause__ is not None


def test_a_factory_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(3, 4), torch.nn.ReLU())

def build():
    print("building")
    return Net(), (torch.ones(2, 3),)

ready = Net()
"""
    path = tmp_path / "net.py"
    path.write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("build", "ready", "Net"):
        traced = read_module(resolve(f"{path}:{name}")(), input_shapes={None: (5, 3)})
        assert traced.examples["input"].shape == (5, 3)
        assert list(traced.parameter_names) == ["0.weight", "0.bias"]
        assert b"_graphprune_" not in serialized(traced)


def test_attention_that_the_exporter_does_not_know_is_written_out() -> None:
    """Queries of five axes: PyTorch's exporter takes four."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).reshape(1, 3, 5, 3, 4, 4).permute(3, 0, 1, 4, 2, 5)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(2, 3).reshape(1, 3, 5, 16))

    fused = nn.functional.scaled_dot_product_attention
    module, x = Windows().eval(), torch.randn(1, 3, 5, 16)
    network = graphprune.load(module, inputs=(x,))
    assert nn.functional.scaled_dot_product_attention is fused
    name = network.program.model.graph.inputs[0].name
    (found,) = OrtRunner()(network.program.model, {name: x.numpy()}).values()
    assert np.allclose(found, module(x).detach().numpy(), atol=1e-5)
    assert any(one.exact for one in network.analyze().groups)
