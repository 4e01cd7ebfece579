"""Every operator of both domains is ruled or a barrier, and the page of them is current."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphprune.coupling.registry import all_rules
from graphprune.report.operators import operators_page

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

# The operators of com.microsoft in ONNX Runtime 1.31.
CONTRIB = """
    Attention AttnLSTM BeamSearch BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BifurcationDetector
    BitmaskBiasDropout BitmaskDropout BranchwiseRMSNorm CDist CausalConvWithState ComplexMul ComplexMulConj
    ConvTransposeWithDynamicPads CropAndResize DecoderAttention DecoderMaskedMultiHeadAttention
    DecoderMaskedSelfAttention DequantizeBFP DequantizeLinear DequantizeWithOrder DynamicQuantizeLSTM
    DynamicQuantizeMatMul DynamicSparseAttention DynamicTimeWarping EPContext EmbedLayerNormalization EngramGate
    ExpandDims FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation GatedAdd GatedDeltaNet GatedRMSNorm
    GatedRelativePositionBias GatherBlockQuantized GatherND Gelu GemmFastGelu GemmFloat8 GemmaRotaryEmbedding
    GreedySearch GridSample GroupNorm GroupQueryAttention HyperConnectionPostMix HyperConnectionPreMix Inverse
    Irfft IsAllFinite LinearAttention LinearAttentionGate LongformerAttention MRotaryEmbedding
    MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulBnb4 MatMulFpQ4 MatMulInteger16
    MatMulIntegerToFloat MatMulNBits MatMulNBitsMlp MatMulNBitsQkv MaxpoolWithMask MoE MulInteger
    MultiHeadAttention MurmurHash3 NGramHashMapping NGramRepeatBlock NhwcConv NhwcFusedConv NhwcMaxPool
    PackedAttention PackedMultiHeadAttention PackedSparseAttentionIndexer Pad PagedAttention QAttention
    QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax
    QLinearWhere QMoE QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention
    QOrderedMatMul QuantizeBFP QuantizeLinear QuantizeWithOrder QuickGelu Range ReduceSumInteger
    RelativePositionBias RemovePadding RestorePadding Rfft RotaryEmbedding SampleOp Sampling ScaledSiLU
    SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization Snpe SparseAttention
    SparseAttentionIndexer SparsePagedAttention SparseToDenseMatMul Tokenizer TorchEmbedding TransposeMatMul Trilu
    UnfoldTensor Unique VarlenCausalConvWithState VarlenNGramHashMapping WhisperBeamSearch WordConvEmbedding
"""


def test_every_operator_of_onnx_is_known() -> None:
    named = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert len(named) > 190
    assert not named - {op for domain, op in all_rules() if domain == ""}


def test_every_operator_of_onnx_runtime_is_known() -> None:
    assert set(CONTRIB.split()) == {op for domain, op in all_rules() if domain == "com.microsoft"}


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    opset = onnx.defs.onnx_opset_version()
    if f"up to opset {opset})" not in page:
        pytest.skip(f"the page was made with another onnx than this one of opset {opset}")
    assert page == operators_page(), "run `python -m graphprune.report.operators > docs/operators.md`"
