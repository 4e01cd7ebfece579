"""Calibration data: arrays in files, images, or what a Python function yields."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.errors import GraphpruneError, InputError, Terminated, UsageError
from graphprune.frontends.modules import first_line, is_reference, named
from graphprune.ir.observe import random_feeds
from graphprune.ir.program import Array, Program, inputs_of

__all__ = ["Preprocessing", "Samples", "is_noise", "read_samples"]

_log = logging.getLogger(__name__)
Feeds = Mapping[str, Array]
_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_HOW = "--calib-images (finetune: --data-images) says how the images in a folder are read"
_WORD = "none"  # noise instead of data
_NOISE = 256  # samples of it
_MOST = 4096  # samples of a generator, which may have no end
_SPATIAL = 8  # least size of an axis that has a spectrum
_BATCH = 16  # samples of a run at most, where the batch may be chosen
_RUNS = 20  # at least, where there are so many samples: every fifth is kept out of the fits that choose a ridge
_SAME = 1e-3  # of the largest output, between samples run together and apart


@dataclass(frozen=True)
class Preprocessing:
    """How images become an input ``N x C x H x W``: resized to H x W, divided by 255, mean and std of each channel.

    Args:
        mean, std: per channel, of the range 0 to 1; one number for all, or one per channel.
        channels: ``rgb``, ``bgr`` or ``gray``.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: str = "rgb"

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """``mean=0.5:0.5:0.5,std=0.5,channels=bgr``; what is left out is ImageNet's. Raises UsageError."""
        found: dict[str, Any] = {}
        for part in text.split(","):
            key, _, value = part.strip().partition("=")
            try:
                if key in ("mean", "std"):
                    found[key] = tuple(float(one) for one in value.split(":"))
                elif key == "channels" and value in ("rgb", "bgr", "gray"):
                    found[key] = value
                else:
                    raise ValueError
            except ValueError:
                raise UsageError(
                    f"--calib-images {part!r}: write mean=M[:M:M], std=S[:S:S] and channels=rgb|bgr|gray, separated by "
                    "commas, for example mean=0.5,std=0.5,channels=bgr"
                ) from None
        if any(one == 0 for one in found.get("std", ())):
            raise UsageError("--calib-images: a std of 0 cannot be divided by")
        return cls(**found)

    def array(self, path: Path, shape: tuple[int, ...]) -> Array:
        """One image as ``(1, C, H, W)``, float32."""
        try:
            from PIL import Image
        except ModuleNotFoundError as error:
            raise InputError("images are read with Pillow, which is not installed: pip install pillow") from error
        _, count, height, width = shape
        try:
            with Image.open(path) as image:
                plain = image.convert("L" if self.channels == "gray" else "RGB").resize((width, height))
                pixels = np.asarray(plain, dtype=np.float32) / 255
        except OSError as error:
            raise InputError(f"'{path}' is not an image that can be read: {first_line(error)}") from error
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        if pixels.shape[2] != count:
            raise UsageError(
                f"the input takes {count} channels, images are read as {self.channels}; see --calib-images"
            )
        if any(len(given) not in (1, count) for given in (self.mean, self.std) if self.channels != "gray"):
            raise UsageError(f"--calib-images: mean and std have one number, or one for each of the {count} channels")
        one = self.channels == "gray"
        mean, std = (np.asarray(v if len(v) == count or not one else v[:1], np.float32) for v in (self.mean, self.std))
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None]).astype(np.float32)


