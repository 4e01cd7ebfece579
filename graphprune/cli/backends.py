"""``graphprune backends``: the runtimes that can build and time networks here."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from graphprune.cli.options import json_option


@click.command("backends")
@json_option()
def command(json_output: bool) -> None:
    """List the runtimes: what is there, on which devices, what can be built and timed, and what is missing."""
    from graphprune.backends import survey
    from graphprune.report.tables import backends_report, console

    found = survey()
    if json_output:
        click.echo(json.dumps([{"backend": name, **asdict(there)} for name, there in found], indent=2))
    else:
        backends_report(found, console())
