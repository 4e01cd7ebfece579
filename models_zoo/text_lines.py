"""Rendered text lines for PP-OCRv4's recogniser: what it is calibrated on, and what it is judged by.

A line is one to four tokens (words of the text of Python's own help, ``pydoc_data.topics``; capitalised words, dates,
prices, times, codes, punctuation) in one of 16 fonts that matplotlib ships, of some size and margin, a little turned,
sheared, blurred and noisy, dark on light or light on dark. One number, the *difficulty*, scales the distortions; at 1
the recogniser reads between 96 and 99.5 % of the characters.

No token stands in both splits (``calibration`` and ``test``): a hash of the token says where it belongs. A line depends
on the split, the seed and its number alone, so that the first 64 of 256 lines are the lines that 64 would give. Another
version of Python has other words, another one of Pillow may move single grey levels; otherwise the bytes are the same.

Needs matplotlib (for its fonts) and Pillow, which comes with it; torch is not needed.

    >>> from models_zoo import text_lines
    >>> line = text_lines.lines(1, seed=0)[0]                         # doctest: +SKIP
    >>> text_lines.decode(run({"x": text_lines.prepare(line.image)})) # doctest: +SKIP
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import UsageError
from models_zoo import ocr

__all__ = [
    "AMPLITUDES",
    "FONTS",
    "HEIGHT",
    "INPUT",
    "WIDTH",
    "Line",
    "Score",
    "calibration",
    "character_accuracy",
    "characters",
    "decode",
    "edit_distance",
    "evaluate",
    "feeds",
    "fitted_width",
    "lines",
    "prepare",
    "read",
    "score",
    "split_of",
    "test_lines",
    "words",
]

Split = Literal["calibration", "test"]
Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
#: The recogniser's input, and the size of the images that it takes here, in pixels.
INPUT, HEIGHT, WIDTH = "x", 48, 320
CALIBRATION, TEST = 256, 500  # lines
# How far each distortion goes at difficulty 1 (drawn uniformly).
AMPLITUDES = {
    "rotation": 0.022,  # radians, to both sides
    "shear": 0.12,
    "blur": 0.045,  # standard deviation, of the font's size
    "noise": 0.09,  # standard deviation, of a range of 1
    "contrast": 0.55,  # of it is lost
}
_SHORTEST, _LONGEST = 6, 22  # characters of a line


@dataclass(frozen=True, eq=False)
class Line:
    """A rendered line: its ``text`` and its ``image``, uint8 ``(height, width, 3)``, grey in all three channels."""

    text: str
    image: NDArray[np.uint8]
    font: str


@dataclass(frozen=True, eq=False)
class Score:
    """How well lines were read: the texts read, and one number per line, float64 ``(lines,)``.

    ``characters`` are in [0, 1]: 1 less the edit distance over the length; ``right`` are 1 where the line is all right,
    else 0.
    """

    texts: tuple[str, ...]
    characters: NDArray[np.float64]
    right: NDArray[np.float64]


# ------------------------------------------------------------------------------------------------------------- texts


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """The lower-case words (2 to 12 letters) of the prose in Python's help, sorted."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    # Words between blanks and sentence marks alone: code and names with dots or underscores are no words.
    return tuple(sorted(set(re.findall(r"(?<![\w.`\"'*:])[a-z]{2,12}(?=[ ,.;\n])", text))))


def split_of(token: str) -> Split:
    """Where a token belongs: half of all tokens are the calibration's, the others the test's."""
    return "test" if zlib.crc32(token.encode()) & 1 else "calibration"


def _price(draw: np.random.Generator) -> str:
    whole, cents = int(10 ** draw.uniform(0, 4)), draw.integers(100)
    return f"${whole:,}.{cents:02}"


def _date(draw: np.random.Generator) -> str:
    year, month, day = draw.integers(1970, 2030), draw.integers(1, 13), draw.integers(1, 29)
    shapes = (f"{year}-{month:02}-{day:02}", f"{day:02}/{month:02}/{year}", f"{day}.{month}.{year}")
    return shapes[draw.integers(3)]


def _number(draw: np.random.Generator) -> str:
    number = int(10 ** draw.uniform(0.5, 6))
    shapes = (f"{number}", f"{number:,}", f"{number % 100}%", f"{draw.integers(24):02}:{draw.integers(60):02}")
    return shapes[draw.integers(4)]


def _code(draw: np.random.Generator) -> str:
    letters = "".join(chr(ord("A") + n) for n in draw.integers(0, 26, size=2))
    return f"{letters}-{draw.integers(100, 10000)}"


def _word(draw: np.random.Generator) -> str:
    known = words()
    word = known[draw.integers(len(known))]
    style = draw.uniform()
    if style < 0.3:
        word = word.capitalize()
    elif style < 0.4:
        word = word.upper()
    mark = draw.uniform()
    if mark < 0.12:
        return word + ",.:;!?"[draw.integers(6)]
    return f"({word})" if mark < 0.16 else word


