"""Least squares from moments: weights ``(B, out, columns)`` of ``B`` maps side by side, errors, and slopes.

Formulas are those of :mod:`graphprune.passes.repair`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphprune.calibration.moments import Moments

__all__ = ["Rows", "largest", "missed", "ridge_fit", "slopes", "solved", "times"]

Floats = NDArray[np.float64]
Rows = tuple[NDArray[np.float32], NDArray[np.float32]]  # of a map: what it reads, and what the original gives

_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of a column
_ROUNDED = 4 * float(np.finfo(np.float32).eps)  # of the trace: products of float32 rows are no better than that
_UNKNOWN = 0.1  # the ridge where no sample is held out to choose it on
_FLATTEST = 0.5  # slope: fits that explain less of a result are not stretched further
_GAIN = 0.99  # of the error on what was held out: less than that is noise


def times(weights: Floats, mean: Floats) -> Floats:
    """What the maps make of one vector each, ``(B, columns)`` to ``(B, out)``."""
    return np.asarray(np.einsum("boq,bq->bo", weights, mean))


def missed(weights: Floats, moments: Moments, shift: Floats) -> float:
    """Mean square of what ``weights x + shift`` misses of ``y``, over everything."""
    off = moments.mean_y - times(weights, moments.mean) - shift
    joint = np.einsum("boq,bqo->", weights, moments.cross)
    own = np.einsum("boq,boq->", weights @ moments.covariance, weights)
    return max(float(moments.power.sum() - 2 * joint + own), 0.0) + float((off**2).sum())


def slopes(weights: Floats, moments: Moments) -> Floats:
    """Slope of the fit's results regressed on the original's, ``(B, out)``, from ``_FLATTEST`` to 1."""
    joint, power = np.einsum("boq,bqo->bo", weights, moments.cross), moments.power
    slopes = np.divide(joint, power, out=np.ones_like(power), where=power > 0)
    return np.asarray(np.clip(slopes, _FLATTEST, 1.0))


def largest(found: Floats, every: Moments, seen: Sequence[Rows], offset: Floats) -> Floats:
    """The fit with all slopes 1; as it is where the largest result is then the right one in fewer of the rows held out.

    ``offset``, ``(B, out)``: what is added to the map's results.
    """
    stretched = found / slopes(found, every)[:, :, None]
    middle = every.mean_y + offset
    right = [0, 0]
    for left, wanted in seen:
        centred, top = (left - every.mean).transpose(1, 0, 2), (wanted + offset).argmax(axis=2)
        for k, weights in enumerate((found, stretched)):
            given = (centred @ weights.transpose(0, 2, 1)).transpose(1, 0, 2) + middle
            right[k] += int((given.argmax(axis=2) == top).sum())
    return stretched if right[1] >= right[0] else found


def solved(start: Floats, moments: Moments, ridge: float) -> Floats:
    """The fit drawn towards ``start``."""
    from scipy.linalg import cho_factor, cho_solve

    covariance = moments.covariance
    n = covariance.shape[1]
    trace = np.maximum(np.trace(covariance, axis1=1, axis2=2), np.finfo(np.float32).tiny)
    right = moments.cross - covariance @ start.transpose(0, 2, 1)
    # where rows hardly differ from each other, rounding follows their squares and not their differences
    for rounded in (_ROUNDED * trace, _ROUNDED * (trace + moments.second.sum(axis=1))):
        lift = np.maximum(ridge / n * trace, rounded)
        lifted = covariance + lift[:, None, None] * np.eye(n)
        try:
            if len(lifted) > 1:  # many small systems: depthwise and grouped convolutions
                return np.asarray(start + np.linalg.solve(lifted, right).transpose(0, 2, 1))
            factor = cho_factor(lifted[0], lower=True, overwrite_a=True, check_finite=False)
            return np.asarray(start + cho_solve(factor, right[0], check_finite=False).T)
        except np.linalg.LinAlgError:
            continue
    return start


def ridge_fit(start: Floats, fit: Moments, held: Moments, every: Moments) -> tuple[float | None, Floats]:
    """The ridge that does best on what was held out, and the fit to everything with it; None and ``start`` where no
    fit is better on what was held out than ``start`` is.
    """
    if not held.count:
        return _UNKNOWN, solved(start, every, _UNKNOWN)
    kept = fit.mean_y - times(start, fit.mean)
    least, chosen = _GAIN * missed(start, held, kept), None
    for ridge in _RIDGES:
        found = solved(start, fit, ridge)
        error = missed(found, held, fit.mean_y - times(found, fit.mean))
        if error < least:
            least, chosen = error, ridge
    return chosen, start if chosen is None else solved(start, every, chosen)
