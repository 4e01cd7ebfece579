"""Operators that treat every element alike, with broadcasting."""

from __future__ import annotations

from graphprune.coupling.registry import declare

_UNARY = (
    "Abs|Acos|Acosh|Asin|Asinh|Atan|Atanh|BitwiseNot|Ceil|Celu|Cos|Cosh|Elu|Erf|Exp|Floor|Gelu|HardSigmoid|HardSwish"
    "|IsInf|IsNaN|LeakyRelu|Log|Mish|Neg|Not|Reciprocal|Relu|Round|Selu|Shrink|Sigmoid|Sign|Sin|Sinh|Softplus|Softsign"
    "|Sqrt|Swish|Tan|Tanh|ThresholdedRelu"
)
_BINARY = (
    "Add|And|BitShift|BitwiseAnd|BitwiseOr|BitwiseXor|Div|Equal|Greater|GreaterOrEqual|Less|LessOrEqual|Mod|Mul|Or"
    "|PRelu|Pow|Sub|Xor"
)

declare(f"""
{_UNARY}           x* -> x*
{_BINARY}          x*, x* -> x*
Max|Mean|Min|Sum   x*, ... -> x*
Where              x*, x*, x* -> x*
Clip               x*, .?, .? -> x*
Dropout            x*, .?, .? -> x*, x*?
""")
declare("SampleOp  x* -> x*", domain="com.microsoft")
declare(
    """
Cast|Identity      x* -> x*
CastLike           x*, _ -> x*
""",
    moves=True,
)
