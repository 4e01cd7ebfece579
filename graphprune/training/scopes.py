"""Which sizes each submodule's ``forward()`` works with, and what a plan makes of them."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from graphprune.coupling.space import Form, Space, find, free_leaves
from graphprune.ir.nested import walk
from graphprune.pipeline import Network

__all__ = ["Scopes"]

_SCOPES = "pkg.torch.onnx.name_scopes"
#: Words that people call such sizes by, and words for numbers that are something else.
_SIZES = ("head", "dim", "channel", "chan", "chs", "planes", "width", "hidden", "inner", "feature", "group", "split")
_OTHER = ("kernel", "window", "patch", "img", "grid", "depth", "layers", "blocks", "stride", "pad", "dilat")

Pair = tuple[int, int, str]  # size before, size after, kind of the group if it is one group's leaf, else ""


class Scopes:
    """The sizes that a plan changes, by the submodule whose ``forward()`` computes with them.

    The exporter notes on every node which submodules it was traced in; the sizes of a submodule are those of the
    operands and results of the nodes that are its own, not of a part of it.
    """

    def __init__(self, network: Network, keep: Mapping[str, NDArray[np.bool_]]) -> None:
        self._own: dict[str, Counter[Pair]] = defaultdict(Counter)
        self._splits: dict[str, Counter[tuple[int, tuple[int, ...]]]] = defaultdict(Counter)
        self._groups: dict[str, set[str]] = defaultdict(set)
        grouping, shapes = network.grouping, network.program.shapes
        kinds = {one.id: one.kind for one in grouping.groups}
        cut = {name for name, mask in keep.items() if not mask.all()}
        known: dict[Space, tuple[Pair, frozenset[str]]] = {}

        def read(space: Space) -> tuple[Pair, frozenset[str]]:
            space = find(space)
            if space not in known:
                placed = [grouping.place[part][0] for part in free_leaves(space) if part in grouping.place]
                kind = kinds.get(placed[0], "") if space.form is Form.LEAF and placed else ""
                pair = (space.n, grouping.size(space, keep), kind)
                known[space] = pair, frozenset(placed) & cut
            return known[space]

        for node in walk(network.program.model.graph):
            path = _path(node)
            if path is None:
                continue
            for value in (*node.inputs, *node.outputs):
                if value is None or value.name not in shapes:
                    continue
                for space in grouping.coupling.of(value.name):
                    pair, groups = read(space)
                    self._own[path][pair] += 1
                    self._groups[path] |= groups
            for before, after in _parts(node, lambda name: [read(one)[0][:2] for one in grouping.coupling.of(name)]):
                self._splits[path][before, after] += 1

    def groups(self, path: str) -> set[str]:
        """Ids of the groups that lose units on an axis of a value of this submodule."""
        return set(self._groups.get(path, ()))

    def options(self, path: str, owner: nn.Module) -> dict[str, tuple[list[Any], bool]]:
        """Values that the whole numbers held by a submodule may get, and whether the first of them is likely.

        The likeliest is first; the value that it has is among them.
        """
        own, below = self._own.get(path, Counter()), self._below(path, self._own)
        splits, below_splits = self._splits.get(path, Counter()), self._below(path, self._splits)
        found: dict[str, tuple[list[Any], bool]] = {}
        for name, value in vars(owner).items():
            if name.startswith("_") or name == "training":
                continue
            if type(value) is int:
                values: list[Any] = [*_uneven(value, splits), *_ranked(name, value, own)]
                likely = bool(values) and _called(name)
                # a split may be noted where its parts are used
                values += [one for one in _uneven(value, below_splits) if one not in values]
                values += [one for one in _ranked(name, value, below) if one not in values]
                if values:
                    found[name] = ([*values, value], likely)
            elif isinstance(value, (tuple, list)) and value and all(type(one) is int for one in value):
                single = [_ranked(name, one, own)[:1] or [one] for one in value]
                changed = type(value)(one[0] for one in single)
                if changed != value:
                    found[name] = ([changed, value], _called(name))
        return found

    def _below(self, path: str, counted: Mapping[str, Counter[Any]]) -> Counter[Any]:
        """What was counted in the parts of a submodule."""
        prefix = f"{path}." if path else ""
        found: Counter[Any] = Counter()
        for other, pairs in counted.items():
            if other != path and other.startswith(prefix):
                found.update(pairs)
        return found


def _path(node: ir.Node) -> str | None:
    held = node.metadata_props.get(_SCOPES)
    if held is None:
        return None
    scopes = ast.literal_eval(held)
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _parts(node: ir.Node, sizes: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Axes on which all results of a node were of one size: that size, and the sizes now."""
    if len(node.outputs) < 2 or any(not value.name for value in node.outputs):
        return
    for axis in zip(*(sizes(value.name) for value in node.outputs), strict=False):
        if len({before for before, _ in axis}) == 1 and any(before != after for before, after in axis):
            yield axis[0][0], tuple(after for _, after in axis)


def _uneven(value: int, splits: Counter[tuple[int, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Parts that were of this size all and no longer are."""
    return [sizes for before, sizes in splits if before == value and len(set(sizes)) > 1]


def _ranked(name: str, value: int, pairs: Counter[Pair]) -> list[int]:
    """Sizes that this one becomes, the likeliest first."""
    found: Counter[int] = Counter()
    for (before, after, kind), count in pairs.items():
        if before == value != after:
            found[after] += count + 1000 * _fits(name, kind)
    return [one for one, _ in found.most_common()]


def _called(name: str) -> bool:
    lower = name.lower()
    return any(word in lower for word in _SIZES) and not any(word in lower for word in _OTHER)


def _fits(name: str, kind: str) -> bool:
    """Whether a name is one for this kind of group."""
    lower = name.lower()
    dimension = any(word in lower for word in ("dim", "size", "chan"))
    if "heads" in kind:
        return "head" in lower and not dimension
    if "dimension" in kind or "pairs" in kind:
        return dimension and any(word in lower for word in ("head", "key", "val", "qk", "kv"))
    return False
