"""``graphprune explain``: what an axis is tied to, or why it cannot be cut."""

from __future__ import annotations

import json

import click

from graphprune.cli.options import input_shapes_option, json_option, seed_option


@click.command("explain", context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("tensor")
@click.argument("axis", type=int)
@input_shapes_option()
@seed_option()
@json_option()
def command(
    model: str,
    tensor: str,
    axis: int,
    input_shapes: dict[str | None, tuple[int, ...]],
    seed: int,
    json_output: bool,
) -> None:
    """Say what AXIS of TENSOR in MODEL is tied to, or why it is never cut.

    TENSOR is the name of an initialiser, a value or (for a module) a parameter; AXIS counts from 0, or from the end.
    """
    from graphprune.pipeline import load
    from graphprune.report.manifest import group_document
    from graphprune.report.tables import axis_report, console

    network = load(model, input_shapes=input_shapes, seed=seed)
    report = network.explain(tensor, axis)
    if not json_output:
        axis_report(report, console())
        return
    names = network.program.parameter_names
    parts = [
        {
            "size": part.size,
            "group": group_document(part.group, names) if part.group is not None else None,
            "reason": part.reason,
        }
        for part in report.parts
    ]
    document = {
        "tensor": report.tensor,
        "axis": report.axis,
        "size": report.size,
        "space": report.space,
        "parts": parts,
    }
    click.echo(json.dumps(document, indent=2))
