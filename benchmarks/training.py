"""Pruning before, during and after training on the zoo's networks, against Torch-Pruning with the same number of steps.

    python -m benchmarks.training run [--networks digits_plain,...] [--seeds 3] [--epochs 15]
    python -m benchmarks.training initial [--networks digits_plain,...] [--seeds 3]
    python -m benchmarks.training table

Every cell of ``run`` starts from the same trained network and takes the same number of optimiser steps on the same
labelled data. ``initial`` cuts untrained networks and trains what is left as the zoo's networks are trained.
Rows are appended to ``docs/training.jsonl`` one by one; a run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import graphprune
from benchmarks.common import ROOT, machine_line, markdown_table
from graphprune.passes.plan import Plan
from graphprune.pipeline import Network
from graphprune.training.iterative import shares
from models_zoo import small

ROWS = ROOT / "docs" / "training.jsonl"
TABLE = ROOT / "docs" / "training.md"
BATCH = 64
TARGETS = (0.5, 0.3)
RATE = 2e-3


class Task:
    """A trained network of the zoo, its data, and how long it is trained further."""

    def __init__(self, name: str, seed: int, epochs: int) -> None:
        self.name, self.seed = name, seed
        self.data = small.load_data(small.NETWORKS[name].data)
        self.images = torch.from_numpy(self.data.train_images)
        self.labels = torch.from_numpy(self.data.train_labels)
        self.steps = epochs * (len(self.labels) // BATCH)
        self.example = (self.images[:BATCH],)

    def module(self) -> nn.Module:
        """The trained network."""
        found: nn.Module = getattr(small, self.name)()[0]
        return found

    def calibration(self) -> list[dict[str, Any]]:
        """Training images without labels, in batches."""
        order = np.random.default_rng(self.seed).permutation(len(self.images))
        return [{"x": self.data.train_images[order[k * BATCH : (k + 1) * BATCH]]} for k in range(8)]

    def loss(self, module: nn.Module, step: int, first: int = 0) -> torch.Tensor:
        """Of one batch; batches are the same for the same seed and step."""
        epoch, at = divmod(first + step, len(self.labels) // BATCH)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        chosen = order[at * BATCH : (at + 1) * BATCH]
        return nn.functional.cross_entropy(module(self.images[chosen]), self.labels[chosen], label_smoothing=0.05)

    def train(self, module: nn.Module, steps: int, optimizer: Any = None, first: int = 0) -> None:
        """So many steps with a rate that rises over a tenth of them and falls with a cosine."""
        torch.manual_seed(self.seed)
        made = optimizer or torch.optim.AdamW(grouped(module), lr=RATE)
        warm = max(1, steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            made, lambda s: min((s + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, s - warm) / max(1, steps - warm)))
        )
        module.train()
        for step in range(steps):
            made.zero_grad()
            torch.autograd.backward(self.loss(module, step, first))
            made.step()
            schedule.step()
        module.eval()

    def accuracy(self, module: nn.Module) -> float:
        """On the test images, in batches of the size that the network was traced with."""
        images, labels = torch.from_numpy(self.data.test_images), self.data.test_labels
        module.eval()
        right = 0
        with torch.inference_mode():
            for at in range(0, len(images), BATCH):
                part = images[at : at + BATCH]
                full = torch.cat([part, part.new_zeros(BATCH - len(part), *part.shape[1:])])
                right += int((module(full).argmax(1)[: len(part)].numpy() == labels[at : at + len(part)]).sum())
        return right / len(images)


def grouped(module: nn.Module) -> list[dict[str, Any]]:
    """Matrices are decayed, vectors are not."""
    several = list(module.parameters())
    return [
        {"params": [p for p in several if p.ndim in (2, 4)], "weight_decay": 0.05},
        {"params": [p for p in several if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]


def macs_of(module: nn.Module, task: Task) -> int:
    """Multiply-accumulates of one sample, by graphprune's count."""
    return graphprune.load(module, inputs=task.example).cost.macs({}) // BATCH


