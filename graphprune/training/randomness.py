"""The global random generators of Python, NumPy and PyTorch: seeded together, kept in a checkpoint and set again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "seed_all", "set_random_state"]


def seed_all(seed: int) -> None:
    """Begin all of them anew."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Their states as tensors and plain numbers, which ``torch.load`` reads without pickle's risks."""
    numpy = {**np.random.get_state(legacy=False)}
    numpy["state"] = {**numpy["state"], "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}


def set_random_state(held: Mapping[str, Any]) -> None:
    """Go on from what :func:`random_state` gave."""
    inner = held["numpy"]["state"]
    random.setstate(held["python"])
    np.random.set_state({**held["numpy"], "state": {**inner, "key": inner["key"].cpu().numpy().astype(np.uint32)}})
    torch.set_rng_state(held["torch"].cpu())
