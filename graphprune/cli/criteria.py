"""``graphprune criteria``: how units can be ranked, and what each way needs."""

from __future__ import annotations

import json

import click

from graphprune.cli.options import json_option


@click.command("criteria")
@json_option()
def command(json_output: bool) -> None:
    """The criteria that --criterion takes, their options and what they need."""
    from graphprune.passes.score import survey
    from graphprune.report.tables import add_row, console, table_of

    found = survey()
    if json_output:
        click.echo(json.dumps(found, indent=2))
        return
    table = table_of(("criterion", False), ("needs", False), ("options", False), ("what it is", False))
    for one in found:
        options = ", ".join(f"{name}={value}" for name, value in one["options"].items())
        add_row(table, one["name"], one["needs"], options, one["about"])
    console().print(table)
