"""Criteria on gradients, collected on calibration data through the network as a PyTorch module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError, UsageError
from graphprune.passes.score.base import (
    CONSTANT_ROLES,
    NORMALIZERS,
    Floats,
    Normalizer,
    Tensors,
    estimates_loss,
    normalize,
)
from graphprune.passes.score.registry import one_of
from graphprune.passes.score.weights import Magnitude

if TYPE_CHECKING:
    from torch import Tensor, fx

    from graphprune.calibration.losses import Kind, Loss
    from graphprune.calibration.observations import Observations
    from graphprune.coupling.groups import Group

    Figure = Callable[[Kind, Tensor], Tensor]

__all__ = ["Fisher", "Graded", "Grasp", "Lrp", "Snip", "Synflow", "Taylor"]

_NOTHING = 1e-9  # of the flow: what rounding leaves of no dependence at all


@dataclass(frozen=True)
class _OnGradients(ABC):
    """Sums a figure of each weight over the slices that read a unit: where it is silenced if it goes.

    Where two computed values are contracted (queries with keys), over the slices that make it instead.
    """

    needs: ClassVar[str] = "calibration"
    name: ClassVar[str] = ""
    normalize: Normalizer = "none"

    def __post_init__(self) -> None:
        one_of(self.name, "normalize", self.normalize, NORMALIZERS)

    def on(self, observations: Observations) -> Graded:
        """The criterion with what it looks at."""
        return Graded(self, observations)

    @abstractmethod
    def units(self, network: Differentiated) -> dict[str, Floats]:
        """Importance of the units of every group that stands on parameters, by its id."""


@dataclass(frozen=True)
class _OfLoss(_OnGradients):
    """``loss``: ``module:function``, see :class:`graphprune.calibration.losses.Loss`; without it the likelihood of
    labels drawn from the network's own outputs. ``seed``: of these.
    """

    loss: Any = ""
    seed: int = 0


@dataclass(frozen=True)
class Taylor(_OfLoss):
    """``(sum w g)^2``, the square of the loss's first-order change without the unit, or with ``squared=0`` its absolute
    value; mean over the batches (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019). Absolute
    values add up faster than losses do, so that groups of many units are held to be worth too much.
    """

    name: ClassVar[str] = "taylor"
    estimates_loss: ClassVar[bool] = True
    squared: int = 1

    def units(self, network: Differentiated) -> dict[str, Floats]:
        """As :class:`_OnGradients`."""
        power = 2 if self.squared else 1
        return network.over_losses(lambda sums: np.abs(sums) ** power)


@dataclass(frozen=True)
class Fisher(_OfLoss):
    """``(sum w g)^2``, mean over single samples (Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning", 2018; Liu et al., "Group Fisher Pruning", 2021).
    """

    name: ClassVar[str] = "fisher"
    estimates_loss: ClassVar[bool] = True

    def units(self, network: Differentiated) -> dict[str, Floats]:
        """As :class:`_OnGradients`."""
        return network.over_losses(lambda sums: sums**2, single=True)


@dataclass(frozen=True)
class Snip(_OfLoss):
    """``sum |w g|`` with the gradient over all samples (Lee et al., "SNIP", 2019); meant for untrained networks."""

    name: ClassVar[str] = "snip"

    def units(self, network: Differentiated) -> dict[str, Floats]:
        """As :class:`_OnGradients`."""
        gradient: dict[str, Tensor] = {}
        for loss in network.losses():
            for name, one in network.gradients(loss).items():
                gradient[name] = gradient[name] + one if name in gradient else one
        return network.sums({name: (network.held[name] * one).abs() for name, one in gradient.items()})


@dataclass(frozen=True)
class Grasp(_OfLoss):
    """``sum w Hg``, what the unit gives to the gradient's flow; meant for untrained networks (Wang et al., "Picking
    Winning Tickets Before Training by Preserving Gradient Flow", 2020: they remove the largest ``-w Hg``).
    """

    name: ClassVar[str] = "grasp"

    def units(self, network: Differentiated) -> dict[str, Floats]:
        """As :class:`_OnGradients`."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        total: dict[str, Tensor] = {}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for loss in network.losses():
                first = network.gradients(loss, again=True)
                flow = sum((one * one.detach()).sum() for one in first.values())
                if not isinstance(flow, torch.Tensor) or not flow.requires_grad:
                    continue  # a loss that is linear in all weights
                for name, one in network.gradients(flow).items():
                    total[name] = total[name] + one if name in total else one
        return network.sums({name: network.held[name] * one for name, one in total.items()})


@dataclass(frozen=True)
class Lrp(_OnGradients):
    """Relevance of a unit for what the network answers (its best class; of other outputs, their sum), by layer-wise
    relevance propagation with the ``epsilon`` rule; absolute, mean over single samples (Yeom et al., "Pruning by
    Explaining", 2021).

    Its rules: :mod:`graphprune.backends.torch_relevance`.
    """

    name: ClassVar[str] = "lrp"
    epsilon: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon < 0:
            raise UsageError(f"lrp: epsilon={self.epsilon} must not be negative.")

    def units(self, network: Differentiated) -> dict[str, Floats]:
        """As :class:`_OnGradients`."""
        from graphprune.backends.torch_relevance import Relevance

        network.call = Relevance(network.module, self.epsilon).run
        return network.over_losses(np.abs, single=True, figure=_answer)


@dataclass(frozen=True)
class Synflow(_OnGradients):
    """``sum |w| dR/d|w|``, R the sum of the outputs for ones as inputs and absolute weights: the weight of all paths
    (Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020). The units
    go in ``rounds``, and the paths are weighed again after each. Of the samples only the sizes count.
    """

    name: ClassVar[str] = "synflow"
    rounds: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise UsageError(f"synflow: rounds={self.rounds} must be at least 1.")

    def units(self, network: Differentiated) -> dict[str, Floats]:
        """As :class:`_OnGradients`."""
        network.make_absolute()
        found: dict[str, Floats] = {}
        gone: dict[str, NDArray[np.bool_]] = {}
        above = 0.0
        for round_ in range(self.rounds):
            flow = network.flow()
            scores = network.sums({k: network.held[k] * g for k, g in network.gradients(flow).items()})
            total = max(float(flow.detach()), 1e-300)
            if not found:
                found = {name: np.zeros_like(one) for name, one in scores.items()}
                gone = {name: np.zeros(one.shape, dtype=np.bool_) for name, one in scores.items()}
                if all(float(np.abs(one).max(initial=0.0)) < _NOTHING * total for one in scores.values()):
                    raise InputError("synflow: the sum of the outputs does not depend on the weights (a softmax at the "
                                     "end adds up to one); choose another criterion")  # fmt: skip
            left = {name: one / total for name, one in scores.items()}
            every = np.sort(np.concatenate([left[name][~gone[name]] for name in left]))
            number = len(every) if round_ == self.rounds - 1 else len(every) // (self.rounds - round_)
            if not number:
                continue
            threshold = every[number - 1]
            for name, one in left.items():
                going = ~gone[name] & (one <= threshold)
                found[name][going] = np.maximum(one[going], above)
                gone[name] |= going
            above = max(above, float(threshold))
            network.silence(gone)
        return found


@dataclass
class Graded:
    """A criterion together with its observations; groups that no parameter reads or makes are scored by magnitude."""

    criterion: _OnGradients
    observations: Observations
    _found: dict[str, Floats] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The criterion's."""
        return self.criterion.name

    @property
    def estimates_loss(self) -> bool:
        """The criterion's."""
        return estimates_loss(self.criterion)

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Importance of each unit, shape ``(group.size,)``."""
        found = self._all().get(group.id)
        if found is not None:
            return normalize(found, self.criterion.normalize)
        rest = Magnitude().score(group, tensors)
        several = [normalize(one, self.criterion.normalize) for one in self._all().values()]
        typical = [float(np.abs(one).mean()) for one in several]
        return rest / max(float(rest.mean()), 1e-30) * (float(np.median(typical)) if typical else 1.0)

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence where magnitude was used instead."""
        if group.id in self._all():
            return None
        return f"Group '{group.id}' stands on no trained parameter; scored by magnitude instead."

    def _all(self) -> dict[str, Floats]:
        if self._found is None:
            self._found = self.criterion.units(Differentiated.of(self.observations, self.criterion))
        return self._found


@dataclass
class Differentiated:
    """A network as a PyTorch module, its parameters by the names of the initialisers, and its groups on them."""

    module: fx.GraphModule
    held: dict[str, Tensor]
    observations: Observations
    loss: Loss | None
    seed: int
    places: dict[str, list[tuple[str, int, NDArray[np.int64], int]]]
    call: Callable[..., Any]

    @classmethod
    def of(cls, observations: Observations, criterion: _OnGradients) -> Differentiated:
        """Raises InputError: PyTorch is missing, or has no counterpart of an operator."""
        from graphprune.backends.torch import to_torch
        from graphprune.calibration.losses import read_loss

        module = to_torch(observations.grouping.coupling.program)
        named: Any = module.meta
        parameters = dict(module.named_parameters())
        held: dict[str, Tensor] = {
            name: parameters[path]
            for path, names in named["parameters"].items()
            if path in parameters
            for name in names
        }
        places = {}
        for group in observations.grouping.groups:
            found = [
                (member.tensor, member.axis, member.unit_of, group.size)
                for member in _looked_at(group)
                if member.tensor in held
            ]
            if found:
                places[group.id] = found
        loss, seed = (criterion.loss, criterion.seed) if isinstance(criterion, _OfLoss) else ("", 0)
        return cls(module, held, observations, read_loss(loss) if loss else None, seed, places, module)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Outputs by name."""
        import torch

        named: Any = self.module.meta
        missing = [name for name in named["inputs"] if name not in inputs]
        if missing:
            raise InputError(f"the loss gave run() no {', '.join(missing)}; the network takes {named['inputs']}")
        given = [torch.as_tensor(np.array(inputs[name]) if isinstance(inputs[name], np.ndarray) else inputs[name])
                 for name in named["inputs"]]  # fmt: skip
        made = self.call(*given)
        return dict(zip(named["outputs"], made if isinstance(made, tuple) else (made,), strict=True))

    def losses(self, *, single: bool = False, figure: Figure | None = None) -> Iterator[Tensor]:
        """The loss of one run after the other, of single samples where the network takes any number.

        ``figure``: of an output and its kind, where it is not a loss that is differentiated.
        """
        if self.loss is not None:
            yield from self.loss(self.run)
            return
        import torch

        from graphprune import progress
        from graphprune.calibration.losses import kind_of, own_loss

        generator = torch.Generator().manual_seed(self.seed)
        program = self.observations.grouping.coupling.program
        samples = self.observations.samples
        for i, sample in enumerate(samples):
            progress.advance(i / len(samples))
            for one in _apart(sample, program.moving) if single else (sample,):
                parts = []
                for name, output in self.run(one).items():
                    if output.is_floating_point() and output.requires_grad:
                        kind = kind_of(output.detach().numpy(), program.moving.get(name, frozenset()))
                        parts.append(own_loss(kind, output, generator) if figure is None else figure(kind, output))
                if not parts:
                    raise InputError("no output of the network is a float that depends on its weights")
                yield torch.stack(parts).sum()

    def gradients(self, loss: Tensor, *, again: bool = False) -> dict[str, Tensor]:
        """Of a loss, by parameter; those that it does not depend on are left out. ``again``: to be differentiated."""
        import torch

        names = list(self.held)
        found = torch.autograd.grad(loss, [self.held[name] for name in names], create_graph=again, allow_unused=True)
        return {name: one for name, one in zip(names, found, strict=True) if one is not None}

    def sums(self, elements: Mapping[str, Tensor]) -> dict[str, Floats]:
        """Sums of a figure of each weight over each unit's slices, by group."""
        found = {}
        for group, places in self.places.items():
            total = np.zeros(places[0][3])
            for name, axis, unit_of, size in places:
                if name in elements:
                    given = elements[name].detach().double()
                    along = given.sum([k for k in range(given.ndim) if k != axis]).numpy() if given.ndim > 1 else (
                        given.numpy())  # fmt: skip
                    inside = unit_of >= 0
                    total += np.bincount(unit_of[inside], along[inside], size)
            found[group] = total
        return found

    def over_losses(
        self, unit: Callable[[Floats], Floats], *, single: bool = False, figure: Figure | None = None
    ) -> dict[str, Floats]:
        """The mean over the runs of ``unit`` of each unit's sum of weight times gradient; else as :meth:`losses`."""
        total: dict[str, Floats] = {}
        count = 0
        for loss in self.losses(single=single, figure=figure):
            found = self.sums({name: self.held[name] * one for name, one in self.gradients(loss).items()})
            for name, sums in found.items():
                total[name] = total[name] + unit(sums) if name in total else unit(sums)
            count += 1
        if not count:
            raise InputError("the loss yielded nothing; there are no gradients to rank units by")
        return {name: one / count for name, one in total.items()}

    # --- Synaptic flow -----------------------------------------------------------------------------------------------

    def make_absolute(self) -> None:
        """Every weight its absolute value, in float64; nothing is subtracted by BatchNorm."""
        import torch

        self.module.double()
        parameters = dict(self.module.named_parameters())
        named: Any = self.module.meta
        self.held = {name: parameters[path] for path, names in named["parameters"].items() if path in parameters
                     for name in names}  # fmt: skip
        with torch.no_grad():
            for value in self.held.values():
                value.abs_()
            for name, buffer in self.module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.zero_()

    def flow(self) -> Tensor:
        """The sum of all outputs for ones; integers are those of the first sample."""
        import torch

        sample = self.observations.samples[0]
        ones = {name: torch.ones(one.shape, dtype=torch.float64) if one.dtype.kind == "f" else torch.from_numpy(one)
                for name, one in sample.items()}  # fmt: skip
        outputs = [one for one in self.run(ones).values() if one.is_floating_point()]
        total = torch.stack([one.sum() for one in outputs]).sum()
        if not bool(torch.isfinite(total)):
            raise InputError("synflow: the sum of the outputs overflows for ones as inputs; choose another criterion")
        return total

    def silence(self, gone: Mapping[str, NDArray[np.bool_]]) -> None:
        """Zero the slices of some units."""
        import torch

        with torch.no_grad():
            for group, mask in gone.items():
                for name, axis, unit_of, _ in self.places[group]:
                    index = torch.from_numpy(np.flatnonzero((unit_of >= 0) & mask[unit_of]))
                    self.held[name].index_fill_(axis, index, 0.0)


def _answer(kind: Kind, output: Tensor) -> Tensor:
    """What relevance is of: the best class's logit or logarithm, over all rows; of values, the sum."""
    if kind == "values":
        return output.sum()
    best = output.amax(dim=-1)
    return (best.log() if kind == "probabilities" else best).sum()


def _looked_at(group: Group) -> list[Any]:
    contracted = any(member.role == "contracted" for member in group.members)
    consumers = [member for member in group.members if member.role == "consumer"]
    if consumers and not contracted:
        return consumers
    makers = [member for member in group.members if member.role in ("producer", "rider")]
    return makers or [member for member in group.members if member.role in CONSTANT_ROLES]


def _apart(sample: Mapping[str, NDArray[Any]], moving: Mapping[str, frozenset[int]]) -> Iterator[dict[str, Any]]:
    """The single samples of a run, where all inputs have their number on the first axis."""
    counts = {one.shape[0] if one.ndim and 0 in moving.get(name, ()) else -1 for name, one in sample.items()}
    if len(counts) != 1 or (count := counts.pop()) < 1:
        yield dict(sample)
        return
    for k in range(count):
        yield {name: one[k : k + 1] for name, one in sample.items()}
