"""Repair: what the removed units carried is put into what is left, by least squares on calibration data.

For a linear map ``y = W x + b`` of the original and the inputs ``x'`` that the already repaired part of the cut network
really produces, the new constant is

    W' = W_K + (cov(x', y) - W_K cov(x', x')) (cov(x', x') + ridge)^-1        b' = b + mean(W x) - W' mean(x')

the least-squares fit of what the original computes, drawn towards the cut constant ``W_K`` (so that directions which
the data do not show keep what was trained). Where ``x'`` is ``x`` without the removed columns this is the centred
Optimal Brain Surgeon update of all removed units at once (Hassibi and Stork 1993; ZipLM, Kurtic et al. 2023, and FLAP,
An et al. 2024, for structures and the bias). The ridge is chosen on samples that are held out of the fit; maps are
repaired in the order in which they run.

A fit is drawn towards the mean: regressed on ``y`` its results have the slope ``cov(y', y) / var(y) < 1``, another one
for every result. Maps behind it are fitted to that; but where none follows and the largest of several results counts,
those with flat slopes lose. There the rows of ``W'`` are divided by their slopes, unless the original's largest result
is then the largest in fewer of the rows held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod as multiply
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import progress
from graphprune.calibration.fit import Rows, largest, missed, ridge_fit, times
from graphprune.calibration.linear import Linear, Sizes, linears_of
from graphprune.calibration.moments import Moments
from graphprune.calibration.observations import LARGEST, chosen_rows, rows_each
from graphprune.calibration.rows import Reader
from graphprune.calibration.stream import Stream
from graphprune.coupling.groups import Grouping, Keep
from graphprune.errors import InputError, UsageError
from graphprune.ir.clean import sweep
from graphprune.ir.program import Array, Runner, constant_tensor
from graphprune.ir.sizes import Constants

__all__ = ["METHODS", "Method", "Repair", "Repaired", "Step"]

Method = Literal["bias", "refit"]
METHODS: tuple[Method, ...] = get_args(Method)
Feeds = Mapping[str, Array]
Floats = NDArray[np.float64]

_HELD_OUT = 5  # every n-th sample is kept out of the fit that chooses the ridge
_EQUAL = 1e-10  # of the variance: nothing to repair


@dataclass(frozen=True)
class Step:
    """One map: variance that the cut network missed of the original's results there, before and after (0 to 1 and
    more), and the ridge (None: only the bias).
    """

    node: str
    columns: int
    before: float
    after: float
    ridge: float | None

    def to_json(self) -> dict[str, Any]:
        """All fields, rounded."""
        ridge = None if self.ridge is None else float(f"{self.ridge:.3g}")
        return {
            "node": self.node, "columns": self.columns, "before": float(f"{self.before:.4g}"),
            "after": float(f"{self.after:.4g}"), "ridge": ridge,
        }  # fmt: skip


@dataclass(frozen=True)
class Repaired:
    """``added``: nodes that the repaired network has more than the cut one (biases that had no place)."""

    model: ir.Model
    steps: tuple[Step, ...]
    added: int
    method: Method = "refit"
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What was done, map by map."""
        return {
            "method": self.method,
            "nodes_added": self.added,
            "maps": [one.to_json() for one in self.steps],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Repair:
    """Repairs a cut network on samples.

    Args:
        method: ``refit`` (constants and biases) or ``bias`` (biases only).
        seed: of the rows that are looked at where there are more than needed.
        only_cut: leave maps alone that lost no column.
    """

    method: Method = "refit"
    seed: int = 0
    only_cut: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"repair={self.method!r} is not one of {', '.join(METHODS)}.")

    def __call__(
        self, grouping: Grouping, keep: Keep, model: ir.Model, samples: Sequence[Feeds], run: Runner
    ) -> Repaired:
        """A repaired clone of ``model``, which is the grouping's network cut to ``keep``.

        Raises:
            InputError: a sample does not run.
        """
        if not samples:
            raise UsageError("repair needs samples")
        return _Repairing(self, grouping, keep, model.clone(), samples, run).repaired()

    def dressed(self, grouping: Grouping, keep: Keep, model: ir.Model) -> ir.Model:
        """A clone with the biases that repair will add, all zero: it takes as long as the repaired network."""
        return _Repairing(self, grouping, keep, model.clone(), (), None).dressed()


