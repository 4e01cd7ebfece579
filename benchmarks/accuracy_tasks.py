"""What accuracy is measured on: trained networks as ONNX files with a dynamic batch, calibration samples, test metrics.

A task's metrics are one number per test sample each, higher is better, the main one first: so that every mean has an
interval. Calibration samples come from the training data (or other lines, pages, text), never from the test's.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import UsageError

__all__ = ["TASKS", "Feeds", "Metrics", "Run", "Task", "exported", "onnx_bytes", "open_run"]

Feeds = dict[str, NDArray[Any]]
Run = Callable[[Feeds], dict[str, NDArray[Any]]]
Metrics = dict[str, NDArray[np.float64]]  # metric -> one number per test sample
_BATCH = 248  # test images at once; 4960 and 500 of them


@dataclass(frozen=True)
class Task:
    """A trained network and how it is judged.

    Attributes:
        name: of the network; ``suite``: the part of the tables that it stands in.
        path: makes its ONNX file, with a dynamic first axis.
        calibration: ``(count, seed)`` to ``count`` samples, one dictionary of arrays with a batch of 1 each.
        judge: ``(run, dense)`` to the metrics; ``dense`` runs the whole network, for agreement with it.
        module: makes the PyTorch module and its example inputs, for peers that take no ONNX file.
        include, exclude: patterns of what is cut, as ``graphprune export`` takes them.
    """

    name: str
    suite: str
    path: Callable[[], Path]
    calibration: Callable[[int, int], list[Feeds]]
    judge: Callable[[Run, Run], Metrics]
    module: Callable[[], Any] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @cached_property
    def shapes(self) -> dict[str | None, tuple[int, ...]]:
        """The inputs' shapes of one sample."""
        return {name: array.shape for name, array in self.calibration(1, 0)[0].items()}


def open_run(path: Path, threads: int = 1) -> Run:
    """Runs an ONNX file on ONNX Runtime's CPU provider; sample by sample where the file holds a batch of 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(None, feeds), strict=True))

    def one_by_one(feeds: Feeds) -> dict[str, NDArray[Any]]:
        count = len(next(iter(feeds.values())))
        parts = [run({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(count)]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    return one_by_one if all(one.shape and one.shape[0] == 1 for one in session.get_inputs()) else run


def onnx_bytes(module: Any, example: tuple[Any, ...], names: Sequence[str]) -> bytes:
    """A module as an ONNX file with the dimension ``batch`` first.

    Not optimised by the exporter, so that BatchNorm stays a node (the runtime folds it).
    """
    import torch

    from graphprune.frontends.torch import drop_made_up_biases

    program = torch.onnx.export(
        module.eval(),
        tuple(torch.cat([one, one]) for one in example),  # a batch of one would become a constant
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=list(names),
        dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in example),
    )
    assert program is not None
    drop_made_up_biases(program.model)
    content: bytes = program.model_proto.SerializeToString()
    return content


def exported(name: str, module: Any, example: tuple[Any, ...], names: Sequence[str]) -> Path:
    """``onnx_bytes`` as a file, from the cache if these weights were exported before."""
    import torch

    from models_zoo.cache import cache_folder, recipe_hash, write_atomically

    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    shapes = [list(one.shape) for one in example]
    recipe = [digest.hexdigest(), str(module), str(torch.__version__), shapes, list(names)]
    path = cache_folder() / f"{name}-{recipe_hash(recipe)}.onnx"
    if not path.is_file():
        write_atomically(path, onnx_bytes(module, example, names))
    return path


BATCH = 64  # of the small networks where they are timed: one image takes a tenth of a millisecond, most of it dispatch


def batched(shapes: Mapping[str | None, tuple[int, ...]]) -> dict[str | None, tuple[int, ...]]:
    """Input shapes at which small networks are timed."""
    return {name: (BATCH, *shape[1:]) for name, shape in shapes.items()}


def folded(path: Path, task: Task) -> Path:
    """The file as graphprune writes it uncut, beside it: exporters leave BatchNorm's parameters to be computed in the
    graph, and a time that is held against that says how a network was exported, not what was cut from it.
    """
    from graphprune.ir.store import write_onnx
    from graphprune.pipeline import load

    out = path.with_name(f"{path.stem}-folded.onnx")
    return write_onnx(load(path, input_shapes=task.shapes).program.model, out)[-1]


# ----------------------------------------------------------------------------------------- glyphs and digits


@lru_cache(maxsize=2)
def _data(name: str) -> Any:
    from models_zoo.small import NETWORKS, load_data

    return load_data(NETWORKS[name].data)


@lru_cache(maxsize=1)
def _small(name: str) -> Any:
    from models_zoo import small

    return getattr(small, name)()


def _small_path(name: str) -> Path:
    module, example = _small(name)
    return exported(name, module, example, ["image"])


def _small_calibration(name: str, count: int, seed: int) -> list[Feeds]:
    images = _data(name).train_images
    if count > len(images):
        raise UsageError(f"The network '{name}' has {len(images)} training images; {count} cannot be drawn.")
    chosen = np.random.default_rng([seed, 1]).permutation(len(images))[:count]
    return [{"image": images[i : i + 1]} for i in chosen]


def _small_best(name: str, run: Run) -> NDArray[np.int64]:
    """The best class of each test image."""
    images = _data(name).test_images
    parts = [next(iter(run({"image": images[i : i + _BATCH]}).values())) for i in range(0, len(images), _BATCH)]
    return np.asarray(np.concatenate(parts).argmax(axis=1))


@lru_cache(maxsize=1)
def _small_dense(name: str) -> NDArray[np.int64]:
    return _small_best(name, open_run(_small_path(name)))


def _small_judge(name: str, run: Run, dense: Run) -> Metrics:
    """Accuracy, and how often the best class is the dense network's."""
    found = _small_best(name, run)
    return {
        "accuracy": (found == _data(name).test_labels).astype(np.float64),
        "agreement": (found == _small_dense(name)).astype(np.float64),
    }


