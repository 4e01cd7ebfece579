"""Networks as torch modules: equal to ONNX Runtime, trainable, and back."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import graphprune
from graphprune.backends.runner import OrtRunner
from graphprune.errors import InputError, UnsupportedError, UsageError
from graphprune.ir.program import Program
from tests import models

torch = pytest.importorskip("torch")
needs_ocr = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="rapidocr-onnxruntime is not installed"
)

Array = np.ndarray[Any, Any]


def program_of(proto: onnx.ModelProto, folder: Path, **given: Any) -> Program:
    path = folder / "m.onnx"
    onnx.save(proto, str(path))
    return graphprune.load(path, **given).program


def sample(name: str, folder: Path) -> tuple[models.Sample, Program]:
    made = models.SAMPLES[name]()
    return made, program_of(made.model, folder, input_shapes=dict(made.shapes))


def outputs(module: Any, feeds: dict[str, Array]) -> dict[str, Any]:
    made = module(*(torch.from_numpy(feeds[name].copy()) for name in module.meta["inputs"]))
    return dict(zip(module.meta["outputs"], made if isinstance(made, tuple) else (made,), strict=True))


def error(program: Program, module: Any, feeds: dict[str, Array]) -> float:
    """Largest difference to ONNX Runtime over the output's largest magnitude."""
    assert program.run is not None
    wanted = program.run(program.model, feeds)
    with torch.no_grad():
        made = outputs(module, feeds)
    for name in made:
        assert tuple(made[name].shape) == wanted[name].shape
        assert made[name].numpy().dtype == wanted[name].dtype
    return max(float(np.abs(made[n].numpy() - wanted[n]).max() / (np.abs(wanted[n]).max() + 1e-9)) for n in made)


@pytest.mark.parametrize("name", [name for name in models.SAMPLES if name != "custom"])
def test_samples_are_equal_at_both_sizes(name: str, tmp_path: Path) -> None:
    made, program = sample(name, tmp_path)
    module = graphprune.to_torch(program)
    assert not module.training
    assert error(program, module, made.feeds()) <= made.tolerance
    if made.other:
        assert error(program, module, made.feeds(other=True)) <= made.tolerance


def test_names_and_meta(tmp_path: Path) -> None:
    program = sample("plain", tmp_path)[1]
    module = graphprune.to_torch(program)
    held = module.meta["parameters"]
    assert set(held) <= set(module.state_dict())
    assert {name for names in held.values() for name in names} == set(program.model.graph.initializers)
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad
        (source,) = held[name]
        assert np.array_equal(parameter.detach().numpy(), program.tensor(source))
    assert module.meta["inputs"] == ("x",)
    assert "torch.conv2d(x, " in module.code
    assert [type(one).__name__ for one in module.modules()].count("BatchNorm2d") == module.code.count(".bn(")


def test_batch_norm_trains_and_freezes(tmp_path: Path) -> None:
    made, program = sample("plain", tmp_path)
    module = graphprune.to_torch(program)
    norms = [one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert norms[0].momentum == pytest.approx(1 - 0.9)  # ONNX's default, which counts the other way round
    before = norms[0].running_mean.clone()
    feeds = made.feeds(other=True)
    outputs(module, feeds)
    assert torch.equal(before, norms[0].running_mean)
    module.train()
    outputs(module, feeds)
    assert not torch.equal(before, norms[0].running_mean)
    module.eval()
    written = graphprune.load_state(program, module)
    assert error(written, module, feeds) <= 1e-5
    assert error(program, module, feeds) > 1e-3


def test_batch_norm_without_scale_and_bias_trains() -> None:
    torch.manual_seed(0)
    source = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8, affine=False), torch.nn.ReLU())
    x = torch.randn(4, 3, 8, 8)
    module = graphprune.to_torch(graphprune.load(source, inputs=(x,)))
    assert set(dict(module.named_parameters())) == {"0.weight", "0.bias"} and "reshape" not in module.code
    for mode in (True, False):
        assert torch.allclose(module.train(mode)(x), source.train(mode)(x), atol=1e-5)
    for name in ("1.running_mean", "1.running_var"):
        assert torch.allclose(module.state_dict()[name], source.state_dict()[name], atol=1e-6)


def test_batch_norms_that_share_their_scale_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    held = {"s": np.full(3, 2.0), "b": rng.random(3), "m1": rng.random(3), "v1": np.ones(3), "m2": np.zeros(3)}
    held["v2"] = held["v1"] + 1
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[4, 3, 5] x) => (float[4, 3, 5] y) {
          h = BatchNormalization(x, s, b, m1, v1)
          y = BatchNormalization(h, s, b, m2, v2)
        }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(one.astype(np.float32), name) for name, one in held.items())
    program = program_of(proto, tmp_path)
    module = graphprune.to_torch(program)
    feeds = {"x": rng.standard_normal((4, 3, 5)).astype(np.float32)}
    assert error(program, module, feeds) <= 1e-5
    outputs(module.train(), feeds)
    assert error(program, module.eval(), feeds) > 1e-3
    assert error(graphprune.load_state(program, module), module, feeds) <= 1e-5
    assert {"s", "b"} <= set(dict(module.named_parameters()))


