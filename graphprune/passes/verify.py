"""Verify: the cut network equals the original in which the removed units are silenced where they are contracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.errors import InputError, VerificationError
from graphprune.ir.observe import random_feeds
from graphprune.ir.program import Array, Program, Runner, graph_values, inputs_of
from graphprune.ir.sizes import Constants
from graphprune.passes.plan import PlanMember

__all__ = ["Verdict", "Verify", "masked"]


@dataclass(frozen=True)
class Verdict:
    """What the comparison of the cut network with its masked original showed.

    Attributes:
        passed: every element of every output within ``atol + rtol * scale``, ``scale`` being the output's largest
            magnitude.
        max_abs: largest absolute difference over all outputs and samples.
        max_rel: largest absolute difference over the largest magnitude of that output and sample (plus ``atol / rtol``,
            so that it passes where it is within ``rtol``: outputs close to zero have no relative accuracy).
        samples: how many inputs were compared.
        dtype: the precision in which both ran.
        worst: name of the output (or of the inner value before it) with the largest relative difference.
        difference_to_original: largest relative difference of the cut network to the unmasked original (what was lost).
    """

    passed: bool
    max_abs: float
    max_rel: float
    samples: int
    dtype: str
    atol: float
    rtol: float
    worst: str
    difference_to_original: float


@dataclass(frozen=True)
class Verify:
    """Masked equivalence on random inputs and given samples.

    Args:
        samples: number of random inputs.
        atol, rtol: accepted difference: ``atol + rtol * max(abs(output))``; ``rtol`` None: what the narrowest
            floating-point type of the network's constants allows (:data:`TOLERANCES`).
        seed: of the random inputs.
    """

    samples: int = 3
    atol: float = 1e-6
    rtol: float | None = None
    seed: int = 0

    def __call__(
        self,
        program: Program,
        members: Sequence[PlanMember],
        pruned: ir.Model,
        run: Runner,
        extra: Sequence[Mapping[str, Array]] = (),
        dtype: str = "float32",
    ) -> Verdict:
        """Run the masked original and the cut network on the same inputs and compare.

        Args:
            program: the original, observed.
            members: the plan's members: what was removed from which tensor.
            pruned: the cut network.
            run: executes a model; it decides the precision named ``dtype``.
            extra: given samples, input name -> array.

        Raises:
            VerificationError: the cut network has other inputs or outputs than the original.
            InputError: one of both does not run, or a member does not fit the original.
        """
        rtol = tolerance(program) if self.rtol is None else self.rtol
        _same_interface(program.model, pruned)
        fresh = [random_feeds(program, self.seed + 1 + i) for i in range(self.samples)]
        feeds = [program.examples, *fresh, *program.other_examples, *extra]
        looked = witnesses(program)
        models = (with_outputs(model, looked) for model in (masked(program, members), pruned, program.model))
        # one model after the other, so that one session is held at a time
        expected, found, dense = ([run(model, sample) for sample in feeds] for model in models)
        worst = (0.0, 0.0, "")
        lost = 0.0
        passed = True
        for want, have, full in zip(expected, found, dense, strict=True):
            for name, value in want.items():
                if name in looked and (name not in have or have[name].shape != value.shape):
                    continue  # an inner value that was cut
                absolute, relative, fits = self._compare(value, have[name], rtol)
                passed &= fits
                if (relative, absolute) >= worst[:2]:
                    worst = (relative, absolute, name)
                lost = max(lost, self._compare(full[name], have[name], rtol)[1])
        return Verdict(passed, worst[1], worst[0], len(feeds), dtype, self.atol, rtol, worst[2], lost)

    def _compare(self, want: Array, found: Array, rtol: float) -> tuple[float, float, bool]:
        if want.shape != found.shape:
            return float("inf"), float("inf"), False
        if want.size == 0:
            return 0.0, 0.0, True
        if want.dtype == np.bool_ or not np.issubdtype(want.dtype, np.number):
            same = bool(np.array_equal(want, found))
            return (0.0, 0.0, True) if same else (1.0, 1.0, False)
        a, b = want.astype(np.float64), found.astype(np.float64)
        both = (np.isnan(a) & np.isnan(b)) | (a == b)
        gap = np.where(both, 0.0, np.abs(a - b))
        finite = np.abs(a[np.isfinite(a)])
        scale = float(finite.max()) if finite.size else 0.0
        absolute = float(np.nan_to_num(gap, nan=np.inf).max())
        small = self.atol / rtol if rtol else 0.0
        relative = absolute / (scale + small) if absolute else 0.0
        return absolute, relative, absolute <= self.atol + rtol * scale


#: Accepted relative difference by the narrowest type that a network computes in, some units of its last place. Sums in
#: another order are rounded to the other neighbour now and then, which shows where values are quantised.
TOLERANCES = {
    ir.DataType.FLOAT: 1e-4,
    ir.DataType.FLOAT16: 5e-3,
    ir.DataType.BFLOAT16: 4e-2,
    ir.DataType.INT8: 2e-2,
    ir.DataType.UINT8: 2e-2,
}


def tolerance(program: Program) -> float:
    """The accepted relative difference for a network, from the types of its constants."""
    held = {value.const_value.dtype for value in program.model.graph.initializers.values() if value.const_value}
    return max((TOLERANCES[one] for one in held if one in TOLERANCES), default=TOLERANCES[ir.DataType.FLOAT])


def _same_interface(original: ir.Model, pruned: ir.Model) -> None:
    for what, ours, theirs in (
        ("inputs", inputs_of(original), inputs_of(pruned)),
        ("outputs", original.graph.outputs, pruned.graph.outputs),
    ):
        names = [[value.name or "" for value in values] for values in (ours, theirs)]
        if names[0] != names[1]:
            raise VerificationError(
                f"the cut network has the {what} {', '.join(names[1]) or 'none'}, the original has "
                f"{', '.join(names[0]) or 'none'}; they are to be the same"
            )


def witnesses(program: Program) -> list[str]:
    """Inner values to compare besides the outputs: what the nodes that make the outputs read.

    A sigmoid or a softmax can hide an error: where a detector finds nothing all its outputs are close to zero.
    """
    names: dict[str, None] = {}
    for output in program.model.graph.outputs:
        node = output.producer()
        for value in node.inputs if node is not None else ():
            if value is None or value.name is None or value.producer() is None or value.name in program.fixed:
                continue
            if value.name in program.shapes and value.name not in program.sizes:
                names[value.name] = None
    outputs = {output.name for output in program.model.graph.outputs}
    return [name for name in names if name not in outputs]


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone that also gives some inner values, as far as it has them."""
    clone = model.clone()
    values = graph_values(clone.graph)
    clone.graph.outputs.extend(values[name] for name in names if name in values)
    return clone


