"""int8 beside pruning: ONNX Runtime's static quantisation of the artefact and of the original, on the same samples."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune.accuracy import Metric, fidelity, outputs_of
from graphprune.artefacts import INT8
from graphprune.backends.runner import OrtRunner
from graphprune.errors import InputError
from graphprune.frontends.modules import first_line
from graphprune.frontends.onnx import read_onnx
from graphprune.ir.program import Array
from graphprune.ir.store import external_locations
from graphprune.latency.measure import Comparison

__all__ = ["DENSE_INT8", "Corner", "four_corners", "prepared", "quantize_int8"]

Feeds = Mapping[str, Array]
DENSE_INT8 = "dense.int8.onnx"  # the original's, to compare
_SAMPLES = 64  # that the ranges are taken from: more hardly widen them


@dataclass(frozen=True)
class Corner:
    """One of dense or pruned, float or int8: bytes of the file, and its time as a share of the original's, measured.

    ``quality`` holds the user's metric and the fidelity to the original, as the manifest writes them.
    """

    name: str
    size: int
    ratio: float | None
    low: float | None
    high: float | None
    quality: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {
            "name": self.name, "bytes": self.size, "ratio": self.ratio, "ratio_low": self.low, "ratio_high": self.high,
            **self.quality,
        }  # fmt: skip


def four_corners(
    original: ir.Model,
    source: Path,
    pruned: Path,
    dense_int8: Path,
    samples: Sequence[Feeds],
    held: Sequence[Feeds],
    metric: Metric | None,
    ratio: Callable[[Path], Comparison | None],
) -> list[Corner]:
    """Dense and pruned, float and int8: sizes, measured times and how good they are.

    Args:
        original: the network; ``source`` is its file, ``dense_int8`` that of :func:`quantize_int8`.
        pruned: the artefact's file; ``model.int8.onnx`` is written beside it.
        samples: to take ranges from; ``held``: those that nothing was fitted to.
        metric: the user's own, if any.
        ratio: measures a file against the source; None where nothing is measured.
    """
    files = {"dense int8": dense_int8, "pruned int8": pruned.with_name(INT8)}
    quantize_int8(pruned, samples, files["pruned int8"])
    expected = outputs_of(partial(OrtRunner(), original), held)
    corners = []
    for name, file in {"dense float": source, "pruned float": pruned, **files}.items():
        model = read_onnx(file)
        run = partial(OrtRunner(), model)
        figures: dict[str, Any] = {}
        if metric is not None:
            figures["metric"] = {key: one.to_json() for key, one in metric(run).items()}
        if held:
            figures["fidelity"] = fidelity(expected, outputs_of(run, held)).to_json()
        found = None if file == source else ratio(file)
        whole = 1.0 if file == source else None
        value, low, high = (whole,) * 3 if found is None else (found.ratio, found.ratio_low, found.ratio_high)
        data = external_locations(model)
        size = sum(one.stat().st_size for one in (file, *(file.parent / held for held in data)))
        corners.append(Corner(name, size, value, low, high, figures))
    return corners


def quantize_int8(source: Path, samples: Sequence[Feeds], out: Path) -> None:
    """Write ``source`` with int8 weights (per channel) and activations, as QuantizeLinear/DequantizeLinear pairs.

    Made by ``onnxruntime.quantization`` with ranges from the samples (smallest and largest value). Opsets below 13 are
    raised to 13, the first one with a scale per channel, and those of float16 networks to 19, the first one with scales
    in float16.

    Raises:
        InputError: the tool refuses the network, finds nothing to quantise, or writes what does not run.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Feeds] = iter(samples[:_SAMPLES])

        def get_next(self) -> Feeds | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        loud = logging.getLogger()
        level = loud.level
        loud.setLevel(logging.ERROR)  # the tool warns of every vector that it does not quantise per channel
        try:
            quantize_static(
                str(prepared(source, Path(folder))),
                str(out),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            old, new = ir.load(source), ir.load(out)
            OrtRunner()(new, samples[0])
        except Exception as error:
            why = f"what it wrote does not run ({error})" if isinstance(error, InputError) else first_line(error)
            why = "it holds int8 weights already" if _holds_int8(ir.load(source)) else why
            raise InputError(f"--quantize: ONNX Runtime's quantisation cannot take the network: {why}") from error
        finally:
            loud.setLevel(level)
    if not _holds_int8(new):
        raise InputError("--quantize: ONNX Runtime's quantisation found nothing to quantise in the network")
    _restore_names(old, new, out)


def prepared(path: Path, folder: Path) -> Path:
    """A network as ONNX Runtime's quantisation asks for: initialisers, shapes, an opset with scales per channel."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(path)
    del model.graph.value_info[:]  # the tools trip over shapes of weights that they transpose
    for node in [one for one in model.graph.node if one.op_type == "Constant" and one.attribute[0].name == "value"]:
        held = model.graph.initializer.add()
        held.CopyFrom(node.attribute[0].t)
        held.name = node.output[0]
        model.graph.node.remove(node)
    half = any(one.data_type == onnx.TensorProto.FLOAT16 for one in model.graph.initializer)
    least = 19 if half else 13
    newer, ready = folder / "newer.onnx", folder / "ready.onnx"
    if any(one.domain in ("", "ai.onnx") and one.version < least for one in model.opset_import):
        model = version_converter.convert_version(model, least)
    onnx.save(model, newer)
    quant_pre_process(str(newer), str(ready), skip_symbolic_shape=True, skip_optimization=True)
    return ready


def _holds_int8(model: ir.Model) -> bool:
    held = (one.const_value for one in model.graph.initializers.values())
    return any(one is not None and one.dtype in (ir.DataType.INT8, ir.DataType.UINT8) for one in held)


def _restore_names(old: ir.Model, new: ir.Model, out: Path) -> None:
    """The metadata of the source, which the tool drops (class names live there)."""
    missing = {key: value for key, value in old.metadata_props.items() if key not in new.metadata_props}
    if missing:
        new.metadata_props.update(missing)
        ir.save(new, out)