@pytest.mark.parametrize("name", ["plain", "attention", "lstm", "transposed", "tied", "rotary", "constant_nodes"])
def test_gradients_reach_every_parameter(name: str, tmp_path: Path) -> None:
    made, program = sample(name, tmp_path)
    module = graphprune.to_torch(program)
    sum((one * torch.randn_like(one)).sum() for one in outputs(module, made.feeds(other=True)).values()).backward()
    assert list(module.parameters())
    for path, parameter in module.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), path
        assert bool(parameter.grad.any()), path


@pytest.mark.parametrize(
    "name", ["plain", "attention", "lstm", "transposed", "tied", "constant_nodes", "listed", "half"]
)
def test_what_was_trained_goes_back(name: str, tmp_path: Path) -> None:
    made, program = sample(name, tmp_path)
    feeds = made.feeds()
    source = (tmp_path / "m.onnx").read_bytes()
    module = graphprune.to_torch(program)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.05)
    written = graphprune.load_state(program, module)
    assert error(written, module, feeds) <= made.tolerance
    assert error(program, module, feeds) > 10 * made.tolerance
    assert error(written, graphprune.to_torch(written), feeds) <= made.tolerance
    assert {value.name for value in written.model.graph.inputs} == {value.name for value in program.model.graph.inputs}
    assert (tmp_path / "m.onnx").read_bytes() == source


def test_a_trained_program_is_pruned_like_any_other(tmp_path: Path) -> None:
    made, program = sample("residual", tmp_path)
    module = graphprune.to_torch(program)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    network = graphprune.Network(program, None, "residual", {}).load_state(module)
    with pytest.raises(UsageError, match="would overwrite the source"):
        network.save(tmp_path / "m.onnx")
    again = graphprune.load(network.save(tmp_path / "trained.onnx")).program
    assert error(again, module, made.feeds()) <= made.tolerance
    result = network.export(tmp_path / "out", target_params="0.7x", measure=None)
    pruned = graphprune.load(result.model)
    smaller = graphprune.to_torch(pruned)
    assert sum(one.numel() for one in smaller.parameters()) < sum(one.numel() for one in module.parameters())
    assert error(pruned.program, smaller, made.feeds()) <= 1e-4


def test_unchanged_values_are_shared(tmp_path: Path) -> None:
    program = sample("plain", tmp_path)[1]
    module = graphprune.to_torch(program)
    name, parameter = next(iter(module.named_parameters()))
    with torch.no_grad():
        parameter.add_(1)
    written = graphprune.load_state(program, module)
    old, new = program.model.graph.initializers, written.model.graph.initializers
    changed = [one for one in old if old[one].const_value is not new[one].const_value]
    assert changed == list(module.meta["parameters"][name])


def test_what_does_not_fit_is_not_written_back(tmp_path: Path) -> None:
    program = sample("plain", tmp_path)[1]
    module = graphprune.to_torch(program)
    name = "a.conv.weight"
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(InputError, match=rf"'{name}' has shape \[2, 2\] in the module but '.*' has \[16, 3, 3, 3\]"):
        graphprune.load_state(program, module)
    with pytest.raises(UsageError, match="has no meta"):
        graphprune.load_state(program, torch.nn.Linear(2, 2))
    other = sample("attention", tmp_path)[1]
    with pytest.raises(InputError, match="the network has no initialiser"):
        graphprune.load_state(other, graphprune.to_torch(program))