def cut_once(network: Network, task: Task, limit: int, folder: Path, **options: Any) -> Network:
    """The network exported at so many multiply-accumulates."""
    result = network.export(
        folder, target_macs=str(limit * BATCH), calib=task.calibration(), measure=None, verify=False, **options
    )
    return graphprune.load(result.model, inputs=task.calibration()[0])


def one_shot(task: Task, share: float, steps: int = 1, **options: Any) -> tuple[float, int, str]:
    """Cut, refit on unlabelled images, and train; in one step or in several."""
    network = graphprune.load(task.module(), inputs=task.example)
    whole = network.cost.macs({}) // BATCH
    module: Any = None
    with tempfile.TemporaryDirectory() as scratch:
        first = 0
        for step, length in enumerate(shares(task.steps, steps), 1):
            network = cut_once(network, task, int(whole * share ** (step / steps)), Path(scratch, str(step)), **options)
            module = graphprune.to_torch(network)
            task.train(module, length, first=first)
            first += length
            network = network.load_state(module)
        return task.accuracy(module), network.cost.macs({}) // BATCH, ""


def planned(task: Task, share: float) -> Plan:
    """What one shot would cut, with its widths by consequence."""
    network = graphprune.load(task.module(), inputs=task.example)
    limit = int(share * network.cost.macs({}))
    with tempfile.TemporaryDirectory() as folder:
        result = network.export(
            folder, target_macs=str(limit), calib=task.calibration(), measure=None, verify=False, repair="none"
        )
    return result.plan


