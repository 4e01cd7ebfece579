"""Operators that are never cut through, each with its reason, and those that are never folded."""

from __future__ import annotations

from graphprune.coupling.registry import barrier

barrier("If Loop Scan SequenceMap", "its body is not looked into")
barrier(
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence "
    "ConcatFromSequence Optional OptionalGetElement OptionalHasElement",
    "sequences and optionals have no axes",
)
barrier("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial", "it is random", keep=True)
barrier("NonMaxSuppression NonZero TopK Unique Compress", "the size or order of its result depends on the data")
