"""``graphprune bench``: measured latency of a model, or the ratio of two with its interval."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graphprune.cli.options import (
    duration_option,
    input_shapes_option,
    json_option,
    seed_option,
    threads_option,
    warm_up_ms_option,
)


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("model2", type=click.Path(path_type=Path), required=False)
@input_shapes_option()
@duration_option("3s")
@warm_up_ms_option()
@threads_option()
@click.option(
    "--providers", metavar="NAMES", default="CPUExecutionProvider", show_default=True,
    help="Execution providers of ONNX Runtime, separated by commas.",
)  # fmt: skip
@click.option(
    "--max-width", type=click.FloatRange(min=0.0, min_open=True), default=None, metavar="X",
    help="Exit with code 5 if the interval is wider than this share of the result, for example 0.05.",
)  # fmt: skip
@seed_option()
@json_option()
def command(
    model: Path,
    model2: Path | None,
    input_shapes: dict[str | None, tuple[int, ...]],
    duration: float,
    warm_up_ms: float,
    threads: int | None,
    providers: str,
    max_width: float | None,
    seed: int,
    json_output: bool,
) -> None:
    """Measure MODEL, or MODEL2 against MODEL in turn (ABBA), in fresh processes."""
    from graphprune.backends.base import BackendOptions
    from graphprune.errors import NoiseError
    from graphprune.latency.measure import Comparison, MeasureOptions, measure
    from graphprune.pipeline import load
    from graphprune.report.tables import comparison_report, console

    feeds = load(model, input_shapes=input_shapes, seed=seed).program.examples
    options = MeasureOptions(
        duration=duration,
        warm_up_ms=warm_up_ms,
        warm_up_cap_ms=max(2000.0, 2 * warm_up_ms),
        max_width=max_width,
        seed=seed,
        backend_options=BackendOptions(threads=threads, providers=tuple(providers.split(","))),
    )
    result = measure(model, model2, feeds, options)
    if json_output:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        comparison_report([str(one) for one in (model, model2) if one is not None], result, console())
    if max_width is not None:
        if isinstance(result, Comparison):
            result.require_quiet(max_width)
        else:
            low, high = result.interval_ms
            if (high - low) / result.median_ms > max_width:
                raise NoiseError(
                    f"the machine is too noisy to say: the median {result.median_ms:.3f} ms has the interval "
                    f"[{low:.3f}, {high:.3f}]; {result.noise}"
                )
