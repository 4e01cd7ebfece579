"""The accuracy page: from the rows of a run (see ``benchmarks.accuracy``) to ``docs/accuracy.md``."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.common import markdown_table

__all__ = ["Figure", "document", "figure"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
_OURS = ("obs", "refit")
_REPAIRS = ("none", "bias", "refit")


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval and the number of seeds it is of."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        # A log-likelihood is a number of nats, all others are shares.
        return f"{self.mean:.3f} ± {half:.3f}" if self.mean < 0 else f"{self.mean:.1%} ± {half:.1%}".replace("%", "")


def figure(rows: Rows, metric: str | None = None) -> Figure | None:
    """A metric (default: the main one) of one cell's rows, one per seed.

    Of several seeds the mean with Student's t interval over the seeds; of one the bootstrap over the test samples.
    """
    good = [row["metrics"] for row in rows if "metrics" in row]
    if not good or len(good) < len(rows):
        return None
    found = [one[metric or next(iter(one))] for one in good]
    if len(found) == 1:
        return Figure(found[0]["mean"], found[0]["low"], found[0]["high"], 1)
    from scipy.stats import t

    means = [one["mean"] for one in found]
    n, mean = len(means), sum(means) / len(means)
    spread = math.sqrt(sum((one - mean) ** 2 for one in means) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return Figure(mean, mean - half, mean + half, n)


def _by_cell(rows: Rows) -> dict[tuple[str, str, str, int], list[Row]]:
    """Rows of one network by (method, repair, target, samples)."""
    found: dict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["method"], row["repair"], row["target"], row["samples"]].append(row)
    return found


def _said(rows: Rows, metric: str | None = None) -> str:
    if not rows:
        return ""
    found = figure(rows, metric)
    return "failed" if found is None else str(found)


def _share(rows: Rows) -> str:
    """The share of the MACs that a peer's search ended at: its steps are coarse."""
    return f" at {sum(row['macs'] for row in rows) / len(rows):.3f}" if rows else ""


def _plain(error: str) -> str:
    return error.replace("|", "/")[:100]


def _is_peer(method: str) -> bool:
    return method.startswith(("torch-pruning", "onnxsim"))


def _order(targets: Iterable[str]) -> list[str]:
    """By kind, then from the mildest down."""
    return sorted(set(targets), key=lambda one: (one.rpartition(" ")[0], -float(one.rpartition(" ")[2].rstrip("x"))))


_LOAD = re.compile(r"\d+ cores?, load average [\d.]+; ")  # of the moment


def document(rows: list[dict[str, Any]]) -> str:
    """``docs/accuracy.md``."""
    networks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        networks[row["network"]].append(row)
    parts = [
        "# Accuracy without retraining\n",
        "Made by `python -m benchmarks.accuracy`; see there what a cell is. Nothing was trained after a cut.\n",
        "Figures are the network's main metric with a 95 % interval: Student's t over three seeds (which draw the "
        "calibration samples), or, of one seed and where nothing is drawn, the bootstrap over the test samples. Shares "
        "in percent; the language models' log-likelihood in nats per character (the loss with its sign turned). "
        "*0 samples*: statistics are made without data.\n",
        _summary(networks),
        _equal_latency(networks),
    ]
    for name, own in networks.items():
        parts += [f"\n## {name}\n", *_network(own)]
    parts += ["\n## Costs\n", _costs(networks)]
    machines = {_LOAD.sub("", row["machine"]) for row in rows if "machine" in row}
    parts += ["\n## Machines\n", *(f"- {one}" for one in sorted(machines))]
    return "\n".join(parts) + "\n"


def _network(rows: list[dict[str, Any]]) -> list[str]:
    cells = _by_cell(rows)
    dense = next((row for row in rows if row["method"] == "dense"), None)
    parts = []
    if dense is not None:
        known = ", ".join(f"{name} {_said([dense], name)}" for name in dense["metrics"])
        count = next(iter(dense["metrics"].values()))["n"]
        parts.append(f"The whole network: {known} ({count} test samples).\n")
    counted = _order(key[2] for key in cells if not key[2].startswith("latency") and key[0] != "dense")
    methods = list(dict.fromkeys(key[0] for key in cells if key[0] != "dense" and not _is_peer(key[0])))
    for target in counted:
        body = []
        for method in methods:
            line = [_said(_most(cells, method, repair, target)) for repair in _REPAIRS]
            if any(line):
                body.append([method, *line])
        for peer in dict.fromkeys(key[0] for key in cells if _is_peer(key[0]) and key[2] == target):
            found = _most(cells, peer, "none", target)
            why = next((row["error"] for row in found if "error" in row), "")
            body.append([peer, _said(found) + _share(found) if not why else f"failed: {_plain(why)}", "", ""])
        parts.append(f"**{target}**\n\n" + markdown_table(["method", "no repair", "bias", "refit"], body))
    parts += _samples(cells)
    latency = _order(key[2] for key in cells if key[2].startswith("latency"))
    if latency:
        body = []
        for key, held in cells.items():
            if key[2] in latency and figure(held) is not None:
                ratios = [row["latency"] for row in held]
                ratio = sum(one["ratio"] for one in ratios) / len(ratios)
                names = list(held[0]["metrics"])
                more = ", ".join(f"{name} {_said(held, name)}" for name in names[1:])
                worst = max(one["high"] for one in ratios)
                body.append([key[2], key[0], key[1], f"{ratio:.3f} (≤ {worst:.3f})", _said(held), more])
        body.sort(key=lambda line: (-float(line[0].split()[1].rstrip("x")), line[1]))
        columns = ["target", "method", "repair", "measured (upper end)", "", "also"]
        parts.append("**Measured latency**\n\n" + markdown_table(columns, body))
    return parts


