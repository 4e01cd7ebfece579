"""The units of coupling groups on the parameters of a torch module: read, scaled and zeroed all at once.

Every unit of every exact group gets a number; a unit's *vector* are the slices of the parameters that make it (weights
cut on an output axis, their biases and norms: the zero-invariant groups of Chen et al., "Only Train Once", 2021). What
is scaled or zeroed are the consumers' slices as well: a cut network equals the trained one if what is read of a unit is
zero, and an activation need not give zero for zero.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree

from graphprune.backends.runner import OrtRunner
from graphprune.backends.torch import load_state
from graphprune.coupling.groups import Group
from graphprune.coupling.registry import keeps
from graphprune.errors import InputError, NothingPrunableError, UsageError, VerificationError
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.ir.program import Program
from graphprune.passes.files import keep_of
from graphprune.passes.plan import Plan
from graphprune.passes.selection import Selection
from graphprune.passes.shrink import Shrink
from graphprune.pipeline import Network, load

__all__ = ["ModuleGroups", "Slices", "call", "difference", "module_groups", "network_of", "outputs_of"]

_log = logging.getLogger(__name__)
_MADE = ("producer", "rider")
_SILENT = 1e-3  # relative: what rounding makes of a network that computes the same


@dataclass(frozen=True)
class Slices:
    """One axis of one parameter: ``index`` (k,) on it, and the number of the ``unit`` (k,) that each belongs to.

    ``vector``: whether they are part of the units' vectors, or only go with them (what reads the unit).
    """

    parameter: str
    axis: int
    index: Tensor = field(repr=False)
    unit: Tensor = field(repr=False)
    vector: bool


class ModuleGroups:
    """The units of the exact groups of a network, numbered through, on the parameters of a module.

    Attributes:
        network: the network as it was when this was made; training the module does not change it.
        module: what is trained; its parameters are looked up by name at every use.
        groups: those whose units can be taken out exactly by zeroing parameters.
        offsets: number of the first unit of each group, by its id; ``count`` is how many there are in all.
        notes: groups that were left out, and why.
    """

    def __init__(self, network: Network, module: nn.Module, inputs: Any, groups: Sequence[Group]) -> None:
        self.network, self.module, self.inputs = network, module, inputs
        self.names = _parameter_names(network.program, module)
        self.notes: tuple[str, ...] = ()
        self.narrow(groups)

    def narrow(self, groups: Sequence[Group]) -> None:
        """Leave only these groups, and number their units anew."""
        self.groups = tuple(groups)
        self.offsets: dict[str, int] = {}
        self.count = 0
        for one in self.groups:
            self.offsets[one.id] = self.count
            self.count += one.size
        held = parameters_of(self.module)
        self.slices: tuple[Slices, ...] = tuple(
            found for one in self.groups for found in _slices(one, self.names, held, self.offsets[one.id])
        )

    # --- The vectors of the units ------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that units stand on, by name."""
        held = parameters_of(self.module)
        return {one.parameter: held[one.parameter] for one in self.slices}

    def sums(self, elements: Mapping[str, Tensor]) -> Tensor:
        """Sum over each unit's vector of a figure of each element, given per parameter and of its shape; (count,).

        Differentiable. Parameters that are not given count as zero.
        """
        total: Tensor | None = None
        for one in self.slices:
            given = elements.get(one.parameter)
            if given is None or not one.vector:
                continue
            rest = [axis for axis in range(given.ndim) if axis != one.axis]
            along = given.sum(rest) if rest else given
            if total is None:
                total = torch.zeros(self.count, dtype=along.dtype, device=along.device)
            index, unit = one.index.to(along.device), one.unit.to(along.device)
            total = total.index_add(0, unit, along[index].to(total.dtype))
        return torch.zeros(self.count) if total is None else total

    def sizes(self) -> Tensor:
        """Number of elements of each unit's vector; (count,)."""
        return self.sums({name: torch.ones_like(value) for name, value in self.parameters.items()})

    def norms(self) -> Tensor:
        """Euclidean norm of each unit's vector; (count,). Differentiable, with the gradient 0 at 0."""
        squares = self.sums({name: value**2 for name, value in self.parameters.items()})
        root: Any = _Root.apply  # typed in some releases of PyTorch only
        return cast("Tensor", root(squares))

    def vectors(self, group: str) -> Tensor:
        """The vectors of a group's units, one in a row, filled with zeros where they differ in length."""
        one = next(each for each in self.groups if each.id == group)
        start, parts = self.offsets[group], []
        held = self.parameters
        for part in self.slices:
            inside = (part.unit >= start) & (part.unit < start + one.size)
            if not part.vector or not bool(inside.any()):
                continue
            value = held[part.parameter]
            rows = value.movedim(part.axis, 0).reshape(value.shape[part.axis], -1)
            unit = (part.unit[inside] - start).to(value.device)
            order = torch.argsort(unit, stable=True)
            unit, rows = unit[order], rows[part.index[inside].to(value.device)[order]]
            counts = torch.bincount(unit, minlength=one.size)
            place = torch.arange(len(unit), device=value.device) - (counts.cumsum(0) - counts)[unit]
            block = rows.new_zeros(one.size, int(counts.max()), rows.shape[1])
            parts.append(block.index_put((unit, place), rows).reshape(one.size, -1))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def scale(self, factors: Tensor, *, everywhere: bool = True) -> None:
        """Multiply all slices of each unit by its factor (count,), in place; without ``everywhere`` its vector only."""
        if bool((factors == 1).all()):
            return
        held = parameters_of(self.module)
        for one in self.slices:
            if everywhere or one.vector:
                value = held[one.parameter]
                along = torch.ones(value.shape[one.axis], dtype=value.dtype, device=value.device)
                here = factors.to(value)[one.unit.to(value.device)]
                along[one.index.to(value.device)] = here
                value.mul_(along.reshape([-1 if axis == one.axis else 1 for axis in range(value.ndim)]))

    @torch.no_grad()
    def add(self, factors: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add ``factor * value`` to the elements of each unit's vector, in place; values per parameter."""
        held = parameters_of(self.module)
        for one in self.slices:
            if one.vector:
                value = held[one.parameter]
                along = torch.zeros(value.shape[one.axis], dtype=value.dtype, device=value.device)
                along[one.index.to(value.device)] = factors.to(value)[one.unit.to(value.device)]
                shape = [-1 if axis == one.axis else 1 for axis in range(value.ndim)]
                value.addcmul_(along.reshape(shape), values[one.parameter])

    def zero(self, units: Tensor) -> None:
        """Set all slices of some units (a mask (count,)) to zero, in place."""
        self.scale((~units).to(torch.float32))

    # --- Networks ----------------------------------------------------------------------------------------------------

    def plan(self, gone: Tensor | NDArray[np.bool_]) -> Plan:
        """The plan without some units (a mask (count,))."""
        mask = np.asarray(gone.cpu() if isinstance(gone, Tensor) else gone, dtype=np.bool_)
        kept = {}
        for one in self.groups:
            here = mask[self.offsets[one.id] : self.offsets[one.id] + one.size]
            if here.any():
                kept[one.id] = np.flatnonzero(~here).astype(np.int64)
        return Plan(kept)

    def keep(self, gone: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
        """Masks of kept units of the groups that lose some, by id."""
        return dict(keep_of(self.plan(gone), self.network.grouping))

    def trained(self) -> Network:
        """The network with the values that the module holds now."""
        program = _with_values(self.network.program, self.module, self.names)
        return Network(program, None, self.network.name, {})

    def cut(self, gone: Tensor | NDArray[np.bool_], *, tolerance: float | None = 1e-5) -> Network:
        """The network with the module's values and without some units.

        Raises:
            VerificationError: on the example inputs it differs from the uncut one by more than ``tolerance``
                (relative; None: not looked at), so that the units were not zero.
        """
        trained = self.trained()
        keep = keep_of(self.plan(gone), trained.grouping)
        model = Shrink(keep)(trained.grouping)
        found = network_of(model, trained.program.examples, trained.name, trained.program.parameter_names)
        if tolerance is not None:
            far = difference(outputs_of(trained), outputs_of(found))
            if not far <= tolerance:
                raise VerificationError(
                    f"the cut network differs from the trained one by {far:.1e} relative ({tolerance:g} are accepted): "
                    "units that were cut are not zero in the module; cut after the optimiser's last step"
                )
        return found


class _Root(torch.autograd.Function):
    """Square root with the gradient 0 at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (root,) = ctx.saved_tensors
        return torch.where(root > 0, grads[0] / (2 * root), 0.0)


def module_groups(
    module: nn.Module,
    inputs: Any = None,
    *,
    network: Network | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> ModuleGroups:
    """The groups of a module.

    Args:
        module: the user's own, or one that :func:`graphprune.to_torch` made.
        inputs: example inputs of an own module, as for :func:`graphprune.load`; it is traced on them.
        network: what a module of ``to_torch`` was made of.
        include, exclude: patterns of names, see :class:`graphprune.passes.selection.Selection`.

    Raises:
        UsageError: neither inputs nor the network are given, or both. NothingPrunableError: no unit can be zeroed.
    """
    if (inputs is None) == (network is None):
        raise UsageError(
            "give the example inputs of your own module (inputs=...), or the network that a module of "
            "graphprune.to_torch was made of (network=...)"
        )
    if network is None:
        network = load(module, inputs=inputs)
        network = Network(_own(network.program), None, network.name, {})
    elif "parameters" not in getattr(module, "meta", {}):
        raise UsageError("network= goes with a module that graphprune.to_torch made; for your own give inputs=")
    else:
        examples = network.program.examples
        named: Any = module.meta
        inputs = tuple(torch.from_numpy(np.array(examples[name])) for name in named["inputs"])
    chosen = Selection(include, exclude)(network.grouping, network.program.parameter_names)
    groups = ModuleGroups(network, module, inputs, [one for one in chosen if one.size > 1])
    left_out = _not_silenced(groups)
    groups.narrow([one for one in groups.groups if one.id not in left_out])
    groups.notes = tuple(
        f"{name} cannot be taken out by zeroing trained parameters: what is read of it is made by frozen ones, or by a "
        "function that is not zero at zero"
        for name in left_out
    )
    for note in groups.notes:
        _log.info("left out: %s", note)
    if not groups.groups:
        raise NothingPrunableError("no group of the module can be taken out by zeroing trained parameters")
    return groups


def _not_silenced(groups: ModuleGroups) -> list[str]:
    """Ids of groups whose units still show when all their slices are zero: tried on the module itself."""
    on_parameters = {group for group in groups.offsets if _stands(groups, group)}
    missing = [one.id for one in groups.groups if one.id not in on_parameters]
    tried = [one for one in groups.groups if one.id in on_parameters]
    if not tried or _equal(groups, tried):
        return missing
    return missing + [one.id for one in tried if not _equal(groups, [one])]


def _stands(groups: ModuleGroups, group: str) -> bool:
    start = groups.offsets[group]
    size = next(one.size for one in groups.groups if one.id == group)
    seen = torch.zeros(size, dtype=torch.bool)
    for one in groups.slices:
        inside = (one.unit >= start) & (one.unit < start + size)
        if one.vector:
            seen[one.unit[inside] - start] = True
    return bool(seen.all())


def _equal(groups: ModuleGroups, some: Sequence[Group]) -> bool:
    """Whether half of some groups' units zeroed in the module is the same as cutting them."""
    gone = torch.zeros(groups.count, dtype=torch.bool)
    for one in some:
        gone[groups.offsets[one.id] : groups.offsets[one.id] + one.size // 2] = True
    grouping = groups.network.grouping
    keep = groups.keep(gone.numpy())
    if grouping.emptied(keep):  # where channels are shuffled: the other half
        for one in some:
            gone[groups.offsets[one.id] : groups.offsets[one.id] + one.size] = ~gone[
                groups.offsets[one.id] : groups.offsets[one.id] + one.size
            ]
        keep = groups.keep(gone.numpy())
    held = {name: value.detach().clone() for name, value in groups.parameters.items()}
    groups.zero(gone)
    try:
        zeroed = call(groups.module, groups.inputs)
    finally:
        with torch.no_grad():
            for name, value in groups.parameters.items():
                value.copy_(held[name])
    cut = Shrink(keep)(grouping)
    names = [value.name or "" for value in cut.graph.outputs]
    expected = OrtRunner()(cut, groups.network.program.examples, names)
    return difference([expected[name] for name in names], zeroed) <= _SILENT


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter under every name it has."""
    return dict(module.named_parameters(remove_duplicate=False))


def _parameter_names(program: Program, module: nn.Module) -> dict[str, str]:
    named = getattr(module, "meta", {}).get("parameters")
    if named is not None:
        return {name: path for path, names in named.items() for name in names}
    return dict(program.parameter_names)


def _slices(group: Group, names: Mapping[str, str], held: Mapping[str, nn.Parameter], start: int) -> list[Slices]:
    found = []
    for member in group.members:
        parameter = held.get(names.get(member.tensor, ""))
        if parameter is None or not parameter.requires_grad or member.role == "contracted":
            continue
        inside = np.flatnonzero(member.unit_of >= 0)
        index, unit = torch.from_numpy(inside), torch.from_numpy(member.unit_of[inside] + start)
        found.append(Slices(names[member.tensor], member.axis, index, unit, member.role in _MADE))
    if not any(one.vector for one in found):  # nothing makes the units but a statistic: what reads them is their vector
        return [dataclasses.replace(one, vector=True) for one in found]
    return found


def _own(program: Program) -> Program:
    """Initialisers that no longer share their memory with the module that was traced."""
    for value in program.model.graph.initializers.values():
        held = value.const_value
        if held is not None:
            value.const_value = ir.Tensor(np.array(held.numpy()), dtype=held.dtype, name=value.name)
    return program


def _with_values(program: Program, module: nn.Module, names: Mapping[str, str]) -> Program:
    """The program with the values of a module's parameters and buffers, by their names."""
    if "parameters" in getattr(module, "meta", {}):
        return load_state(program, module)  # type: ignore[arg-type]
    tensors: dict[str, Tensor] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    known = program.values()
    paths: dict[str, list[str]] = {}
    for name, path in names.items():
        if name in known and path in tensors:
            paths.setdefault(path, []).append(name)
    copied = {path: tensors[path].detach().clone() for path in paths}
    stated = SimpleNamespace(meta={"parameters": paths}, state_dict=lambda keep_vars=True: copied)
    return load_state(program, stated)  # type: ignore[arg-type]


def network_of(
    model: ir.Model, examples: Mapping[str, Any], name: str, parameter_names: Mapping[str, str] | None = None
) -> Network:
    """A model in memory as a network, observed on example inputs."""
    made = model.clone()
    clean(made)
    program = observe(made, OrtRunner(), keep=keeps, given=dict(examples))
    known = program.values()
    program.parameter_names = {key: value for key, value in (parameter_names or {}).items() if key in known}
    return Network(program, None, name, {})


def outputs_of(network: Network) -> list[NDArray[Any]]:
    """What a network gives for its example inputs."""
    program = network.program
    names = [value.name or "" for value in program.model.graph.outputs]
    found = OrtRunner()(program.model, program.examples, names)
    return [found[name] for name in names]


@torch.no_grad()
def call(module: nn.Module, inputs: Any) -> list[NDArray[Any]]:
    """What a module gives in eval mode for inputs as :func:`graphprune.load` takes them.

    Its modes, and buffers that it writes to even so (counters, running averages), are restored.
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, value, value.clone())
        for part in module.modules()
        for name, value in part._buffers.items()
        if value is not None
    ]
    place = next(iter(module.parameters()), torch.zeros(0)).device

    def moved(leaf: Any) -> Any:
        leaf = torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf
        return leaf.to(place) if isinstance(leaf, Tensor) else leaf

    inputs = tree.tree_map(moved, inputs)
    args: tuple[Any, ...] = () if isinstance(inputs, Mapping) else (inputs,)
    kwargs: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {}
    if isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
        if args and isinstance(args[-1], dict):
            args, kwargs = args[:-1], args[-1]
    module.eval()
    try:
        leaves = tree.tree_leaves(module(*args, **kwargs))
    finally:
        for part, training in modes:
            part.training = training
        for part, name, value, content in buffers:
            part._buffers[name] = value.copy_(content)
    return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def difference(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """Largest difference of any output, relative to the largest value of that output.

    Raises:
        InputError: they are not equally many, or of other shapes.
    """
    shapes = [one.shape for one in expected], [one.shape for one in found]
    if shapes[0] != shapes[1]:
        raise InputError(f"outputs of the shapes {shapes[0]} were expected, the module gives {shapes[1]}")
    far = 0.0
    for one, other in zip(expected, found, strict=True):
        a, b = one.astype(np.float64), other.astype(np.float64)
        gap = float(np.abs(a - b).max(initial=0.0))
        far = max(far, gap / max(float(np.abs(a).max(initial=0.0)), 1e-12)) if np.isfinite(gap) else float("inf")
    return far
