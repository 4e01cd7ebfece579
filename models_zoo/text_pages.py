"""Rendered pages for PP-OCRv4's text detector: what it is calibrated on, and what it is judged by.

A page is 480 x 480 pixels of paper of some grey (a slope of light across it, noise) with several lines of
``models_zoo.text_lines`` on it, of several sizes, none over another. The detector's output is a map of text (in
[0, 1], one value per pixel); a cut detector is judged by the overlap of its map with the whole network's, and by how
much of the true boxes it finds.

    >>> from models_zoo import text_pages
    >>> page = text_pages.pages(1, seed=0)[0]                       # doctest: +SKIP
    >>> text = run({"x": text_pages.prepare(page.image)})           # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import UsageError
from models_zoo import text_lines
from models_zoo.text_lines import Split

__all__ = [
    "SIZE",
    "THRESHOLD",
    "Page",
    "calibration",
    "covered",
    "evaluate",
    "feeds",
    "maps",
    "overlap",
    "pages",
    "prepare",
]

Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

INPUT, SIZE = "x", 480
THRESHOLD = 0.3  # of the map, as PP-OCR's postprocessing has it
CALIBRATION, TEST = 64, 100  # pages
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_GAP = 10  # pixels between lines, at least


@dataclass(frozen=True, eq=False)
class Page:
    """A page: its ``image``, uint8 ``(480, 480, 3)``, and its lines' texts and boxes (left, top, right, bottom)."""

    image: NDArray[np.uint8]
    texts: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]


def pages(count: int, *, seed: int, split: Split = "test") -> list[Page]:
    """``count`` pages with lines of a split; a page depends on the split, the seed and its number alone."""
    if count < 1:
        raise UsageError(f"A set of pages needs at least 1 page, not {count}.")
    if split not in ("calibration", "test"):
        raise UsageError(f"Pages have the splits 'calibration' and 'test', not '{split}'.")
    seeds = np.random.SeedSequence([seed, 2 + int(split == "test")]).spawn(count)
    return [_page(np.random.default_rng(one), split) for one in seeds]


def _page(draw: np.random.Generator, split: Split) -> Page:
    """Lines from the top down, one or two beside each other, each with its own paper blended into the page's."""
    across = np.linspace(-1, 1, SIZE)
    slope = draw.uniform(-0.1, 0.1, 2)
    paper = draw.uniform(0.75, 1.0) + slope[0] * across[:, None] + slope[1] * across[None, :]
    page = paper.astype(np.float32)
    texts: list[str] = []
    boxes: list[tuple[int, int, int, int]] = []
    top = int(draw.integers(4, 40))
    while True:
        left, below = int(draw.integers(4, 60)), top
        for _ in range(int(draw.integers(1, 3))):
            # Undistorted print on a page of its own noise: what varies here is the layout.
            line = text_lines.lines(1, seed=int(draw.integers(1 << 31)), split=split, difficulty=0.3)[0]
            height, width = line.image.shape[:2]
            if left + width > SIZE - 4 or top + height > SIZE - 4:
                break
            page[top : top + height, left : left + width] = _blended(
                line.image[:, :, 0], page[top : top + height, left : left + width]
            )
            texts.append(line.text)
            boxes.append((left, top, left + width, top + height))
            left, below = left + width + _GAP + int(draw.integers(60)), max(below, top + height)
        if below == top:  # nothing fitted
            if boxes or top < 8:
                break
            top = 4
            continue
        top = below + _GAP + int(draw.integers(40))
    page += float(draw.uniform(0, 0.04)) * draw.standard_normal(page.shape, np.float32)
    pixels = np.rint(np.clip(page, 0, 1) * 255).astype(np.uint8)
    return Page(np.repeat(pixels[:, :, None], 3, axis=2), tuple(texts), tuple(boxes))


def _blended(line: NDArray[np.uint8], under: NDArray[np.float32]) -> NDArray[np.float32]:
    """A line's ink on the page's paper: light text keeps its dark box."""
    grey = line.astype(np.float32) / 255
    paper = float(np.median(grey))
    return np.asarray(under * grey / paper if paper > 0.5 else grey, np.float32)


def prepare(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image ``(height, width, 3)`` as the detector takes it: float32 ``(1, 3, height, width)``.

    As PP-OCR does it: ``(x / 255 - mean) / std`` with ImageNet's; the sizes must be multiples of 32. Source: PaddleOCR,
    ``ppocr/data/imaug/operators.py``, ``NormalizeImage`` and ``DetResizeForTest``.
    """
    if image.shape[0] % 32 or image.shape[1] % 32:
        raise UsageError(f"The detector takes sizes that are multiples of 32; the image is {image.shape[:2]}.")
    scaled = (image.astype(np.float32) / 255 - _MEAN) / _STD
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def feeds(made: Sequence[Page]) -> list[dict[str, NDArray[Any]]]:
    """One dictionary per page: ``{"x": (1, 3, 480, 480)}``."""
    return [{INPUT: prepare(page.image)} for page in made]


@lru_cache(maxsize=1)
def test_pages(count: int = TEST) -> tuple[Page, ...]:
    """The first ``count`` test pages (seed 0)."""
    return tuple(pages(count, seed=0))


def calibration(count: int = CALIBRATION, seed: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """For ``--calib models_zoo.text_pages:calibration``: pages whose lines share no token with the test pages'."""
    yield from feeds(pages(count, seed=seed, split="calibration"))


def maps(run: Run, made: Sequence[Page]) -> list[NDArray[np.bool_]]:
    """Where a network sees text, bool ``(480, 480)`` each; ``run`` maps ``{"x": ...}`` to its one output by name."""
    found = []
    for one in feeds(made):
        (scores,) = run(one).values()
        found.append(scores[0, 0] > THRESHOLD)
    return found


def overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Intersection over union of two maps (of scores, or already bool), in [0, 1]; 1 where both see no text."""
    a, b = (each if each.dtype == np.bool_ else each > THRESHOLD for each in (one, other))
    if a.shape != b.shape:
        raise UsageError(f"Maps of the same page have the same size; these have {a.shape} and {b.shape}.")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def covered(seen: NDArray[np.bool_], page: Page) -> float:
    """The share of a page's lines at least half of whose box's width holds text of the map."""
    found = [seen[top:bottom, left:right].any(axis=0).mean() >= 0.5 for left, top, right, bottom in page.boxes]
    return float(np.mean(found))


def evaluate(run: Run) -> NDArray[np.float64]:
    """For ``--eval models_zoo.text_pages:evaluate``: the share of lines found on each test page (100), in [0, 1]."""
    made = test_pages()
    return np.array([covered(seen, page) for seen, page in zip(maps(run, made), made, strict=True)])