def during(task: Task, share: float, kind: str, *, to_plan: bool = False) -> tuple[float, int, str]:
    """One of the sparse optimisers, on the same steps: equal shares of all groups, or the widths of a plan."""
    module = task.module()
    steps = task.steps
    target = planned(task, share) if to_plan else share
    shared: dict[str, Any] = {"lr": RATE, "params": grouped(module), "target": target, "start": steps // 10}
    if kind == "dhspg":
        optimizer: Any = graphprune.optim.DHSPG(module, task.example, length=steps // 2, strength=30.0, **shared)
    elif kind == "cric":
        optimizer = graphprune.optim.CRIC(
            module, task.example, periods=1, fade=steps // 5, sampling=max(4, steps // 50), cycles=5,
            loss=lambda: sum(float(task.loss(module, k)) for k in range(4)), **shared,
        )  # fmt: skip
    else:
        optimizer = graphprune.optim.HESSO(module, task.example, periods=5, fade=steps // 10, **shared)
    task.train(module, steps, optimizer)
    network = optimizer.cut(tolerance=1e-4)
    note = f"{optimizer.forced} units forced" if kind == "dhspg" and optimizer.forced else ""
    return task.accuracy(module), network.cost.macs({}) // BATCH, note


def torch_pruning(task: Task, share: float, kind: str) -> tuple[float, int, str]:
    """Torch-Pruning's group norm or group Taylor, global ranking, in fine steps until the share is reached."""
    import torch_pruning as tp

    module = task.module()
    whole = macs_of(module, task)
    importance = tp.importance.GroupMagnitudeImportance() if kind == "norm" else tp.importance.GroupTaylorImportance()
    ignored = [layer for name, layer in module.named_modules() if name in ("head", "classifier.3")]
    heads = {layer: 4 for name, layer in module.named_modules() if name.endswith("qkv")}
    pruner = tp.pruner.BasePruner(
        module, task.example, importance=importance, global_pruning=True, pruning_ratio=1.0, iterative_steps=100,
        max_pruning_ratio=0.9, ignored_layers=ignored, num_heads=heads,
    )  # fmt: skip
    found, counted = whole, tp.utils.count_ops_and_params(module, task.example)[0]
    for _ in range(100):
        if kind == "taylor":
            module.zero_grad()
            torch.autograd.backward(task.loss(module.eval(), 0))
        pruner.step()
        if tp.utils.count_ops_and_params(module, task.example)[0] > 1.05 * share * counted:
            continue  # its own count is quick, ours traces the module
        found = macs_of(module, task)
        if found <= share * whole:
            break
    task.train(module, task.steps)
    return task.accuracy(module), found, ""


def initial(task: Task, share: float, criterion: str) -> tuple[float, int, str]:
    """An untrained network, cut and then trained by the zoo's recipe; ``criterion`` is empty for the whole network."""
    zoo = small.NETWORKS[task.name]
    with small.one_seeded_thread(task.seed):
        module = zoo.build()
    whole = network = graphprune.load(module, inputs=task.example)
    if criterion:

        def loss(run: Any) -> Any:
            for k in range(8):
                part = slice(k * BATCH, (k + 1) * BATCH)
                (logits,) = run({"x": task.data.train_images[part]}).values()
                yield nn.functional.cross_entropy(logits, task.labels[part])

        options: dict[str, Any] = {}
        if criterion in GRADIENTS:
            options = {"calib": task.calibration(), "repair": "none"}
            options |= {} if criterion == "synflow" else {"criterion_options": {"loss": loss}}
        limit = int(share * whole.cost.macs({}))
        with tempfile.TemporaryDirectory() as folder:
            result = whole.export(
                folder, target_macs=str(limit), criterion=criterion, measure=None, seed=task.seed, **options
            )
            graphprune.prune_module(module, result.plan_path, task.example)
        network = graphprune.load(module, inputs=task.example)
    small.fit(module, task.data, dataclasses.replace(zoo.training, seed=task.seed))
    return task.accuracy(module), network.cost.macs({}) // BATCH, ""


GRADIENTS = ("snip", "grasp", "synflow")
INITIAL: Mapping[str, str] = {
    "untrained, whole": "",
    **{f"untrained, {name}": name for name in ("random", "magnitude", *GRADIENTS)},
}
METHODS: Mapping[str, Callable[[Task, float], tuple[float, int, str]]] = {
    "one shot": lambda task, share: one_shot(task, share),
    "one shot, taylor": lambda task, share: one_shot(task, share, criterion="taylor"),
    "iterative": lambda task, share: one_shot(task, share, steps=5),
    "HESSO": lambda task, share: during(task, share, "hesso"),
    "HESSO-CRIC": lambda task, share: during(task, share, "cric"),
    "DHSPG": lambda task, share: during(task, share, "dhspg"),
    "HESSO, to a plan": lambda task, share: during(task, share, "hesso", to_plan=True),
    "HESSO-CRIC, to a plan": lambda task, share: during(task, share, "cric", to_plan=True),
    "DHSPG, to a plan": lambda task, share: during(task, share, "dhspg", to_plan=True),
    "Torch-Pruning, group norm": lambda task, share: torch_pruning(task, share, "norm"),
    "Torch-Pruning, group Taylor": lambda task, share: torch_pruning(task, share, "taylor"),
}


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """The rows measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is measured once for."""
    return tuple(row[name] for name in ("network", "method", "target", "seed", "epochs"))


def run(networks: list[str], methods: list[str], targets: list[float], seeds: int, epochs: int) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    known = {key(row) for row in read_rows()}
    for seed in range(seeds):
        for name in networks:
            task = Task(name, seed, epochs)
            dense = {"network": name, "method": "dense, trained further", "target": 1.0, "seed": seed, "epochs": epochs}
            jobs = [dense] + [{**dense, "method": method, "target": share} for share in targets for method in methods]
            for row in jobs:
                if key(row) not in known:
                    _measure(row, task)


def run_initial(networks: list[str], targets: list[float], seeds: int) -> None:
    """Measure what is missing of the networks that are cut before they are trained."""
    torch.set_num_threads(1)
    known = {key(row) for row in read_rows()}
    for seed in range(seeds):
        for name in networks:
            epochs = small.NETWORKS[name].training.epochs
            task = Task(name, seed, epochs)
            for method, criterion in INITIAL.items():
                for share in targets if criterion else (1.0,):
                    row = {"network": name, "method": method, "target": share, "seed": seed, "epochs": epochs}
                    if key(row) not in known:
                        _measure(row, task)


def _measure(row: dict[str, Any], task: Task) -> None:
    start = time.perf_counter()
    whole = macs_of(task.module(), task)
    try:
        if row["method"] in INITIAL:
            accuracy, macs, note = initial(task, row["target"], INITIAL[row["method"]])
        elif row["target"] == 1.0:
            module = task.module()
            row["before"] = task.accuracy(module)
            task.train(module, task.steps)
            accuracy, macs, note = task.accuracy(module), whole, ""
        else:
            accuracy, macs, note = METHODS[row["method"]](task, row["target"])
        row |= {"accuracy": round(accuracy, 5), "macs": round(macs / whole, 4), "note": note}
    except Exception as error:  # a peer that cannot is a result as well
        row |= {"accuracy": None, "macs": None, "note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    row |= {"steps": task.steps, "seconds": round(time.perf_counter() - start, 1)}
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, file=sys.stderr, flush=True)


def table() -> str:
    """The rows as text: mean and spread of the accuracy over the seeds, beside the share of MACs reached."""
    rows = read_rows()
    parts = [
        "# Pruning before, during and after training\n",
        "Test accuracy in percent, mean (and lowest to highest) over the seeds; every cell of a network and number of "
        "epochs takes the same number of optimiser steps from the same trained network. *To a plan*: to the widths of "
        "one shot. *Untrained* networks are cut first and trained then, as the zoo's are. In brackets the share of the "
        "MACs that is left.\n",
        f"{machine_line()}\n",
    ]
    for target in sorted({row["target"] for row in rows if row["target"] < 1}, reverse=True):
        parts.append(f"## {target:g}x of the MACs\n")
        for methods in (("dense, trained further", *METHODS), tuple(INITIAL)):
            parts += _table([row for row in rows if row["method"] in methods], methods, target)
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]], methods: tuple[str, ...], target: float) -> list[str]:
    """Methods down, networks and their epochs across; nothing where nothing was cut to the target."""
    shown = sorted({(row["network"], row["epochs"]) for row in rows if row["target"] == target})
    lines = []
    for method in methods:
        here = [row for row in rows if row["method"] == method and row["target"] in (target, 1.0)]
        lines.append(
            [method, *(_cell([row for row in here if (row["network"], row["epochs"]) == one]) for one in shown)]
        )
    heads = [f"{name}, {epochs} epochs" for name, epochs in shown]
    return [markdown_table(["method", *heads], [line for line in lines if any(line[1:])]), ""] if shown else []