@dataclass(frozen=True)
class Samples:
    """``feeds``: the inputs of each run. ``source``: what they were read from, for messages and the manifest."""

    feeds: tuple[Feeds, ...] = field(repr=False)
    source: str

    @property
    def count(self) -> int:
        """How many runs."""
        return len(self.feeds)

    def digest(self) -> str:
        """SHA-256 over names, shapes and contents."""
        found = hashlib.sha256()
        for feeds in self.feeds:
            for name in sorted(feeds):
                array = np.ascontiguousarray(feeds[name])
                found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
                found.update(array.tobytes())
        return found.hexdigest()

    def batched(self, program: Program) -> Samples:
        """Neighbours of one shape in one run, where the network takes any batch: the same samples in fewer runs."""
        names = [value.name or "" for value in inputs_of(program.model)]
        if not names or not all(0 in program.moving.get(name, ()) for name in names):
            return self
        largest = min(_BATCH, sum(len(one[names[0]]) for one in self.feeds) // _RUNS)
        if largest < 2 or not self._independent(program, names):
            return self
        runs: list[list[Feeds]] = []
        sizes: list[int] = []
        for one in self.feeds:
            count = max(len(one[name]) for name in names)
            alike = runs and all(runs[-1][0][name].shape[1:] == one[name].shape[1:] for name in names)
            if alike and sizes[-1] + count <= largest:
                runs[-1].append(one)
                sizes[-1] += count
            else:
                runs.append([one])
                sizes.append(count)
        joined = [{name: np.concatenate([one[name] for one in run]) for name in names} for run in runs]
        return Samples(tuple(joined), self.source)

    def _independent(self, program: Program, names: list[str]) -> bool:
        """Whether two samples give together what they give apart: the first axis is a batch, not time."""
        first = self.feeds[0]
        second = next(
            (one for one in self.feeds[1:] if all(one[n].shape[1:] == first[n].shape[1:] for n in names)), None
        )
        if second is None or program.run is None:
            return False
        together = program.run(program.model, {name: np.concatenate([first[name], second[name]]) for name in names})
        apart = [program.run(program.model, one) for one in (first, second)]
        for name, whole in together.items():
            parts = [one[name] for one in apart]
            if not whole.ndim or len(whole) != sum(len(one) for one in parts if one.ndim):
                return False
            joined = np.concatenate(parts)
            if whole.shape != joined.shape:
                return False
            if np.issubdtype(whole.dtype, np.floating):
                reach = max(float(np.abs(joined).max(initial=0.0)), 1e-30)
                if not np.allclose(whole, joined, rtol=0.0, atol=_SAME * reach, equal_nan=True):
                    return False
        return True

    def split(self, every: int = 8) -> tuple[Samples, Samples]:
        """All but every n-th, and every n-th: to calibrate on, and to look at afterwards."""
        held = tuple(one for i, one in enumerate(self.feeds) if i % every == every - 1)
        rest = tuple(one for i, one in enumerate(self.feeds) if i % every != every - 1)
        return Samples(rest, self.source), Samples(held, self.source)


def is_noise(source: Any) -> bool:
    """Whether noise is asked for instead of data."""
    return isinstance(source, str) and source == _WORD


def read_samples(
    source: Any, program: Program, *, limit: int | None = None, images: Preprocessing | None = None
) -> Samples:
    """Calibration data for a network.

    Args:
        source: an ``.npz`` file (one array per input, samples on the first axis; or one array of any name where there
            is one input); a folder of such files, of ``.npy`` files (one run each) or of images;
            ``module:function`` or ``file.py:function`` that yields dictionaries of arrays (or arrays, or tuples
            ``(inputs, label)``), of which the first 4096 are used where ``limit`` says no other number; a sequence
            of them, a ``DataLoader`` for instance; a dictionary of arrays as in an ``.npz`` file; or ``none``: noise,
            where there are no data.
        program: the network that they are for.
        limit: at most so many runs (samples, where the network takes one at a time).
        images: how images are read.

    Raises:
        InputError: it cannot be read, or does not fit the network's inputs. UsageError: there is no such thing.
    """
    if is_noise(source):
        return Samples(tuple(_noise(program, limit or _NOISE)), "noise")
    if isinstance(source, (str, Path)):
        text = str(source)
        if not text.strip():
            raise InputError("--calib is empty; give an .npz file, a folder or module:function, or 'none' for noise")
        if isinstance(source, str) and is_reference(text):
            made: Iterable[Any] = _yielded(text)
        elif Path(text).is_dir():
            made = _folder(Path(text), program, images)
        elif Path(text).is_file():
            made = _file(Path(text), program)
        else:
            raise InputError(f"there is no '{text}' to calibrate on; give an .npz file, a folder or module:function")
    elif isinstance(source, Mapping):
        arrays = {str(name): _plain(one) for name, one in source.items()}
        text = "arrays in memory"
        missing = [name for name in _inputs(program) if name not in arrays]
        if missing:
            raise InputError(f"{text}: {', '.join(arrays) or 'none'}; the network takes {_wanted(program)}")
        made = _batches({name: arrays[name] for name in _inputs(program)}, program, text)
    else:
        made, text = source, "samples in memory"
    if images is not None and not (isinstance(source, (str, Path)) and Path(text).is_dir()):
        raise UsageError(f"{_HOW}; '{text}' is none")
    found: list[Feeds] = []
    iterator = iter(made)
    of_files = isinstance(source, (str, Path)) and not is_reference(str(source))
    most = _MOST if limit is None and isinstance(made, Iterator) and not of_files else limit
    while most is None or len(found) < most:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                one = next(iterator)
        except StopIteration:
            break
        except (GraphpruneError, Terminated):
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"'{text}' raised {first_line(error)}") from error
        found.append(_checked(one, program, f"sample {len(found)} of '{text}'"))
    if limit is None and len(found) == most:
        _log.warning("'%s': the first %d samples are used; --calib-samples says how many", text, most)
    if not found:
        raise InputError(f"'{text}' holds no samples to calibrate on")
    return Samples(tuple(found), text)


