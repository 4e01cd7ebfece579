"""LSTM, GRU and RNN as ONNX defines them, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "gru", "lstm", "rnn"]

_Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

#: Activation functions by ONNX's names, with their default alpha and beta.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float, float], Tensor], float, float]] = {
    "relu": (lambda x, a, b: torch.relu(x), 0.0, 0.0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0.0, 0.0),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0.0, 0.0),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: F.leaky_relu(x, a), 0.01, 0.0),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)), 1.0, 0.0),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: F.elu(x, a), 1.0, 0.0),
    "softsign": (lambda x, a, b: F.softsign(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: F.softplus(x), 0.0, 0.0),
}


def _activation(given: tuple[str, float | None, float | None]) -> Callable[[Tensor], Tensor]:
    function, alpha, beta = ACTIVATIONS[given[0].lower()]
    a, b = alpha if given[1] is None else given[1], beta if given[2] is None else given[2]
    return lambda x: function(x, a, b)


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else torch.clamp(x, -clip, clip)


def _sweep(
    x: Tensor, state: Tensor, cell: Tensor, lengths: Tensor | None, reverse: bool, step: _Step
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction over ``(t, b, i)``: the states of all steps and the last state and cell.

    Beyond a sequence's length the outputs are 0 and the state stays.
    """
    made: list[Tensor] = []
    times = range(x.shape[0])
    for t in reversed(times) if reverse else times:
        new, new_cell = step(x[t], state, cell)
        if lengths is not None:
            alive = (t < lengths).reshape(-1, 1)
            made.append(torch.where(alive, new, torch.zeros_like(new)))
            new, new_cell = torch.where(alive, new, state), torch.where(alive, new_cell, cell)
        else:
            made.append(new)
        state, cell = new, new_cell
    return torch.stack(made[::-1] if reverse else made), state, cell


def _run(
    x: Tensor,
    hidden: int,
    directions: int,
    direction: str,
    lengths: Tensor | None,
    start: Tensor | None,
    start_cell: Tensor | None,
    batch_first: bool,
    step_of: Callable[[int], _Step],
) -> tuple[Tensor, Tensor, Tensor]:
    """All directions: ``(t, d, b, h)``, ``(d, b, h)``, ``(d, b, h)``, or batch first."""
    if batch_first:
        x = x.transpose(0, 1)
        start = None if start is None else start.transpose(0, 1)
        start_cell = None if start_cell is None else start_cell.transpose(0, 1)
    zeros = x.new_zeros(x.shape[1], hidden)
    parts = []
    for d in range(directions):
        state = zeros if start is None else start[d]
        cell = zeros if start_cell is None else start_cell[d]
        parts.append(_sweep(x, state, cell, lengths, direction == "reverse" or d == 1, step_of(d)))
    outputs = torch.stack([one[0] for one in parts], dim=1)
    state, cell = torch.stack([one[1] for one in parts]), torch.stack([one[2] for one in parts])
    if batch_first:
        return outputs.permute(2, 0, 1, 3), state.transpose(0, 1), cell.transpose(0, 1)
    return outputs, state, cell


def lstm(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    start: Tensor | None,
    start_cell: Tensor | None,
    peepholes: Tensor | None,
    hidden: int,
    direction: str,
    activations: Sequence[tuple[str, float | None, float | None]],
    clip: float | None,
    coupled: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX LSTM (gates i, o, f, c): all states ``(t, d, b, h)``, last states and cells ``(d, b, h)``."""

    def step_of(d: int) -> _Step:
        f, g, h = (_activation(one) for one in activations[3 * d : 3 * d + 3])
        w, r = weight[d], recurrence[d]
        wb, rb = (None, None) if bias is None else (bias[d, : 4 * hidden], bias[d, 4 * hidden :])
        p = (0.0, 0.0, 0.0) if peepholes is None else torch.split(peepholes[d], hidden)

        def step(one: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            i, o, forget, c = torch.split(F.linear(one, w, wb) + F.linear(state, r, rb), hidden, dim=1)
            i = f(_clipped(i + p[0] * cell, clip))
            forget = 1 - i if coupled else f(_clipped(forget + p[2] * cell, clip))
            new = forget * cell + i * g(_clipped(c, clip))
            return f(_clipped(o + p[1] * new, clip)) * h(new), new

        return step

    return _run(x, hidden, weight.shape[0], direction, lengths, start, start_cell, batch_first, step_of)


def gru(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    start: Tensor | None,
    hidden: int,
    direction: str,
    activations: Sequence[tuple[str, float | None, float | None]],
    clip: float | None,
    linear_before_reset: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """ONNX GRU (gates z, r, h): all states ``(t, d, b, h)`` and the last ones ``(d, b, h)``."""

    def step_of(d: int) -> _Step:
        f, g = (_activation(one) for one in activations[2 * d : 2 * d + 2])
        wz, wr, wh = torch.split(weight[d], hidden)
        rz, rr, rh = torch.split(recurrence[d], hidden)
        biases = torch.split(weight.new_zeros(6 * hidden) if bias is None else bias[d], hidden)

        def step(one: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            z = f(_clipped(F.linear(one, wz, biases[0]) + F.linear(state, rz, biases[3]), clip))
            r = f(_clipped(F.linear(one, wr, biases[1]) + F.linear(state, rr, biases[4]), clip))
            back = r * F.linear(state, rh, biases[5]) if linear_before_reset else F.linear(r * state, rh, biases[5])
            new = g(_clipped(F.linear(one, wh, biases[2]) + back, clip))
            return (1 - z) * new + z * state, cell

        return step

    made = _run(x, hidden, weight.shape[0], direction, lengths, start, None, batch_first, step_of)
    return made[0], made[1]


def rnn(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    start: Tensor | None,
    hidden: int,
    direction: str,
    activations: Sequence[tuple[str, float | None, float | None]],
    clip: float | None,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """ONNX RNN: all states ``(t, d, b, h)`` and the last ones ``(d, b, h)``."""

    def step_of(d: int) -> _Step:
        f = _activation(activations[d])
        wb, rb = (None, None) if bias is None else (bias[d, :hidden], bias[d, hidden:])

        def step(one: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            return f(_clipped(F.linear(one, weight[d], wb) + F.linear(state, recurrence[d], rb), clip)), cell

        return step

    made = _run(x, hidden, weight.shape[0], direction, lengths, start, None, batch_first, step_of)
    return made[0], made[1]
