"""Glyphs: a data set of rendered characters (0-9, A-Z, a-z), 1x32x32, made from the fonts that matplotlib ships.

Each sample is one character in one of 21 fonts (DejaVu Sans, Sans Mono and Serif, STIX General, Computer Modern text),
under a random affine distortion, contrast, blur and noise. One number, the *difficulty*, scales them all: 0 is clean
print, 1 is the default, at which small networks end near 95 % test accuracy. Characters keep their baseline and size,
so that ``o`` and ``O`` stay distinguishable as far as the distortion lets them.

Train and test samples are disjoint draws (separate random streams) of the same fonts: the set measures what a cut
costs a network, not how it generalises to fonts it never saw.

Deterministic: the same arguments give the same bytes on every call. All randomness comes from numpy Generators; images
are quantised to 8 bits, which also hides nearly all last-digit differences between machines. Another version of
Pillow's FreeType or of matplotlib's fonts may move single grey levels.
"""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import UsageError
from models_zoo.cache import cache_folder, recipe_hash, write_atomically
from models_zoo.data import Data

__all__ = ["AMPLITUDES", "CHARACTERS", "DIFFICULTY", "FONTS", "SIZE", "load", "recipe", "render"]

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
SIZE = 32
DIFFICULTY = 1.0
TRAIN, TEST = 20_000, 4_960  # the test set holds 80 of each class
# How far each distortion goes at difficulty 1 (drawn uniformly; the stretch on a log scale). Part of the caches' keys.
AMPLITUDES = {
    "rotation": 0.26,  # radians, to both sides
    "shear": 0.19,
    "stretch": 0.15,
    "shift": 2.2,  # pixels
    "blur": 0.9,  # standard deviation, pixels
    "noise": 0.26,  # standard deviation, of a range of 1
    "contrast": 0.3,  # of it is lost
}
# Part of the caches' keys too: raise it when another change of this file changes the images.
REVISION = 1

_CANVAS = 64  # characters are rendered once at twice the size and resampled by the distortion
_TAPS = 3  # the blur's kernel reaches this many pixels to each side
_CHUNK = 1000


def load(*, train: int = TRAIN, test: int = TEST, seed: int = 0, difficulty: float = DIFFICULTY) -> Data:
    """The data set, from the cache if it was rendered before (see ``models_zoo.cache``).

    Raises UsageError if a size or the difficulty is out of range, or if matplotlib or Pillow is missing.
    """
    key = recipe(train=train, test=test, seed=seed, difficulty=difficulty)
    path = cache_folder() / f"glyphs-{recipe_hash(key)}.npz"
    pixels = _read(path, train, test)
    if pixels is None:
        # Spawned seeds are independent streams, so no test sample repeats a train sample's random numbers.
        train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
        train_images, train_labels = _pixels(train, train_seed, difficulty)
        test_images, test_labels = _pixels(test, test_seed, difficulty)
        pixels = {
            "train_images": train_images,
            "train_labels": train_labels,
            "test_images": test_images,
            "test_labels": test_labels,
        }
        archive = io.BytesIO()
        np.savez_compressed(archive, allow_pickle=False, **pixels)
        write_atomically(path, archive.getvalue())
    return Data(
        _scaled(pixels["train_images"]),
        pixels["train_labels"].astype(np.int64),
        _scaled(pixels["test_images"]),
        pixels["test_labels"].astype(np.int64),
        classes=len(CHARACTERS),
    )


def recipe(*, train: int = TRAIN, test: int = TEST, seed: int = 0, difficulty: float = DIFFICULTY) -> dict[str, object]:
    """Everything that the data set of these arguments is made from, as JSON data: the key of what is cached."""
    return {
        "revision": REVISION,
        "amplitudes": AMPLITUDES,
        "fonts": FONTS,
        "train": train,
        "test": test,
        "seed": seed,
        "difficulty": difficulty,
    }