def _noise(program: Program, count: int) -> Iterator[Feeds]:
    """Inputs of mean 0 and deviation 1: on large axes in turn white and as smooth as pictures are (spectra 1, 1/f and
    1/f^2); whole numbers and flags as the observation draws them.
    """
    for i in range(count):
        feeds = dict(random_feeds(program, i))
        for name, array in feeds.items():
            axes = tuple(k for k, n in enumerate(array.shape) if k > 1 and n >= _SPATIAL)
            if array.dtype.kind != "f" or not axes:
                continue
            rng = np.random.default_rng((i, zlib.crc32(name.encode())))
            spectrum = np.fft.fftn(rng.standard_normal(array.shape), axes=axes)
            squares = np.zeros(array.shape)
            for k in axes:
                shape = [1] * array.ndim
                shape[k] = array.shape[k]
                squares = squares + (np.fft.fftfreq(array.shape[k]) * array.shape[k]).reshape(shape) ** 2
            smooth = np.fft.ifftn(spectrum / np.maximum(np.sqrt(squares), 1) ** (i % 3), axes=axes).real
            feeds[name] = ((smooth - smooth.mean()) / max(float(smooth.std()), 1e-6)).astype(array.dtype)
        yield feeds


def _yielded(text: str) -> Iterable[Any]:
    found = named(text)
    if not callable(found) and isinstance(found, Iterable) and not isinstance(found, (str, Mapping)):
        return list(found)
    if not callable(found):
        raise InputError(f"'{text}' is a {type(found).__name__}; it must yield dictionaries of arrays")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            made = found()
    except (GraphpruneError, Terminated):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"'{text}' raised {first_line(error)}") from error
    if isinstance(made, Mapping) or not isinstance(made, Iterable):
        raise InputError(f"'{text}' returned a {type(made).__name__}; it must yield dictionaries of arrays")
    return made


def _folder(folder: Path, program: Program, images: Preprocessing | None) -> Iterator[Any]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".npy", ".npz", *_IMAGES))
    if not files:
        raise InputError(f"the folder '{folder}' holds no .npy, .npz or image files")
    pictures = [path for path in files if path.suffix.lower() in _IMAGES]
    if images is not None and not pictures:
        raise UsageError(f"{_HOW}; '{folder}' holds none")
    for path in files:
        if path.suffix.lower() not in _IMAGES:
            yield from _file(path, program)
    if pictures:
        yield from _pictures(pictures, program, images or Preprocessing(), str(folder))


def _pictures(paths: Sequence[Path], program: Program, images: Preprocessing, where: str) -> Iterator[Feeds]:
    (name, value), *more = _inputs(program).items()
    shape = program.shapes[name]
    if more or len(shape) != 4 or value.dtype is None or not value.dtype.is_floating_point():
        raise InputError(
            f"images serve a network with one float input N x C x H x W; this one takes {_wanted(program)}"
        )
    for run in _runs(len(paths), 1 if 0 in program.moving.get(name, ()) else shape[0], where):
        yield {name: np.concatenate([images.array(path, shape) for path in paths[run]])}


def _file(path: Path, program: Program) -> Iterator[Any]:
    try:
        held = np.load(path, allow_pickle=False)
    except ValueError as error:  # numpy would have the user allow pickles
        raise InputError(f"'{path}' holds no plain numpy arrays") from error
    except (OSError, EOFError) as error:
        raise InputError(f"'{path}' cannot be read as numpy arrays: {first_line(error)}") from error
    if isinstance(held, np.ndarray):
        yield _one_run(held, program)
        return
    inputs = _inputs(program)
    with held:
        names = {name: name for name in inputs if name in held.files}
        if not names and len(inputs) == 1 and len(held.files) == 1:
            names = {next(iter(inputs)): held.files[0]}
        missing = [name for name in inputs if name not in names]
        if missing:
            raise InputError(
                f"'{path}' has the arrays {', '.join(held.files) or 'none'}; the network takes {_wanted(program)}"
            )
        arrays = {name: held[key] for name, key in names.items()}
    yield from _batches(arrays, program, str(path))


