"""Several criteria at once: what each says of a unit, on a common scale, added up."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphprune.errors import UsageError
from graphprune.passes.score.base import Floats, Scores

__all__ = ["blended", "split_terms"]

_TERM = re.compile(r"\s*(?:(?P<weight>\d+(?:\.\d+)?)\s*\*)?\s*(?P<name>[^\s*+]+)\s*", re.ASCII)


def split_terms(text: str) -> list[tuple[float, str]]:
    """Weights and names of ``wanda+0.5*magnitude``; a weight that is left out is 1. Raises UsageError."""
    found = []
    for piece in text.split("+"):
        term = _TERM.fullmatch(piece)
        weight = 0.0 if term is None else float(term["weight"] or 1)
        if term is None or not weight:
            raise UsageError(f"--criterion {text!r}: write a name, or a sum such as wanda+0.5*magnitude")
        found.append((weight, term["name"]))
    return found


def blended(weights: Sequence[float], parts: Sequence[Scores]) -> Scores:
    """The weighted sum of scores of the same groups, each divided by its mean over all units.

    Scores below zero are lifted first, so that the mean is one of sizes. The sum estimates a loss if every part does.
    """
    if len(parts) == 1:
        return parts[0]
    values: dict[str, Floats] = {}
    for weight, part in zip(weights, parts, strict=True):
        lifted = part.from_zero().values
        count = sum(one.size for one in lifted.values())
        mean = sum(float(one.sum()) for one in lifted.values()) / max(count, 1)
        for name, one in lifted.items():
            scaled = weight * one / mean if mean > 0 else 0.0 * one
            values[name] = values[name] + scaled if name in values else scaled
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return Scores(values, tuple(notes), all(part.adds_up for part in parts))
