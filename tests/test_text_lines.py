"""Rendered text lines and pages: the same every time, apart from one another, scored as they should be, and read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphprune.errors import UsageError
from models_zoo import text_lines, text_pages

pytest.importorskip("matplotlib")
needs_ocr = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="rapidocr-onnxruntime is not installed"
)


def runner(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def test_lines_are_the_same_every_time_and_the_first_of_more() -> None:
    few, more = text_lines.lines(3, seed=7), text_lines.lines(5, seed=7)
    other = text_lines.lines(3, seed=8)
    for a, b in zip(few, more, strict=False):
        assert a.text == b.text and np.array_equal(a.image, b.image)
    assert [line.text for line in few] != [line.text for line in other]


def test_lines_fit_the_recogniser_and_vary() -> None:
    made = text_lines.lines(40, seed=1)
    assert all(line.image.dtype == np.uint8 and line.image.shape[2] == 3 for line in made)
    assert max(text_lines.fitted_width(line.image) for line in made) <= text_lines.WIDTH
    assert len({line.font for line in made}) > 8 and len({line.image.shape for line in made}) > 20
    assert min(float(np.ptp(line.image)) for line in made) > 60  # ink is on all of them


def test_calibration_and_test_lines_share_no_token() -> None:
    splits = ("calibration", "test")
    one, other = ({t for line in text_lines.lines(60, seed=0, split=s) for t in line.text.split()} for s in splits)
    assert len(one) > 60 and len(other) > 60 and not one & other


def test_calibration_yields_the_recognisers_feeds() -> None:
    made = list(text_lines.calibration(2))
    assert [{key: value.shape for key, value in one.items()} for one in made] == [{"x": (1, 3, 48, 320)}] * 2
    assert all(value.dtype == np.float32 and np.abs(value).max() <= 1 for one in made for value in one.values())


def test_prepare_keeps_the_aspect_and_pads_with_zeros() -> None:
    image = np.full((24, 60, 3), 255, np.uint8)  # 120 wide when it is 48 high
    out = text_lines.prepare(image)[0]
    assert np.allclose(out[:, :, :120], 1) and not out[:, :, 120:].any()
    assert text_lines.prepare(np.zeros((24, 600, 3), np.uint8)).shape == (1, 3, 48, 320)


def test_decode_merges_repeats_and_drops_blanks() -> None:
    alphabet = ("", "a", "b", " ")
    classes = [0, 1, 1, 0, 1, 3, 2, 2, 0]  # _ a a _ a ' ' b b _
    scores = np.eye(4, dtype=np.float32)[classes]
    assert text_lines.decode(scores, alphabet) == text_lines.decode(scores[None], alphabet) == "aa b"
    with pytest.raises(UsageError, match=r"\(steps, 4\), one class per character; got \(9, 3\)"):
        text_lines.decode(scores[:, :3], alphabet)


@pytest.mark.parametrize(
    ("read", "true", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("xabc", "abc", 1)],
)
def test_edit_distance(read: str, true: str, distance: int) -> None:
    assert text_lines.edit_distance(read, true) == text_lines.edit_distance(true, read) == distance


def test_scores() -> None:
    found = text_lines.score(["abcd", "abcx", "long after all"], ["abcd", "abcd", "ab"])
    assert found.characters.tolist() == [1.0, 0.75, 0.0] and found.right.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(UsageError, match="2 were read, 1 are given"):
        text_lines.score(["a", "b"], ["a"])


def test_what_makes_no_sense_is_said() -> None:
    with pytest.raises(UsageError, match=r"between 0 .* and 3, not 4"):
        text_lines.lines(1, seed=0, difficulty=4)
    with pytest.raises(UsageError, match="not 'train'"):
        text_lines.lines(1, seed=0, split="train")  # type: ignore[arg-type]


@needs_ocr
def test_the_alphabet_of_the_recogniser() -> None:
    alphabet = text_lines.characters()
    assert len(alphabet) == 6625 and alphabet[0] == "" and alphabet[-1] == " " and "a" in alphabet


@needs_ocr
def test_the_recogniser_reads_the_lines() -> None:
    from models_zoo import ocr

    made = text_lines.lines(8, seed=0)
    texts = text_lines.read(runner(ocr.recogniser()[0]), made)
    assert text_lines.score(texts, [line.text for line in made]).characters.mean() > 0.9


# ------------------------------------------------------------------------------------------------------------- pages


def test_pages_are_the_same_every_time_and_their_lines_apart() -> None:
    (first,), (again, _) = text_pages.pages(1, seed=3), text_pages.pages(2, seed=3)
    assert first.texts == again.texts and np.array_equal(first.image, again.image)
    assert first.image.shape == (480, 480, 3) and len(first.texts) == len(first.boxes) > 2
    taken = np.zeros((480, 480), int)
    for left, top, right, bottom in first.boxes:
        taken[top:bottom, left:right] += 1
    assert taken.max() == 1 and taken.sum() > 1000


def test_overlap_of_maps() -> None:
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    assert text_pages.overlap(a, b) == 1.0
    a[:2], b[1:3] = 0.9, 0.9
    assert text_pages.overlap(a, b) == pytest.approx(1 / 3)
    b[1:3] = 0.2  # below the threshold
    assert text_pages.overlap(a, b) == 0.0
    with pytest.raises(UsageError, match=r"\(4, 4\) and \(2, 4\)"):
        text_pages.overlap(a, b[:2])


def test_prepared_pages_have_sizes_that_the_detector_takes() -> None:
    assert text_pages.prepare(np.zeros((64, 96, 3), np.uint8)).shape == (1, 3, 64, 96)
    with pytest.raises(UsageError, match=r"multiples of 32; the image is \(50, 96\)"):
        text_pages.prepare(np.zeros((50, 96, 3), np.uint8))


@needs_ocr
def test_the_detector_finds_the_lines() -> None:
    from models_zoo import ocr

    (page,) = made = text_pages.pages(1, seed=0)
    (seen,) = text_pages.maps(runner(ocr.detector()[0]), made)
    assert text_pages.covered(seen, page) > 0.8 and 0.01 < seen.mean() < 0.3
