"""``graphprune verify``: masked equivalence of a pruned file with its original, from the saved plan."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from graphprune.cli.options import atol_option, input_shapes_option, json_option, rtol_option, seed_option


@click.command("verify")
@click.argument("original")
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan", type=click.Path(path_type=Path))
@input_shapes_option()
@click.option("--samples", type=click.IntRange(min=1), default=3, show_default=True, help="Random inputs to compare.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
    help="Precision of both: float64 runs on the ONNX reference implementation, slowly.",
)  # fmt: skip
@atol_option(1e-6)
@rtol_option(None)
@seed_option()
@json_option()
def command(
    original: str,
    pruned: Path,
    plan: Path,
    input_shapes: dict[str | None, tuple[int, ...]],
    samples: int,
    dtype: str,
    atol: float,
    rtol: float | None,
    seed: int,
    json_output: bool,
) -> None:
    """Prove that PRUNED equals ORIGINAL with the units that PLAN removes silenced."""
    from graphprune.errors import VerificationError
    from graphprune.passes.verify import Verify
    from graphprune.pipeline import verify_files
    from graphprune.report.tables import console, verdict_report

    check = Verify(samples, atol, rtol, seed)
    verdict = verify_files(original, pruned, plan, input_shapes=input_shapes, check=check, dtype=dtype, seed=seed)
    if json_output:
        click.echo(json.dumps(asdict(verdict), indent=2))
    else:
        verdict_report(verdict, console())
    if not verdict.passed:
        more = ""
        if _repaired(pruned.parent / "manifest.json"):
            more = ": its manifest says that it was repaired; `graphprune gate` makes the cut again and proves that"
        raise VerificationError(f"'{pruned}' is not '{original}' with the plan's units removed{more}")


def _repaired(manifest: Path) -> bool:
    """Whether the manifest beside a network says that it was repaired."""
    try:
        return json.loads(manifest.read_bytes()).get("repair") is not None
    except (OSError, ValueError, AttributeError):
        return False
