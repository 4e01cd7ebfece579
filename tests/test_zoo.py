"""The zoo: recipes are found without heavy imports, data sets are deterministic, small networks have their shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphprune.errors import UsageError
from models_zoo import RECIPES
from models_zoo import data as datasets

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
