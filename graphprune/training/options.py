"""How a pruned network is trained again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphprune.calibration.losses import read_loss
from graphprune.errors import UsageError
from graphprune.frontends.samples import Preprocessing

__all__ = ["FinetuneOptions"]


@dataclass(frozen=True)
class FinetuneOptions:
    """How to train.

    Attributes:
        updates: steps of the optimiser at most.
        batch: runs of the samples per step; their gradients are averaged.
        lr, optimizer, weight_decay, momentum: ``adamw`` or ``sgd`` (``momentum`` is its own). AdamW's rate is relative:
            the share of a weight's usual size (:func:`graphprune.training.rates.usual_sizes`) that a step moves it by;
            of low-rank updates, and of ``sgd``, it is absolute. None: 5e-3, or 1e-3 where it is absolute. It rises over
            the share ``warm_up`` of the updates and falls to zero with a cosine, and is quartered where a look finds
            that the training has lost its way (four times the best distance).
        loss: the user's own, see :class:`graphprune.calibration.losses.Loss`; it is added to the distance from the
            original, which counts ``distil`` times (0: not at all), and the last weights are kept. Without it the
            samples alone are trained on, and the weights nearest to the original are kept.
        temperature: of the rows of classes that are compared.
        features, feature_weight: inner values that are compared as well, by mean square over that of the original's;
            ``("auto",)``: those behind the maps that lost columns, see :func:`graphprune.training.distill.consumers`.
        rank: train low-rank updates of the weights, merged at the end, and all vectors (Hu et al., "LoRA", 2021; Zimmer
            et al., "PERP", 2023); None: all weights.
        statistics: also update BatchNorm's running means and variances; else they stay as they are.
        evaluate_every: updates between two looks at what was held out; 0: a tenth of all.
        patience: looks without improvement (of the distance; of the mean loss where it is the user's own) after which
            training stops; 0: it never does.
        checkpoint_every: updates between two checkpoints; 0: none. They need a folder.
        clip: largest norm of the gradient; 0: any.
        images: how images are read; limit: at most so many runs.
        device: ``cpu``, ``cuda`` ...; None: the GPU where there is one.
        seed: of the order of the samples, and of the low-rank updates.
    """

    updates: int = 500
    batch: int = 8
    lr: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    warm_up: float = 0.1
    loss: Any = None
    distil: float = 1.0
    temperature: float = 1.0
    features: Sequence[str] = ()
    feature_weight: float = 1.0
    rank: int | None = None
    statistics: bool = False
    evaluate_every: int = 0
    patience: int = 0
    checkpoint_every: int = 0
    clip: float = 1.0
    images: Preprocessing | None = None
    limit: int | None = None
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch": 1, "evaluate_every": 0, "patience": 0, "checkpoint_every": 0, "rank": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"{name}={value}: a number of at least {bound}")
        if self.optimizer not in ("adamw", "sgd"):
            raise UsageError(f"optimizer={self.optimizer!r} is not one of adamw, sgd")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name}={value}: a number above 0")
        for name in ("weight_decay", "distil", "clip"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{name}={value}: a number of at least 0")
        if not 0 <= self.warm_up < 1:
            raise UsageError(f"warm_up={self.warm_up}: a share of the updates, from 0 to below 1")
        if self.loss is None and not self.distil:
            raise UsageError("there is nothing to train for: give a loss, or distil from the original")

    @property
    def relative(self) -> bool:
        """Whether the rate is a share of the weights' usual sizes."""
        return self.optimizer == "adamw" and self.rank is None

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.lr if self.lr is not None else 5e-3 if self.relative else 1e-3

    def to_json(self) -> dict[str, Any]:
        """All options as plain data, ``lr`` as it is used."""
        loss = self.loss if self.loss is None or isinstance(self.loss, str) else read_loss(self.loss).source
        images = None if self.images is None else asdict(self.images)
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "loss": loss, "images": images, "features": list(self.features), "lr": self.rate}
