"""Operators that are never cut through, each with its reason, and those that are never folded."""

from __future__ import annotations

from graphprune.coupling.registry import barrier

barrier("If Loop Scan SequenceMap", "its body is not looked into")
barrier(
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence "
    "ConcatFromSequence Optional OptionalGetElement OptionalHasElement",
    "sequences and optionals have no axes",
)
barrier(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial", "it is random", keep=True
)
barrier("NonMaxSuppression NonZero TopK Unique Compress", "the size or order of its result depends on the data")
barrier("OneHot EyeLike TfIdfVectorizer MelWeightMatrix", "its result counts something, no axis of it can go")
barrier("BlackmanWindow HammingWindow HannWindow DFT STFT", "every index of its axis takes part in every result")
barrier(
    "AffineGrid Col2Im CenterCropPad ImageDecoder MaxUnpool MaxRoiPool RoiAlign", "its results are positions in space"
)
barrier("DeformConv Det", "its operands are cut into parts that the notation does not describe")
barrier("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", "it is a loss: classes are never cut")
barrier("CausalConvWithState LinearAttention TensorScatter", "it carries state from run to run")
barrier("Constant", "it is a weight, cut where it is used, and states nothing of its own")
barrier("BitCast", "one element may become several")
barrier("RegexFullMatch StringConcat StringNormalizer StringSplit", "its elements are texts")
