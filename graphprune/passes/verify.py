"""Verify: the cut network equals the original in which the removed units are silenced where they are contracted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from graphprune.errors import InputError, VerificationError
from graphprune.ir.nested import bodies, branches, graphs_of, walk
from graphprune.ir.observe import random_feeds
from graphprune.ir.program import Array, Program, Runner, all_values, constant_tensor, inputs_of, with_outputs
from graphprune.ir.sizes import Constants
from graphprune.passes.plan import PlanMember

__all__ = ["FLOAT_RTOL", "Verdict", "Verify", "masked", "paths"]

_log = logging.getLogger(__name__)


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
        ways: how many ways through the branches of its Ifs were compared; 1 where there are none.
        float32_rel: where float32 failed and float64 was asked: the largest relative difference in float32.
        notes: what else the user should know of the comparison.
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
    ways: int = 1
    float32_rel: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verify:
    """Masked equivalence on random inputs and given samples.

    A random input on which the original itself does not run is replaced by another one. Where a network has an If,
    every input is run as it is and then once more for each way through its branches, with the conditions replaced
    (:func:`paths`): a branch that no sample takes is held to the equivalence all the same.

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
        looked = witnesses(program)
        ways = [{}, *paths(program)]
        # one model after the other, so that one session is held at a time
        original = with_outputs(program.model, looked)
        feeds, dense, notes = self._drawn(program, original, run, extra)
        dense.extend(_runs(original, ways[1:], feeds, run))
        models = (with_outputs(model, looked) for model in (masked(program, members), pruned))
        expected, found = (list(_runs(model, ways, feeds, run)) for model in models)
        worst = (0.0, 0.0, "")
        lost = 0.0
        passed = True
        compared = [0] * len(ways)
        numbers: set[str] = set()  # outputs and inner values of which there was something to compare
        others: set[str] = set()
        for i, (want, have, full) in enumerate(zip(expected, found, dense, strict=True)):
            if isinstance(want, InputError) or isinstance(full, InputError):
                continue  # a branch that this input is not made for
            if isinstance(have, InputError):
                raise have
            compared[i // len(feeds)] += 1
            for name, value in want.items():
                if name in looked and (name not in have or have[name].shape != value.shape):
                    continue  # an inner value that was cut
                if not np.issubdtype(value.dtype, np.inexact) or np.isfinite(value).any():
                    numbers.add(name)
                absolute, relative, fits = self._compare(value, have[name], rtol)
                passed &= fits
                if (relative, absolute) >= worst[:2]:
                    worst = (relative, absolute, name)
                if full[name].shape == have[name].shape:
                    lost = max(lost, self._compare(full[name], have[name], rtol)[1])
                else:
                    others.add(name)
        silent = [want for want in expected[: len(feeds)] if isinstance(want, InputError)]
        if silent and not compared[0]:
            raise silent[0]
        if not numbers:
            raise VerificationError(
                "nothing could be compared: on every input that was tried all outputs of the original are empty, NaN "
                "or infinite; give inputs that it is made for"
            )
        if others:
            notes.append(
                f"what was lost is not known of {', '.join(map(repr, sorted(others)))}: how many entries there are "
                "depends on the contents"
            )
        if silent:
            notes.append(f"{len(silent)} inputs were left out, the masked original does not run on them ({silent[0]})")
        if not all(compared):
            _log.warning("%d of the %d ways through its branches run on no sample", compared.count(0), len(ways))
        return Verdict(
            passed,
            worst[1],
            worst[0],
            compared[0],
            dtype,
            self.atol,
            rtol,
            worst[2],
            lost,
            ways=len(ways) - compared.count(0),
            notes=tuple(notes),
        )

    def _drawn(
        self, program: Program, original: ir.Model, run: Runner, extra: Sequence[Mapping[str, Array]]
    ) -> tuple[list[Mapping[str, Array]], list[dict[str, Array] | InputError], list[str]]:
        """The inputs to compare, what the original gives for each, and notes on random inputs it does not run on."""
        first = run(original, program.examples)
        fresh: list[Mapping[str, Array]] = []
        results: list[dict[str, Array] | InputError] = []
        failed: list[InputError] = []
        for i in range(self.samples):
            for attempt in range(_DRAWS):
                sample = random_feeds(program, self.seed + 1 + i + attempt * self.samples)
                try:
                    results.append(run(original, sample))
                except InputError as error:
                    failed.append(error)
                else:
                    fresh.append(sample)
                    break
        given = [*program.other_examples, *extra]
        results += [run(original, sample) for sample in given]
        notes = []
        if failed:
            missing = f", {self.samples - len(fresh)} could not be replaced" if len(fresh) < self.samples else ""
            notes.append(
                f"the original itself does not run on {len(failed)} of the random inputs drawn; others were drawn in "
                f"their place{missing} ({failed[0]})"
            )
        return [program.examples, *fresh, *given], [first, *results], notes

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
        absolute = float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max())
        small = self.atol / rtol if rtol else 0.0
        relative = absolute / (scale + small) if absolute else 0.0
        return absolute, relative, absolute <= self.atol + rtol * scale