def _token(draw: np.random.Generator, split: Split) -> str:
    kinds = (_word, _price, _date, _number, _code)
    while True:
        token = kinds[draw.choice(len(kinds), p=(0.72, 0.07, 0.07, 0.09, 0.05))](draw)
        if split_of(token) == split:
            return token


def _text(draw: np.random.Generator, split: Split) -> str:
    """One to four tokens of a split with single blanks between them."""
    while True:
        text = " ".join(_token(draw, split) for _ in range(1 + draw.binomial(3, 0.3)))
        if _SHORTEST <= len(text) <= _LONGEST:
            return text


# ------------------------------------------------------------------------------------------------------------ images


def lines(count: int, *, seed: int, split: Split = "test", difficulty: float = 1.0) -> list[Line]:
    """``count`` lines of a split, all of which are at most ``WIDTH`` pixels wide at the recogniser's height.

    Raises UsageError if the difficulty is not in [0, 3], or if matplotlib, Pillow or a font is missing.
    """
    if count < 1:
        raise UsageError(f"A set of text lines needs at least 1 line, not {count}.")
    if split not in ("calibration", "test"):
        raise UsageError(f"Text lines have the splits 'calibration' and 'test', not '{split}'.")
    if not 0 <= difficulty <= 3:
        raise UsageError(f"The difficulty of text lines lies between 0 (clean print) and 3, not {difficulty}.")
    seeds = np.random.SeedSequence([seed, int(split == "test")]).spawn(count)
    return [_line(np.random.default_rng(one), split, difficulty) for one in seeds]


def _line(draw: np.random.Generator, split: Split, difficulty: float) -> Line:
    font = FONTS[draw.integers(len(FONTS))]
    size = int(draw.integers(18, 45))
    while True:  # a text that is too wide for its font is drawn anew
        text = _text(draw, split)
        image = _rendered(text, font, size, draw, difficulty)
        if fitted_width(image) <= WIDTH:
            return Line(text, np.repeat(image[:, :, None], 3, axis=2), font)


def _rendered(text: str, name: str, size: int, draw: np.random.Generator, difficulty: float) -> NDArray[np.uint8]:
    """A text as grey levels ``(height, width)``: drawn, distorted, cropped to its ink and a margin, printed, noisy."""
    from PIL import Image, ImageDraw, ImageFilter

    def spread(what: str) -> float:
        return float(draw.uniform(-1, 1)) * AMPLITUDES[what] * difficulty

    font = _font(name, size)
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    # Room for the distortions: half the text's height to the left and right, and what the turn lifts its ends by.
    room = size + int(abs(right - left) * AMPLITUDES["rotation"] * difficulty) + 1
    canvas = Image.new("L", (int(right - left) + 2 * room, int(bottom - top) + 2 * room))
    ImageDraw.Draw(canvas).text((room - left, room - top), text, font=font, fill=255, anchor="ls")
    turn, shear = spread("rotation"), spread("shear")
    cx, cy = canvas.width / 2, canvas.height / 2
    across = shear - turn
    matrix = (1.0, across, -across * cy, turn, 1.0, -turn * cx)
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    box = canvas.point(lambda level: 255 * (level > 32)).getbbox()
    if box is None:
        raise UsageError(f"The font '{name}' of matplotlib draws nothing for '{text}': reinstall matplotlib.")
    margins = np.rint(draw.uniform((0.1, 0.06, 0.1, 0.06), (0.4, 0.22, 0.4, 0.22)) * size).astype(int)
    x0, y0, x1, y1 = (int(one) for one in np.array(box) + margins * (-1, -1, 1, 1))
    ink = canvas.crop((x0, y0, x1, y1)).filter(ImageFilter.GaussianBlur(abs(spread("blur")) * size))
    contrast = 1 - abs(spread("contrast"))
    low = float(draw.uniform(0, 1 - contrast))
    dark, light = low, low + contrast
    paper, colour = (light, dark) if draw.uniform() < 0.8 else (dark, light)
    levels = paper + (colour - paper) * np.asarray(ink, np.float32) / 255
    levels += abs(spread("noise")) * draw.standard_normal(levels.shape, np.float32)
    return np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)


