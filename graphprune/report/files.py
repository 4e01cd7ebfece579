"""The files that people read, beside an artefact or a family of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError
from graphprune.ir.files import atomic_files

__all__ = ["REPORTS", "check_reports", "stale_plots", "write_family", "write_reports"]

REPORTS = ("report.html", "README.md")


def check_reports(folder: Path) -> None:
    """Refuse a folder whose README.md or report.html is somebody's own.

    Raises:
        UsageError: it has one that no export has written.
    """
    from graphprune.report.card import MARK
    from graphprune.report.page import GENERATOR

    for name, mark in zip(REPORTS, (GENERATOR, MARK), strict=True):
        path = folder / name
        if path.is_file() and mark.encode() not in path.read_bytes()[:1000]:
            raise UsageError(
                f"'{path}' would be overwritten, and no export has written it; choose another output folder"
            )


def write_reports(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the page, the model card and, where they were asked for, the plots; returns their names."""
    from graphprune.report.card import model_card
    from graphprune.report.html import plots, report_html

    texts = {"report.html": report_html(manifest), "README.md": model_card(manifest)}
    if manifest["options"]["plots"]:
        texts.update(plots(manifest))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return list(texts)


def stale_plots(folder: Path) -> set[str]:
    """Plots that an earlier export wrote into a folder, as its manifest says."""
    from graphprune.report.html import PLOTS

    try:
        asked = json.loads((folder / "manifest.json").read_bytes())["options"]["plots"] is True
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {name for name in PLOTS if asked and (folder / name).is_file()}


def write_family(folder: Path, members: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``pareto.json`` and the family's ``report.html``; ``members`` maps each folder's name to its manifest.

    Raises:
        UsageError: a file cannot be written.
    """
    from graphprune.report.pareto import pareto_document, pareto_html

    document = pareto_document(members)
    with atomic_files(folder / "report.html", folder / "pareto.json") as (page, data):
        page.write(pareto_html(document).encode())
        data.write((json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
