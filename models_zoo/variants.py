"""What tools make of an ONNX network: quantised, in half precision, with a dynamic batch.

``quantize_qdq``, ``quantize_dynamic``, ``to_float16`` and ``dynamic_batch`` each read one file and write another.
``resnet18_qdq`` and the like (every name of ``models_zoo.names.BASES`` with every one of ``VARIANTS``) are factories of
this module: path and inputs (arrays by name). What they write lies in the cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError
from graphprune.quantize import prepared, quantize_int8
from models_zoo.cache import cache_folder, recipe_hash
from models_zoo.names import BASES, DIFFUSERS, TRANSFORMERS, VARIANTS

__all__ = ["dynamic_batch", "onnx_file", "quantize_dynamic", "quantize_qdq", "to_float16"]

Inputs = dict[str, Any]
_EXPORTED = ("plain", "batch")  # kinds that PyTorch's exporter writes


def quantize_qdq(path: Path, feeds: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Static quantisation by ONNX Runtime's tool: QuantizeLinear/DequantizeLinear pairs, int8, weights per channel.

    Args:
        path: the network, all in one file.
        feeds: samples to calibrate on (smallest and largest value), input name -> array.
        out: where to write.
    """
    quantize_int8(path, feeds, out)


def quantize_dynamic(path: Path, out: Path) -> None:
    """Dynamic quantisation by ONNX Runtime's tool: weights uint8 with zero points, activations as the network runs.

    uint8, because ONNX Runtime's ConvInteger takes no other weights on a CPU.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with tempfile.TemporaryDirectory() as folder:
        quantize(prepared(path, Path(folder)), out, weight_type=QuantType.QUInt8)


def to_float16(path: Path, out: Path) -> None:
    """Weights and arithmetic in float16, inputs and outputs as they were (ONNX Runtime's converter)."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), out)


def dynamic_batch(path: Path, feeds: Mapping[str, Any], out: Path) -> None:
    """The first axis of every input and output becomes the dimension ``batch``, also where constants reshape to it.

    Args:
        path: the network.
        feeds: one sample, input name -> array.
        out: where to write.

    Raises:
        UsageError: the network does not run with two samples, since sizes within it hold the batch.
    """
    import numpy as np
    import onnx
    import onnxruntime

    model = onnx.load(path)
    held = {one.name for one in model.graph.initializer}
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for one in model.graph.initializer:
        if one.name in targets and one.data_type == onnx.TensorProto.INT64:
            sizes = onnx.numpy_helper.to_array(one).copy()
            if sizes.size > 1 and sizes[0] == 1:  # the batch; 0 copies it
                sizes[0] = 0 if -1 in sizes else -1
                one.CopyFrom(onnx.numpy_helper.from_array(sizes, one.name))
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        if value.name not in held and len(shape.dim):
            shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    twice = {name: np.concatenate([array, array]) if np.ndim(array) else array for name, array in feeds.items()}
    try:
        session.run(None, twice)
    except Exception as error:  # the runtime's own errors have no common class
        why = str(error).splitlines()[0][:200]
        raise UsageError(f"'{path.name}' holds its batch in sizes: two samples do not run ({why})") from error
    out.write_bytes(content)


def onnx_file(name: str, *, batch: bool = False) -> tuple[Path, Inputs]:
    """A zoo network as an ONNX file and its inputs: as it is, or as PyTorch exports it by default (optimised).

    With ``batch`` a module is exported with a symbolic first axis.
    """
    from models_zoo import ZOO

    recipe = ZOO[name]
    if recipe.kind == "onnx":
        path, inputs = recipe.build()
        return path, {key: _noise(value) if isinstance(value, tuple) else value for key, value in inputs.items()}
    return _exported(name, batch)


def _noise(shape: tuple[int, ...], seed: int = 0) -> Any:
    import numpy as np

    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _exported(name: str, batch: bool) -> tuple[Path, Inputs]:
    import numpy as np
    import torch

    from models_zoo import ZOO

    path = _cached(name, "batch" if batch else "plain")
    held = path.with_suffix(".npz")
    if not (path.is_file() and held.is_file()):
        module, example = ZOO[name].build()
        options: dict[str, Any] = {}
        if batch:
            example = tuple(torch.cat([one, one]) if one.shape[0] == 1 else one for one in example)
            options["dynamic_shapes"] = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            program = torch.onnx.export(module, example, dynamo=True, verbose=False, **options)
            assert program is not None
            program.save(made, external_data=False)
            names = [value.name for value in program.model.graph.inputs]
            arrays = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
            np.savez(made.with_suffix(".npz"), **arrays)
            made.with_suffix(".npz").replace(held)
            made.replace(path)
    with np.load(held) as arrays:
        return path, dict(arrays)


def _cached(base: str, kind: str) -> Path:
    """Where a network of the zoo or what was made of it lies: the name's hash is of all that it was made from."""
    from models_zoo import ZOO

    modules = {"randomise", ZOO[base].target.split(":")[0], *(() if kind in _EXPORTED else ("variants",))}
    sources = [(Path(__file__).parent / f"{one}.py").read_text() for one in sorted(modules)]
    needs = ("scikit-learn" if one == "sklearn" else one for one in ZOO[base].needs if one != "rapidocr_onnxruntime")
    packages = [version(one) for one in ("onnx", "onnxruntime", *needs)]
    options = repr({**TRANSFORMERS, **DIFFUSERS}.get(base))
    return cache_folder() / f"{base}_{kind}-{recipe_hash([sources, packages, options])}.onnx"


def _variant(name: str, kind: str) -> tuple[Path, Inputs]:
    import numpy as np

    from models_zoo import ZOO

    if kind == "batch" and ZOO[name].kind == "torch":
        return onnx_file(name, batch=True)
    path, inputs = onnx_file(name)
    out = _cached(name, kind)
    if out.is_file():
        return out, inputs
    temporary = out.with_suffix(".part")
    if kind == "qdq":
        rng = np.random.default_rng(1)
        fresh = (
            {
                key: rng.normal(size=one.shape).astype(one.dtype) if one.dtype.kind == "f" else rng.permuted(one)
                for key, one in inputs.items()
            }
            for _ in range(3)
        )
        quantize_qdq(path, [inputs, *fresh], temporary)
    elif kind == "dynamic":
        quantize_dynamic(path, temporary)
    elif kind == "float16":
        to_float16(path, temporary)
    else:
        dynamic_batch(path, inputs, temporary)
    temporary.replace(out)
    return out, inputs


def __getattr__(name: str) -> Callable[[], tuple[Path, Inputs]]:
    base, _, kind = name.rpartition("_")
    if base not in BASES or kind not in VARIANTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda: _variant(base, kind)
