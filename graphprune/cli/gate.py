"""``graphprune gate``: hold an artefact to its manifest, for pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graphprune.cli.options import duration_option, json_option, threads_option


@click.command("gate")
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--source", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The original ONNX file.  [default: the file of its name beside the manifest]",
)  # fmt: skip
@click.option(
    "--max-latency", metavar="LIMIT",
    help="Most time allowed: 0.65x of what the original takes beside it, or +5% over the ratio to the original in the "
    "manifest. Not measured without it.",
)  # fmt: skip
@duration_option()
@threads_option()
@json_option()
def command(
    manifest: Path,
    source: Path | None,
    max_latency: str | None,
    duration: float | None,
    threads: int | None,
    json_output: bool,
) -> None:
    """Check the artefact beside MANIFEST (manifest.json of an export): its files, its proof, its time.

    Hashes of original, artefact and plan come first, then the masked equivalence, then the time against the original,
    all with the export's own options; the limit is on the figure that its --statistic named.

    Exit codes: 0 all holds; 2 usage or unreadable input; 3 the whole interval of the measured ratio lies above the
    limit; 4 a file is another one, or the artefact is not its masked original; 5 the interval holds the limit, so this
    machine cannot tell.
    """
    from graphprune.gate import LatencyLimit, gate
    from graphprune.report.latency import gate_report
    from graphprune.report.tables import console

    limit = None if max_latency is None else LatencyLimit.parse(max_latency)
    result = gate(manifest, limit, source=source, duration=duration, threads=threads)
    if json_output:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        gate_report(result, console())
    result.check()