def test_all_that_is_refused_is_said_at_once(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "ai.onnx.ml" : 3]>
    g (float[4] x) => (float[4] y, float[k] w) {
        a = ai.onnx.ml.Binarizer <threshold = 0.1> (x)
        b = RandomNormalLike (a)
        y = Add (x, b)
        w = Relu (x)
    }"""
    proto = parser.parse_model(text)
    proto.graph.node[0].name, proto.graph.node[1].name = "first", "second"
    with pytest.raises(
        UnsupportedError, match=r"ai.onnx.ml::Binarizer 'first': .*; RandomNormalLike 'second'"
    ) as found:
        graphprune.to_torch(program_of(proto, tmp_path))
    assert [one[:2] for one in found.value.refusals] == [
        ("ai.onnx.ml::Binarizer", "first"),
        ("RandomNormalLike", "second"),
    ]


def test_it_is_copied_pickled_and_exported(tmp_path: Path) -> None:
    for name in ("attention", "lstm"):
        made, program = sample(name, tmp_path)
        module = graphprune.to_torch(program)
        again = pickle.loads(pickle.dumps(module))
        assert again.meta["parameters"] == module.meta["parameters"]
        assert error(program, again, made.feeds()) <= 1e-4
        assert error(graphprune.load_state(program, again), copy.deepcopy(again), made.feeds()) <= 1e-4
    made, program = sample("plain", tmp_path)
    module, feeds = graphprune.to_torch(program), made.feeds()
    exported = torch.export.export(module, tuple(torch.from_numpy(one) for one in feeds.values()))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert error(program, _with_meta(torch.export.load(file).module(), module), feeds) <= 1e-4


def _with_meta(made: Any, module: Any) -> Any:
    made.meta = module.meta
    return made


@pytest.mark.parametrize("name", ["plain", "attention", "rotary", "lstm", "forced_height"])
def test_types_and_devices_move(name: str, tmp_path: Path) -> None:
    made, program = sample(name, tmp_path)
    module = graphprune.to_torch(program)
    feeds = made.feeds()
    wide = {key: one.astype(np.float64) if one.dtype == np.float32 else one for key, one in feeds.items()}
    with torch.no_grad():
        one, two = outputs(module, feeds), outputs(copy.deepcopy(module).double(), wide)
        far = module.to("meta")(*(torch.from_numpy(feeds[key]).to("meta") for key in module.meta["inputs"]))
    for key in one:
        assert two[key].dtype == torch.float64
        assert torch.allclose(one[key].double(), two[key], rtol=1e-3, atol=1e-4)
    assert far.device.type == "meta" and far.shape == next(iter(one.values())).shape


def pool(kind: str, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(kind, ["x"], ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 11, 10])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, None, None])
    graph = helper.make_graph([node], "pool", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 0, 2]},
        {"pads": [1, 1, 1, 1], "strides": [2, 3], "ceil_mode": 1},
        {"pads": [0, 1, 2, 1], "strides": [2, 2], "ceil_mode": 1},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
        {"auto_pad": "VALID"},
    ],
)
@pytest.mark.parametrize("whole", [0, 1])
def test_windows(kind: str, attributes: dict[str, Any], whole: int, tmp_path: Path) -> None:
    more = {"count_include_pad": whole} if kind == "AveragePool" else {"dilations": [1 + whole, 1]}
    if kind == "MaxPool" and whole and "auto_pad" in attributes:
        more = {}
    program = program_of(pool(kind, kernel_shape=[3, 4], **attributes, **more), tmp_path)
    assert error(program, graphprune.to_torch(program), program.examples) <= 1e-5


def test_a_network_without_its_source(tmp_path: Path) -> None:
    proto = models.SAMPLES["plain"]().model
    onnx.save(proto, str(tmp_path / "m.onnx"))
    import onnx_ir as ir

    network = graphprune.load(tmp_path / "m.onnx")
    read = ir.from_proto(proto)
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), network, network.program, read):
        assert graphprune.to_torch(source).meta["inputs"] == ("x",)
    with pytest.raises(UsageError, match="not a int"):
        graphprune.to_torch(3)


CONTROL: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "if": (
        """g (float[2,8] x) => (float[2,5] y) {
            h = MatMul (x, a)
            s = ReduceSum <keepdims = 0> (h)
            c = Greater (s, zero)
            y = If (c) <then_branch = t () => (float[2,5] p) { p = MatMul (h, b) },
                        else_branch = e () => (float[2,5] q) { r = MatMul (h, d) q = Relu (r) }>
        }""",
        {"a": (8, 6), "b": (6, 5), "d": (6, 5)},
    ),
    "loop": (
        """g (float[2,8] x) => (float[2,8] y, float[3,2,5] all) {
            y, all = Loop (three, yes, x) <body = f (int64 i, bool go, float[2,8] s)
                => (bool going, float[2,8] t, float[2,5] made) {
                going = Identity (go)
                u = MatMul (s, a)
                t = Tanh (u)
                made = MatMul (t, b)
            }>
        }""",
        {"a": (8, 8), "b": (8, 5)},
    ),
    "scan": (
        """g (float[4,8] x, float[6] h) => (float[6] y, float[6,4] all) {
            y, all = Scan <num_scan_inputs = 1, scan_output_axes = [1],
                body = f (float[6] s, float[8] one) => (float[6] t, float[6] made) {
                u = MatMul (one, a)
                v = Add (s, u)
                t = Tanh (v)
                made = Identity (t)
            }> (h, x)
        }""",
        {"a": (8, 6)},
    ),
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow(name: str, tmp_path: Path) -> None:
    text, weights = CONTROL[name]
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    rng = np.random.default_rng(0)
    held = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in weights.items()}
    held |= {"three": np.array(3), "yes": np.array(True), "zero": np.array(0, np.float32)}
    used = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    proto.graph.initializer.extend(numpy_helper.from_array(one, key) for key, one in held.items() if key in used)
    program = program_of(proto, tmp_path)
    module = pickle.loads(pickle.dumps(graphprune.to_torch(program)))
    for sign in (1, -1):
        feeds = {key: sign * one for key, one in program.examples.items()}
        assert error(program, module, feeds) <= 1e-5
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.2)
    written = graphprune.load_state(program, module)
    assert error(written, module, program.examples) <= 1e-5
    assert error(program, module, program.examples) > 1e-3
    assert {name for names in module.meta["parameters"].values() for name in names} >= set(weights)


def test_a_branch_that_does_not_run_is_not_in_the_module(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[2,8] x) => (float[2,5] y) {
        h = MatMul (x, a)
        s = ReduceSum <keepdims = 0> (h)
        c = Greater (s, huge)
        y = If (c) <then_branch = t () => (float[2,5] p) { p = Reshape (h, seven) },
                    else_branch = e () => (float[2,5] q) { q = Relu (h) }>
    }"""
    proto = parser.parse_model(text)
    held = {"a": np.ones((8, 5), np.float32), "huge": np.array(1e6, np.float32), "seven": np.array([7])}
    proto.graph.initializer.extend(numpy_helper.from_array(one, key) for key, one in held.items())
    program = program_of(proto, tmp_path)
    module = graphprune.to_torch(program)
    assert error(program, module, program.examples) <= 1e-5
    with pytest.raises(InputError, match="takes its then branch on these inputs"):
        module(torch.full((2, 8), 1e6))


