"""Means and covariances of rows, accumulated in float64 a block at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments"]

Floats = NDArray[np.float64]
_BLOCK = 4096  # rows of a float32 product; their sums are added up in float64


@dataclass
class Moments:
    """Moments of ``x`` and, where given, of ``x`` with ``y``; both come as ``(rows, B, n)``.

    Sums are taken around the mean of the first rows seen, so that a mean far from zero costs no accuracy.

    Attributes:
        full: whether the covariance of ``x`` is wanted; otherwise its diagonal alone.
        count: rows seen.
    """

    full: bool = True
    count: int = 0
    _origin: tuple[NDArray[np.float32], NDArray[np.float32] | None] | None = field(default=None, repr=False)
    _sum_x: Floats | None = field(default=None, repr=False)
    _sum_y: Floats | None = field(default=None, repr=False)
    _square: Floats | None = field(default=None, repr=False)
    _cross: Floats | None = field(default=None, repr=False)
    _power: Floats | None = field(default=None, repr=False)

    def like(self) -> Moments:
        """Empty ones around the same origin, which can be added to these."""
        assert self._origin is not None
        return Moments(self.full, _origin=self._origin)

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32] | None = None) -> None:
        """Take in rows, float32, ``x`` of shape ``(rows, B, n)`` and ``y`` of shape ``(rows, B, m)``."""
        if not len(x):
            return
        if self._origin is None:
            self._origin = (x.mean(axis=0), None if y is None else y.mean(axis=0))
        for at in range(0, len(x), _BLOCK):
            self._take(x[at : at + _BLOCK], None if y is None else y[at : at + _BLOCK])

    def _take(self, x: NDArray[np.float32], y: NDArray[np.float32] | None) -> None:
        assert self._origin is not None
        left = np.ascontiguousarray((x - self._origin[0]).transpose(1, 0, 2))  # B, rows, n
        if self._sum_x is None:
            b, n = left.shape[0], left.shape[2]
            self._sum_x = np.zeros((b, n))
            self._square = np.zeros((b, n, n) if self.full else (b, n))
        self.count += len(x)
        self._sum_x += left.sum(axis=1, dtype=np.float64)
        assert self._square is not None
        if self.full:
            self._square += left.transpose(0, 2, 1) @ left
        else:
            self._square += np.einsum("brn,brn->bn", left, left, dtype=np.float64)
        if y is None:
            return
        assert self._origin[1] is not None
        right = np.ascontiguousarray((y - self._origin[1]).transpose(1, 0, 2))
        if self._sum_y is None:
            b, m = right.shape[0], right.shape[2]
            self._sum_y, self._power, self._cross = np.zeros((b, m)), np.zeros((b, m)), np.zeros((b, left.shape[2], m))
        assert self._cross is not None and self._power is not None
        self._sum_y += right.sum(axis=1, dtype=np.float64)
        self._power += np.einsum("brm,brm->bm", right, right, dtype=np.float64)
        self._cross += left.transpose(0, 2, 1) @ right

    def __add__(self, other: Moments) -> Moments:
        """Those of all rows of both, which must have the same origin."""
        if other._sum_x is None or self._sum_x is None:
            return self if other._sum_x is None else other
        assert self._origin is other._origin
        joined = Moments(self.full, self.count + other.count, self._origin)
        for name in ("_sum_x", "_sum_y", "_square", "_cross", "_power"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(joined, name, None if mine is None else mine + theirs)
        return joined

    @property
    def mean(self) -> Floats:
        """Mean of ``x``, shape ``(B, n)``."""
        assert self._origin is not None and self._sum_x is not None
        return self._origin[0] + self._sum_x / self.count

    @property
    def mean_y(self) -> Floats:
        """Mean of ``y``, shape ``(B, m)``."""
        assert self._origin is not None and self._origin[1] is not None and self._sum_y is not None
        return self._origin[1] + self._sum_y / self.count

    @property
    def variance(self) -> Floats:
        """Variance of ``x``, shape ``(B, n)``."""
        assert self._sum_x is not None and self._square is not None
        square = np.diagonal(self._square, axis1=1, axis2=2) if self.full else self._square
        return np.maximum(square / self.count - (self._sum_x / self.count) ** 2, 0.0)

    @property
    def second(self) -> Floats:
        """Mean square of ``x``, shape ``(B, n)``."""
        return self.variance + self.mean**2

    @property
    def covariance(self) -> Floats:
        """Centred covariance of ``x``, shape ``(B, n, n)``."""
        assert self._sum_x is not None and self._square is not None and self.full
        shift = self._sum_x / self.count
        return np.asarray(self._square / self.count - shift[:, :, None] * shift[:, None, :])

    @property
    def cross(self) -> Floats:
        """Centred covariance of ``x`` with ``y``, shape ``(B, n, m)``."""
        assert self._sum_x is not None and self._cross is not None and self._sum_y is not None
        shift_x, shift_y = self._sum_x / self.count, self._sum_y / self.count
        return np.asarray(self._cross / self.count - shift_x[:, :, None] * shift_y[:, None, :])

    @property
    def power(self) -> Floats:
        """Variance of ``y``, shape ``(B, m)``."""
        assert self._power is not None and self._sum_y is not None
        return np.maximum(self._power / self.count - (self._sum_y / self.count) ** 2, 0.0)
