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
from graphprune.calibration.linear import Linear, Sizes, linears_of
from graphprune.calibration.moments import Moments
from graphprune.calibration.observations import LARGEST, chosen_rows, rows_each
from graphprune.calibration.rows import Reader
from graphprune.calibration.stream import Stream
from graphprune.coupling.groups import Grouping, Keep
from graphprune.errors import InputError, UsageError
from graphprune.ir.clean import sweep
from graphprune.ir.program import Array, Runner, constant_tensor
from graphprune.ir.sizes import Constants, dtype_of

__all__ = ["METHODS", "Method", "Repair", "Repaired", "Step"]

Method = Literal["bias", "refit"]
METHODS: tuple[Method, ...] = get_args(Method)
Feeds = Mapping[str, Array]
Floats = NDArray[np.float64]
Rows = tuple[NDArray[np.float32], NDArray[np.float32]]  # of a map: what it reads, and what the original gives

_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of a column
_ROUNDED = 4 * float(np.finfo(np.float32).eps)  # of the trace: products of float32 rows are no better than that
_UNKNOWN = 0.1  # the ridge where no sample is held out to choose it on
_HELD_OUT = 5  # every n-th sample is kept out of the fit that chooses the ridge
_EQUAL = 1e-10  # of the variance: nothing to repair
_FLATTEST = 0.5  # slope: fits that explain less of a result are not stretched further
_GAIN = 0.99  # of the error on what was held out: less than that is noise


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
        self.last = _last(linears_of(self.grouping))

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
        missed = _missed(start, every, every.mean_y - _times(start, every.mean))
        power = float(every.power.sum())
        raw = missed + float(((every.mean_y - _times(start, every.mean)) ** 2).sum())
        if raw <= _EQUAL * power:
            return None
        ridge, found = (None, start) if self.options.method == "bias" else self._fitted(start, fit, held, every)
        gains = Reader(linear, node, after, self.run, self.model).gains()
        if found is not start and seen:
            found = _largest(found, every, seen, self._offset(linear, node, after, gains))
        shift = every.mean_y - _times(found, every.mean)
        self._write(node, linear, shift, after, None if found is start else found, gains)
        cut.refresh()
        return Step(
            linear.name, int(columns.size), raw / power if power else 0.0,
            _missed(found, every, shift) / power if power else 0.0, ridge,
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

    def _fitted(self, start: Floats, fit: Moments, held: Moments, every: Moments) -> tuple[float | None, Floats]:
        """The ridge that does best on what was held out, and the fit to everything with it."""
        if not held.count:
            return _UNKNOWN, _solved(start, every, _UNKNOWN)
        kept = fit.mean_y - _times(start, fit.mean)
        least, chosen = _GAIN * _missed(start, held, kept), None
        for ridge in _RIDGES:
            found = _solved(start, fit, ridge)
            error = _missed(found, held, fit.mean_y - _times(found, fit.mean))
            if error < least:
                least, chosen = error, ridge
        return chosen, start if chosen is None else _solved(start, every, chosen)

    def _write(
        self, node: ir.Node, linear: Linear, shift: Floats, size: Sizes, changed: Floats | None,
        gains: tuple[float, float],
    ) -> None:  # fmt: skip
        """A new constant, if any, and ``shift`` on top of the map; ``gains`` of the map and of its bias in the node."""
        alpha, beta = gains
        if changed is not None:
            array = linear.array(changed, size)
            self.constants.put(node, linear.operand, array, linear.weight)
        if linear.bias is not None and beta:
            own = linear.bias_array(shift * alpha / beta, size)
            held = node.inputs[linear.bias] if linear.bias < len(node.inputs) else None
            if held is None:
                dtype = dtype_of(node.inputs[linear.operand])
                value = self.constants.add(ir.tensor(own.astype(dtype.numpy()), dtype=dtype), f"{linear.name}/bias")
                if linear.bias >= len(node.inputs):
                    node.resize_inputs(linear.bias + 1)
                node.replace_input_with(linear.bias, value)
                return
            tensor = constant_tensor(held)
            if tensor is not None:
                self.constants.put(node, linear.bias, tensor.numpy() + own, held.name or "")
                return
        self._add(node, linear.added(shift * alpha, size), linear.name)

    def _add(self, node: ir.Node, shift: Floats, name: str) -> None:
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
        dtype = made.dtype or ir.DataType.FLOAT
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


def _times(weights: Floats, mean: Floats) -> Floats:
    return np.asarray(np.einsum("boq,bq->bo", weights, mean))


def _missed(weights: Floats, moments: Moments, shift: Floats) -> float:
    """Mean square of what ``weights x + shift`` misses of ``y``, over everything."""
    off = moments.mean_y - _times(weights, moments.mean) - shift
    joint = np.einsum("boq,bqo->", weights, moments.cross)
    own = np.einsum("boq,boq->", weights @ moments.covariance, weights)
    return max(float(moments.power.sum() - 2 * joint + own), 0.0) + float((off**2).sum())


def _slopes(weights: Floats, moments: Moments) -> Floats:
    """Slope of the fit's results regressed on the original's, ``(B, out)``, from ``_FLATTEST`` to 1."""
    joint, power = np.einsum("boq,bqo->bo", weights, moments.cross), moments.power
    slopes = np.divide(joint, power, out=np.ones_like(power), where=power > 0)
    return np.asarray(np.clip(slopes, _FLATTEST, 1.0))


def _largest(found: Floats, every: Moments, seen: Sequence[Rows], offset: Floats) -> Floats:
    """The fit with all slopes 1; as it is where the largest result is then the right one in fewer of the rows held out.

    ``offset``, ``(B, out)``: what is added to the map's results.
    """
    stretched = found / _slopes(found, every)[:, :, None]
    middle = every.mean_y + offset
    right = [0, 0]
    for left, wanted in seen:
        centred, top = (left - every.mean).transpose(1, 0, 2), (wanted + offset).argmax(axis=2)
        for k, weights in enumerate((found, stretched)):
            given = (centred @ weights.transpose(0, 2, 1)).transpose(1, 0, 2) + middle
            right[k] += int((given.argmax(axis=2) == top).sum())
    return stretched if right[1] >= right[0] else found


def _last(linears: Sequence[Linear]) -> set[str]:
    """Names of the maps that no other map follows."""
    followed: set[ir.Node] = set()
    for one in linears:
        stack = [value.producer() for value in one.binding.node.inputs if value is not None]
        while stack:
            node = stack.pop()
            if node is not None and node not in followed:
                followed.add(node)
                stack += [value.producer() for value in node.inputs if value is not None]
    return {one.name for one in linears if one.binding.node not in followed}


def _solved(start: Floats, moments: Moments, ridge: float) -> Floats:
    """The fit drawn towards ``start``."""
    from scipy.linalg import cho_factor, cho_solve

    covariance = moments.covariance
    n = covariance.shape[1]
    trace = np.maximum(np.trace(covariance, axis1=1, axis2=2), np.finfo(np.float32).tiny)
    right = moments.cross - covariance @ start.transpose(0, 2, 1)
    # where rows hardly differ from each other, rounding follows their squares and not their differences
    for rounded in (_ROUNDED * trace, _ROUNDED * (trace + moments.second.sum(axis=1))):
        lift = np.maximum(ridge / n * trace, rounded)
        lifted = covariance + lift[:, None, None] * np.eye(n)
        try:
            if len(lifted) > 1:  # many small systems: depthwise and grouped convolutions
                return np.asarray(start + np.linalg.solve(lifted, right).transpose(0, 2, 1))
            factor = cho_factor(lifted[0], lower=True, overwrite_a=True, check_finite=False)
            return np.asarray(start + cho_solve(factor, right[0], check_finite=False).T)
        except np.linalg.LinAlgError:
            continue
    return start


def _still(linear: Linear, size: Sizes) -> Floats:
    """No shift at all, ``(B, out)``."""
    return np.zeros([multiply(size(one) for one in letters) for letters in (linear.batch, linear.out)])