def _small_task(name: str) -> Task:
    return Task(
        name,
        "small",
        partial(_small_path, name),
        partial(_small_calibration, name),
        partial(_small_judge, name),
        partial(_small, name),
    )


# ------------------------------------------------------------------------------------------------------- text lines


def _ocr_path(name: str) -> Path:
    from models_zoo import ocr

    path, _ = getattr(ocr, name)()
    return Path(path)


def _lines_calibration(count: int, seed: int) -> list[Feeds]:
    from models_zoo import text_lines

    return list(text_lines.calibration(count, seed))


@lru_cache(maxsize=1)
def _lines_dense() -> tuple[str, ...]:
    from models_zoo import text_lines

    return text_lines.read(open_run(_ocr_path("recogniser")), text_lines.test_lines())


def _lines_judge(run: Run, dense: Run) -> Metrics:
    """Characters and whole lines read right, and both against what the dense network reads."""
    from models_zoo import text_lines

    made = text_lines.test_lines()
    texts = text_lines.read(run, made)
    true, same = text_lines.score(texts, [line.text for line in made]), text_lines.score(texts, _lines_dense())
    return {
        "agreement": same.characters,
        "characters": true.characters,
        "lines": true.right,
        "agreeing lines": same.right,
    }


# ------------------------------------------------------------------------------------------------------------- pages


def _pages_calibration(count: int, seed: int) -> list[Feeds]:
    from models_zoo import text_pages

    return list(text_pages.calibration(count, seed))


@lru_cache(maxsize=1)
def _pages_dense() -> list[NDArray[np.bool_]]:
    from models_zoo import text_pages

    return text_pages.maps(open_run(_ocr_path("detector")), text_pages.test_pages())


def _pages_judge(run: Run, dense: Run) -> Metrics:
    """Overlap with the whole network's maps, and the share of the lines found."""
    from models_zoo import text_pages

    made = text_pages.test_pages()
    seen = text_pages.maps(run, made)
    return {
        "overlap": np.array([text_pages.overlap(a, b) for a, b in zip(seen, _pages_dense(), strict=True)]),
        "lines found": np.array([text_pages.covered(a, page) for a, page in zip(seen, made, strict=True)]),
    }


# ------------------------------------------------------------------------------------------ files of other packages


def _packaged(name: str) -> Any:
    return importlib.import_module(f"models_zoo.{name}")


def _packaged_calibration(name: str, count: int, seed: int) -> list[Feeds]:
    return list(_packaged(name).calibration(count, seed))


def _packaged_judge(name: str, run: Run, dense: Run) -> Metrics:
    """Samples that the network and the whole network take for the same, and those it takes for what they are."""
    module = _packaged(name)
    same = module.classes(run) == module.classes(dense)
    return {"agreement": same.astype(np.float64), **module.evaluate(run)}


def _packaged_task(name: str) -> Task:
    return Task(
        name,
        "file",
        lambda: Path(_packaged(name).model()),
        partial(_packaged_calibration, name),
        partial(_packaged_judge, name),
    )


# --------------------------------------------------------------------------------------------------------- language


@lru_cache(maxsize=1)
def _tiny(name: str) -> Any:
    from models_zoo import tiny_text

    return getattr(tiny_text, name)()


def _tiny_path(name: str) -> Path:
    module, example = _tiny(name)
    return exported(name, module, example, ["input_ids"])


def _tiny_calibration(name: str, count: int, seed: int) -> list[Feeds]:
    from models_zoo import tiny_text

    return tiny_text.calibration(name, count, seed)


def _tiny_judge(name: str, run: Run, dense: Run) -> Metrics:
    """The loss with its sign turned, one figure per held-out sequence."""
    from models_zoo import tiny_text

    return {"log-likelihood": -tiny_text.losses(name, run)}


def _tiny_task(name: str) -> Task:
    return Task(
        name,
        "language",
        partial(_tiny_path, name),
        partial(_tiny_calibration, name),
        partial(_tiny_judge, name),
        partial(_tiny, name),
    )


# ------------------------------------------------------------------------------------------------------------- tasks

_SMALL = tuple(f"{data}_{kind}" for data in ("glyph", "digits") for kind in ("plain", "residual", "separable", "vit"))

TASKS: Mapping[str, Task] = {
    one.name: one
    for one in (
        *map(_small_task, _SMALL),
        Task("ocr_recogniser", "ocr", partial(_ocr_path, "recogniser"), _lines_calibration, _lines_judge),
        Task("ocr_detector", "detector", partial(_ocr_path, "detector"), _pages_calibration, _pages_judge),
        *map(_packaged_task, ("orientation", "file_bytes")),
        *map(_tiny_task, ("tiny_bert", "tiny_gpt")),
    )
}