def _cell(rows: list[dict[str, Any]]) -> str:
    good = [100 * row["accuracy"] for row in rows if row["accuracy"] is not None]
    if not rows:
        return ""
    if not good:
        return f"fails: {rows[0]['note'][:60]}"
    share = statistics.mean(row["macs"] for row in rows if row["macs"] is not None)
    spread = f" ({min(good):.1f} to {max(good):.1f})" if len(good) > 1 else ""
    failed = len(rows) - len(good)
    return f"{statistics.mean(good):.2f}{spread} [{share:.2f}x]" + (f", {failed} fail" if failed else "")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--networks", default=",".join(small.NETWORKS), help="names, separated by commas")
    runs.add_argument("--methods", default="", help="some of the methods, separated by semicolons")
    runs.add_argument("--targets", default=",".join(map(str, TARGETS)))
    runs.add_argument("--seeds", type=int, default=3)
    runs.add_argument("--epochs", type=int, default=15)
    before = verbs.add_parser("initial")
    before.add_argument("--networks", default=",".join(small.NETWORKS), help="names, separated by commas")
    before.add_argument("--targets", default=",".join(map(str, TARGETS)))
    before.add_argument("--seeds", type=int, default=3)
    verbs.add_parser("table")
    options = parser.parse_args(arguments)
    if options.verb == "run":
        run(
            options.networks.split(","),
            [one.strip() for one in options.methods.split(";") if one.strip()] or list(METHODS),
            [float(one) for one in options.targets.split(",")],
            options.seeds,
            options.epochs,
        )
    if options.verb == "initial":
        shares_asked = [float(one) for one in options.targets.split(",")]
        run_initial(options.networks.split(","), shares_asked, options.seeds)
    TABLE.write_text(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
