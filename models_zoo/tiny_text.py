"""A small BERT and a small GPT, trained here in minutes on text that ships with Python: losses that mean something.

The text is that of Python's own help (``pydoc_data.topics``), character by character: 98 ids, one for the mask. A tenth
of the topics (told by a hash of their names) is held out; another version of Python has another text. Both networks
have 4 layers of width 128, 4 heads and MLPs of 512, and are judged by the mean loss of each held-out sequence, in nats
per character predicted. ``tiny_gpt`` predicts the next character of 128. ``tiny_bert`` predicts the 20 % that are
masked, from the position before (BehnamGhader et al. 2024, https://arxiv.org/abs/2404.05961): from the masked position
itself so short a training learns nothing but how frequent each character is.

    python -m models_zoo.tiny_text train tiny_gpt     # or: all
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphprune.errors import GraphpruneError, UsageError
from models_zoo.cache import cache_folder, recipe_hash, write_atomically
from models_zoo.language import OneTensor
from models_zoo.small import one_seeded_thread, read_trained

__all__ = [
    "INPUT",
    "LENGTH",
    "NETWORKS",
    "Training",
    "calibration",
    "encode",
    "losses",
    "sequences",
    "tiny_bert",
    "tiny_gpt",
    "train",
]

Split = Literal["train", "held out"]
Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
Example = tuple[nn.Module, tuple[Tensor, ...]]

INPUT, LENGTH = "input_ids", 128
_MASK, _OTHER = 0, 1  # ids; the printable characters and the end of a line follow
VOCABULARY = 2 + 1 + 95
_MASKED = 0.2  # of a sequence for BERT; all of them become the mask, none is left or replaced
_HELD_OUT = 10  # one topic of so many
_BATCH = 16


@dataclass(frozen=True)
class Training:
    """How a network is trained: AdamW, warm-up and cosine, one thread, seeded."""

    steps: int
    learning_rate: float
    batch: int = 16
    weight_decay: float = 0.05
    warm_up: int = 100
    seed: int = 0


NETWORKS: dict[str, Training] = {"tiny_bert": Training(850, 1e-3), "tiny_gpt": Training(850, 4e-3)}


# -------------------------------------------------------------------------------------------------------------- text


def encode(text: str) -> NDArray[np.int64]:
    """Ids of characters, int64 ``(len(text),)``: printable ASCII and the end of a line; all others share an id."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
    ids = np.where((codes >= 32) & (codes < 127), codes - 32 + 3, _OTHER)
    return np.where(codes == 10, 2, ids)


@lru_cache(maxsize=2)
def _text(split: Split) -> NDArray[np.int64]:
    from pydoc_data.topics import topics

    held = [name for name in sorted(topics) if (zlib.crc32(name.encode()) % _HELD_OUT == 0) == (split == "held out")]
    ids = encode("\n".join(topics[name] for name in held))
    ids.setflags(write=False)
    return ids


