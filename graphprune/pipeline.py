"""A loaded network: from a file or a module to its groups; what is done with it starts here."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune import progress
from graphprune.backends.runner import OrtRunner
from graphprune.coupling.explain import AxisReport, explain
from graphprune.coupling.graph import Uncut, group_graph, uncut
from graphprune.coupling.groups import Group, Grouping, group
from graphprune.coupling.registry import keeps
from graphprune.coupling.solve import couple
from graphprune.errors import InputError, RunTimeoutError, UsageError
from graphprune.frontends.graphsurgeon import is_graph, read_graphsurgeon
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.ir.program import Array, Program
from graphprune.ir.store import sha256_of
from graphprune.passes.cost import Cost
from graphprune.passes.files import read_plan, saved_members
from graphprune.passes.plan import PlanMember
from graphprune.passes.verify import FLOAT_RTOL, Verdict, Verify
from graphprune.report.manifest import analysis_document

if TYPE_CHECKING:
    import networkx
    import onnx_ir as ir
    from torch import fx

    from graphprune.export import ExportResult
    from graphprune.options import ExportOptions

__all__ = ["IN_MEMORY", "Analysis", "Network", "load", "no_groups", "timed", "verify_files", "verify_program"]

_log = logging.getLogger(__name__)

# What the backends call a network that was handed to them as a message.
IN_MEMORY = re.compile(r"model in memory \(\d+ bytes\)")


_NEAR = 100  # times what is accepted: a larger difference is no rounding
_EXACT_RTOL, _EXACT_ATOL = 1e-7, 1e-9  # of float64 where it decides
_FLOAT64_SECONDS = 300.0  # in all, on the reference implementation
_FLOAT64_WEIGHTS = 1 << 28  # elements: it holds them all, in 2 GiB


@dataclass(frozen=True)
class Analysis:
    """What can be pruned.

    Attributes:
        groups: all groups, exact and stat.
        params, macs: of the whole network (MACs on the example inputs).
        governed_params, governed_macs: share in whose tensors (contractions) an exact group stands.
        shares: per group id the parameters and MACs of the tensors and contractions that it stands in.
        uncut: axes of weights that are never cut, with the reason.
        refusals: operators that nothing is cut through, with node and reason.
        input_shapes: of the example inputs.
        parameter_names: tensor -> the user's own parameter name, for a module.
    """

    groups: tuple[Group, ...]
    params: int
    macs: int
    governed_params: float
    governed_macs: float
    shares: Mapping[str, tuple[int, int]]
    uncut: tuple[Uncut, ...]
    refusals: tuple[str, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    parameter_names: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``graphprune analyze --json`` prints it."""
        return analysis_document(self)


