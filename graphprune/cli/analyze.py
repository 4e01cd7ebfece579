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
@click.option("--all", "every", is_flag=True, help="Show every member and every refusal.")
@click.option(
    "--graph", type=click.Path(path_type=Path), metavar="FILE",
    help="Write which groups are made from which others as GraphML (yEd, Gephi, networkx read it).",
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
    from graphprune.report.tables import analysis_report, console

    network = load(model, input_shapes=input_shapes, seed=seed)
    analysis = network.analyze()
    if graph is not None:
        import networkx

        networkx.write_graphml(network.group_graph(), graph)
    if json_output:
        click.echo(json.dumps(analysis.to_json(), indent=2))
    else:
        analysis_report(analysis, console(), every=every)
