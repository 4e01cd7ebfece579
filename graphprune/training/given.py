"""What a training is given: networks, samples, and a folder to write to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError
from graphprune.frontends.samples import Samples
from graphprune.ir.program import Program
from graphprune.ir.store import external_locations
from graphprune.pipeline import Network, load
from graphprune.training.options import FinetuneOptions

__all__ = ["as_network", "check_alike", "fingerprint", "spare"]


def as_network(source: Any, input_shapes: Mapping[str | None, tuple[int, ...]] | None = None) -> Network:
    """A network, a program, or an ONNX file, as a network."""
    if isinstance(source, Network):
        return source
    if isinstance(source, Program):
        return Network(source, source.source, "network", {})
    return load(source, input_shapes=input_shapes)


def check_alike(network: Network, original: Network) -> None:
    """Raises UsageError where the one cannot have been cut from the other."""
    for what in ("inputs", "outputs"):
        here, there = (
            [value.name or "" for value in getattr(one.program.model.graph, what)] for one in (network, original)
        )
        if here != there:
            raise UsageError(
                f"the original has the {what} {', '.join(there)}, and the network to be trained {', '.join(here)}: "
                "give the network that it was pruned from"
            )


def spare(out: Path, networks: Sequence[Network]) -> None:
    """Raises UsageError where what is written would take the place of a network that was given, or of its export."""
    for one in networks:
        if one.source is None:
            continue
        files = [one.source, *(one.source.parent / name for name in external_locations(one.program.model))]
        for target in (out / "model.onnx", out / "model.onnx.data"):
            if target.exists() and any(file.exists() and os.path.samefile(target, file) for file in files):
                raise UsageError(f"'{target}' would overwrite a network that was given; choose another output folder")
    if (out / "manifest.json").exists():
        raise UsageError(f"'{out}' holds an export and its manifest; choose another output folder")


def fingerprint(options: FinetuneOptions, samples: Samples, networks: Sequence[Network]) -> str:
    """Equal for runs that train the same networks on the same samples in the same way, before their first update."""
    plain = {name: value for name, value in options.to_json().items() if name != "checkpoint_every"}
    found = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    found.update(samples.digest().encode())
    for network in networks:
        for name, value in network.program.model.graph.initializers.items():
            if value.const_value is not None:
                found.update(f"{name} {value.const_value.shape} ".encode())
                found.update(value.const_value.tobytes())
    return found.hexdigest()
