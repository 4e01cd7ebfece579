"""A cut of the user's own module in place, by its parameters' names; saved and loaded without pickle."""

from __future__ import annotations

import json
import linecache
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree

from graphprune.backends.runner import OrtRunner
from graphprune.errors import GraphpruneError, InputError, UnsupportedError, UsageError
from graphprune.frontends.modules import first_line
from graphprune.passes.files import keep_of, read_plan, replay
from graphprune.passes.plan import Plan
from graphprune.passes.shrink import Shrink
from graphprune.pipeline import Network, load
from graphprune.training.groups import call, difference, network_of
from graphprune.training.sizes import Change, attribute_changes, recurrent_biases

__all__ = ["ModuleCut", "load_module", "prune_module", "save_module"]

_FORMAT = 1
_RTOL = 1e-3  # float32 in another order of summation; a wrong size is far beyond it
_TRIES = 2  # further inputs, beside the example


@dataclass(frozen=True)
class ModuleCut:
    """What was cut from a module.

    Attributes:
        cuts: name of a parameter or buffer, axis, size before, removed indices.
        attributes: sizes that its submodules keep as attributes: path of the submodule, attribute, new value.
        difference: largest relative difference from the cut network on the inputs tried.
    """

    cuts: tuple[tuple[str, int, int, tuple[int, ...]], ...] = field(repr=False)
    attributes: tuple[Change, ...] = field(repr=False)
    difference: float = 0.0


def prune_module(
    module: nn.Module,
    plan: Plan | str | os.PathLike[str],
    inputs: Any = None,
    *,
    network: Network | None = None,
) -> ModuleCut:
    """Cut a module's parameters to what a plan keeps, and update the sizes that its layers hold.

    An optimiser made before holds the old parameters; make a new one.

    Args:
        module: is changed in place; if it cannot be, it is as it was before.
        plan: of the traced module, or the path of a saved one.
        inputs: example inputs as for :func:`graphprune.load`; the module is traced on them unless its ``network``, as
            ``load`` made it of this module, is given as well.

    Raises:
        UsageError: no inputs. InputError: the plan is not of this module.
        UnsupportedError: its ``forward`` holds a size that cannot be changed; the sentence names the line.
    """
    if inputs is None:
        raise UsageError("give the module's example inputs: the cut is checked on them")
    traced = network or load(module, inputs=inputs)
    grouping = traced.grouping
    chosen = plan if isinstance(plan, Plan) else replay(read_plan(plan), grouping)
    keep = keep_of(chosen, grouping)
    names = traced.program.parameter_names
    examples = dict(traced.program.examples)
    model = Shrink(keep)(grouping)
    gone: dict[tuple[str, int], NDArray[np.bool_]] = {}
    held = _tensors(module)
    for tensor, name in names.items():
        if name not in held:
            continue
        for axis, space in enumerate(grouping.coupling.of(tensor)):
            mask = ~grouping.mask(space, keep)
            if held[name].ndim <= axis or held[name].shape[axis] != len(mask):
                raise InputError(
                    f"'{name}' has the shape {list(held[name].shape)} in the module, and {len(mask)} indices on axis "
                    f"{axis} in the network that the plan is for"
                )
            if mask.any():
                gone[name, axis] = mask
    recurrent_biases(module, gone)
    cuts = tuple(
        (name, axis, len(mask), tuple(int(one) for one in np.flatnonzero(mask))) for (name, axis), mask in gone.items()
    )
    cut = network_of(model, examples, traced.name, names)  # before the parameters it may share memory with are cut
    trials = [(inputs, _expected(cut, examples)), *(_trial(cut, inputs, examples, seed) for seed in range(_TRIES))]
    undo: list[Callable[[], None]] = []
    try:
        _cut_tensors(module, cuts, undo)
        changes = attribute_changes(module, cuts, traced, keep, cut)
        _set_attributes(module, changes, undo)
        far = _checked(module, [one for one in trials if one is not None])
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    return ModuleCut(cuts, changes, far)


def save_module(module: nn.Module, cut: ModuleCut, path: str | os.PathLike[str]) -> None:
    """Write a pruned module's values and its cut to one file that is read without pickle's risks."""
    document = {"format": _FORMAT, "cuts": cut.cuts, "attributes": cut.attributes, "difference": cut.difference}
    temporary = Path(f"{os.fspath(path)}.tmp")
    torch.save({"graphprune": json.dumps(document), "state": module.state_dict()}, temporary)
    os.replace(temporary, path)


