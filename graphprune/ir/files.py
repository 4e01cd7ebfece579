"""Files of a model on disk: references to external data checked, artefacts written atomically, hashes.

An ONNX file may name other files that hold its tensors. Nothing in such a file is to be trusted: a reference is
followed only after its path, the file it leads to, and its bounds were checked (CVE-2022-25882, CVE-2024-27318,
CVE-2026-27489, CVE-2026-34446, CVE-2026-34447). Outputs get their names only when they are complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from graphprune.errors import InputError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "ExternalFolder",
    "atomic_files",
    "byte_count",
    "cache_folder",
    "output_folder",
    "sha256_of",
    "staging_folder",
    "tensor_nbytes",
]

_STAGING = ".graphprune-"
_UNLOCKED_SECONDS = 60.0  # between making a staging folder and locking it there may be a moment
_UNITS = {"": 1, **{f"{p}B": 1000**i for i, p in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {f"{p}IB": 1024**i for i, p in enumerate(("K", "M", "G", "T"), start=1)}


def tensor_nbytes(data_type: int, dims: Iterable[int]) -> int:
    """Bytes that a dense tensor takes when stored raw (sub-byte types are packed).

    Args:
        data_type: a value of ``onnx.TensorProto.DataType``, not STRING and not UNDEFINED.
        dims: sizes of the axes.
    """
    import onnx_ir as ir

    return (math.prod(dims) * ir.DataType(data_type).bitwidth + 7) // 8


def byte_count(text: str, what: str) -> int:
    """A size such as ``500MB``, ``2GB`` (powers of 1000), ``2GiB`` (of 1024) or a number of bytes.

    Raises:
        UsageError: it is not a size above 0; ``what`` names the option.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = _UNITS.get(found[2].upper()) if found else None
    count = int(float(found[1]) * unit) if found and unit else 0
    if count < 1:
        raise UsageError(f"{what} {text!r}: write a size such as 500MB, 2GB or 2GiB")
    return count


class ExternalFolder:
    """The folder beside a model: decides whether a tensor's reference into it may be followed."""

    def __init__(self, folder: Path) -> None:
        """Args: ``folder``, where the model file stands; every reference must stay within it."""
        self.path = Path(os.path.abspath(folder))
        self._real = os.path.realpath(self.path)
        self._sizes: dict[str, int] = {}

    def check(self, tensor: onnx.TensorProto, where: str) -> None:
        """Check one external tensor without touching a byte of its data.

        Args:
            tensor: a tensor whose ``data_location`` is EXTERNAL.
            where: how messages call it, for example ``tensor 'w'``.

        Raises:
            InputError: the path leaves the folder in any way, the file is missing, is not a regular file or has other
                hard links, or the offset and length do not fit the file or the tensor.
        """
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key in entries:
                raise InputError(f"{where}: its external data gives {entry.key!r} twice")
            entries[entry.key] = entry.value
        if tensor.data_type == tensor.STRING:
            raise InputError(f"{where} holds strings, which cannot be stored as external data")
        location = entries.get("location", "")
        size = self.file_size(location, where)
        offset = _whole(entries.get("offset", "0"), "offset", where, location)
        needed = tensor_nbytes(tensor.data_type, tensor.dims)
        length = _whole(entries.get("length", str(needed)), "length", where, location)
        if length != needed:
            raise InputError(
                f"{where}: its external data in {location!r} has length {length}, but shape "
                f"{list(tensor.dims)} of type {tensor.DataType.Name(tensor.data_type)} takes {needed} bytes"
            )
        if offset + length > size:
            raise InputError(
                f"{where}: its external data ends at byte {offset + length} of {location!r}, "
                f"which has only {size} bytes; the file may be cut short"
            )

    def file_size(self, location: str, where: str) -> int:
        """Size in bytes of the file that ``location`` names, once it is known to be safe to open."""
        if location not in self._sizes:
            self._sizes[location] = self._checked_size(location, where)
        return self._sizes[location]

    def _checked_size(self, location: str, where: str) -> int:
        data = f"{where}: its external data {location!r}"
        if not location:
            raise InputError(f"{where} is stored as external data, but no location is given")
        parts = location.replace("\\", "/").split("/")
        if location[0] in "/\\" or parts[0].endswith(":"):
            raise InputError(f"{data} is an absolute path; it must lie in the model's folder")
        if ".." in parts:
            raise InputError(f"{data} leaves the model's folder through '..'")
        if "\0" in location:
            raise InputError(f"{data} holds a null character")
        path = self.path / location
        try:
            real = os.path.realpath(path)
            if os.path.commonpath([real, self._real]) != self._real:
                raise InputError(
                    f"{data} leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
                )
            status = os.stat(real)
        except FileNotFoundError:
            raise InputError(f"{data} is missing; it must lie beside the model") from None
        except OSError as error:
            raise InputError(f"{data} cannot be reached: {_reason(error)}") from None
        if not stat.S_ISREG(status.st_mode) or not parts[-1]:  # 'w.bin/' leads to 'w.bin' here, but cannot be opened
            raise InputError(f"{data} is not a regular file")
        if status.st_nlink > 1:
            raise InputError(
                f"{data} has {status.st_nlink} hard links, so it may be another file; put a copy in its place (cp)"
            )
        if not os.access(real, os.R_OK):
            raise InputError(f"{data} may not be read: permission denied")
        return status.st_size


