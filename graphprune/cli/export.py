"""``graphprune export``: prune to a target, prove the cut, measure it, write the artefacts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli.options import (
    atol_option,
    calibration_options,
    duration_option,
    exclude_option,
    include_option,
    input_shapes_option,
    json_option,
    rtol_option,
    seed_option,
    warm_up_ms_option,
)
from graphprune.cli.runtimes import runtime_options

if TYPE_CHECKING:
    from graphprune.backends import BackendOptions


def _criterion_options(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    from graphprune.errors import UsageError

    options: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key or not value:
            raise UsageError(f"--criterion-option {text!r}: write KEY=VALUE, for example p=1 or normalize=max")
        options[key] = value
    return options


@click.command("export")
@click.argument("model")
@click.option("-o", "--output", "out", required=True, metavar="DIR", help="Folder for the artefacts.")
@click.option(
    "--target-latency", metavar="T[,T...]",
    help="Measured time of one inference: 0.6x of the original, or 8ms. Several, separated by commas, give one "
    "artefact each from one set of step curves.",
)  # fmt: skip
@click.option(
    "--statistic", type=click.Choice(["median", "p90"]), default="median", show_default=True,
    help="The figure of the measured times that a latency target is on.",
)  # fmt: skip
@click.option("--target-params", metavar="T", help="Parameters: 0.5x of the original, or a number (800k, 12.5M).")
@click.option("--target-macs", metavar="T", help="Multiply-accumulates: 0.5x of the original, or a number (1.2G).")
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE", help="Replay a saved plan instead.")
@input_shapes_option()
@calibration_options()
@click.option(
    "--criterion", metavar="NAME",
    help="How units are ranked, by name or as a sum (wanda+0.5*magnitude); `graphprune criteria` lists them.  "
    "[default: obs with --calib, else magnitude]",
)  # fmt: skip
@click.option(
    "--criterion-option", "criterion_options", multiple=True, callback=_criterion_options, metavar="KEY=VALUE",
    help="An option of the criterion, such as p=1 or normalize=max. Repeatable.",
)  # fmt: skip
@click.option(
    "--allocation", metavar="NAME",
    help="global, uniform or knapsack.  [default: knapsack for latency and with obs, taylor, fisher; else global]",
)  # fmt: skip
@click.option(
    "--latency-table", type=click.Path(path_type=Path), metavar="FILE",
    help="Step curves from `graphprune profile`, instead of this machine's own; with --no-measure the target is met by "
    "what they predict.",
)  # fmt: skip
@click.option(
    "--profile-seconds", type=click.FloatRange(min=1.0), default=240.0, show_default=True, metavar="S",
    help="After so long no more networks are timed for step curves; fewer make more candidates necessary.",
)  # fmt: skip
@click.option(
    "--floor", type=click.FloatRange(0.0, 1.0), default=0.1, show_default=True, metavar="X",
    help="Least share of every group's units that stays (one unit at least).",
)  # fmt: skip
@click.option(
    "--align", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Keep channels in multiples of N.",
)  # fmt: skip
@include_option()
@exclude_option()
@click.option(
    "--stat", is_flag=True,
    help="Also cut inexact groups (a statistic is computed over them). Such a cut does not verify: add --no-verify.",
)  # fmt: skip
@click.option("--verify/--no-verify", default=True, show_default=True, help="Hold the artefact to its masked original.")
@click.option(
    "--verify-dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
    help="Precision of the verification; float64 runs on the ONNX reference implementation, slowly.",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), default=3, show_default=True, help="Random inputs to verify on.")
@atol_option(1e-6)
@rtol_option(None)
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure original and artefact in turn.")
@duration_option("3s")
@warm_up_ms_option()
@runtime_options()
@click.option(
    "--max-shard-size", metavar="SIZE",
    help="Weights that take more go to several data files, none larger: 500MB, 2GB, 2GiB.",
)  # fmt: skip
@click.option("--keep-source", is_flag=True, help="For a module: leave the traced network as source.onnx.")
@click.option("--plots", is_flag=True, help="Also write the plots of the report as files, report-*.svg.")
@seed_option()
@json_option()
def command(
    model: str,
    out: str,
    input_shapes: dict[str | None, tuple[int, ...]],
    measure: bool,
    duration: float,
    warm_up_ms: float,
    chosen: dict[str, BackendOptions],
    target_latency: str | None,
    seed: int,
    json_output: bool,
    **options: Any,
) -> None:
    """Prune MODEL to a target and write model.onnx, plan.json, manifest.json, report.html and README.md (a model card).

    MODEL is an ONNX file, or file.py:factory or package.module:factory for a PyTorch module.

    Exit codes: 0 done; 2 usage or unreadable input; 3 target cannot be met; 4 verification failed; 5 too noisy to say;
    6 nothing prunable.
    """
    from graphprune.errors import UsageError
    from graphprune.export import check_targets, export_family
    from graphprune.frontends.samples import Preprocessing
    from graphprune.latency.measure import MeasureOptions
    from graphprune.options import ExportOptions
    from graphprune.pipeline import load
    from graphprune.report.latency import family_report
    from graphprune.report.tables import console, export_report

    if options["calib_images"] is not None:
        options["calib_images"] = Preprocessing.parse(options["calib_images"])
    if len(chosen) > 1:
        raise UsageError(
            f"export measures on one backend, not on {' and '.join(chosen)}; `graphprune bench` takes several"
        )
    (name, runtime), *_ = chosen.items()
    several = [text.strip() for text in (target_latency or "").split(",") if text.strip()]
    if len(set(several)) < len(several):
        raise UsageError(f"--target-latency {target_latency}: the same target twice would be the same folder twice")
    timing = MeasureOptions(
        duration=duration,
        warm_up_ms=warm_up_ms,
        warm_up_cap_ms=max(2000.0, 2 * warm_up_ms),
        seed=seed,
        backend=name,
        backend_options=runtime,
    )
    asked = ExportOptions(
        measure=timing if measure else None, backend=name, backend_options=runtime, seed=seed, **options
    )
    for text in several or (None,):  # before any work
        check_targets(replace(asked, target_latency=text), out)
    network = load(model, input_shapes=input_shapes, seed=seed)
    if len(several) > 1:
        results = export_family(network, Path(out), asked, several)
        if json_output:
            click.echo(json.dumps([result.to_json() for result in results], indent=2))
        else:
            family_report(results, console())
        return
    result = network.export(out, replace(asked, target_latency=several[0] if several else None))
    if json_output:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        export_report(result, console())
