"""What an agreement is worth: how far an OCR network agrees with itself once its weights are disturbed at random.

    python -m benchmarks.agreement

Every weight of PP-OCRv4's recogniser that is no vector is multiplied by 1 + e * N(0, 1), seed 0; the rendered test
lines are read by the network as it is and as it is then. Prints a table; 6 minutes on one core.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.accuracy_tasks import open_run
from benchmarks.common import markdown_table
from models_zoo import ocr, text_lines

LEVELS = (0.001, 0.003, 0.01, 0.02)
LINES = 500


def disturbed(model: onnx.ModelProto, level: float) -> onnx.ModelProto:
    """A copy with noise of so much of each weight."""
    rng = np.random.default_rng(0)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = (one.t for node in copy.graph.node for one in node.attribute if one.type == onnx.AttributeProto.TENSOR)
    for tensor in (*copy.graph.initializer, *constants):
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim >= 2:
            noisy = value * (1 + level * rng.standard_normal(value.shape))
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return copy


def main() -> int:
    """Print the table."""
    path, _ = ocr.recogniser()
    model, lines = onnx.load(str(path)), text_lines.test_lines(LINES)
    truth = [line.text for line in lines]
    first = text_lines.read(open_run(path), lines)
    rows = [["0", "100.00%", f"{text_lines.score(first, truth).characters.mean():.2%}"]]
    for level in LEVELS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            onnx.save(disturbed(model, level), str(file))
            texts = text_lines.read(open_run(file), lines)
        shares = (text_lines.score(texts, those).characters.mean() for those in (first, truth))
        rows.append([str(level), *(f"{share:.2%}" for share in shares)])
    print(markdown_table(["noise", "characters as the original reads them", "characters right"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
