"""PP-OCRv4's trained networks as ONNX files, out of the PyPI package ``rapidocr-onnxruntime``.

Each function returns the file's path and input shapes to run it with. The package is located, never imported: that
would need OpenCV. ``python -m models_zoo.ocr recogniser`` prints a path.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from graphprune.errors import GraphpruneError, UsageError

__all__ = ["classifier", "detector", "recogniser"]

PACKAGE = "rapidocr_onnxruntime"
Shapes = dict[str, tuple[int, ...]]


def _file(name: str) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "The OCR networks come with the package 'rapidocr-onnxruntime', which is not installed: "
            "pip install rapidocr-onnxruntime (its dependencies are not needed: --no-deps)."
        )
    for folder in spec.submodule_search_locations:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise UsageError(
        f"The installed package 'rapidocr-onnxruntime' has no file 'models/{name}'; install version 1.4.4 of it."
    )


def detector() -> tuple[Path, Shapes]:
    """The text detector (DB head on a PP-LCNetV3): image ``(b, 3, h, w)``, h and w multiples of 32."""
    return _file("ch_PP-OCRv4_det_infer.onnx"), {"x": (1, 3, 320, 320)}


def recogniser() -> tuple[Path, Shapes]:
    """The text recogniser (SVTR-LCNet with CTC): line image ``(b, 3, 48, w)`` to ``(b, w / 8, 6625)`` probabilities."""
    return _file("ch_PP-OCRv4_rec_infer.onnx"), {"x": (1, 3, 48, 320)}


def classifier() -> tuple[Path, Shapes]:
    """The direction classifier (MobileNetV3): line image ``(b, 3, 48, 192)`` to ``(b, 2)``: upright, upside down."""
    return _file("ch_ppocr_mobile_v2.0_cls_infer.onnx"), {"x": (1, 3, 48, 192)}


def main(arguments: list[str] | None = None) -> int:
    """``python -m models_zoo.ocr NAME``: prints the file's path. Returns the exit code."""
    factories = {"detector": detector, "recogniser": recogniser, "classifier": classifier}
    parser = argparse.ArgumentParser(prog="python -m models_zoo.ocr", description="Print where an OCR network lies.")
    parser.add_argument("name", choices=factories)
    try:
        path, _ = factories[parser.parse_args(arguments).name]()
    except GraphpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
