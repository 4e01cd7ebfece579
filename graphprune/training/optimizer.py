"""What the sparse optimisers share: a base optimiser, units that are held at zero, the cut, and resuming."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.errors import InputError, UsageError
from graphprune.passes.files import plan_document, write_plan
from graphprune.passes.plan import Plan
from graphprune.training.budget import Budget, Counted, widths_of
from graphprune.training.groups import ModuleGroups, module_groups

if TYPE_CHECKING:
    from graphprune.export import ExportResult
    from graphprune.pipeline import Network

__all__ = ["VARIANTS", "GroupOptimizer"]

VARIANTS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


class GroupOptimizer(torch.optim.Optimizer):
    """A base optimiser that also drives units of groups to zero, until the budget is met.

    Args:
        module: what is trained, or its groups (:func:`graphprune.training.groups.module_groups`).
        inputs, network, include, exclude: of a module, see there.
        lr: learning rate; schedulers of ``torch.optim.lr_scheduler`` work on it.
        variant: the base optimiser, ``sgd``, ``adam`` or ``adamw``; ``base`` are further options of it.
        params: parameters or parameter groups for it; all that are trained by default.
        target: the share that stays; or a plan for the same module or its file, such as an export wrote that met a
            latency: every group is trained down to its width there, whichever units the plan chose.
        quantity, floor, align, allocation: of a share, see :class:`graphprune.training.budget.Budget`; by default every
            group gives up the same share, since these scores compare the units of one group better than groups.
        start: steps before anything is taken out.

    Raises:
        UsageError: an option makes no sense, or the plan cuts a group that zeroed parameters do not take out.
        InputError: the plan cannot be read or is of another network. TargetError: the share cannot be reached.
        NothingPrunableError: no group can be taken out by zeroing parameters.
    """

    def __init__(
        self,
        module: nn.Module | ModuleGroups,
        inputs: Any = None,
        *,
        network: Network | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        lr: float,
        variant: str = "adamw",
        base: Mapping[str, Any] | None = None,
        params: Iterable[Any] | None = None,
        target: float | Plan | str | os.PathLike[str],
        quantity: Counted = "macs",
        floor: float = 0.1,
        align: int = 1,
        allocation: str = "uniform",
        start: int = 0,
    ) -> None:
        if variant not in VARIANTS:
            raise UsageError(f"variant={variant!r} is not one of {', '.join(VARIANTS)}")
        if start < 0:
            raise UsageError(f"start={start}: a number of steps of at least 0")
        self.groups = (
            module
            if isinstance(module, ModuleGroups)
            else module_groups(module, inputs, network=network, include=include, exclude=exclude)
        )
        asked = target if isinstance(target, (int, float)) else widths_of(target, self.groups)
        self.budget = Budget(asked, quantity, floor, align, allocation)
        trained = (value for value in self.groups.module.parameters() if value.requires_grad)
        self.base = VARIANTS[variant](list(trained if params is None else params), lr=lr, **(base or {}))
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        self.start = start
        self.steps = 0
        self.closure: Callable[[], Any] | None = None  # that of the step being taken
        self.gone = np.zeros(self.groups.count, dtype=np.bool_)
        self.budget.choose(self.groups, np.zeros(self.groups.count), self.gone)  # what cannot be met is said now

    # --- The loop ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimiser, and what it means for the units that are to go.

        Args:
            closure: computes the loss and its gradients, and returns the loss; else they are there already.

        Not to be overridden: PyTorch wraps the step of every class, and its hooks would run for each.
        """
        loss = None
        self.closure = closure
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._before(self.steps)
        self.base.step()
        self._after(self.steps)
        if self.gone.any():
            self.groups.zero(torch.from_numpy(self.gone))
        self.steps += 1
        return loss

    @abstractmethod
    def _before(self, step: int) -> None:
        """With this step's gradients, before the base optimiser's step."""

    @abstractmethod
    def _after(self, step: int) -> None:
        """After the base optimiser's step; what is in ``gone`` is zeroed afterwards."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all units that are to go are zero."""

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the parameters that units stand on, by name."""
        return {name: value.grad for name, value in self.groups.parameters.items() if value.grad is not None}

    # --- The result --------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The units that stay. Raises UsageError while not all that are to go are zero."""
        if not self.finished:
            raise UsageError(
                f"after {self.steps} steps {int(self.gone.sum())} units are zero, and more are to go; take more steps, "
                "or give the optimiser fewer"
            )
        return self.groups.plan(self.gone)

    def cut(self, *, tolerance: float = 1e-5) -> Network:
        """The cut network with the trained values: equal to the trained one on the example inputs.

        Raises:
            UsageError: training has not come to its end. VerificationError: they differ by more than ``tolerance``.
        """
        self.plan()
        return self.groups.cut(self.gone, tolerance=tolerance)

    def export(self, out: str | os.PathLike[str], **options: Any) -> ExportResult:
        """The cut network as artefacts, with proof and measurement, see :meth:`graphprune.Network.export`."""
        plan, trained = self.plan(), self.groups.trained()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            path.write_bytes(write_plan(plan_document(plan, trained.grouping, "")))
            return trained.export(out, plan=path, **options)

    # --- Resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimiser's state, and under ``pruning`` this one's; plain tensors and numbers."""
        return {**self.base.state_dict(), "pruning": {"steps": self.steps, "gone": _tensor(self.gone), **self._state()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another one of the same network and options was.

        Raises:
            InputError: the state is of another optimiser or network.
        """
        held = state_dict.get("pruning")
        if held is None or len(held["gone"]) != self.groups.count:
            raise InputError(
                f"the state is not of this optimiser: it has no or other units than the {self.groups.count} here"
            )
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "pruning"})
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.steps = int(held["steps"])
        self.gone = _array(held["gone"])
        self._restore(held)

    def _state(self) -> dict[str, Any]:
        return {}

    def _restore(self, held: Mapping[str, Any]) -> None:
        del held


def _tensor(mask: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(mask.copy())


def _array(held: Tensor) -> np.ndarray[Any, Any]:
    return np.array(held.cpu().numpy())