def render(
    count: int, *, seed: int = 0, difficulty: float = DIFFICULTY
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``count`` fresh samples: images float32 ``(count, 1, 32, 32)`` in [0, 1] and labels int64 ``(count,)``.

    Labels are balanced: each class has ``count // 62`` samples or one more. Nothing is cached.
    """
    images, labels = _pixels(count, np.random.SeedSequence(seed), difficulty)
    return _scaled(images), labels.astype(np.int64)


def _scaled(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return pixels.astype(np.float32)[:, None] / np.float32(255)


def _read(path: Path, train: int, test: int) -> dict[str, NDArray[Any]] | None:
    """The cached arrays, or None if there are none that can be read (a damaged file is rendered anew)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    shapes = {name: array.shape for name, array in arrays.items()}
    expected = {
        "train_images": (train, SIZE, SIZE),
        "train_labels": (train,),
        "test_images": (test, SIZE, SIZE),
        "test_labels": (test,),
    }
    return arrays if shapes == expected else None


@lru_cache(maxsize=1)
def _masters() -> NDArray[np.float32]:
    """Every character in every font, ``(fonts * 62, 64, 64)`` in [0, 1]: one baseline, centred by the advance."""
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise UsageError("The glyphs need matplotlib (for its fonts) and Pillow: install graphprune[zoo].") from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masters = np.zeros((len(FONTS), len(CHARACTERS), _CANVAS, _CANVAS), np.float32)
    for row, name in zip(masters, FONTS, strict=True):
        file = folder / f"{name}.ttf"
        if not file.is_file():
            raise UsageError(
                f"The font '{file.name}' is not among matplotlib's ('{folder}'); matplotlib {matplotlib.__version__} "
                "is incomplete: reinstall it."
            )
        # The basic layout engine does not depend on whether libraqm is there.
        font = ImageFont.truetype(str(file), 44, layout_engine=ImageFont.Layout.BASIC)
        for image, character in zip(row, CHARACTERS, strict=True):
            canvas = Image.new("L", (_CANVAS, _CANVAS))
            ImageDraw.Draw(canvas).text((_CANVAS // 2, 46), character, font=font, fill=255, anchor="ms")
            image[:] = np.asarray(canvas, np.float32) / 255
    return masters.reshape(-1, _CANVAS, _CANVAS)


def _pixels(count: int, seed: np.random.SeedSequence, difficulty: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """``count`` samples as 8-bit images ``(count, 32, 32)`` and labels ``(count,)``."""
    if count < 1:
        raise UsageError(f"A glyph set needs at least 1 sample, not {count}.")
    if not 0 <= difficulty <= 3:
        raise UsageError(f"The difficulty of glyphs lies between 0 (clean print) and 3, not {difficulty}.")
    masters = _masters()
    # Two streams: the noise is drawn chunk by chunk and must not depend on the chunk's size.
    draw, noise = (np.random.default_rng(child) for child in seed.spawn(2))
    labels = draw.permutation(np.arange(count) % len(CHARACTERS))
    fonts = draw.integers(len(FONTS), size=count)

    def spread(what: str, *shape: int) -> NDArray[np.float32]:
        width = AMPLITUDES[what] * difficulty
        return draw.uniform(-width, width, (count, *shape)).astype(np.float32)

    rotation, shear = spread("rotation"), spread("shear")
    stretch, shift = np.exp(spread("stretch", 2)), spread("shift", 2)
    sigma_blur, sigma_noise = np.abs(spread("blur")), np.abs(spread("noise"))
    contrast = 1 - np.abs(spread("contrast"))
    background = draw.uniform(0, 1, count).astype(np.float32) * (1 - contrast)
    matrix = _inverse_affine(rotation, shear, stretch)

    images = np.empty((count, SIZE, SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        which = fonts[part] * len(CHARACTERS) + labels[part]
        image = _blur(_warp(masters, which, matrix[part], shift[part]), sigma_blur[part])
        image = background[part, None, None] + contrast[part, None, None] * image
        image += sigma_noise[part, None, None] * noise.standard_normal(image.shape, np.float32)
        images[part] = np.rint(np.clip(image, 0, 1) * 255)
    return images, labels.astype(np.uint8)


def _inverse_affine(
    rotation: NDArray[np.float32], shear: NDArray[np.float32], stretch: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``(count, 2, 2)``: maps an offset (y, x) from the output's centre to the master's, but for the scale."""
    cos, sin = np.cos(rotation), np.sin(rotation)
    rotate = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    skew = np.broadcast_to(np.eye(2, dtype=np.float32), rotate.shape).copy()
    skew[:, 1, 0] = shear
    return np.asarray((rotate @ skew) / stretch[:, None, :], np.float32)


def _warp(
    masters: NDArray[np.float32], which: NDArray[np.int64], matrix: NDArray[np.float32], shift: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Masters ``which`` resampled to 32x32 (bilinear; black outside)."""
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(1, 2, -1) - shift[:, :, None]
    place = (matrix @ grid) * (_CANVAS / SIZE) + (_CANVAS - 1) / 2
    # One black pixel around each master, onto which everything outside is clipped.
    padded = np.pad(masters, ((0, 0), (1, 1), (1, 1)))
    place = np.clip(place + 1, 0, _CANVAS + 0.999)
    low = place.astype(np.int64)
    (wy, wx), (y, x) = (place - low).swapaxes(0, 1), low.swapaxes(0, 1)
    side = _CANVAS + 2
    flat, base = padded.reshape(-1), (which[:, None] * side + y) * side + x
    top = flat[base] * (1 - wx) + flat[base + 1] * wx
    bottom = flat[base + side] * (1 - wx) + flat[base + side + 1] * wx
    return np.asarray(top * (1 - wy) + bottom * wy, np.float32).reshape(-1, SIZE, SIZE)


def _blur(images: NDArray[np.float32], sigma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each image under its own Gaussian of ``sigma`` pixels (separable, 7 taps)."""
    taps = np.arange(-_TAPS, _TAPS + 1, dtype=np.float32)
    kernel = np.exp(-0.5 * (taps / np.maximum(sigma, 0.05)[:, None]) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    for axis in (1, 2):
        padded = np.pad(images, [(_TAPS, _TAPS) if a == axis else (0, 0) for a in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _TAPS + 1, axis=axis)
        images = np.einsum("nyxk,nk->nyx", windows, kernel, dtype=np.float32)
    return images
