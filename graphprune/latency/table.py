"""Latency tables: what was measured of layers on one device, kept on disk; see ``docs/latency-tables.md``.

A table is valid for one fingerprint: device, backend and version, threads, precision. It is keyed by layer signatures,
so networks that share layers share their measurements, and a table that was made on the device serves elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.backends.base import get_backend
from graphprune.errors import InputError, UsageError
from graphprune.ir.files import atomic_files, cache_folder
from graphprune.latency.curves import Points
from graphprune.latency.layers import Layer

if TYPE_CHECKING:
    from graphprune.backends.base import BackendOptions
    from graphprune.latency.profile import ProfileOptions

_log = logging.getLogger(__name__)

__all__ = ["LatencyTable", "cache_file", "elsewhere", "read_cached", "read_table", "write_cached", "write_table"]

FORMAT = "graphprune latency table 1"
_DEVICE = ("device", "architecture", "isa", "os")  # keys of a fingerprint that say which machine it is of
_NEEDED = ("backend", "version", "device", "threads")
_FEWEST = 12  # points below which a layer counts as not known: as many as grains and coefficients need
_MOST = 512  # points kept per signature, the newest


@dataclass(frozen=True)
class LatencyTable:
    """``points`` by layer signature; ``layers`` says in words what each signature is."""

    fingerprint: Mapping[str, Any]
    points: Mapping[str, Points] = field(repr=False)
    layers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, fingerprint: Mapping[str, Any]) -> LatencyTable:
        """A table without measurements."""
        return cls(fingerprint, {})

    def with_points(self, layers: Sequence[Layer], points: Mapping[str, Points]) -> LatencyTable:
        """The table with more points; the oldest of a signature go where there are too many."""
        joined = dict(self.points)
        for key, found in points.items():
            both = joined[key] + found if key in joined else found
            # Rounded as they are stored, so that curves from what was just measured are those of the next time.
            joined[key] = Points(both.widths[-_MOST:], both.ns[-_MOST:].round(1))
        words = {layer.signature: ", ".join(dict.fromkeys(layer.operators)) for layer in layers}
        return LatencyTable(self.fingerprint, joined, {**self.layers, **words})

    def covers(self, layers: Sequence[Layer]) -> bool:
        """Whether every layer was measured often enough."""
        return not self._missing(layers)

    def require(self, layers: Sequence[Layer]) -> None:
        """Raises UsageError, with the first few, if a layer was not measured often enough."""
        if missing := self._missing(layers):
            names = ", ".join(f"'{one.name}'" for one in missing[:3])
            raise UsageError(
                f"the latency table does not know {len(missing)} of {len(layers)} layers ({names}); make one for this "
                "network on the device with `graphprune profile`"
            )

    def _missing(self, layers: Sequence[Layer]) -> list[Layer]:
        return [
            one
            for one in layers
            if one.signature not in self.points
            or self.points[one.signature].widths.shape[0] < _FEWEST
            or self.points[one.signature].widths.shape[1] != len(one.groups)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data; see ``docs/latency-tables.md``."""
        return {
            "format": FORMAT,
            "fingerprint": dict(self.fingerprint),
            "layers": {
                key: {
                    "operators": self.layers.get(key, ""),
                    "widths": points.widths.tolist(),
                    "ns": points.ns.tolist(),
                }
                for key, points in sorted(self.points.items())
            },
        }


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        InputError: it cannot be read, or is no table.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise InputError(f"'{path}' has the format {document['format']!r}; this version reads {FORMAT!r}")
        points, words = {}, {}
        for key, row in document["layers"].items():
            ns = np.array(row["ns"], dtype=np.float64)
            widths = np.array(row["widths"], dtype=np.float64)
            fits = ns.ndim == 1 and widths.ndim == 2 and len(widths) == len(ns)
            if not (fits and np.isfinite(ns).all() and np.isfinite(widths).all() and (ns >= 0).all()):
                raise InputError(
                    f"'{path}': the times of layer {key} are no list of numbers of at least 0 with as many rows of "
                    "widths"
                )
            points[str(key)], words[str(key)] = Points(widths, ns), str(row["operators"])
        fingerprint = dict(document["fingerprint"])
        if missing := [key for key in _NEEDED if key not in fingerprint]:
            raise InputError(f"'{path}': the fingerprint of the latency table does not say its {', '.join(missing)}")
        return LatencyTable(fingerprint, points, words)
    except OSError as error:
        raise InputError(f"cannot read the latency table '{path}': {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"'{path}' is no latency table; `graphprune profile MODEL -o FILE` writes one") from error


def write_table(table: LatencyTable, path: Path) -> None:
    """Write a table, whole or not at all."""
    with atomic_files(path) as (file,):
        file.write((json.dumps(table.to_json()) + "\n").encode())


def elsewhere(table: LatencyTable, backend: str, options: BackendOptions) -> str:
    """The device that a table was made on, where that is not the one that ``backend`` has here; else empty."""
    here = get_backend(backend).fingerprint(options.for_curves())
    there = table.fingerprint
    return str(there["device"]) if any(key in there and there[key] != here.get(key) for key in _DEVICE) else ""


def cache_file(fingerprint: Mapping[str, Any]) -> Path:
    """Where the table of a device is kept: ``$GRAPHPRUNE_CACHE`` or ``~/.cache/graphprune``, by its fingerprint."""
    key = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "latency" / f"{key}.json"


def read_cached(options: ProfileOptions) -> LatencyTable | None:
    """The table of this device and these options, or None; what cannot be read is measured anew."""
    path = cache_file(get_backend(options.backend).fingerprint(options.backend_options.for_curves()))
    try:
        return read_table(path) if path.is_file() else None
    except InputError as error:
        _log.warning("%s; the layers are measured anew", error)
        return None


def write_cached(table: LatencyTable) -> None:
    """Keep a table for the next time; a folder that cannot be written is no error."""
    path = cache_file(table.fingerprint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, path)
    except OSError:
        return