def _most(cells: Mapping[tuple[str, str, str, int], list[Row]], method: str, repair: str, target: str) -> list[Row]:
    """The rows of a method with the usual number of calibration samples, or with none where it needs none."""
    for key, held in cells.items():
        if key[:3] == (method, repair, target) and held[0]["suite"] != "samples":
            return held
    return []


def _samples(cells: Mapping[tuple[str, str, str, int], list[Row]]) -> list[str]:
    counts = sorted({key[3] for key in cells})
    lines = {}
    for method, repair, target, samples in cells:
        several = [n for n in counts if (method, repair, target, n) in cells]
        if samples > 0 and len(several) > 1:
            name = f"{method}, {repair}"
            lines[name, target] = [name, target, *(_said(cells.get((method, repair, target, n), [])) for n in counts)]
    if not lines:
        return []
    columns = ["method, repair", "target", *(f"{n} samples" for n in counts)]
    return ["**Calibration samples**\n\n" + markdown_table(columns, list(lines.values()))]


def _summary(networks: Mapping[str, list[dict[str, Any]]]) -> str:
    """Centred OBS with its refit against the best peer and against the published order, cell by cell."""
    body, ahead, cells_with_peers = [], 0, 0
    ladder = (("magnitude", "none"), ("fluctuation", "bias"), ("obs uncentred", "refit"), _OURS)
    ordered = apart = laddered = 0
    for name, rows in networks.items():
        cells = _by_cell(rows)
        for target in _order(key[2] for key in cells if not key[2].startswith("latency") and key[0] != "dense"):
            ours = figure(_most(cells, *_OURS, target))
            peers = {
                key[0]: found
                for key, held in cells.items()
                if _is_peer(key[0]) and key[2] == target and (found := figure(held)) is not None
            }
            steps = [figure(_most(cells, *one, target)) for one in ladder]
            known = [one for one in steps if one is not None]
            if len(known) == len(ladder):
                laddered += 1
                ordered += all(one.mean <= two.mean for one, two in pairwise(known))
                apart += any(two.high < one.low for one, two in pairwise(known))
            if ours is None:
                continue
            best = max(peers, key=lambda one: peers[one].mean) if peers else None
            if best is not None:
                cells_with_peers += 1
                ahead += ours.low > peers[best].high
            body.append([name, target, str(ours), best or "", str(peers[best]) if best else ""])
    if not body:
        return ""
    said = (
        f"The published order (magnitude, bias shift, uncentred, centred OBS) holds in {ordered} of {laddered} cells; "
        f"in {apart} a step goes the other way with intervals apart."
    )
    if cells_with_peers:
        said = f"Ahead of the best peer with intervals apart in {ahead} of {cells_with_peers} cells. {said}"
    return said + "\n\n" + markdown_table(["network", "target", "obs, refit", "best peer", ""], body)


def _equal_latency(networks: Mapping[str, list[dict[str, Any]]]) -> str:
    """The knapsack's centred OBS against other allocations of the same scores, and peers, within the same time."""
    body, apart, behind = [], 0, 0
    for name, rows in networks.items():
        cells = _by_cell(rows)
        for target in _order(key[2] for key in cells if key[2].startswith("latency")):
            ours = figure(_most(cells, *_OURS, target))
            if ours is None:
                continue
            others = {
                key[0]: held
                for key, held in cells.items()
                if key[2] == target and (_is_peer(key[0]) or (key[0].startswith("obs ") and key[1] == _OURS[1]))
            }
            for other, held in others.items():
                found = figure(held)
                if found is not None:
                    apart += ours.low > found.high
                    behind += found.mean > ours.mean
                said = str(found) if found is not None else _plain(next((r["error"] for r in held if "error" in r), ""))
                body.append(
                    [name, target, _ratio(_most(cells, *_OURS, target)), str(ours), other, _ratio(held), said]
                )  # fmt: skip
    if not body:
        return ""
    columns = ["network", "target", "measured", "obs, refit", "other", "measured", ""]
    told = f"At equal measured latency: ahead with intervals apart in {apart} of {len(body)} cells, behind in {behind}."
    return f"\n{told}\n\n" + markdown_table(columns, body)


def _ratio(rows: Rows) -> str:
    """Mean of the measured ratios of the rows that have one."""
    found = [row["latency"]["ratio"] for row in rows if "latency" in row]
    return f"{sum(found) / len(found):.3f}" if found else ""


def _costs(networks: Mapping[str, list[dict[str, Any]]]) -> str:
    """Seconds of every step in passes over the calibration samples, of centred OBS with its refit."""
    body = []
    for name, rows in networks.items():
        for (method, repair, target, samples), held in _by_cell(rows).items():
            timed = [row for row in held if row.get("pass_seconds") and "seconds" in row]
            if (method, repair) != _OURS or not timed or target.startswith("latency"):
                continue
            row = min(timed, key=lambda one: sum(one["seconds"].values()))
            steps = {key: one / row["pass_seconds"] for key, one in row["seconds"].items()}
            told = ", ".join(f"{key} {one:.1f}" for key, one in sorted(steps.items(), key=lambda s: -s[1])[:5])
            memory = f"{row['peak_rss'] / 1e6:.0f}"
            body.append([name, target, str(samples), f"{row['pass_seconds']:.2f}", told, memory])
    columns = ["network", "target", "samples", "one plain pass, s", "steps in passes", "peak RSS, MB"]
    return markdown_table(columns, body)
