"""What ``graphprune bench`` found, as data: JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.latency.results import Comparison, Measurement

__all__ = ["Bench", "write_csv"]


@dataclass(frozen=True)
class Bench:
    """Networks timed in turn on one backend.

    Attributes:
        backend: Its name.
        models: The networks, as they were named.
        measured: The times of each.
        ratios: Those of every network but the first to the first.
        batch: The batch asked for, if one was.
        percentiles: The percentiles asked for; empty where the usual ones do.
    """

    backend: str
    models: tuple[str, ...]
    measured: tuple[Measurement, ...]
    ratios: tuple[Comparison, ...]
    batch: int | None = None
    percentiles: tuple[float, ...] = ()

    def to_json(self) -> list[dict[str, Any]]:
        """An entry per network: its times, warnings, and its ratio to the first."""
        rows = []
        for model, one, ratio in zip(self.models, self.measured, (None, *self.ratios), strict=True):
            to_first = None
            if ratio is not None:
                to_first = {
                    "to": self.models[0],
                    "value": ratio.ratio,
                    "low": ratio.ratio_low,
                    "high": ratio.ratio_high,
                    "blocks": ratio.blocks,
                }
            rows.append(
                {
                    "backend": self.backend,
                    "model": model,
                    "batch": self.batch,
                    **one.to_json(),
                    "ratio": to_first,
                    "warnings": [*one.warnings(), *one.noise.warnings()],
                }
            )
        return rows


def write_csv(found: Sequence[Bench], path: Path) -> None:
    """A line per backend and network; times in milliseconds, empty cells where there is nothing to say.

    Raises:
        OSError: the file cannot be written.
    """
    levels = sorted(
        {key for one in found for each in one.measured for key in each.percentiles_ms}, key=lambda key: float(key[1:])
    )
    rows = []
    for one in found:
        for entry in one.to_json():
            print_, ratio = entry["fingerprint"], entry["ratio"] or {}
            rows.append(
                {
                    "backend": one.backend,
                    "version": print_["version"],
                    "device": print_["device"],
                    "providers": "+".join(print_["providers"]),
                    "threads": print_["threads"],
                    "batch": one.batch,
                    "model": entry["model"],
                    "median_ms": entry["median_ms"],
                    "median_low_ms": entry["interval_ms"][0],
                    "median_high_ms": entry["interval_ms"][1],
                    "mean_ms": entry["mean_ms"],
                    "min_ms": entry["min_ms"],
                    "max_ms": entry["max_ms"],
                    **{f"{level}_ms": entry["percentiles_ms"].get(level) for level in levels},
                    "cov": entry["cov"],
                    "inferences_per_s": entry["throughput_per_s"],
                    "samples": entry["iterations"],
                    "runs_per_sample": entry["repeats"],
                    "ratio": ratio.get("value"),
                    "ratio_low": ratio.get("low"),
                    "ratio_high": ratio.get("high"),
                    "confidence": entry["confidence"],
                    "warnings": "; ".join(entry["warnings"]),
                }
            )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