def _whole(text: str, key: str, where: str, location: str) -> int:
    # int() would also take '1_000', ' 7' and other scripts' digits, and refuses thousands of them in its own way.
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        shown = repr(text[:20]) + ("..." if len(text) > 20 else "")
        raise InputError(f"{where}: its external data in {location!r} has {key} {shown}, which is no number of bytes")
    return int(text)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device"
    return (error.strerror or str(error)).lower()


def cache_folder() -> Path:
    """Where what can be made again is kept between runs: ``$GRAPHPRUNE_CACHE`` or ``~/.cache/graphprune``."""
    return Path(os.environ.get("GRAPHPRUNE_CACHE") or "~/.cache/graphprune").expanduser()


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for outputs (with its parents) unless it is there, and see that files can be made in it.

    Raises:
        UsageError: it cannot be made or written, or something else has its name.
    """
    if not os.fspath(path):
        raise UsageError("the output folder has no name")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_beside(folder / "probe")
        os.close(_create(probe))
        os.unlink(probe)
    except FileExistsError:
        raise UsageError(f"cannot write into '{folder}': it is not a folder") from None
    except OSError as error:
        raise UsageError(f"cannot write into '{folder}': {_reason(error)}") from None
    return folder


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A new hidden folder within ``folder`` for the length of a block; those that dead processes left are removed.

    A living process holds a lock on its own. Where folders cannot be locked, nothing is taken for dead.
    """
    _remove_dead(folder)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    lock = _locked(staging)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_dead(folder: Path) -> None:
    for one in folder.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError):
            status = one.lstat()
            if not stat.S_ISDIR(status.st_mode) or time.time() - status.st_mtime < _UNLOCKED_SECONDS:
                continue
            lock = _locked(one)
            if lock is not None:
                shutil.rmtree(one, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if another has it or there are no such locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _temporary_beside(path: Path) -> Path:
    return path.parent / f".{secrets.token_hex(8)}.tmp"


def _create(path: Path) -> int:
    """A new file, open for writing; never an existing one and never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


@contextlib.contextmanager
def atomic_files(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Open a new file for every path; they take their names together when the block ends well, and none otherwise.

    The names are taken in the order given, so what refers to the others comes last.

    Raises:
        UsageError: a file cannot be made, written or renamed (permission, no space, no such folder).
    """
    temporaries: list[Path] = []
    files: list[BinaryIO] = []
    placed: list[Path] = []
    current = paths[0] if paths else Path()  # for the message
    try:
        for current in paths:
            if current.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(current))
            temporary = _temporary_beside(current)
            files.append(os.fdopen(_create(temporary), "wb"))
            temporaries.append(temporary)
        yield files
        for current, file in zip(paths, files, strict=True):  # noqa: B007 - the message names it
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for current, temporary in zip(paths, temporaries, strict=True):
            new = not os.path.lexists(current)
            os.replace(temporary, current)
            if new:
                placed.append(current)
        for folder in {path.parent for path in paths}:
            _sync_folder(folder)
    except BaseException as error:
        for file in files:
            with contextlib.suppress(OSError):  # what is left in the buffer may still not fit
                file.close()
        for leftover in (*temporaries, *placed):
            with contextlib.suppress(OSError):
                os.unlink(leftover)
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"cannot write '{current}': {_reason(error)}") from error
        raise


def _sync_folder(folder: Path) -> None:
    # Makes the new names durable. Not every system lets a folder be opened; the files themselves are synced.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: str | os.PathLike[str], locations: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of a model file and of its external data files, read in pieces.

    Args:
        path: the model file.
        locations: its data files, relative to its folder: ``external_locations(model)``.

    Returns:
        file name (relative to the model's folder) -> hexadecimal digest; the model first.

    Raises:
        InputError: a file cannot be read, or leaves the folder.
    """
    source = Path(path)
    folder = ExternalFolder(source.parent)
    for location in locations:
        folder.file_size(location, f"'{source}'")
    digests: dict[str, str] = {}
    for name in (source.name, *locations):
        try:
            with open(folder.path / name, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"cannot read '{folder.path / name}': {_reason(error)}") from None
    return digests
