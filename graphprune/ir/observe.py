"""Observation: run the network on example inputs, keep every shape and every small size, infer nothing.

Where the inputs have symbolic dimensions it runs a second time with other sizes: what moved is dynamic, the rest is
static, and size arithmetic over static axes is as good as constant.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphprune.errors import InputError
from graphprune.ir.look import READS_SIZES, Observer, Seen
from graphprune.ir.nested import Body, bodies, branches, graphs_of, walk
from graphprune.ir.program import Array, Program, Runner, constant_tensor, inputs_of, submodel

__all__ = ["example_for", "observe", "random_feeds"]

_SMALL = 4096  # elements; nothing that feeds a shape is larger
_LARGEST_INPUT = 2**32  # bytes of an example input: far above any network's
_SEARCH_SECONDS = 60.0  # after which no other sizes are tried
_ALIKE = 3  # tries that fail with the very same words: then it is not the sizes

# Sizes tried for symbolic dimensions: images, then text lines, then token sequences and feature vectors.
_IMAGE = (224, 48, 32, 64, 128, 256, 320, 640, 28, 96)
_OTHER = (16, 32, 8, 64, 128, 80, 224, 256, 512, 576, 1, 2, 4)


def random_array(shape: tuple[int, ...], dtype: ir.DataType, rng: np.random.Generator, high: int = 8) -> Array:
    """Standard normal floats, booleans, or integers in ``[0, high)``."""
    kind = dtype.numpy()
    if kind == np.bool_:
        return rng.integers(0, 2, size=shape).astype(np.bool_)
    if dtype.is_floating_point():
        return np.asarray(rng.standard_normal(shape)).astype(kind)
    return np.asarray(rng.integers(0, max(high, 1), size=shape)).astype(kind)


def random_feeds(program: Program, seed: int) -> dict[str, Array]:
    """Fresh inputs of the examples' shapes; integers stay within the range that the examples span."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in inputs_of(program.model):
        assert value.name is not None and value.dtype is not None
        example = program.examples[value.name]
        if value.dtype.is_floating_point() or value.dtype == ir.DataType.BOOL:
            feeds[value.name] = random_array(example.shape, value.dtype, rng)
        elif example.ndim == 0:
            feeds[value.name] = example
        else:
            low, high = (int(example.min()), int(example.max())) if example.size else (0, 0)
            feeds[value.name] = rng.integers(low, high + 1, size=example.shape).astype(example.dtype)
    return feeds


def _declared(value: ir.Value) -> list[int | str]:
    """Declared dimensions: a positive int, or the name of an unknown one."""
    if value.shape is None:
        raise InputError(
            f"input {value.name!r} declares no shape; give one with --input-shapes {value.name}:1x3x224x224"
        )
    dims: list[int | str] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            dims.append(dim if dim > 0 else f"{value.name}@{axis}")
        else:
            dims.append(str(dim.value) if dim.value not in (None, "?", "") else f"{value.name}@{axis}")
    return dims


def _check_shape(value: ir.Value, shape: tuple[int, ...]) -> None:
    dims = _declared(value) if value.shape is not None else list(shape)
    fits = len(dims) == len(shape) and all(isinstance(d, str) or d == s for d, s in zip(dims, shape, strict=True))
    if not fits:
        declared = "x".join(str(d) if isinstance(d, int) else "?" for d in dims)
        given = "x".join(map(str, shape)) or "a scalar"
        raise InputError(f"input {value.name!r} is declared as {declared}, which {given} does not fit")


def _candidates(unknown: list[str], leading: set[str], image: bool) -> Iterator[dict[str, int]]:
    """Sizes to try for the unknown dimensions: a batch of one, all others equal, one of them with the others at 1 (they
    may be batches in another place, as a recurrent state's is), then all pairs.

    Where the batch alone is unknown: one, and a few others.
    """
    rest = [name for name in unknown if name not in leading]
    sizes = _IMAGE if image else _OTHER
    base = dict.fromkeys(leading, 1)
    if not rest:
        yield from (dict.fromkeys(leading, size) for size in (1, 2, 8))
        return
    for size in sizes:
        yield base | dict.fromkeys(rest, size)
    if len(rest) > 1:
        for name, size in itertools.product(rest, sizes):
            yield base | dict.fromkeys(rest, 1) | {name: size}
        for first, others in itertools.product(sizes, sizes):
            if first != others:
                yield base | dict.fromkeys(rest, others) | {rest[0]: first}