@lru_cache(maxsize=1024)
def _font(name: str, size: int) -> Any:
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError as error:
        raise UsageError("The text lines need matplotlib (for its fonts) and Pillow: install matplotlib.") from error
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not file.is_file():
        raise UsageError(
            f"The font '{file.name}' is not among matplotlib's ('{file.parent}'); matplotlib {matplotlib.__version__} "
            "is incomplete: reinstall it."
        )
    # The basic layout engine does not depend on whether libraqm is there.
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def fitted_width(image: NDArray[Any]) -> int:
    """The width of an image ``(height, width, ...)`` in pixels when it is ``HEIGHT`` high."""
    return max(1, int(-(-HEIGHT * image.shape[1] // image.shape[0])))


def prepare(image: NDArray[np.uint8], width: int = WIDTH) -> NDArray[np.float32]:
    """An image ``(height, width, 3)`` as the recogniser takes it: float32 ``(1, 3, 48, width)`` in [-1, 1].

    As PP-OCR does it: 48 pixels high with its aspect kept, ``(x / 255 - 0.5) / 0.5``, zeros to the right. What is wider
    than ``width`` is squeezed to it. Source: PaddleOCR, ``tools/infer/predict_rec.py``, ``resize_norm_img``.
    """
    from PIL import Image

    used = min(width, fitted_width(image))
    resized = Image.fromarray(image).resize((used, HEIGHT), Image.Resampling.BILINEAR)
    out = np.zeros((1, 3, HEIGHT, width), np.float32)
    out[0, :, :, :used] = (np.asarray(resized, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return out


def feeds(made: Sequence[Line], width: int = WIDTH) -> list[dict[str, NDArray[Any]]]:
    """One dictionary per line: ``{"x": (1, 3, 48, width)}``."""
    return [{INPUT: prepare(line.image, width)} for line in made]


@lru_cache(maxsize=2)
def test_lines(count: int = TEST) -> tuple[Line, ...]:
    """The first ``count`` test lines (seed 0)."""
    return tuple(lines(count, seed=0, split="test"))


def calibration(count: int = CALIBRATION, seed: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """For ``--calib models_zoo.text_lines:calibration``: ``count`` lines that share no token with the test lines."""
    yield from feeds(lines(count, seed=seed, split="calibration"))


# ----------------------------------------------------------------------------------------------------------- reading


@lru_cache(maxsize=4)
def characters(path: Path | None = None) -> tuple[str, ...]:
    """What the recogniser's classes mean: the blank (an empty text) first, the characters of its file, a space last.

    ``path`` is its file; None: PP-OCRv4's, see ``models_zoo.ocr``. Raises UsageError if the file names no characters.
    """
    import onnx

    path = path or ocr.recogniser()[0]
    model = onnx.load(str(path), load_external_data=False)
    found = {one.key: one.value for one in model.metadata_props}
    if "character" not in found:
        raise UsageError(f"'{path}' is no PP-OCR recogniser: its metadata has no entry 'character'.")
    return ("", *found["character"].split("\n"), " ")


def decode(scores: NDArray[Any], alphabet: Sequence[str] | None = None) -> str:
    """The text of one line's scores ``(steps, classes)`` or ``(1, steps, classes)``: greedy CTC.

    The best class of every step, repeats merged, blanks dropped (Graves et al. 2006). ``alphabet``: see ``characters``.
    """
    alphabet = characters() if alphabet is None else alphabet
    table = scores[0] if scores.ndim == 3 and len(scores) == 1 else scores
    if table.ndim != 2 or table.shape[1] != len(alphabet):
        raise UsageError(
            f"Scores of one line have the shape (steps, {len(alphabet)}), one class per character; got {scores.shape}."
        )
    best = table.argmax(axis=1)
    new = np.diff(best, prepend=-1) != 0
    return "".join(alphabet[n] for n in best[new])


def edit_distance(one: str, other: str) -> int:
    """Least number of characters inserted, deleted or replaced that makes one text the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def character_accuracy(read_text: str, true: str) -> float:
    """1 less the edit distance over the true text's length, at least 0; of an empty truth: 1 if nothing was read."""
    return max(0.0, 1 - edit_distance(read_text, true) / max(1, len(true)))


def read(run: Run, made: Sequence[Line], width: int = WIDTH) -> tuple[str, ...]:
    """What a network reads in lines. ``run`` maps ``{"x": (1, 3, 48, width)}`` to its one output by name.

    Line by line: on a CPU a batch of ten takes half as long again per line.
    """
    alphabet = characters()
    found: list[str] = []
    for one in feeds(made, width):
        (scores,) = run(one).values()
        found.append(decode(scores, alphabet))
    return tuple(found)


def score(texts: Sequence[str], true: Sequence[str]) -> Score:
    """How well ``texts`` were read. With another network's reading as ``true`` this is their agreement."""
    if len(texts) != len(true):
        raise UsageError(f"Lines are scored one by one: {len(texts)} were read, {len(true)} are given.")
    pairs = list(zip(texts, true, strict=True))
    return Score(
        tuple(texts),
        np.array([character_accuracy(a, b) for a, b in pairs]),
        np.array([float(a == b) for a, b in pairs]),
    )


def evaluate(run: Run) -> NDArray[np.float64]:
    """For ``--eval models_zoo.text_lines:evaluate``: the character accuracy of each test line (500), in [0, 1]."""
    made = test_lines()
    return score(read(run, made), [line.text for line in made]).characters


def show(run: Run) -> list[tuple[NDArray[np.uint8], str]]:
    """The first test lines and what a network reads in them; shown in the report of ``--eval``."""
    made = test_lines()[:8]
    return list(zip((line.image for line in made), read(run, made), strict=True))


evaluate.show = show  # type: ignore[attr-defined]