def masked(program: Program, members: Sequence[PlanMember]) -> ir.Model:
    """The original with the removed units silenced: a 0/1 mask multiplied onto each consumer and contracted value.

    A plan's member says it all: tensor, axis and removed indices. Weights stay where they are (external data are not
    copied); the mask is multiplied in when the model runs.
    """
    model = program.model.clone()
    values = graph_values(model.graph)
    constants = Constants(model.graph)
    kept: dict[tuple[str, int], Array] = {}
    for member in members:
        if member.role not in ("consumer", "contracted") or not len(member.removed):
            continue
        if member.tensor not in values:
            raise InputError(f"the plan names the tensor {member.tensor!r}, which the model does not have")
        shape = program.shapes[member.tensor]
        if len(shape) != member.rank or shape[member.axis] != member.size:
            raise InputError(
                f"the plan has {member.tensor!r} with {member.size} indices on axis {member.axis} of {member.rank}, "
                f"the model has the shape {'x'.join(map(str, shape))}"
            )
        mask = kept.setdefault((member.tensor, member.axis), np.ones(member.size, dtype=np.bool_))
        mask[np.asarray(member.removed)] = False
    for (name, axis), mask in kept.items():
        _silence(model.graph, values[name], axis, mask, len(program.shapes[name]), constants)
    return model


def _silence(graph: ir.Graph, value: ir.Value, axis: int, mask: Array, rank: int, constants: Constants) -> None:
    dtype = value.dtype or ir.DataType.FLOAT
    shape = [1] * rank
    shape[axis] = len(mask)
    factor = constants.get(mask.reshape(shape).astype(dtype.numpy()), f"{value.name}/mask_{axis}")
    node = ir.node("Mul", inputs=[value, factor], name=f"{value.name}/silenced_{axis}")
    node.outputs[0].name = f"{value.name}/silenced_{axis}"
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    users = [(user, k) for user, k in value.uses() if user is not node]
    before = next((one for one in graph if any(one is user for user, _ in users)), None)
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    elif before is not None:
        graph.insert_before(before, node)
    else:
        graph.append(node)
    for user, k in users:
        user.replace_input_with(k, node.outputs[0])
