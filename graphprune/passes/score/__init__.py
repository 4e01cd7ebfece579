"""Criteria: how important each unit of a group is. One number per unit; higher means more important."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import InputError, UsageError
from graphprune.passes.score.activations import Activation, Fluctuation, Variance, Wanda
from graphprune.passes.score.base import NORMALIZERS, REDUCTIONS, Calibrated, Criterion, Scores, Tensors, estimates_loss
from graphprune.passes.score.blend import blended, split_terms
from graphprune.passes.score.cache import ScoreCache
from graphprune.passes.score.chance import Random
from graphprune.passes.score.gradients import Fisher, Grasp, Lrp, Snip, Synflow, Taylor
from graphprune.passes.score.reconstruction import Obs
from graphprune.passes.score.registry import create
from graphprune.passes.score.scales import BnScale
from graphprune.passes.score.weights import Fpgm, Lamp, Magnitude

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group

__all__ = [
    "CRITERIA",
    "ENTRY_POINTS",
    "NORMALIZERS",
    "REDUCTIONS",
    "Activation",
    "BnScale",
    "Calibrated",
    "Criterion",
    "Fisher",
    "Fluctuation",
    "Fpgm",
    "Grasp",
    "Lamp",
    "Lrp",
    "Magnitude",
    "Obs",
    "Random",
    "ScoreCache",
    "Scores",
    "Snip",
    "Synflow",
    "Taylor",
    "Tensors",
    "Variance",
    "Wanda",
    "blended",
    "criteria",
    "criterion",
    "estimates_loss",
    "known",
    "score_groups",
    "survey",
]

ENTRY_POINTS = "graphprune.criteria"
_log = logging.getLogger(__name__)
CRITERIA: Mapping[str, Callable[..., Criterion | Calibrated]] = {
    "activation": Activation,
    "bn-scale": BnScale,
    "fisher": Fisher,
    "fluctuation": Fluctuation,
    "fpgm": Fpgm,
    "grasp": Grasp,
    "lamp": Lamp,
    "lrp": Lrp,
    "magnitude": Magnitude,
    "obs": Obs,
    "random": Random,
    "snip": Snip,
    "synflow": Synflow,
    "taylor": Taylor,
    "variance": Variance,
    "wanda": Wanda,
}


def known() -> dict[str, Callable[..., Criterion | Calibrated]]:
    """The criteria by name: the built-in ones, and those of the entry points ``graphprune.criteria``."""
    found = dict(CRITERIA)
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in found:
            try:
                found[entry.name] = entry.load()
            except Exception as error:  # somebody else's package: it is not the others' fault
                _log.warning("the criterion '%s' (%s) cannot be loaded: %s", entry.name, entry.value, error)
    return found


def survey() -> list[dict[str, Any]]:
    """Every criterion: its name, what it needs, its options with their defaults, and a sentence on it."""
    rows = []
    for name, made in sorted(known().items()):
        options: dict[str, Any] = {one.name: one.default for one in fields(made)} if is_dataclass(made) else {}
        about = inspect.getdoc(made) or ""
        rows.append(
            {
                "name": name,
                "needs": str(getattr(made, "needs", "weights")),
                "options": {
                    key: value for key, value in options.items() if isinstance(value, (str, int, float, tuple))
                },
                "about": " ".join(about.split("\n\n")[0].replace("``", "").split()),
            }
        )
    return rows


def criterion(name: str, **options: object) -> Criterion | Calibrated:
    """The criterion of that name with those options, for example ``criterion("magnitude", p=1)``.

    One that needs calibration data becomes a criterion with them: ``criterion("obs").on(observations)``.

    Raises ``UsageError`` for an unknown name or option (with the nearest ones) or a value that makes no sense.
    """
    return create(CRITERIA if name in CRITERIA else known(), "criterion", name, options)


def criteria(
    text: str, options: Mapping[str, object] | None = None, seed: int = 0
) -> list[tuple[float, Criterion | Calibrated]]:
    """What ``obs`` or a sum such as ``wanda+0.5*magnitude`` names, with weights; ``seed`` is for ``random``.

    Raises ``UsageError`` as :func:`criterion` does, and for options beside a sum.
    """
    terms = [(1.0, text)] if text in known() else split_terms(text)
    if len(terms) > 1 and options:
        raise UsageError(f"--criterion-option is for one criterion, and {text!r} is a sum of {len(terms)}")
    given = dict(options or {})
    return [(w, criterion(name, **({"seed": seed} if name == "random" else {}) | given)) for w, name in terms]


def _silent(group: Group, *, scales: frozenset[str]) -> None:
    """A criterion of a plug-in need not remark on anything."""


def score_groups(
    criterion: Criterion, groups: Iterable[Group], tensors: Tensors, *, scales: frozenset[str] = frozenset()
) -> Scores:
    """Score every group; ``tensors(name)`` gives a constant's values, ``scales`` names the BatchNorm scales among them.

    ``Scores.notes`` has one line for each group on which the criterion had to fall back to something else. Raises
    ``InputError`` where weights are NaN or infinite, or where a tensor does not fit its group.
    """
    values = {}
    notes = []
    for group in groups:
        scored = np.asarray(criterion.score(group, tensors, scales=scales), dtype=np.float64)
        wrong = np.count_nonzero(~np.isfinite(scored))
        if scored.shape != (group.size,) or wrong:
            raise InputError(
                f"Criterion '{criterion.name}' gave group '{group.id}' scores of shape {scored.shape} with {wrong} "
                f"values that are not finite; {group.size} finite ones are needed."
            )
        values[group.id] = scored
        remark = getattr(criterion, "remark", _silent)(group, scales=scales)
        if remark is not None:
            notes.append(remark)
    return Scores(values, tuple(notes), estimates_loss(criterion))