def sequences(split: Split) -> NDArray[np.int64]:
    """The text of a split in pieces that follow each other, int64 ``(count, 128)``."""
    if split not in ("train", "held out"):
        raise UsageError(f"The text has the splits 'train' and 'held out', not '{split}'.")
    ids = _text(split)
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def _masked(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which characters BERT is to predict: not the first, at least one of every sequence."""
    chosen = rng.random(shape) < _MASKED
    chosen[:, 0] = False
    chosen[np.arange(shape[0]), rng.integers(1, shape[1], size=shape[0])] = True
    return chosen


def _inputs(name: str, ids: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What a network is given and what it is to say (-100: nothing), both ``(count, 128)``."""
    _training(name)
    if name == "tiny_gpt":
        after = np.full_like(ids, -100)
        after[:, :-1] = ids[:, 1:]
        return ids, after
    chosen = _masked(ids.shape, rng)
    after = np.full_like(ids, -100)
    after[:, :-1] = np.where(chosen, ids, -100)[:, 1:]
    return np.where(chosen, _MASK, ids), after


def calibration(name: str, count: int, seed: int = 0) -> list[dict[str, NDArray[Any]]]:
    """``count`` training sequences as the network takes them, ``{"input_ids": (1, 128)}`` each; BERT's are masked."""
    every, rng = sequences("train"), np.random.default_rng([seed, 2])
    if count > len(every):
        raise UsageError(f"The text has {len(every)} training sequences; {count} cannot be drawn.")
    given, _ = _inputs(name, every[rng.permutation(len(every))[:count]], rng)
    return [{INPUT: one[None]} for one in given]


def losses(name: str, run: Run) -> NDArray[np.float64]:
    """Mean cross-entropy of each held-out sequence, float64 ``(count,)``, in nats per character predicted.

    ``run`` maps ``{"input_ids": (b, 128)}`` to logits ``(b, 128, 98)``, its one output, by name. The masks are fixed.
    """
    given, wanted = _inputs(name, sequences("held out"), np.random.default_rng(7))
    found = []
    for start in range(0, len(given), _BATCH):
        (logits,) = run({INPUT: given[start : start + _BATCH]}).values()
        right = wanted[start : start + _BATCH]
        scores = logits.astype(np.float64)
        top = scores.max(axis=-1, keepdims=True)
        total = np.log(np.exp(scores - top).sum(axis=-1)) + top[..., 0]
        said = np.take_along_axis(scores, np.maximum(right, 0)[..., None], axis=-1)[..., 0]
        counts = right >= 0
        found.append(((total - said) * counts).sum(axis=1) / counts.sum(axis=1))
    return np.concatenate(found)


# ---------------------------------------------------------------------------------------------------------- networks


def _training(name: str) -> Training:
    if name not in NETWORKS:
        raise UsageError(f"The zoo trains no language model '{name}'; it has: {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def _built(name: str) -> nn.Module:
    try:
        from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise UsageError(f"The network '{name}' needs transformers: install graphprune[zoo].") from error
    with one_seeded_thread(_training(name).seed):
        if name == "tiny_gpt":
            gpt = GPT2Config(
                vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=128, n_layer=4, n_head=4, n_inner=512,
                bos_token_id=1, eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )  # fmt: skip
            return OneTensor(GPT2LMHeadModel(gpt), "logits").eval()
        bert = BertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=128, num_hidden_layers=4,
            num_attention_heads=4, intermediate_size=512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            pad_token_id=_OTHER, initializer_range=0.06,
        )  # fmt: skip
        module = BertForMaskedLM(bert)
        with torch.no_grad():
            module.bert.embeddings.position_embeddings.weight.copy_(_sinusoids(LENGTH, 128))
        return OneTensor(module, "logits").eval()


def _sinusoids(positions: int, width: int) -> Tensor:
    """Vaswani et al. 2017, as large as the other embeddings: from random ones it takes thousands of steps to look near.

    Returns ``(positions, width)``.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(100.0) / width))
    angles = torch.arange(positions)[:, None] * rates
    return 0.1 * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _fit(name: str, module: nn.Module, progress: Callable[[str], None] | None) -> None:
    """Train ``module`` in place; ``progress`` gets a line every hundred steps."""
    training = _training(name)
    text, rng = _text("train"), np.random.default_rng(training.seed)
    with one_seeded_thread(training.seed):
        decayed = [p for p in module.parameters() if p.ndim == 2]
        others = [p for p in module.parameters() if p.ndim != 2]
        parameters: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            parameters, lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.98)
        )
        rest = max(1, training.steps - training.warm_up)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda s: min(
                (s + 1) / training.warm_up, 0.5 + 0.5 * math.cos(math.pi * max(0, s - training.warm_up) / rest)
            ),
        )
        module.train()
        total = 0.0
        for step in range(1, training.steps + 1):
            starts = rng.integers(len(text) - LENGTH, size=training.batch)
            ids = text[starts[:, None] + np.arange(LENGTH)]
            given, wanted = (torch.from_numpy(one) for one in _inputs(name, ids, rng))
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(module(given).flatten(0, 1), wanted.flatten(), ignore_index=-100)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            if progress is not None and step % 100 == 0:
                progress(f"step {step}/{training.steps}: loss {total / 100:.4f}")
                total = 0.0
        module.eval()


def train(name: str, *, force: bool = False, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Train the network ``name`` unless it is cached (or ``force``), and cache it.

    Returns ``{"state": state dict, "loss": held-out loss in nats per character, "seconds": of training,
    "cpu_seconds": of it on the processor, "torch": version}``.
    """
    module = _built(name)
    path = _cache_file(name, module)
    stored = None if force else read_trained(path)
    if stored is None:
        start, start_cpu = time.perf_counter(), time.process_time()
        _fit(name, module, progress)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu

        def run(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            with torch.inference_mode():
                return {"logits": module(torch.from_numpy(feeds[INPUT])).numpy()}

        stored = {
            "state": module.state_dict(),
            "loss": float(losses(name, run).mean()),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "torch": str(torch.__version__),
        }
        content = io.BytesIO()
        torch.save(stored, content)
        write_atomically(path, content.getvalue())
    return stored


def _cache_file(name: str, module: nn.Module) -> Path:
    key = {
        "text": hashlib.sha256(_text("train").tobytes()).hexdigest(),
        "masked": _MASKED,
        "training": asdict(_training(name)),
        "modules": str(module),
        "shapes": {key: list(value.shape) for key, value in module.state_dict().items()},
    }
    return cache_folder() / f"{name}-{recipe_hash(key)}.pt"


def _factory(name: str) -> Example:
    def say(line: str) -> None:
        print(f"{name}: {line}", file=sys.stderr)

    module = _built(name)
    module.load_state_dict(train(name, progress=say)["state"])
    return module.eval(), (torch.from_numpy(calibration(name, 1)[0][INPUT]),)


def tiny_bert() -> Example:
    """BERT for masked characters: module in eval mode, example ids ``(1, 128)``. Trained on first use."""
    return _factory("tiny_bert")


def tiny_gpt() -> Example:
    """GPT-2 for the next character: module in eval mode, example ids ``(1, 128)``. Trained on first use."""
    return _factory("tiny_gpt")


def main(arguments: list[str] | None = None) -> int:
    """``python -m models_zoo.tiny_text train NAME|all``: prints a line per network. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models_zoo.tiny_text", description="Train the tiny language models."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("train", help="train and cache a network, or both")
    verb.add_argument("name", choices=[*NETWORKS, "all"], metavar="NAME", help=f"{', '.join(NETWORKS)} or all")
    verb.add_argument("--force", action="store_true", help="train even what is cached")
    options = parser.parse_args(arguments)
    for name in NETWORKS if options.name == "all" else [options.name]:
        try:
            stored = train(name, force=options.force, progress=lambda line: print(f"  {line}", file=sys.stderr))
        except GraphpruneError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        times = f"{stored['seconds']:.0f} s ({stored['cpu_seconds']:.0f} s of CPU)"
        print(f"{name}: held-out loss {stored['loss']:.4f} nats per character, trained in {times}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