class Network:
    """A loaded network: analyse it, explain an axis, export a smaller one. Its source is never modified."""

    def __init__(self, program: Program, source: Path | None, name: str, seconds: dict[str, float]) -> None:
        self.program = program
        self.source = source
        self.name = name
        self.seconds = seconds

    @cached_property
    def grouping(self) -> Grouping:
        """The solved coupling and its groups."""
        with timed(self.seconds, "couple"):
            return group(couple(self.program))

    @cached_property
    def cost(self) -> Cost:
        """Parameters and MACs under any plan."""
        return Cost.of(self.grouping)

    def analyze(self) -> Analysis:
        """Groups, what they govern, and what refuses and why."""
        grouping, cost = self.grouping, self.cost
        exact = [one for one in grouping.groups if one.exact]
        params, macs = cost.governed(exact)
        return Analysis(
            grouping.groups,
            cost.params({}),
            cost.macs({}),
            params,
            macs,
            cost.shares(),
            uncut(grouping),
            tuple(str(refusal) for refusal in grouping.coupling.refusals),
            {name: array.shape for name, array in self.program.examples.items()},
            self.program.parameter_names,
            (*self.program.notes, *(() if grouping.groups else (f"nothing can be pruned: {no_groups(grouping)}",))),
            dict(self.seconds),
        )

    def group_graph(self) -> networkx.DiGraph:
        """The graph of groups, see :func:`graphprune.coupling.graph.group_graph`."""
        return group_graph(self.grouping)

    def explain(self, tensor: str, axis: int) -> AxisReport:
        """What an axis is tied to, or why it cannot be cut. Raises UsageError for an unknown tensor or axis."""
        return explain(self.grouping, tensor, axis)

    def load_state(self, module: fx.GraphModule) -> Network:
        """The network with the values that a module of ``to_torch`` holds now; this one stays as it is.

        Raises what :func:`graphprune.load_state` raises: the module is of another network, or was not made by it.
        """
        from graphprune.backends.torch import load_state

        return Network(load_state(self.program, module), None, self.name, {})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the network as it is to an ONNX file. Raises UsageError: it is the file that the network came from."""
        source, target = self.program.source, Path(path)
        if source is not None and target.exists() and os.path.samefile(target, source):
            raise UsageError(f"'{target}' would overwrite the source; choose another file")
        return self.write(self.program.model, target)[-1]

    def write(self, model: ir.Model, path: Path, limit: int | None = None) -> tuple[Path, ...]:
        """Write a network made of this one; the data files first, the model last.

        A source that keeps its data beside it gets such a file: it can be run without being read as a whole. ``limit``
        is the largest data file in bytes.
        """
        from graphprune.ir.store import external_locations, write_onnx

        external = True if external_locations(self.program.model) else None
        return write_onnx(model, path, external=external, max_shard_size=limit)

    def export(self, out: str | os.PathLike[str], options: ExportOptions | None = None, **changes: Any) -> ExportResult:
        """Prune to the targets, prove the cut, measure it and write the artefacts.

        Args:
            out: folder for ``model.onnx``, ``plan.json`` and ``manifest.json`` (and their data files).
            options: all options; ``changes`` are single ones by name: ``export("out", target_macs="0.7x")``.

        Raises:
            UsageError: targets, names or the folder make no sense. NothingPrunableError, TargetError: it cannot be
            done. VerificationError: the cut network is not equal to its masked original; nothing is written.
        """
        if options is not None and changes:
            raise UsageError("export takes either options or single options by name, not both")
        from graphprune.export import export
        from graphprune.options import ExportOptions

        return export(self, Path(out), options or ExportOptions(**changes))


def load(
    source: str | os.PathLike[str] | Any,
    *,
    inputs: Any = None,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> Network:
    """Read a network and run it once to see its shapes.

    Args:
        source: an ONNX file; ``file.py:factory`` or ``package.module:factory`` for a PyTorch module; a module; or a
            ``onnx_graphsurgeon.Graph``.
        inputs: example inputs: arrays by name for an ONNX file; a tuple or a dictionary of tensors for a module.
        input_shapes: shapes by input name (None for the only input) where no example is given.
        seed: of random example inputs.

    Raises:
        InputError, UsageError: it cannot be read, traced or run.
    """
    seconds: dict[str, float] = {}
    parameter_names: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    given: Mapping[str, Array] | None = inputs
    path: Path | None = None
    with timed(seconds, "load"):
        if is_graph(source):
            model, name = read_graphsurgeon(source), str(getattr(source, "name", "graph"))
        elif _is_module(source):
            from graphprune.frontends.torch import read_module, resolve

            made = resolve(str(source))() if isinstance(source, str) else source
            traced = read_module(made, inputs=inputs, input_shapes=input_shapes, seed=seed)
            model, given = traced.model, traced.examples
            parameter_names, notes, input_shapes = dict(traced.parameter_names), traced.notes, None
            name = str(source) if isinstance(source, str) else type(made).__name__
        else:
            from graphprune.frontends.onnx import read_onnx

            path = Path(source)
            model, name = read_onnx(path), path.name
        clean(model)
    with timed(seconds, "observe"):
        runner = OrtRunner()
        try:
            program = observe(model, runner, keep=keeps, given=given, input_shapes=input_shapes, seed=seed)
        except (InputError, RunTimeoutError) as error:  # the runtime was handed a message; the user knows a file
            raise InputError(IN_MEMORY.sub(f"'{path or name}'", str(error))) from error
        runner.forget()  # its session maps the whole network; what is evaluated later has sessions of its own
    program.source, program.parameter_names, program.notes = path, parameter_names, (*program.notes, *notes)
    return Network(program, path, name, seconds)


def verify_files(
    original: str | os.PathLike[str],
    pruned: str | os.PathLike[str],
    plan: str | os.PathLike[str],
    *,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    check: Verify | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> Verdict:
    """Hold a pruned ONNX file to the masked equivalence with its original, from the saved plan alone."""
    from graphprune.frontends.onnx import read_onnx

    document = read_plan(plan)
    network = load(original, input_shapes=input_shapes, seed=seed)
    if network.source is not None and sha256_of(network.source)[network.source.name] != document["source_sha256"]:
        _log.warning("the plan was made from another file than '%s' (their SHA-256 differ)", original)
    return verify_program(
        network.program, saved_members(document), read_onnx(pruned), check or Verify(seed=seed), dtype
    )


def verify_program(
    program: Program, members: Sequence[PlanMember], pruned: ir.Model, check: Verify, dtype: str
) -> Verdict:
    """Run ``check`` on ONNX Runtime, or in float64 on the reference implementation.

    float32 rounds, deep networks amplify it, and where a network computes in few bits one step of int8 may be more than
    is accepted. Unless a tolerance was asked for, a difference of up to ``_NEAR`` times what is accepted is decided in
    float64: strictly, but for few bits, where sums in another order are rounded to the other side of a tie even there.
    """
    from graphprune.backends.reference import run_float64

    if dtype == "float64":
        return check(program, members, pruned, run_float64, dtype=dtype)
    verdict = check(program, members, pruned, OrtRunner(), dtype=dtype)
    if verdict.passed or check.rtol is not None or not verdict.max_rel <= _NEAR * verdict.rtol:
        return verdict
    few_bits = verdict.rtol > FLOAT_RTOL
    exact = replace(check, rtol=FLOAT_RTOL) if few_bits else replace(check, rtol=_EXACT_RTOL, atol=_EXACT_ATOL)
    weights = sum(
        value.const_value.size for value in program.model.graph.initializers.values() if value.const_value is not None
    )
    if weights > _FLOAT64_WEIGHTS:
        return replace(verdict, notes=(*verdict.notes, f"too large for float64 to decide ({weights} weights)"))
    run = partial(run_float64, until=time.monotonic() + _FLOAT64_SECONDS)
    try:
        second = exact(program, members, pruned, run, dtype="float64")
    except (InputError, RunTimeoutError) as error:
        return replace(verdict, notes=(*verdict.notes, f"float64 cannot decide: {error}"))
    if not second.passed:
        said = f"decided in float64: it differs by {second.max_rel:.1e} relative there"
        return replace(verdict, notes=(*verdict.notes, said))
    said = f"float32 differed by {verdict.max_rel:.1e} relative, decided in float64"
    return replace(second, float32_rel=verdict.max_rel, notes=(*second.notes, said))


def _is_module(source: Any) -> bool:
    if isinstance(source, os.PathLike):
        return False
    if not isinstance(source, str):
        return True
    if Path(source).exists() and not source.endswith(".py"):
        return False
    from graphprune.frontends.torch import is_reference

    return is_reference(source)


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Every step of the work goes through here: its name and its seconds are noted."""
    start = time.perf_counter()
    with progress.step(step):
        yield
    spent = time.perf_counter() - start
    seconds[step] = seconds.get(step, 0.0) + spent
    _log.debug("%s: %.3f s", step, spent)


def no_groups(grouping: Grouping) -> str:
    """Why a network has no group at all: the commonest refusals."""
    reasons = Counter(str(refusal) for refusal in grouping.coupling.refusals)
    if not reasons:
        return "every axis of its weights reaches an input or an output"
    return "; ".join(text for text, _ in reasons.most_common(3))
