"""Emitters held to ONNX Runtime, operator by operator, on the onnx package's own test cases."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graphprune.errors import InputError, RunTimeoutError, UnsupportedError
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe

torch = pytest.importorskip("torch")

#: Cases of the default run: where ONNX's meaning is not PyTorch's own.
CHOSEN = frozenset(
    f"test_{name}"
    for name in (
        *("conv_with_autopad_same", "conv_with_strides_and_asymmetric_padding", "gru_with_initial_bias"),
        *("convtranspose_autopad_same", "convtranspose_output_shape", "convtranspose_pads", "convtranspose_dilations"),
        *("cumsum_1d_reverse_exclusive", "depthtospace_crd_mode_example", "depthtospace_example", "spacetodepth"),
        *("einsum_batch_diagonal", "expand_dim_changed", "expand_dim_unchanged", "flatten_axis2", "flatten_axis0"),
        *("gather_negative_indices", "gather_elements_negative_indices", "gathernd_example_int32_batch_dim1"),
        *("gemm_all_attributes", "group_normalization_example"),
        *("hardmax_axis_1", "instancenorm_example", "layer_normalization_4d_axis1", "lrn", "lstm_with_peepholes"),
        *("lstm_with_initial_bias", "mod_int64_fmod", "mod_mixed_sign_int32", "mvn"),
        *("onehot_negative_indices", "pow_types_int64_float32", "quantizelinear_axis", "dequantizelinear_blocked"),
        *("reduce_l2_keep_dims_random", "reduce_log_sum_asc_axes", "reduce_prod_negative_axes_keepdims_random"),
        *("resize_upsample_sizes_nearest_ceil_half_pixel", "resize_downsample_scales_cubic_align_corners"),
        *("resize_downsample_scales_linear_antialias", "resize_tf_crop_and_resize", "resize_upsample_scales_cubic"),
        *("reversesequence_batch", "scatter_elements_with_negative_indices", "scatter_elements_with_reduction_max"),
        *(
            "scatternd_add",
            "scatternd",
            "selu",
            "slice_neg_steps",
            "slice_negative_axes",
            "split_zero_size_splits_opset18",
        ),
        *("split_1d_uneven_split_opset18", "tile", "top_k_same_values", "top_k_smallest", "tril_neg", "triu_one_row"),
        *(
            "edge_pad",
            "reflect_pad",
            "wrap_pad",
            "constant_pad_negative_axes",
            "unsqueeze_negative_axes",
            "where_example",
        ),
        *("range_int32_type_negative_delta", "rotary_embedding_interleaved", "attention_4d_gqa_with_past_and_present"),
        *("argmax_keepdims_example_select_last_index", "clip_outbounds", "div_example", "div_int32_trunc"),
    )
)
_NEWEST = 26  # the runtime reads no later opset
_SLOW = ("averagepool", "lppool", "maxpool")  # seconds to compute what they expect


def _cases(*left_out: str) -> Iterator[Any]:
    from onnx.backend.test.case import node

    for module in pkgutil.iter_modules(node.__path__):
        if module.name not in left_out:
            importlib.import_module(f"{node.__name__}.{module.name}")
    for case in node._NodeTestCases:  # importing adds to it; what the package offers itself imports everything
        if case.model is not None and "_expanded" not in case.name:
            yield case


def _examine(case: Any) -> str:
    """``equal``, ``refused``, ``not run`` (by ONNX Runtime), or what is wrong."""
    from graphprune.backends.runner import OrtRunner
    from graphprune.backends.torch import to_torch

    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    feeds = {value.name: np.asarray(one) for value, one in zip(proto.graph.input, case.data_sets[0][0], strict=False)}
    proto.ir_version = min(proto.ir_version, 11)
    for opset in proto.opset_import:
        opset.version = min(opset.version, _NEWEST) if not opset.domain else opset.version
    _hold_settings(proto, feeds)
    model = ir.from_proto(proto)
    clean(model)
    try:
        program = observe(model, OrtRunner(), keep=lambda node: True, given=feeds)
        assert program.run is not None
        wanted = program.run(program.model, feeds)
    except (InputError, RunTimeoutError, TypeError, ValueError):
        return "not run"
    try:
        module = to_torch(program)
    except UnsupportedError:
        return "refused"
    with torch.no_grad():
        made = module(*(torch.from_numpy(np.array(feeds[name])) for name in module.meta["inputs"]))
    for name, one in zip(module.meta["outputs"], made if isinstance(made, tuple) else (made,), strict=True):
        array = one.numpy()
        if array.dtype != wanted[name].dtype or array.shape != wanted[name].shape:
            return f"{name} is {array.dtype}{list(array.shape)}, not {wanted[name].dtype}{list(wanted[name].shape)}"
        coarse = wanted[name].dtype == np.float16
        rtol, atol = (1e-3, 1e-3) if coarse else (1e-4, 1e-5)
        if not np.allclose(wanted[name].astype(float), array.astype(float), rtol=rtol, atol=atol, equal_nan=True):
            return f"{name} differs"
    return "equal"


def _hold_settings(proto: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    """Axes, sizes and scales become initialisers, as they are in networks."""
    node = proto.graph.node[0]
    first = node.input[0] if node.input else ""
    for name in list(feeds):
        setting = name != first and feeds[name].dtype in (np.int64, np.int32) and feeds[name].ndim <= 1
        if (setting and len(feeds) > 1) or name in ("scales", "roi", "depth", "value") or node.op_type == "Range":
            proto.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
            kept = [value for value in proto.graph.input if value.name != name]
            del proto.graph.input[:]
            proto.graph.input.extend(kept)


def test_operators_whose_meaning_is_not_pytorchs_own() -> None:
    found = {case.name: _examine(case) for case in _cases(*_SLOW) if case.name in CHOSEN}
    assert set(found) == CHOSEN
    assert {name: what for name, what in found.items() if what != "equal"} == {}


@pytest.mark.sweep
def test_every_case_of_the_onnx_package_is_equal_or_refused() -> None:
    odd = {}
    count: Counter[str] = Counter()
    for case in _cases():
        try:
            what = _examine(case)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
        count[what if what in ("equal", "refused", "not run") else "wrong"] += 1
        if what not in ("equal", "refused", "not run"):
            odd[case.name] = what[:200]
    # Of empty sets PyTorch gives no largest element; a row that is masked throughout gives no number.
    known = {name for name in odd if "empty_set" in name or "nan_robustness" in name}
    assert {name: what for name, what in odd.items() if name not in known} == {}
    assert count["equal"] > 800