def test_gradients_go_straight_through_quantisation(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[2,8] x) => (float[2,5] y) {
        h = MatMul (x, a)
        i = QuantizeLinear (h, s, z)
        r = DequantizeLinear (i, s, z)
        y = MatMul (r, b)
    }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    held = {"a": rng.standard_normal((8, 6)).astype(np.float32), "b": rng.standard_normal((6, 5)).astype(np.float32)}
    held |= {"s": np.array(0.02, np.float32), "z": np.array(100, np.uint8)}
    proto.graph.initializer.extend(numpy_helper.from_array(one, key) for key, one in held.items())
    program = program_of(proto, tmp_path)
    module = graphprune.to_torch(program)
    assert error(program, module, program.examples) <= 1e-5
    assert {name for name, _ in module.named_parameters()} == {"a", "b"}
    outputs(module, program.examples)["y"].square().sum().backward()
    assert bool(module.a.grad.any()) and bool(module.b.grad.any())


@needs_ocr
@pytest.mark.parametrize("build", ["recogniser", "classifier"])
def test_an_ocr_network_is_equal_and_trains(build: str) -> None:
    from models_zoo import ocr

    path, shapes = getattr(ocr, build)()
    network = graphprune.load(path, input_shapes=shapes)
    module = graphprune.to_torch(network)
    assert error(network.program, module, network.program.examples) <= 1e-4
    for feeds in network.program.other_examples:
        assert error(network.program, module, feeds) <= 1e-4
    made = outputs(module, network.program.examples)
    sum((one * torch.randn_like(one)).sum() for one in made.values()).backward()
    missing = [name for name, one in module.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert missing == []


def separable() -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.BatchNorm2d(8),
        torch.nn.Hardswish(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )


def test_a_modules_own_names_come_back() -> None:
    torch.manual_seed(0)
    module = separable()
    network = graphprune.load(module.eval(), inputs=(torch.randn(2, 3, 8, 8),))
    made = graphprune.to_torch(network)
    assert set(dict(made.named_parameters())) == set(dict(module.named_parameters()))
    assert set(made.state_dict()) >= set(module.state_dict())
    assert error(network.program, made, network.program.examples) <= 1e-5
    assert made.load_state_dict(module.state_dict(), strict=False).unexpected_keys == []


@pytest.mark.parametrize("name", ["residual", "attention", "plain"])
def test_a_file_for_torch_export_needs_no_graphprune(name: str, tmp_path: Path) -> None:
    sample = models.SAMPLES[name]()
    network = graphprune.load(sample.save(tmp_path / "m.onnx"), inputs=sample.feeds())
    path = graphprune.save_torch(network, tmp_path / "m.pt2")
    module = torch.export.load(path).module()
    feeds = sample.feeds(seed=7)
    found = module(*(torch.from_numpy(one) for one in feeds.values()))
    (wanted,) = OrtRunner()(network.program.model, feeds).values()
    (found,) = found if isinstance(found, (tuple, list)) else (found,)
    assert np.allclose(found.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