def example_for(
    model: ir.Model,
    given: Mapping[str, Array],
    input_shapes: Mapping[str | None, tuple[int, ...]],
    works: Callable[[dict[str, Array]], Seen],
    seed: int,
) -> tuple[dict[str, Array], Seen, list[str]]:
    """An array per input and what a run on them shows: as given, of the given or declared shape, or found by trying.

    Returns the feeds, the run, and the symbolic dimensions in their order.
    """
    inputs = {value.name: value for value in inputs_of(model) if value.name}
    for name, value in inputs.items():
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            kind = type(value.type).__name__.removesuffix("Type").lower()
            raise InputError(f"input {name!r} is a {kind}; only tensors can be fed, so the network cannot be observed")
    shapes = {name if name is not None else next(iter(inputs), ""): shape for name, shape in input_shapes.items()}
    if None in input_shapes and len(inputs) != 1:
        raise InputError(f"the model has {len(inputs)} inputs ({', '.join(inputs)}): write --input-shapes NAME:DIMS")
    for name in (*given, *shapes):
        if name not in inputs:
            raise InputError(f"the model has no input {name!r}; it has {', '.join(map(repr, inputs)) or 'none'}")
    unknown: list[str] = []
    leading: set[str] = set()
    fixed: dict[str, int] = {}
    image = False
    for name, value in inputs.items():
        shape = given[name].shape if name in given else shapes.get(name)
        if shape is not None:
            _check_shape(value, shape)
        for axis, dim in enumerate(_declared(value) if shape is None or value.shape is not None else []):
            if isinstance(dim, str):
                if dim not in unknown:
                    unknown.append(dim)
                if shape is not None:
                    fixed[dim] = shape[axis]
                elif axis == 0:
                    leading.add(dim)
        image = image or (value.shape is not None and len(value.shape) == 4)
    free = [name for name in unknown if name not in fixed]

    def build(sizes: Mapping[str, int]) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        feeds = {}
        for name, value in inputs.items():
            if name in given:
                feeds[name] = given[name]
                continue
            assert value.dtype is not None
            shape = shapes.get(name) or tuple(d if isinstance(d, int) else sizes[d] for d in _declared(value))
            if (needed := math.prod(shape) * value.dtype.itemsize) > _LARGEST_INPUT:
                raise InputError(
                    f"an example of input {name!r} of shape {'x'.join(map(str, shape))} would take {needed:.0f} bytes, "
                    f"more than {_LARGEST_INPUT}; give smaller ones with --input-shapes"
                )
            feeds[name] = random_array(shape, value.dtype, rng)
        return feeds

    error: InputError | None = None
    alike = tried = 0
    until = time.monotonic() + _SEARCH_SECONDS
    for sizes in _candidates(free, leading & set(free), image):
        try:
            feeds = build(fixed | sizes)
            return feeds, works(feeds), unknown
        except InputError as failed:
            error = error or failed
            alike, tried = alike + (str(failed) == str(error)), tried + 1
            if not free or alike == _ALIKE or time.monotonic() > until:
                break
    assert error is not None
    if not free or 1 < alike == tried:
        raise error
    asked = " ".join(
        f"--input-shapes {name}:{'x'.join(str(d if isinstance(d, int) else (fixed | sizes)[d]) for d in _declared(v))}"
        for name, v in inputs.items()
        if name not in given and name not in shapes and any(isinstance(d, str) for d in _declared(v))
    )
    shown = ", ".join(
        f"{name}:{'x'.join(str(d) if isinstance(d, int) else '?' for d in _declared(v))}" for name, v in inputs.items()
    )
    raise InputError(
        f"no sizes tried for the unknown dimensions of {shown} run; give --input-shapes, such as {asked} ({error})"
    ) from error


