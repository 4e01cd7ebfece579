"""``graphprune analyze``: groups, coverage, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graphprune.cli.options import input_shapes_option, json_option, seed_option


@click.command("analyze")
@click.argument("model")
@input_shapes_option()
@seed_option()
@click.option("--all", "every", is_flag=True, help="Show every group with its weights, and every refusal (as -v does).")
@click.option(
    "--graph", type=click.Path(path_type=Path), metavar="FILE",
    help="Draw the groups over the network as .svg or .html, or write which groups are made from which others as "
    ".graphml (yEd, Gephi, networkx read it).",
)  # fmt: skip
@json_option()
def command(
    model: str,
    input_shapes: dict[str | None, tuple[int, ...]],
    seed: int,
    every: bool,
    graph: Path | None,
    json_output: bool,
) -> None:
    """Show which groups MODEL has, what they govern, and what cannot be cut and why.

    MODEL is an ONNX file, or file.py:factory or package.module:factory for a PyTorch module.
    """
    from graphprune.pipeline import load
    from graphprune.report.picture import check_format, write_picture
    from graphprune.report.tables import analysis_report, console

    if graph is not None:
        check_format(graph)  # before any work
    network = load(model, input_shapes=input_shapes, seed=seed)
    analysis = network.analyze()
    if graph is not None:
        write_picture(network, analysis, graph)
    if json_output:
        click.echo(json.dumps(analysis.to_json(), indent=2))
    else:
        verbose = bool(getattr(click.get_current_context().obj, "traceback", False))
        analysis_report(analysis, console(), every=every or verbose)
