"""``graphprune profile``: step curves of this device, as a table that ``export --latency-table`` takes elsewhere."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphprune.cli.options import (
    duration_option,
    exclude_option,
    include_option,
    input_shapes_option,
    json_option,
    seed_option,
)
from graphprune.cli.runtimes import runtime_options

if TYPE_CHECKING:
    from graphprune.backends import BackendOptions


@click.command("profile")
@click.argument("model")
@click.option(
    "-o", "--output", "out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="TABLE",
    help="JSON file for the table. One that is there is added to.",
)  # fmt: skip
@input_shapes_option()
@include_option()
@exclude_option()
@click.option("--stat", is_flag=True, help="Also vary inexact groups.")
@runtime_options()
@duration_option("4min")
@seed_option()
@json_option()
def command(
    model: str,
    out: Path,
    input_shapes: dict[str | None, tuple[int, ...]],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    stat: bool,
    chosen: dict[str, BackendOptions],
    duration: float,
    seed: int,
    json_output: bool,
) -> None:
    """Measure how long MODEL's layers take at many widths on this device, and write the table.

    The network is cut to many widths and run as a whole, until the curves predict what they have not seen or the
    duration is over.
    """
    from graphprune.errors import UsageError
    from graphprune.latency.profile import ProfileOptions
    from graphprune.latency.table import read_table, write_table
    from graphprune.latency_model import profile_table
    from graphprune.pipeline import load
    from graphprune.report.latency import profile_report
    from graphprune.report.tables import console

    if len(chosen) > 1:
        raise UsageError(f"a table is of one backend, not of {' and '.join(chosen)}; make one for each")
    (name, runtime), *_ = chosen.items()
    if not out.absolute().parent.is_dir():
        raise UsageError(f"cannot write '{out}': there is no folder '{out.parent}'")
    known = read_table(out) if out.exists() else None
    options = ProfileOptions(name, runtime, seconds=duration, seed=seed)
    network = load(model, input_shapes=input_shapes, seed=seed)
    with tempfile.TemporaryDirectory(prefix="graphprune-profile-") as folder:
        found = profile_table(network, Path(folder), options, known, include=include, exclude=exclude, stat=stat)
    write_table(found.table, out)
    if json_output:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        profile_report(found, out, console())