def _with_other_sizes(
    program: Program, feeds: Mapping[str, Array], names: set[str], change: Callable[[int], int]
) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    other: dict[str, Array] = {}
    for value in inputs_of(program.model):
        assert value.name is not None and value.dtype is not None
        array = feeds[value.name]
        dims = _declared(value) if value.shape is not None else list(array.shape)
        shape = tuple(change(n) if d in names else n for n, d in zip(array.shape, dims, strict=True))
        if shape == array.shape:
            other[value.name] = array
        else:
            high = int(array.max()) + 1 if array.size and not value.dtype.is_floating_point() else 8
            other[value.name] = random_array(shape, value.dtype, rng, high)
    return other


def observe(
    model: ir.Model,
    run: Runner,
    *,
    keep: Callable[[ir.Node], bool] = lambda node: False,
    given: Mapping[str, Array] | None = None,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> Program:
    """Run ``model`` and note what it showed.

    Args:
        model: every value named; functions inlined.
        run: executes a model (a backend's runner).
        keep: nodes that are not to be folded although nothing varies in them (dequantisers, random generators).
        given: example arrays by input name.
        input_shapes: shapes by input name (``None`` for the only input) where no array is given.
        seed: of the random example inputs.

    Raises:
        InputError: the model does not run, or an input's shape does not fit.
    """
    observer = Observer(model, run)
    feeds, seen, unknown = example_for(model, given or {}, input_shapes or {}, observer, seed)
    program = Program(model=model, examples=feeds, shapes=dict(seen.shapes), run=run)
    for graph in (model.graph, *(inner for node in walk(model.graph) for inner in bodies(node))):
        for name, value in graph.initializers.items():
            if value.shape is not None:
                program.shapes[name] = tuple(int(n) for n in value.shape.numpy())
    looks = _second_looks(program, observer, unknown)
    others = [*seen.variants(), *(one for look in looks for one in (look, *look.variants()))]
    return _Classifier(program, seen, others, keep).program


def _second_looks(program: Program, observer: Observer, unknown: list[str]) -> list[Seen]:
    """Runs with other sizes of the symbolic dimensions: all together, or one by one where that does not run."""
    if not unknown:
        return []
    changes: tuple[Callable[[int], int], ...] = (lambda n: n + 1, lambda n: 2 * n, lambda n: n + 32)

    def look(names: set[str]) -> Seen | None:
        for change in changes:
            feeds = _with_other_sizes(program, program.examples, names, change)
            try:
                seen = observer(feeds)
            except InputError:
                continue
            program.other_examples.append(feeds)
            return seen
        return None

    together = look(set(unknown))
    if together is not None:
        return [together]
    return [seen for name in unknown if (seen := look({name})) is not None]


class _Classifier:
    """Tells fixed values, size arithmetic and live nodes apart, in the bodies that run as in the network itself."""

    def __init__(self, program: Program, seen: Seen, others: list[Seen], keep: Callable[[ir.Node], bool]) -> None:
        self.program, self.seen, self.others, self.keep = program, seen, others, keep
        for name, shape in seen.shapes.items():
            looks = [other.shapes.get(name, shape) for other in others]
            moved = {a for other in looks for a, n in enumerate(shape) if len(other) != len(shape) or other[a] != n}
            if moved:
                program.moving[name] = frozenset(moved)
        self.fixed = set(program.model.graph.initializers)
        self.sizes: set[str] = set()
        self.readers: dict[str, Array] = {}
        self.live: list[ir.Node] = []
        self._graph(program.model.graph, 1)
        program.fixed, program.sizes, program.live = frozenset(self.fixed), frozenset(self.sizes), tuple(self.live)
        if idle := sum(body.idle for body in program.bodies.values()):
            program.notes += (
                f"{idle} branch(es) are taken at none of the sizes tried; they are left as they are, and may not fit "
                "what is cut around them",
            )
        _evaluate_small(program, self.readers, others)

    def _graph(self, graph: ir.Graph, repeats: int) -> None:
        seen, shapes, fixed, sizes = self.seen, self.seen.shapes, self.fixed, self.sizes
        for node in graph:
            inputs = [value.name for value in node.inputs if value is not None and value.name]
            outputs = [value.name for value in node.outputs if value.name]
            if bodies(node):
                self._bodies(node, repeats)
            elif node.op_type in READS_SIZES and node.domain == "":
                self.readers[outputs[0]] = seen.read[outputs[0]]
                still = all(
                    np.array_equal(other.read.get(outputs[0], seen.read[outputs[0]]), seen.read[outputs[0]])
                    for other in self.others
                )
                (fixed if still else sizes).update(outputs)
            elif graphs_of(node) or self.keep(node) or any(name not in shapes for name in outputs):
                self.live.append(node)
            elif all(name in fixed for name in inputs):
                fixed.update(outputs)
            elif all(name in fixed or name in sizes for name in inputs) and self._small(outputs):
                sizes.update(outputs)
            else:
                self.live.append(node)

    def _small(self, names: list[str]) -> bool:
        shapes, moving = self.seen.shapes, self.program.moving
        return all(
            len(shapes[name]) <= 1 and np.prod(shapes[name]) <= _SMALL and not moving.get(name) for name in names
        )

    def _bodies(self, node: ir.Node, repeats: int) -> None:
        """Look into the bodies of a node that can be run; what is decided once and for all stands for the node."""
        program, seen, name = self.program, self.seen, node.outputs[0].name or ""
        taken = self._decided(node)
        rounds = repeats * seen.rounds.get(name, 1)
        for i, graph in enumerate(bodies(node)):
            failed = next((one.failed[name, i] for one in (seen, *self.others) if (name, i) in one.failed), "")
            idle = taken is not None and graph is not taken and bool(failed or self._unlike(node, graph))
            times = rounds if taken in (None, graph) else 0
            program.bodies[graph] = Body(graph, node, failed, idle, times)
            if program.bodies[graph].known:
                self.fixed.update(graph.initializers)
                self._graph(graph, times)
        if taken is not None and program.bodies[taken].known:
            for value, source in zip(node.outputs, taken.outputs, strict=True):
                for kind in (self.fixed, self.sizes):
                    if source.name in kind and value.name:
                        kind.add(value.name)
                        program.same[value.name] = source
        if any(value.name and value.name not in program.same for value in node.outputs):
            self.live.append(node)

    def _decided(self, node: ir.Node) -> ir.Graph | None:
        """The branch of an If that is taken whatever the inputs hold and however large they are."""
        name, given = node.outputs[0].name or "", node.inputs[0] if node.inputs else None
        if not branches(node) or given is None or given.name not in self.fixed | self.sizes:
            return None
        known = {one.conditions[name] for one in (self.seen, *self.others) if name in one.conditions}
        return bodies(node)[0 if known.pop() else 1] if len(known) == 1 else None

    def _unlike(self, node: ir.Node, graph: ir.Graph) -> bool:
        """Whether a branch gives other sizes than the node did."""
        shapes = self.seen.shapes
        pairs = zip(node.outputs, graph.outputs, strict=True)
        return any(shapes.get(ours.name or "") != shapes.get(theirs.name or "") for ours, theirs in pairs)


def _evaluate_small(program: Program, readers: dict[str, Array], others: list[Seen]) -> None:
    wanted = [
        name
        for node in walk(program.model.graph)
        for name in (value.name for value in node.outputs)
        if name in (program.fixed | program.sizes)
        and name not in readers
        and np.prod(program.shapes[name]) <= _SMALL
        and constant_tensor(program.values()[name]) is None
    ]
    program.small.update(readers)
    if not wanted:
        looks: list[dict[str, Array]] = [{} for _ in others]
    else:
        assert program.run is not None
        program.small.update(program.run(submodel(program, wanted, readers), {}, wanted))
        moved = [name for name in wanted if name in program.sizes]
        looks = [
            program.run(submodel(program, moved, readers | other.read), {}, moved) if moved else {} for other in others
        ]
    for look, other in zip(looks, others, strict=True):
        for name, array in {**{n: a for n, a in other.read.items() if n in program.sizes}, **look}.items():
            here = np.atleast_1d(program.small[name])
            moved_at = frozenset(int(i) for i in np.flatnonzero(here != np.atleast_1d(array)))
            if moved_at:
                program.moving_entries[name] = program.moving_entries.get(name, frozenset()) | moved_at