def _one_run(array: Array, program: Program) -> Any:
    inputs = _inputs(program)
    if len(inputs) != 1:
        raise InputError(f"an .npy file holds one input; the network takes {_wanted(program)}; use .npz files")
    shape = program.shapes[next(iter(inputs))]
    return array[None] if array.ndim == len(shape) - 1 else array


def _batches(arrays: Mapping[str, Array], program: Program, where: str) -> Iterator[Feeds]:
    """Runs of as many samples as the network takes at a time."""
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1:
        raise InputError(f"'{where}': the arrays hold {sorted(counts)} samples; they must hold equally many")
    count = counts.pop()
    free = all(0 in program.moving.get(name, ()) for name in arrays)
    sizes = {program.shapes[name][0] for name in arrays if program.shapes[name]}
    step = 1 if free or len(sizes) != 1 else sizes.pop()  # single ones are joined when they are run
    for run in _runs(count, step, where):
        yield {name: array[run] for name, array in arrays.items()}


def _runs(count: int, step: int, where: str) -> Iterator[slice]:
    """Samples of each run, where the network takes so many at a time."""
    if 0 < count < step:
        raise InputError(f"'{where}' holds {count} samples, and the network takes {step} at a time")
    if count % step:
        _log.warning("'%s': %d samples are left over, the network takes %d at a time", where, count % step, step)
    for at in range(0, count - step + 1, step):
        yield slice(at, at + step)


def _inputs(program: Program) -> dict[str, ir.Value]:
    return {value.name: value for value in inputs_of(program.model) if value.name}


def _wanted(program: Program) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, program.shapes[name]))}" for name in _inputs(program))


def _without_labels(sample: Any, ranks: Sequence[int]) -> Any:
    """The inputs of a sample: of a pair the first part, and of the list that a DataLoader makes of several tensors the
    first where it has the rank of the network's only input; nothing here needs labels.
    """
    if not isinstance(sample, (tuple, list)) or not sample:
        return sample
    pair = isinstance(sample, tuple) and len(sample) == 2
    tensors = all(hasattr(one, "shape") for one in sample)
    return sample[0] if pair or (tensors and [len(sample[0].shape)] == list(ranks)) else sample


def _plain(given: Any) -> Array:
    """An array of what is an array, a tensor (on any device, with or without a gradient) or nested numbers."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    return np.asarray(given)


def _checked(sample: Any, program: Program, where: str) -> Feeds:
    inputs = _inputs(program)
    sample = _without_labels(sample, [len(program.shapes[name]) for name in inputs])
    if not isinstance(sample, Mapping):
        if len(inputs) != 1:
            raise InputError(f"{where} is a {type(sample).__name__}; the network takes {_wanted(program)} by name")
        sample = {next(iter(inputs)): sample}
    feeds: dict[str, Array] = {}
    for name, value in inputs.items():
        if name not in sample:
            raise InputError(
                f"{where} has {', '.join(map(str, sample)) or 'nothing'}; the network takes {_wanted(program)}"
            )
        try:
            array = _plain(sample[name])
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{where}: input '{name}' is no array: {first_line(error)}") from error
        shape = program.shapes[name]
        if array.ndim == len(shape) - 1 and shape[0] == 1:
            array = array[None]
        moving = program.moving.get(name, frozenset())
        fits = array.ndim == len(shape) and all(
            have == want or i in moving for i, (have, want) in enumerate(zip(array.shape, shape, strict=True))
        )
        if not fits:
            raise InputError(
                f"{where}: input '{name}' has the shape {'x'.join(map(str, array.shape))}, the network takes "
                f"{'x'.join('?' if i in moving else str(n) for i, n in enumerate(shape))}"
            )
        dtype = value.dtype.numpy() if value.dtype is not None else array.dtype
        whole = dtype.kind not in "iu" or array.dtype.kind != "f" or bool(np.all(array == np.rint(array)))
        if (array.dtype.kind not in "biuf" and array.dtype != dtype) or not whole:
            fractions = "" if whole else " and holds fractions"
            raise InputError(
                f"{where}: input '{name}' is of the type {array.dtype}{fractions}, the network takes {dtype}"
            )
        feeds[name] = np.ascontiguousarray(array.astype(dtype, copy=False))
    return feeds