@dataclass
class _Repairing:
    options: Repair
    grouping: Grouping
    keep: Keep
    model: ir.Model
    samples: Sequence[Feeds]
    run: Runner | None
    notes: list[str] = field(default_factory=list)
    added: int = 0

    def __post_init__(self) -> None:
        self.constants = Constants(self.model.graph)
        self.last = _last(self.grouping)

    def dressed(self) -> ir.Model:
        nodes = {node.outputs[0].name: node for node in self.model.graph if node.outputs}
        for linear in linears_of(self.grouping):
            node = nodes.get(linear.name)
            if node is not None and self._takes_bias(linear, node):
                size = linear.sizes(self.grouping, self.keep)
                self._write(node, linear, _still(linear, size), size, None, (1.0, 1.0))
        return self.model

    def repaired(self) -> Repaired:
        program = self.grouping.coupling.program
        assert self.run is not None
        linears = linears_of(self.grouping)
        if not linears:
            self.notes.append(
                "nothing was repaired: no linear map of this network has float weights of its own (integer weights, "
                "weights that nodes share, and bodies of If, Loop and Scan stay as they were cut)"
            )
        present = {value.name for node in self.model.graph for value in node.outputs}
        steps: list[Step] = []
        with (
            Stream(program.model, self.samples, self.run) as whole,
            Stream(self.model, self.samples, self.run) as cut,
        ):
            for i, linear in enumerate(linears):
                progress.advance(i / len(linears))
                if linear.name not in present:
                    continue
                if self.options.only_cut and linear.masks(self.grouping, linear.columns, self.keep).all():
                    continue
                try:
                    step = self._one(linear, whole, cut)
                except _Left as left:
                    self.notes.append(f"'{linear.name}' was not repaired: {left}")
                    continue
                if step is not None:
                    steps.append(step)
        sweep(self.model)
        return Repaired(self.model, tuple(steps), self.added, self.options.method, tuple(self.notes))

    def _one(self, linear: Linear, whole: Stream, cut: Stream) -> Step | None:
        grouping, keep, program = self.grouping, self.keep, self.grouping.coupling.program
        assert self.run is not None
        node = cut.node(linear.name)
        whole.reach(whole.node(linear.name))
        cut.reach(node)
        before, after = linear.sizes(grouping), linear.sizes(grouping, keep)
        batch, out = (linear.masks(grouping, letters, keep) for letters in (linear.batch, linear.out))
        target = linear.matrix(program.tensor(linear.weight), before)[batch][:, out]
        columns = linear.masks(grouping, (*linear.columns, *linear.window), keep)
        start = target[:, :, columns]
        if not self._takes_bias(linear, node):
            return None
        if columns.size > LARGEST:
            raise _Left(f"it has {columns.size} columns")
        seen: list[Rows] = []
        moments = self._moments(linear, whole, cut, node, target, batch, seen)
        if moments is None:
            return None
        fit, held = moments
        every = fit + held
        lost = missed(start, every, every.mean_y - times(start, every.mean))
        power = float(every.power.sum())
        raw = lost + float(((every.mean_y - times(start, every.mean)) ** 2).sum())
        if raw <= _EQUAL * power:
            return None
        ridge, found = (None, start) if self.options.method == "bias" else ridge_fit(start, fit, held, every)
        gains = Reader(linear, node, after, self.run, self.model).gains()
        if found is not start and seen:
            found = largest(found, every, seen, self._offset(linear, node, after, gains))
        shift = every.mean_y - times(found, every.mean)
        self._write(node, linear, shift, after, None if found is start else found, gains)
        cut.refresh()
        return Step(
            linear.name, int(columns.size), raw / power if power else 0.0,
            missed(found, every, shift) / power if power else 0.0, ridge,
        )  # fmt: skip

    def _offset(self, linear: Linear, node: ir.Node, size: Sizes, gains: tuple[float, float]) -> Floats:
        """What is added to the map's results, in its node or right behind it, ``(B, out)``, in the results' scale."""
        still = _still(linear, size)
        held = node.inputs[linear.bias] if linear.bias is not None and linear.bias < len(node.inputs) else None
        own = None if held is None else constant_tensor(held)
        if own is not None:
            return linear.vector(own.numpy(), size) * gains[1] / (gains[0] or 1.0)
        following = self._following(node, linear.added(still, size).shape) if linear.direct else None
        behind = None if following is None else following[0].inputs[following[1]]
        added = None if behind is None else constant_tensor(behind)
        return still if added is None or len(still) > 1 else added.numpy().reshape(1, -1) / (gains[0] or 1.0)

    def _takes_bias(self, linear: Linear, node: ir.Node) -> bool:
        """Whether a bias is there, costs nothing, or is worth a node more because columns went."""
        if linear.bias is not None:
            return True
        if not linear.direct:
            return False
        if not linear.masks(self.grouping, linear.columns, self.keep).all():
            return True
        size = linear.sizes(self.grouping, self.keep)
        return self._following(node, linear.added(_still(linear, size), size).shape) is not None

    def _moments(
        self, linear: Linear, whole: Stream, cut: Stream, node: ir.Node, target: Floats, batch: Array, seen: list[Rows]
    ) -> tuple[Moments, Moments] | None:
        """Of the cut network's rows with the original's results: of the samples to fit, and of those held out.

        The latter's rows themselves are put into ``seen`` where the map is a last one with several results.
        """
        wide = linear.name in self.last and target.shape[1] > 1
        grouping, keep = self.grouping, self.keep
        model = grouping.coupling.program.model
        assert self.run is not None
        old = Reader(linear, whole.node(linear.name), linear.sizes(grouping), self.run, model)
        new = Reader(linear, node, linear.sizes(grouping, keep), self.run, self.model)
        kept = {
            letter: mask
            for letter in old.row_letters()
            if letter in linear.binding.spaces
            and not (mask := grouping.mask(linear.binding.spaces[letter], keep)).all()
        }
        each = rows_each(target.shape[2], len(self.samples))
        weights = np.ascontiguousarray(target.transpose(0, 2, 1)).astype(np.float32)
        fit = held = None
        given = node.inputs[linear.given]  # not always of the old name: a node that adds a bias may stand before it
        assert given is not None and given.name is not None
        for i, (x, cut_x) in enumerate(zip(whole.values(linear.value), cut.values(given.name), strict=True)):
            chosen = chosen_rows(new.count(cut_x), each, self.options.seed, i)
            left = new.rows(cut_x, chosen)
            full = old.rows(x, chosen, kept)[:, batch]
            right = np.ascontiguousarray((full.transpose(1, 0, 2) @ weights).transpose(1, 0, 2))
            if not len(left):
                continue
            if not (np.isfinite(left).all() and np.isfinite(right).all()):
                raise InputError(f"the samples make '{linear.value}' infinite or NaN; they cannot be calibrated on")
            if fit is None:
                fit = Moments()
                fit.add(left, right)
                held = fit.like()
            elif i % _HELD_OUT == _HELD_OUT - 1:
                assert held is not None
                held.add(left, right)
                if wide:
                    seen.append((left, right))
            else:
                fit.add(left, right)
        return None if fit is None or held is None or not fit.count else (fit, held)

    def _write(
        self, node: ir.Node, linear: Linear, shift: Floats, size: Sizes, changed: Floats | None,
        gains: tuple[float, float],
    ) -> None:  # fmt: skip
        """A new constant, if any, and ``shift`` on top of the map; ``gains`` of the map and of its bias in the node."""
        alpha, beta = gains
        dtype = ir.DataType.from_numpy(self.grouping.coupling.program.tensor(linear.weight).dtype)
        if changed is not None:
            array = linear.array(changed, size)
            self.constants.put(node, linear.operand, array, linear.weight, dtype)
        if linear.bias is not None and beta:
            own = linear.bias_array(shift * alpha / beta, size)
            held = node.inputs[linear.bias] if linear.bias < len(node.inputs) else None
            if held is None:
                value = self.constants.add(ir.tensor(own.astype(dtype.numpy()), dtype=dtype), f"{linear.name}/bias")
                if linear.bias >= len(node.inputs):
                    node.resize_inputs(linear.bias + 1)
                node.replace_input_with(linear.bias, value)
                return
            tensor = constant_tensor(held)
            if tensor is not None:
                self.constants.put(node, linear.bias, tensor.numpy() + own, held.name or "")
                return
        self._add(node, linear.added(shift * alpha, size), linear.name, dtype)

    def _add(self, node: ir.Node, shift: Floats, name: str, dtype: ir.DataType) -> None:
        """Add to a node's result: in the constant that is added to it already, or with a node more."""
        made = node.outputs[0]
        uses = list(made.uses())
        following = self._following(node, shift.shape)
        if following is not None:
            user, k = following
            old = user.inputs[k]
            held = None if old is None else constant_tensor(old)
            assert old is not None and held is not None
            array = held.numpy()
            self.constants.put(user, k, array + shift.reshape(array.shape), old.name or name)
            return
        value = self.constants.add(ir.tensor(shift.astype(dtype.numpy()), dtype=dtype), f"{name}/bias")
        label = self.constants.unique(f"{name}/repaired")
        node_more = ir.node("Add", inputs=[made, value], name=label)
        node_more.outputs[0].name, node_more.outputs[0].type, node_more.outputs[0].shape = label, made.type, made.shape
        graph = self.model.graph
        graph.insert_after(node, node_more)
        for user, k in uses:
            user.replace_input_with(k, node_more.outputs[0])
        if made in graph.outputs:  # the output keeps its name
            graph.outputs[list(graph.outputs).index(made)] = node_more.outputs[0]
            made.name, node_more.outputs[0].name = label, made.name
        self.added += 1

    def _following(self, node: ir.Node, wanted: tuple[int, ...]) -> tuple[ir.Node, int] | None:
        """The constant that is added to a node's result and to nothing else, if it has a shape like ``wanted``."""
        made = node.outputs[0]
        uses = list(made.uses())
        if len(uses) != 1 or made.is_graph_output() or uses[0].node.op_type != "Add":
            return None
        user, at = uses[0]
        other = user.inputs[1 - at]
        held = None if other is None else constant_tensor(other)
        if held is None:
            return None
        shape = tuple(held.shape.numpy())
        rank = max(len(shape), len(wanted))
        aligned = [(1,) * (rank - len(one)) + tuple(one) for one in (shape, wanted)]
        return (user, 1 - at) if aligned[0] == aligned[1] else None


class _Left(Exception):
    """A map that is left as it is, and why."""


def _last(grouping: Grouping) -> set[str]:
    """Names of the maps whose results no contraction reads any more, be it one that is repaired or not."""
    followed: set[ir.Node] = set()
    for binding in grouping.coupling.bindings:
        stack = [value.producer() for value in binding.node.inputs if value is not None and binding.layout.macs]
        while stack:
            node = stack.pop()
            if node is not None and node not in followed:
                followed.add(node)
                stack += [value.producer() for value in node.inputs if value is not None]
    return {one.name for one in linears_of(grouping) if one.binding.node not in followed}


def _still(linear: Linear, size: Sizes) -> Floats:
    """No shift at all, ``(B, out)``."""
    return np.zeros([multiply(size(one) for one in letters) for letters in (linear.batch, linear.out)])
