"""What the small trained networks learn from: one container, scikit-learn's digits, and the measure of accuracy.

Only numpy is needed to use a data set, so that an ONNX Runtime session is judged exactly as a torch module is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import UsageError

__all__ = ["Data", "accuracy", "digits"]

DIGITS_TEST = 500


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled set of images, split once and for all.

    ``*_images`` are float32 ``(count, 1, height, width)`` in [0, 1], ``*_labels`` int64 ``(count,)`` in [0, classes).
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: int


def digits() -> Data:
    """scikit-learn's handwritten digits: 1797 images 1x8x8, 10 classes, 500 of them (a fixed choice) for the test.

    Raises UsageError if scikit-learn is missing. Source: UCI "Optical Recognition of Handwritten Digits" (test part).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("The digits need scikit-learn: install graphprune[zoo].") from error
    bunch: Any = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:DIGITS_TEST], order[DIGITS_TEST:]
    return Data(images[train], labels[train], images[test], labels[test], classes=10)


def accuracy(
    predict: Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]],
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    batch: int = 256,
) -> float:
    """The share (0 to 1) of ``images`` whose largest logit is the label.

    ``predict`` maps ``(b, 1, height, width)`` with ``b <= batch`` to logits ``(b, classes)``.
    """
    if len(images) != len(labels) or not len(labels):
        raise UsageError(f"Accuracy needs as many labels as images and at least one: got {len(labels)}, {len(images)}.")
    right = sum(
        int((predict(images[i : i + batch]).argmax(axis=1) == labels[i : i + batch]).sum())
        for i in range(0, len(labels), batch)
    )
    return right / len(labels)
