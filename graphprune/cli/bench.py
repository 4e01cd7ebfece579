"""``graphprune bench``: measured latency of models, with the ratios of the others to the first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from graphprune.cli.options import (
    duration_option,
    input_shapes_option,
    json_option,
    seed_option,
    warm_up_ms_option,
)
from graphprune.cli.runtimes import runtime_options
from graphprune.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from graphprune.backends import BackendOptions
    from graphprune.ir.program import Program


@click.command("bench")
@click.argument("models", metavar="MODEL [MODEL2]...", nargs=-1, required=True, type=click.Path(path_type=Path))
@input_shapes_option()
@click.option(
    "--batch", type=click.IntRange(min=1), default=None, metavar="N",
    help="Size of the first dimension of the inputs where the model leaves it free.",
)  # fmt: skip
@runtime_options()
@duration_option("3s")
@click.option(
    "--iterations", type=click.IntRange(min=1), default=None, metavar="N",
    help="Take at least N samples of each model; without --duration, no more than needed for that.",
)  # fmt: skip
@warm_up_ms_option()
@click.option(
    "--percentile", "percentiles", multiple=True, type=click.FloatRange(0, 100, min_open=True, max_open=True),
    metavar="P", help="Give this percentile, and time every run by itself. Repeatable.  [default: 90, 95, 99]",
)  # fmt: skip
@click.option(
    "--max-width", type=click.FloatRange(min=0.0, min_open=True), default=None, metavar="X",
    help="Measure longer while an interval is wider than this share of the result, for example 0.05, and exit with "
    "code 5 if it stays so.",
)  # fmt: skip
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
    help="Write the figures into a CSV file as well.",
)  # fmt: skip
@seed_option()
@json_option()
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[Path, ...],
    input_shapes: dict[str | None, tuple[int, ...]],
    batch: int | None,
    chosen: dict[str, BackendOptions],
    duration: float,
    iterations: int | None,
    warm_up_ms: float,
    percentiles: tuple[float, ...],
    max_width: float | None,
    csv_file: Path | None,
    seed: int,
    json_output: bool,
) -> None:
    """Measure MODEL, or several models in turn, in fresh processes; ratios are to the first."""
    from graphprune.latency.measure import MeasureOptions, measure_in_turn
    from graphprune.options import untimed
    from graphprune.pipeline import load
    from graphprune.report.bench import Bench, write_csv
    from graphprune.report.tables import bench_report, console

    for name in chosen:  # before the others are measured for nothing
        if why := untimed(name):
            raise UsageError(f"nothing can be timed on {name} here: {why}")
    if csv_file is not None and not os.access(csv_file.parent, os.W_OK):
        raise UsageError(f"--csv: '{csv_file.parent}' is no folder that can be written")
    program = load(models[0], input_shapes=input_shapes, seed=seed).program
    feeds = program.examples if batch is None else _batched(program, models[0], batch)
    by_count = iterations is not None and ctx.get_parameter_source("duration") is ParameterSource.DEFAULT
    found = []
    for name, options in chosen.items():
        measured, ratios = measure_in_turn(
            models,
            feeds,
            MeasureOptions(
                duration=0.0 if by_count else duration,
                min_iterations=iterations or 10,
                warm_up_ms=warm_up_ms,
                warm_up_cap_ms=max(2000.0, 2 * warm_up_ms),
                max_width=max_width,
                seed=seed,
                backend=name,
                backend_options=options,
                percentiles=tuple(sorted(set(percentiles))) or (90.0, 95.0, 99.0),
                single_runs=bool(percentiles),
            ),
        )
        found.append(Bench(name, tuple(map(str, models)), measured, ratios, batch, percentiles))
    if csv_file is not None:
        write_csv(found, csv_file)
    if json_output:
        click.echo(json.dumps({"results": [row for one in found for row in one.to_json()]}, indent=2))
    else:
        bench_report(found, console())
    if max_width is not None:
        for one in found:
            for result in one.ratios or one.measured:
                result.require_quiet(max_width)


def _batched(program: Program, model: Path, batch: int) -> dict[str, np.ndarray]:
    """The examples with ``batch`` along the free first dimension: their entries over and over.

    The batch is the first dimension of the first input that leaves it free, and those of the same name.
    """
    import numpy as np

    first = {
        value.name: value.shape[0]
        for value in program.model.graph.inputs
        if value.name in program.examples and value.shape is not None and len(value.shape) > 0
    }
    free = {name: dim for name, dim in first.items() if not isinstance(dim, int) or dim < 1}  # some exporters say -1
    if not free:
        shapes = ", ".join(f"{name} {'x'.join(map(str, one.shape))}" for name, one in program.examples.items())
        raise UsageError(
            f"--batch {batch}: the first dimension of every input of '{model}' is fixed ({shapes}); "
            "export it with a dynamic batch."
        )
    symbol = str(next(iter(free.values())))
    names = {name for name, dim in free.items() if str(dim) == symbol}
    return {
        name: np.take(array, np.arange(batch) % array.shape[0], axis=0) if name in names else array
        for name, array in program.examples.items()
    }