_DRAWS = 10  # of a random input, until the original runs on it
FLOAT_RTOL = 1e-4
#: Accepted relative difference by the narrowest type that a network computes in, some units of its last place. Sums in
#: another order are rounded to the other neighbour now and then, which shows where values are quantised.
TOLERANCES = {
    ir.DataType.FLOAT: FLOAT_RTOL,
    ir.DataType.FLOAT16: 5e-3,
    ir.DataType.BFLOAT16: 4e-2,
    ir.DataType.INT8: 2e-2,
    ir.DataType.UINT8: 2e-2,
}


def tolerance(program: Program) -> float:
    """The accepted relative difference for a network, from the types of its constants."""
    constants = [constant_tensor(value) for value in program.values().values()]
    held = {one.dtype for one in constants if one is not None}
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


def paths(program: Program) -> list[dict[str, bool]]:
    """Ways through the branches of a network: what the Ifs decide, by the name of an If's first result.

    Together they take every branch that could be run; none where there is no If.
    """
    return _paths(program, program.model.graph)


def _paths(program: Program, graph: ir.Graph) -> list[dict[str, bool]]:
    found: list[dict[str, bool]] = []
    for node in graph:
        known = [(one, taken) for one, taken in zip(bodies(node), (True, False), strict=False) if _known(program, one)]
        own = [
            ({node.outputs[0].name or "": taken} if branches(node) and len(known) > 1 else {}) | deeper
            for one, taken in known
            for deeper in _paths(program, one) or [{}]
        ]
        if any(own):  # independent Ifs take their turns together
            found = [(first or {}) | (second or {}) for first, second in zip_longest(found, own)]
    return found


def _known(program: Program, graph: ir.Graph) -> bool:
    return graph in program.bodies and program.bodies[graph].known


def _runs(
    model: ir.Model, ways: Sequence[Mapping[str, bool]], feeds: Sequence[Mapping[str, Array]], run: Runner
) -> Iterator[dict[str, Array] | InputError]:
    """The outputs for every way and input; the error where it does not run."""
    for way in ways:
        chosen = forced(model, way) if way else model
        for sample in feeds:
            try:
                yield run(chosen, sample)
            except InputError as error:
                yield error


def forced(model: ir.Model, way: Mapping[str, bool]) -> ir.Model:
    """A clone whose Ifs decide as told, by the name of their first result; the others as ever."""
    clone = model.clone()
    constants = Constants(clone.graph)
    for node in walk(clone.graph):
        taken = way.get(node.outputs[0].name or "") if branches(node) else None
        if taken is not None:
            node.replace_input_with(0, constants.get(np.array(taken), f"{node.name}/forced"))
    return clone


def masked(program: Program, members: Sequence[PlanMember]) -> ir.Model:
    """The original with the removed units silenced: a 0/1 mask multiplied onto each consumer and contracted value.

    A plan's member says it all: tensor, axis and removed indices. Weights stay where they are (external data are not
    copied); the mask is multiplied in when the model runs.
    """
    model = program.model.clone()
    values = all_values(model.graph)
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
    for name, dtype in _found_types(program, [name for name, _ in kept if values[name].dtype is None]).items():
        values[name].dtype = dtype
    for (name, axis), mask in kept.items():
        _silence(values[name], axis, mask, len(program.shapes[name]), constants)
    return model


def _found_types(program: Program, names: Sequence[str]) -> dict[str, ir.DataType]:
    """Types of values that declare none, as files may leave it: those of the contents. Not of values in bodies."""
    arrays = {name: program.tensor(name) for name in names if name in program.fixed}
    made = {value.name for node in program.model.graph for value in node.outputs}
    asked = [name for name in dict.fromkeys(names) if name not in arrays and name in made]
    if asked and program.run is not None:
        arrays |= program.run(with_outputs(program.model, asked), program.examples, asked)
    return {name: ir.DataType.from_numpy(array.dtype) for name, array in arrays.items()}


#: Types that Mul takes since opset 14 only, and that runtimes multiply later still.
_NARROW = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)


def _silence(value: ir.Value, axis: int, mask: Array, rank: int, constants: Constants) -> None:
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    dtype = value.dtype or ir.DataType.FLOAT
    shape = [1] * rank
    shape[axis] = len(mask)
    wide = ir.DataType.INT32 if dtype in _NARROW else dtype
    factor = constants.get(mask.reshape(shape).astype(wide.numpy()), f"{value.name}/mask_{axis}")
    nodes = [ir.node("Mul", inputs=[value, factor], name=f"{value.name}/silenced_{axis}")]
    if wide != dtype:
        nodes.insert(0, ir.node("Cast", inputs=[value], attributes={"to": wide}, name=f"{value.name}/wide_{axis}"))
        nodes[1].replace_input_with(0, nodes[0].outputs[0])
        nodes.append(
            ir.node("Cast", inputs=nodes[1].outputs, attributes={"to": dtype}, name=f"{value.name}/narrow_{axis}")
        )
    for node in nodes:
        node.outputs[0].name = node.name
        node.outputs[0].dtype, node.outputs[0].shape = dtype if node is nodes[-1] else wide, value.shape
    users = [(user, k) for user, k in value.uses() if user not in nodes]
    reading = {user for user, _ in users}
    before = next((one for one in graph if not reading.isdisjoint(_with_inner(one))), None)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    elif before is not None:
        graph.insert_before(before, nodes)
    else:
        graph.extend(nodes)
    for user, k in users:
        user.replace_input_with(k, nodes[-1].outputs[0])


def _with_inner(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for graph in graphs_of(node):
        yield from graph.all_nodes()
