"""Files of this Python's installation by their first and last bytes, for the classifier of the package ``magika``.

Its features are 1024 bytes from the beginning and 1024 from the end of a file, without blanks at the ends; 256 stands
for what is beyond. Files are taken by their endings, 60 of each at most, and split by a hash of their contents; which
files there are depends on what is installed.

    >>> from models_zoo import file_bytes
    >>> file_bytes.names()[run({"bytes": file_bytes.read(path)[None]})["target_label"].argmax()]    # doctest: +SKIP
"""

from __future__ import annotations

import json
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_zoo import files
from models_zoo.text_lines import Split

__all__ = ["KINDS", "calibration", "classes", "evaluate", "known", "model", "names", "read"]

Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
#: ending -> what magika calls such files
KINDS: Mapping[str, tuple[str, ...]] = {
    ".py": ("python",), ".pyi": ("python",), ".pyc": ("pythonbytecode",), ".so": ("elf",), ".json": ("json",),
    ".h": ("c", "cpp"), ".c": ("c",), ".cpp": ("cpp",), ".hpp": ("cpp",), ".html": ("html",), ".css": ("css",),
    ".js": ("javascript",), ".png": ("png",), ".svg": ("svg",), ".npy": ("npy",), ".npz": ("npz",), ".gz": ("gzip",),
    ".csv": ("csv",), ".toml": ("toml",), ".yaml": ("yaml",), ".md": ("markdown",), ".rst": ("rst",),
    ".ttf": ("ttf",), ".pem": ("pem",), ".sh": ("shell",), ".pdf": ("pdf",), ".xml": ("xml",), ".bat": ("batch",),
}  # fmt: skip
_EACH, _LOOKED = 60, 300  # files of an ending: taken, by the hash of their contents, and read for that
_BLOCK, _ENDS, _BEYOND = 4096, 1024, 256
_LEAST = 64  # bytes of a file


def model() -> Path:
    """The file. Raises UsageError if its package is missing."""
    return files.packaged("magika")[0]


def names() -> list[str]:
    """The classes in their order."""
    config = json.loads((model().parent / "config.min.json").read_text())
    return list(config["target_labels_space"])


def read(path: Path) -> NDArray[np.int32]:
    """The features of a file, ``(2048,)``."""
    with path.open("rb") as file:
        first = file.read(_BLOCK)
        size = file.seek(0, 2)
        file.seek(max(0, size - _BLOCK))
        last = file.read()
    first, last = (first.strip(),) * 2 if size <= _BLOCK else (first.lstrip(), last.rstrip())
    found = np.full(2 * _ENDS, _BEYOND, np.int32)
    head, tail = first[:_ENDS], last[-_ENDS:]
    found[: len(head)] = list(head)
    found[2 * _ENDS - len(tail) :] = list(tail)
    return found


@lru_cache(maxsize=2)
def known(split: Split) -> tuple[tuple[NDArray[np.int32], tuple[str, ...]], ...]:
    """Features and right names of the files of a split, in an order that says nothing of the kind."""
    several: dict[str, dict[int, NDArray[np.int32]]] = defaultdict(dict)
    for folder in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(folder)).rglob("*")):
            kept = path.suffix in KINDS and len(several[path.suffix]) < _LOOKED
            if kept and path.is_file() and path.stat().st_size >= _LEAST:
                features = read(path)
                several[path.suffix].setdefault(zlib.crc32(features.tobytes()), features)
    found = [
        (digest, held[digest], KINDS[ending])
        for ending, held in several.items()
        for digest in sorted(held)[:_EACH]
        if (digest % 2 == 0) == (split == "test")
    ]
    found.sort(key=lambda one: zlib.crc32(str(one[0]).encode()))
    return tuple((features, kinds) for _, features, kinds in found)


def calibration(count: int = 256, seed: int = 0) -> Iterator[dict[str, NDArray[np.int32]]]:
    """Files without their kinds, for ``--calib models_zoo.file_bytes:calibration``."""
    every = known("calibration")
    for k in np.random.default_rng(seed).permutation(len(every))[:count]:
        yield {"bytes": every[k][0][None]}


def classes(run: Run) -> NDArray[np.int64]:
    """What a network takes each test file for."""
    features = np.stack([one for one, _ in known("test")])
    parts = [next(iter(run({"bytes": features[at : at + 32]}).values())) for at in range(0, len(features), 32)]
    return np.concatenate(parts).argmax(axis=1)


def evaluate(run: Run) -> dict[str, NDArray[np.float64]]:
    """Test files named right, for ``--eval models_zoo.file_bytes:evaluate``."""
    every = names()
    right = [every[k] in kinds for k, (_, kinds) in zip(classes(run), known("test"), strict=True)]
    return {"right": np.array(right, dtype=np.float64)}
