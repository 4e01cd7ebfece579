"""``graphprune finetune``: train a pruned network to give what the original gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli.options import input_shapes_option, json_option, seed_option

if TYPE_CHECKING:
    from graphprune.passes.allocate.target import Quantity


@click.command("finetune")
@click.argument("model")
@click.argument("original", required=False)
@click.option("-o", "--output", "out", required=True, metavar="DIR", help="Folder for model.onnx and finetune.json.")
@click.option(
    "--data", required=True, metavar="DATA",
    help="Samples, without labels: an .npz file, a folder of .npy, .npz or image files, or module:function that yields "
    "dictionaries of arrays.",
)  # fmt: skip
@input_shapes_option()
@click.option("--data-samples", "limit", type=click.IntRange(min=1), metavar="N", help="Use at most N of them.")
@click.option("--data-images", "images", metavar="HOW", help="How images are read, as --calib-images of export.")
@click.option("--updates", type=click.IntRange(min=1), default=500, show_default=True, help="Steps of the optimiser.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Runs of the samples per step.")
@click.option(
    "--lr", type=click.FloatRange(min=0, min_open=True),
    help="Highest learning rate: the share of a weight's usual size that a step of adamw moves it by; absolute for sgd "
    "and for --rank.  [default: 5e-3; absolute 1e-3]",
)  # fmt: skip
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--weight-decay", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--warm-up", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True,
              help="Share of the updates the rate rises in.")  # fmt: skip
@click.option(
    "--loss", metavar="FUNCTION",
    help="module:function of your own loss: called with run(inputs) -> outputs, yields one scalar tensor per batch; "
    "the distance from ORIGINAL is added to it.",
)  # fmt: skip
@click.option("--distil", type=click.FloatRange(min=0), default=1.0, show_default=True,
              help="Weight of the distance from ORIGINAL.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Of the rows that are compared.")  # fmt: skip
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="NAME",
    help="Compare this inner value too; auto: those behind what was cut. Repeatable.",
)
@click.option("--feature-weight", type=float, default=1.0, show_default=True)
@click.option("--rank", type=click.IntRange(min=1), metavar="R", help="Train low-rank updates, merged at the end.")
@click.option("--statistics", is_flag=True, help="Also update BatchNorm's running means and variances.")
@click.option("--patience", type=click.IntRange(min=0), default=0, metavar="N",
              help="Stop after N looks at the held-out samples without improvement.")  # fmt: skip
@click.option("--evaluate-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Updates between two looks.  [default: a tenth of all]")  # fmt: skip
@click.option("--checkpoint-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Updates between two checkpoints.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint.")
@click.option("--target-macs", metavar="T", help="Without ORIGINAL: prune MODEL itself to this, in --steps cuts.")
@click.option("--target-params", metavar="T", help="The same, for parameters.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Cuts, with training after each."
)
@click.option("--device", metavar="NAME", help="cpu or cuda.  [default: the GPU where there is one]")
@seed_option()
@json_option()
def command(
    model: str,
    original: str | None,
    out: str,
    data: str,
    input_shapes: dict[str | None, tuple[int, ...]],
    images: str | None,
    resume: bool,
    target_macs: str | None,
    target_params: str | None,
    steps: int,
    json_output: bool,
    **options: Any,
) -> None:
    """Train the pruned MODEL on DATA to give what ORIGINAL gives, and write it as ONNX.

    Without ORIGINAL, MODEL is pruned and trained in turn until it meets --target-macs or --target-params. Several
    processes (torchrun -m graphprune finetune ...) share the runs of a batch.
    """
    from graphprune.errors import InputError, UsageError
    from graphprune.frontends.samples import Preprocessing

    asked: tuple[tuple[str | None, Quantity], ...] = ((target_macs, "macs"), (target_params, "params"))
    targets = [(text, name) for text, name in asked if text is not None]
    if (original is None) != (len(targets) == 1):
        raise UsageError(
            "give the ORIGINAL that MODEL was pruned from, or one of --target-macs and --target-params to prune MODEL"
        )
    try:
        from graphprune.training.finetune import finetune
        from graphprune.training.iterative import prune_and_tune
        from graphprune.training.options import FinetuneOptions
    except ModuleNotFoundError as error:
        raise InputError("training needs PyTorch, which is not installed: pip install graphprune[torch]") from error
    chosen = FinetuneOptions(images=None if images is None else Preprocessing.parse(images), **options)
    if original is not None:
        result = finetune(model, original, data, out, chosen, resume=resume, input_shapes=input_shapes)
    else:
        (text, quantity), *_ = targets
        result = prune_and_tune(
            model,
            data,
            out,
            target=text,
            quantity=quantity,
            steps=steps,
            options=chosen,
            resume=resume,
            input_shapes=input_shapes,
        )
    document = Path(out, "finetune.json")
    if json_output:
        click.echo(document.read_text())
        return
    found = json.loads(document.read_text())
    click.echo(
        f"{result.updates} updates in {found['seconds']:.0f} s; distance from the original {result.before:.4g} before, "
        f"{result.after:.4g} after (at update {result.best}); {Path(out, 'model.onnx')}"
    )
