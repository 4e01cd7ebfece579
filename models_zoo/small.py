"""Small networks trained on glyphs and digits in a minute or two and cached: the measure of accuracy of a cut.

Four architectures (``models_zoo.networks``), two data sets. ``plain`` ends in Flatten and two Linears, ``residual`` in
a global mean, ``separable`` is made of inverted residuals (depthwise convolutions), ``vit`` of attention over a
convolutional stem (Xiao et al. 2021, https://arxiv.org/abs/2106.14881: it makes so short a training possible).

A factory such as ``glyph_plain()`` loads the trained weights from the cache, or trains and caches them. To train ahead:

    python -m models_zoo.small train glyph_plain     # or: all
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphprune.errors import GraphpruneError, UsageError
from models_zoo import data as datasets
from models_zoo import glyphs
from models_zoo.cache import cache_folder, recipe_hash, write_atomically
from models_zoo.data import Data
from models_zoo.networks import PlainNet, ResidualNet, SeparableNet, SmallViT

__all__ = [
    "NETWORKS",
    "Network",
    "Training",
    "digits_plain",
    "digits_residual",
    "digits_separable",
    "digits_vit",
    "evaluate",
    "fit",
    "glyph_plain",
    "glyph_residual",
    "glyph_separable",
    "glyph_vit",
    "load_data",
    "one_seeded_thread",
    "read_trained",
    "train",
]

Example = tuple[nn.Module, tuple[Tensor, ...]]


# --------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Training:
    """How a network is trained: AdamW, one-cycle cosine (a tenth of the steps warms up), one thread, seeded."""

    epochs: int
    learning_rate: float = 4e-3
    batch: int = 128
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Network:
    """A trained network of the zoo: its data set (``glyphs`` or ``digits``), architecture and training."""

    data: str
    build: Callable[[], nn.Module]
    training: Training


_CNN = Training(epochs=5)
_DIGITS = Training(epochs=30, batch=64)

NETWORKS: dict[str, Network] = {
    "glyph_plain": Network("glyphs", lambda: PlainNet(62, 32, (16, 32, 64, 64), 128, pools=3), _CNN),
    "glyph_residual": Network("glyphs", lambda: ResidualNet(62, 24, 2, ((24, 1), (48, 2), (96, 2))), _CNN),
    "glyph_separable": Network(
        "glyphs", lambda: SeparableNet(62, 16, 2, ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)), 192), _CNN
    ),
    "glyph_vit": Network(
        "glyphs", lambda: SmallViT(62, 32, (24, 48, 96), 96, heads=4, hidden=192, depth=2), Training(8, 3e-3, 64)
    ),
    "digits_plain": Network("digits", lambda: PlainNet(10, 8, (16, 32, 32), 64, pools=1), _DIGITS),
    "digits_residual": Network("digits", lambda: ResidualNet(10, 16, 1, ((16, 1), (32, 2))), _DIGITS),
    "digits_separable": Network("digits", lambda: SeparableNet(10, 16, 1, ((16, 1), (24, 2), (24, 1)), 64), _DIGITS),
    "digits_vit": Network(
        "digits", lambda: SmallViT(10, 8, (32,), 48, heads=4, hidden=96, depth=2), Training(30, 2e-3, 64)
    ),
}


@contextmanager
def one_seeded_thread(seed: int) -> Iterator[None]:
    """One thread (so that sums keep their order) and an own random state, both restored at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def fit(module: nn.Module, data: Data, training: Training, progress: Callable[[str], None] | None = None) -> None:
    """Train ``module`` in place on ``data.train_*`` and leave it in eval mode; ``progress`` gets a line per epoch."""
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    loss_of = nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    with one_seeded_thread(training.seed):
        # Biases, norms and positions are not decayed (the usual split).
        decayed = [p for p in module.parameters() if p.ndim in (2, 4)]
        others = [p for p in module.parameters() if p.ndim not in (2, 4)]
        parameters: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
        # Incomplete batches are dropped: a last batch of one sample would break BatchNorm.
        batches = max(1, len(labels) // training.batch)
        steps, warm = training.epochs * batches, max(1, training.epochs * batches // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda s: min((s + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, s - warm) / max(1, steps - warm))),
        )
        # Half the time on x86: oneDNN's convolutions and the pools prefer channels last.
        module.train().to(memory_format=torch.channels_last)
        for epoch in range(training.epochs):
            total = 0.0
            order = torch.randperm(len(labels))
            for n in range(batches):
                chosen = order[n * training.batch : (n + 1) * training.batch]
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(module(images[chosen]), labels[chosen])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            if progress is not None:
                progress(f"epoch {epoch + 1}/{training.epochs}: loss {total / batches:.4f}")
        module.eval().to(memory_format=torch.contiguous_format)


def evaluate(module: nn.Module, data: Data, *, split: str = "test", batch: int = 256) -> float:
    """The accuracy (0 to 1) of ``module`` in eval mode on ``data``'s ``split`` (``test`` or ``train``).

    The module's mode is restored. For an ONNX Runtime session use ``models_zoo.data.accuracy``.
    """
    if split not in ("test", "train"):
        raise UsageError(f"A data set has the splits 'test' and 'train', not '{split}'.")

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return logits

    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            images, labels = (getattr(data, f"{split}_{part}") for part in ("images", "labels"))
            return datasets.accuracy(predict, images, labels, batch=batch)
    finally:
        module.train(was_training)


def load_data(name: str) -> Data:
    """The data set ``glyphs`` or ``digits`` as the networks of this module are trained and judged on it."""
    if name not in ("glyphs", "digits"):
        raise UsageError(f"The zoo has the data sets 'glyphs' and 'digits', not '{name}'.")
    return glyphs.load() if name == "glyphs" else datasets.digits()


# ------------------------------------------------------------------------------------------------------------ cache


def _network(name: str) -> Network:
    if name not in NETWORKS:
        raise UsageError(f"The zoo trains no network '{name}'; it has: {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def _built(name: str) -> nn.Module:
    network = _network(name)
    with one_seeded_thread(network.training.seed):
        return network.build()


def _cache_file(name: str, module: nn.Module) -> Path:
    """The name of the cached weights: a hash of the data, the training, and the parameters' names and shapes."""
    network = NETWORKS[name]
    key = {
        "data": glyphs.recipe() if network.data == "glyphs" else network.data,
        "training": asdict(network.training),
        "modules": str(module),
        "shapes": {key: list(value.shape) for key, value in module.state_dict().items()},
    }
    return cache_folder() / f"{name}-{recipe_hash(key)}.pt"


def read_trained(path: Path) -> dict[str, Any] | None:
    """What ``train`` stored, or None if there is nothing that can be read (a damaged file is trained anew)."""
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError):
        return None
    return stored if isinstance(stored, dict) and "state" in stored else None


def train(name: str, *, force: bool = False, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Train the network ``name`` unless it is cached (or ``force``), and cache it.

    Returns ``{"state": state dict, "accuracy": test accuracy (0 to 1), "seconds": of training,
    "cpu_seconds": of it on the processor (they tell whether the machine was shared), "torch": version}``.
    """
    module = _built(name)
    path = _cache_file(name, module)
    stored = None if force else read_trained(path)
    if stored is None:
        network = NETWORKS[name]
        data = load_data(network.data)
        start, start_cpu = time.perf_counter(), time.process_time()
        fit(module, data, network.training, progress)
        stored = {
            "state": module.state_dict(),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - start_cpu,
            "accuracy": evaluate(module, data),
            "torch": str(torch.__version__),
        }
        content = io.BytesIO()
        torch.save(stored, content)
        write_atomically(path, content.getvalue())
    return stored


def _factory(name: str) -> Example:
    def say(line: str) -> None:
        print(f"{name}: {line}", file=sys.stderr)

    module = _built(name)
    stored = train(name, progress=say)
    module.load_state_dict(stored["state"])
    side = glyphs.SIZE if NETWORKS[name].data == "glyphs" else 8
    return module.eval(), (torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)),)


def glyph_plain() -> Example:
    """A plain CNN for glyphs: module in eval mode, example ``(1, 1, 32, 32)``. Trained on first use."""
    return _factory("glyph_plain")


def glyph_residual() -> Example:
    """A residual CNN for glyphs: module in eval mode, example ``(1, 1, 32, 32)``. Trained on first use."""
    return _factory("glyph_residual")


def glyph_separable() -> Example:
    """A depthwise-separable CNN for glyphs: module in eval mode, example ``(1, 1, 32, 32)``. Trained on first use."""
    return _factory("glyph_separable")


def glyph_vit() -> Example:
    """A small vision transformer for glyphs: module in eval mode, example ``(1, 1, 32, 32)``. Trained on first use."""
    return _factory("glyph_vit")


def digits_plain() -> Example:
    """A plain CNN for digits: module in eval mode, example ``(1, 1, 8, 8)``. Trained on first use."""
    return _factory("digits_plain")


def digits_residual() -> Example:
    """A residual CNN for digits: module in eval mode, example ``(1, 1, 8, 8)``. Trained on first use."""
    return _factory("digits_residual")


def digits_separable() -> Example:
    """A depthwise-separable CNN for digits: module in eval mode, example ``(1, 1, 8, 8)``. Trained on first use."""
    return _factory("digits_separable")


def digits_vit() -> Example:
    """A small vision transformer for digits: module in eval mode, example ``(1, 1, 8, 8)``. Trained on first use."""
    return _factory("digits_vit")


# ----------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """``python -m models_zoo.small train NAME|all``: prints a line per network. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models_zoo.small", description="Train the zoo's small networks.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("train", help="train and cache a network, or all of them, one after the other")
    verb.add_argument("name", choices=[*NETWORKS, "all"], metavar="NAME", help=f"{', '.join(NETWORKS)} or all")
    verb.add_argument("--force", action="store_true", help="train even what is cached")
    options = parser.parse_args(arguments)
    for name in NETWORKS if options.name == "all" else [options.name]:
        try:
            stored = train(name, force=options.force, progress=lambda line: print(f"  {line}", file=sys.stderr))
        except GraphpruneError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        count = sum(p.numel() for p in _built(name).parameters())
        times = f"{stored['seconds']:.0f} s ({stored['cpu_seconds']:.0f} s of CPU)"
        print(f"{name}: test accuracy {stored['accuracy']:.2%}, {count:,} parameters, trained in {times}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
