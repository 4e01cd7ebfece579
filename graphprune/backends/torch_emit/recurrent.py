"""LSTM, GRU and RNN."""

from __future__ import annotations

from typing import Any

from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import recurrent

_DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_NEEDS_ALPHA = frozenset(("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"))
_NEEDS_BETA = frozenset(("affine", "scaledtanh", "hardsigmoid"))


def _activations(v: View) -> list[tuple[str, float | None, float | None]]:
    names = [str(name) for name in v.attr("activations") or _DEFAULT[v.op] * v.shape(1)[0]]
    alphas, betas = list(v.attr("activation_alpha") or ()), list(v.attr("activation_beta") or ())
    made = []
    for name in names:
        kind = name.lower()
        if kind not in recurrent.ACTIVATIONS:
            raise Refuse(f"it has an activation {name!r} that ONNX does not know")
        alpha = alphas.pop(0) if alphas and kind in _NEEDS_ALPHA else None
        beta = betas.pop(0) if betas and kind in _NEEDS_BETA else None
        made.append((name, alpha, beta))
    return made


def _common(v: View) -> tuple[Any, ...]:
    hidden = int(v.attr("hidden_size") or v.shape(2)[2])
    clip = v.attr("clip")
    return hidden, v.attr("direction", "forward"), _activations(v), None if clip is None else float(clip)


@emits("LSTM")
def _lstm(v: View) -> Any:
    operands = (v.x(0), v.x(1), v.x(2), *(v.maybe(k) for k in range(3, 8)))
    more = (bool(v.attr("input_forget", 0)), bool(v.attr("layout", 0)))
    return v.outputs(v.call(recurrent.lstm, *operands, *_common(v), *more))


@emits("GRU")
def _gru(v: View) -> Any:
    operands = (v.x(0), v.x(1), v.x(2), *(v.maybe(k) for k in range(3, 6)))
    more = (bool(v.attr("linear_before_reset", 0)), bool(v.attr("layout", 0)))
    return v.outputs(v.call(recurrent.gru, *operands, *_common(v), *more))


@emits("RNN")
def _rnn(v: View) -> Any:
    operands = (v.x(0), v.x(1), v.x(2), *(v.maybe(k) for k in range(3, 6)))
    return v.outputs(v.call(recurrent.rnn, *operands, *_common(v), bool(v.attr("layout", 0))))
