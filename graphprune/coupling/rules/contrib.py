"""Operators of ONNX Runtime's own domain that are never cut through, each with its reason."""

from __future__ import annotations

from functools import partial

from graphprune.coupling.registry import barrier

_barrier = partial(barrier, domain="com.microsoft")

_barrier(
    "BiasAdd BiasDropout BiasSoftmax BiasSplitGelu BitmaskBiasDropout BitmaskDropout ComplexMul ComplexMulConj "
    "FusedMatMulActivation GatedRelativePositionBias GemmFastGelu GemmFloat8 GemmaRotaryEmbedding GroupNorm Irfft "
    "IsAllFinite MulInteger NhwcConv NhwcFusedConv QLinearReduceMean ReduceSumInteger RelativePositionBias Rfft "
    "SkipGroupNorm TorchEmbedding",
    "ONNX Runtime has no CPU kernel for it, so that no rule could be checked",
)
_barrier(
    "DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DynamicSparseAttention "
    "LongformerAttention PackedAttention PackedMultiHeadAttention PackedSparseAttentionIndexer PagedAttention "
    "RemovePadding RestorePadding SparseAttention SparseAttentionIndexer SparsePagedAttention",
    "its keys and values are packed, paged or sparse",
)
_barrier(
    "AttnLSTM CausalConvWithState GatedDeltaNet LinearAttention LinearAttentionGate VarlenCausalConvWithState",
    "it carries state from run to run",
)
_barrier("DynamicQuantizeLSTM", "its hidden units are quantised over the range of all of them in every step")
_barrier("BeamSearch GreedySearch Sampling WhisperBeamSearch", "its body is not looked into")
_barrier(
    "BifurcationDetector EngramGate MurmurHash3 NGramHashMapping NGramRepeatBlock Tokenizer Unique "
    "VarlenNGramHashMapping WordConvEmbedding",
    "it works on tokens and their order",
)
_barrier(
    "DequantizeBFP DequantizeWithOrder GatherBlockQuantized MatMulBlockQuantizedFp4Weight "
    "MatMulBlockQuantizedFp8Weight MatMulBnb4 MatMulFpQ4 MatMulNBitsMlp MatMulNBitsQkv QMoE QOrderedAttention "
    "QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul QuantizeBFP QuantizeWithOrder",
    "its operands are packed in blocks or tiles that the notation does not describe",
)
_barrier("QEmbedLayerNormalization", "its tables have zero points and are looked up before they are scaled")
_barrier("SparseToDenseMatMul", "an operand is sparse")
_barrier("DynamicTimeWarping Inverse UnfoldTensor", "every index of its axis takes part in every result")
_barrier("ConvTransposeWithDynamicPads CropAndResize MaxpoolWithMask", "its results are positions in space")
_barrier("Range", "its length is what it holds")
_barrier("Pad", "its widths could not be written back")
_barrier("EPContext Snpe", "it is a part of a network that was compiled")
_barrier(
    "BranchwiseRMSNorm GatedAdd GatedRMSNorm HyperConnectionPostMix HyperConnectionPreMix MRotaryEmbedding ScaledSiLU",
    "no rule has been written for it",
)
