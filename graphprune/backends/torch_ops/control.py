"""If, Loop and Scan: their bodies are modules of their own, which get what they capture as further inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import InputError

__all__ = ["If", "Loop", "Scan", "expect"]


def _results(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def expect(condition: Tensor, wanted: bool, name: str) -> None:
    """Refuses inputs that take the branch of an If that is not in the module.

    Raises:
        InputError: they do.
    """
    if bool(condition) != wanted:
        taken = "else" if wanted else "then"
        raise InputError(
            f"If '{name}' takes its {taken} branch on these inputs; that one did not run on the inputs that the "
            "network was observed on, so the module does not have it"
        )


class If(nn.Module):
    """Runs one of two bodies; ``split``: how many of the captured values are the first one's."""

    def __init__(self, then_branch: nn.Module, else_branch: nn.Module, split: int) -> None:
        super().__init__()
        self.then_branch, self.else_branch, self.split = then_branch, else_branch, split

    def forward(self, condition: Tensor, *captured: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the branch that ``condition`` chooses."""
        if bool(condition):
            return _results(self.then_branch(*captured[: self.split]))
        return _results(self.else_branch(*captured[self.split :]))


class Loop(nn.Module):
    """Runs a body ``(iteration, condition, *carried, *captured) -> (condition, *carried, *collected)`` repeatedly."""

    def __init__(self, body: nn.Module, carried: int) -> None:
        super().__init__()
        self.body, self.carried = body, carried

    def forward(
        self, trips: Tensor | int | None, condition: Tensor | bool | None, *given: Tensor
    ) -> tuple[Tensor, ...]:
        """The carried values after the last iteration, then what was collected, stacked."""
        state, captured = given[: self.carried], given[self.carried :]
        going = True if condition is None else bool(condition)
        collected: list[tuple[Tensor, ...]] = []
        step = 0
        while going and (trips is None or step < int(trips)):
            device = given[0].device if given else None
            made = _results(
                self.body(torch.tensor(step, device=device), torch.tensor(True, device=device), *state, *captured)
            )
            going, state = bool(made[0]), made[1 : 1 + self.carried]
            collected.append(made[1 + self.carried :])
            step += 1
        return (*state, *(torch.stack(one) for one in zip(*collected, strict=True)))


class Scan(nn.Module):
    """Runs a body ``(*states, *slices, *captured) -> (*states, *slices)`` over the scanned axes."""

    def __init__(
        self,
        body: nn.Module,
        states: int,
        axes: Sequence[int],
        backwards: Sequence[int],
        out_axes: Sequence[int],
        out_backwards: Sequence[int],
    ) -> None:
        super().__init__()
        self.body, self.states = body, states
        self.axes, self.backwards = tuple(axes), tuple(backwards)
        self.out_axes, self.out_backwards = tuple(out_axes), tuple(out_backwards)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The last states, then the stacked slices."""
        count = self.states + len(self.axes)
        state, scanned, captured = given[: self.states], given[self.states : count], given[count:]
        steps = scanned[0].shape[self.axes[0]]
        collected: list[tuple[Tensor, ...]] = []
        for step in range(steps):
            slices = [
                one.select(axis, steps - 1 - step if back else step)
                for one, axis, back in zip(scanned, self.axes, self.backwards, strict=True)
            ]
            made = _results(self.body(*state, *slices, *captured))
            state = made[: self.states]
            collected.append(made[self.states :])
        stacked = [
            torch.stack(one[::-1] if back else one, dim=axis)
            for one, axis, back in zip(zip(*collected, strict=True), self.out_axes, self.out_backwards, strict=True)
        ]
        return (*state, *stacked)