def load_module(module: nn.Module, path: str | os.PathLike[str]) -> ModuleCut:
    """Cut a fresh module as a saved one was, and give it that one's values.

    Args:
        module: of the same class and options as the one that was pruned; it is changed in place.

    Raises:
        InputError: not a file of :func:`save_module`, or of another module.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        document = json.loads(held["graphprune"])
        cuts = tuple((str(n), int(a), int(s), tuple(int(one) for one in r)) for n, a, s, r in document["cuts"])
        changes = tuple((str(p), str(n), tuple(v) if isinstance(v, list) else v) for p, n, v in document["attributes"])
        found = ModuleCut(cuts, changes, float(document["difference"]))
    except OSError as error:
        raise InputError(f"cannot read '{path}': {(error.strerror or str(error)).lower()}") from error
    except Exception as error:
        raise InputError(f"'{path}' is not a file that graphprune.save_module wrote: {first_line(error)}") from error
    undo: list[Callable[[], None]] = []
    tensors = _tensors(module)
    for name, axis, size, _ in cuts:
        here = tensors.get(name)
        if here is None or here.ndim <= axis or here.shape[axis] != size:
            raise InputError(f"'{path}' is of another module: '{name}' has to have {size} indices on axis {axis}")
    _cut_tensors(module, cuts, undo)
    _set_attributes(module, changes, undo)
    try:
        module.load_state_dict(held["state"])
    except RuntimeError as error:
        for step in reversed(undo):
            step()
        raise InputError(f"'{path}' is of another module: {first_line(error)}") from error
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name it has."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@torch.no_grad()
def _cut_tensors(
    module: nn.Module, cuts: Sequence[tuple[str, int, int, tuple[int, ...]]], undo: list[Callable[[], None]]
) -> None:
    by_name: dict[str, list[tuple[int, int, tuple[int, ...]]]] = {}
    for name, axis, size, removed in cuts:
        by_name.setdefault(name, []).append((axis, size, removed))
    tensors = _tensors(module)
    aliases: dict[int, list[str]] = {}
    for name, value in tensors.items():
        aliases.setdefault(id(value), []).append(name)
    for name, several in by_name.items():
        old = tensors[name]
        value = old.detach()
        for axis, size, removed in several:
            kept = np.setdiff1d(np.arange(size), removed)
            value = value.index_select(axis, torch.from_numpy(kept).to(value.device))
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for alias in aliases[id(old)]:
            path, _, leaf = alias.rpartition(".")
            owner = module.get_submodule(path)
            table: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
            undo.append(_setter(table, leaf, table[leaf]))
            table[leaf] = new


def _setter(table: dict[str, Any], key: str, value: Any) -> Callable[[], None]:
    def back() -> None:
        table[key] = value

    return back


def _set_attributes(module: nn.Module, changes: Sequence[Change], undo: list[Callable[[], None]]) -> None:
    touched = {}
    for path, name, value in changes:
        owner = module.get_submodule(path)
        undo.append(_attribute_setter(owner, name, getattr(owner, name)))
        setattr(owner, name, value)
        touched[path] = owner
    for owner in touched.values():
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()
            undo.insert(0, owner._init_flat_weights)  # undone last, when its weights are back


def _attribute_setter(owner: nn.Module, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def _expected(cut: Network, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    names = [value.name or "" for value in cut.program.model.graph.outputs]
    found = OrtRunner()(cut.program.model, feeds, names)
    return [found[name] for name in names]


def _trial(cut: Network, inputs: Any, examples: Mapping[str, NDArray[Any]], seed: int) -> Any:
    """Random inputs of the examples' sizes and spread, and what the cut network gives; None where none can be made."""
    leaves, spec = tree.tree_flatten(inputs)
    arrays = [one for one in leaves if isinstance(one, (Tensor, np.ndarray))]
    floats = [one for one in arrays if torch.as_tensor(one).is_floating_point()]
    if len(arrays) != len(examples) or not floats:
        return None
    rng = np.random.default_rng(seed)
    feeds, made = dict(examples), []
    # forward()'s arguments may stand in another order than the graph's inputs: they are matched by their contents
    unused = list(examples)
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, np.ndarray)):
            made.append(leaf)
            continue
        array = torch.as_tensor(leaf).detach().cpu().numpy()
        name = next((n for n in unused if np.array_equal(examples[n], array, equal_nan=array.dtype.kind == "f")), None)
        if name is None:
            return None
        unused.remove(name)
        if array.dtype.kind == "f":
            array = (rng.standard_normal(array.shape) * max(float(array.std()), 1e-3)).astype(array.dtype)
        feeds[name] = array
        made.append(torch.from_numpy(np.array(array)))
    return tree.tree_unflatten(made, spec), _expected(cut, feeds)


def _checked(module: nn.Module, trials: Sequence[Any]) -> float:
    far = 0.0
    for inputs, expected in trials:
        try:
            found = call(module, inputs)
        except GraphpruneError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"the module cannot be cut in place: {_line(error)} holds a size that does not follow its parameters "
                f"({first_line(error)}); use the cut network as a module instead: graphprune.to_torch"
            ) from error
        try:
            far = max(far, difference(expected, found))
        except InputError as error:
            raise UnsupportedError(f"the module cannot be cut in place: {error}; use graphprune.to_torch") from error
        if far > _RTOL:
            raise UnsupportedError(
                f"the module cannot be cut in place: it runs, but differs from the cut network by {far:.1e} relative, "
                "so its forward() computes with a size that the cut changed (a scale of attention that follows the "
                "head dimension, a fixed index); use the cut network as a module instead: graphprune.to_torch"
            )
    return far


def _line(error: BaseException) -> str:
    """The innermost line outside PyTorch that an error came through."""
    own = Path(torch.__file__).parent
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if own not in Path(one.filename).parents and Path(one.filename) != Path(__file__).parent / "groups.py"
        and Path(one.filename) != Path(__file__)
    ]  # fmt: skip
    if not frames:
        return "a layer of PyTorch"
    last = frames[-1]
    text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"line {last.lineno} of '{Path(last.filename).name}' (in {last.name}: {text})"
