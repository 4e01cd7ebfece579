"""Recurrent layers: the gates are a whole factor, the hidden units are fed back."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, rule


def _recurrent(node: NodeView, gates: int, states: int, peepholes: bool) -> str:
    batch_first = bool(node.attr("layout", 0))
    x, y, state = ("b t i", "b t D h", "b D h") if batch_first else ("t b i", "t D b h", "D b h")
    gate = f"({gates} h)" if gates > 1 else "h"
    operands = [x, f"D {gate} i", f"D {gate} h'", f"D (2 {f'{gates} ' * (gates > 1)}h)?", "b?", *[f"{state}?"] * states]
    if peepholes:
        operands.append("D (3 h)?")
    results = [f"{y}?", *[f"{state}?"] * states]
    macs = f"t b D {gates} h i + t b D {gates} h h"
    return f"{', '.join(operands)} -> {', '.join(results)} | h=@hidden_size | whole: t D | macs: {macs}"


@rule("LSTM")
def _lstm(node: NodeView) -> str:
    """t b i, D (4 h) i, D (4 h) h', D (2 4 h)?, b?, D b h?, D b h?, D (3 h)? -> t D b h, D b h, D b h | h=@hidden_size"""  # noqa: E501
    return _recurrent(node, 4, 2, peepholes=True)


@rule("GRU")
def _gru(node: NodeView) -> str:
    """t b i, D (3 h) i, D (3 h) h', D (2 3 h)?, b?, D b h? -> t D b h, D b h | h=@hidden_size"""
    return _recurrent(node, 3, 1, peepholes=False)


@rule("RNN")
def _rnn(node: NodeView) -> str:
    """t b i, D h i, D h h', D (2 h)?, b?, D b h? -> t D b h, D b h | h=@hidden_size"""
    return _recurrent(node, 1, 1, peepholes=False)
