"""A cut of the user's own module in place, by its parameters' names; saved and loaded without pickle."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree

from graphprune.backends.runner import OrtRunner
from graphprune.errors import InputError, UnsupportedError, UsageError
from graphprune.frontends.module_inputs import in_order
from graphprune.frontends.modules import first_line
from graphprune.passes.files import keep_of, members_of, read_plan, replay
from graphprune.passes.plan import Plan
from graphprune.passes.shrink import Shrink
from graphprune.pipeline import Network, load
from graphprune.training.attention import adapt
from graphprune.training.groups import call, difference, network_of
from graphprune.training.scopes import Scopes
from graphprune.training.search import HeldError, find_sizes, set_attribute
from graphprune.training.sizes import Change, attribute_changes, recurrent_biases
from graphprune.training.watch import Watch, failing_line, keep_scales, watching

__all__ = ["ModuleCut", "load_module", "prune_module", "save_module"]

_log = logging.getLogger(__name__)
_FORMAT = 1
_RTOL = 1e-3  # float32 in another order of summation; a wrong size is far beyond it
_TRIES = 2  # further inputs, beside the example
_RECORD = "_graphprune_cut"  # attribute of a module that was cut: its ModuleCut
_OWN = vars(nn.Module()).keys()  # what PyTorch keeps in every module: its parameters, buffers and parts


@dataclass(frozen=True)
class ModuleCut:
    """What was cut from a module.

    Attributes:
        cuts: name of a parameter or buffer, axis, size before, removed indices.
        attributes: sizes that its submodules keep as attributes: path of the submodule, attribute, new value.
        difference: largest relative difference from the cut network on the inputs tried.
        scaled: parameters that took up a factor: attention that divides by the root of its own head dimension.
        left: ids of the groups that were left whole (``partial``).
        idle: submodules that the outputs do not depend on in eval mode (auxiliary classifiers, say): nothing of them
            was cut, so that in training mode they may no longer fit what they are given.
    """

    cuts: tuple[tuple[str, int, int, tuple[int, ...]], ...] = field(repr=False)
    attributes: tuple[Change, ...] = field(repr=False)
    difference: float = 0.0
    scaled: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    earlier: ModuleCut | None = field(default=None, repr=False)

    def in_turn(self) -> tuple[ModuleCut, ...]:
        """This cut and those before it, the first one first."""
        return (*(() if self.earlier is None else self.earlier.in_turn()), self)


def prune_module(
    module: nn.Module,
    plan: Plan | str | os.PathLike[str],
    inputs: Any = None,
    *,
    network: Network | None = None,
    partial: bool = False,
) -> ModuleCut:
    """Cut a module's parameters to what a plan keeps, and update the sizes that its layers hold.

    Sizes of standard layers follow from their parameters. Whole numbers that other submodules hold (heads, widths,
    parts of a split) become the size after the cut where they equal one before it, and are tried until the forward pass
    runs; what it gives is then held to the cut network on several inputs. An optimiser made before holds the old
    parameters; make a new one.

    Args:
        module: is changed in place; if it cannot be, it is as it was before.
        plan: of the traced module, or the path of a saved one.
        inputs: example inputs as for :func:`graphprune.load`; the module is traced on them unless its ``network``, as
            ``load`` made it of this module, is given as well.
        partial: leave those groups whole whose sizes a ``forward`` holds, and cut the others, instead of refusing.

    Raises:
        UsageError: no inputs. InputError: the plan is not of this module.
        UnsupportedError: its ``forward`` holds a size that cannot be changed; the sentence names the line.
    """
    if inputs is None:
        raise UsageError("give the module's example inputs: the cut is checked on them")
    traced = network or load(module, inputs=inputs)
    grouping = traced.grouping
    chosen = plan if isinstance(plan, Plan) else replay(read_plan(plan), grouping)
    keep = {name: mask for name, mask in keep_of(chosen, grouping).items() if not mask.all()}
    watch = Watch(module)
    with watching(watch):
        call(module, inputs)
    left: set[str] = set()
    while True:
        try:
            found = _cut(module, traced, keep, inputs, watch.attention)
            break
        except HeldError as held:
            assert held.__cause__ is not None
            groups = _held(module, Scopes(traced, keep), (held.path, held.inner))
            if not partial or not groups or not keep.keys() - groups:
                raise UnsupportedError(
                    f"the module cannot be cut in place: {failing_line(held.__cause__)} holds a size that does not "
                    f"follow its parameters ({first_line(held.__cause__)}); use the cut network as a module instead "
                    "(graphprune.to_torch), or partial=True, which leaves such groups whole",
                    tuple((name, held.path, first_line(held.__cause__)) for name in sorted(groups)),
                ) from held.__cause__
        left |= groups
        keep = {name: mask for name, mask in keep.items() if name not in groups}
    idle = _idle(module, set(traced.program.parameter_names.values()))
    if idle and found.cuts:
        _log.warning("%s: not in the traced network, so not cut; may no longer fit in training mode", ", ".join(idle))
    return _recorded(module, replace(found, left=tuple(sorted(left)), idle=idle, earlier=_record(module)))


def _record(module: nn.Module) -> ModuleCut | None:
    """What was cut of a module so far."""
    found: ModuleCut | None = vars(module).get(_RECORD)
    return found


def _recorded(module: nn.Module, cut: ModuleCut) -> ModuleCut:
    vars(module)[_RECORD] = cut
    return cut


def _idle(module: nn.Module, known: set[str]) -> tuple[str, ...]:
    """The outermost submodules with parameters none of which the traced network has."""
    held = {id(value) for name, value in module.named_parameters(remove_duplicate=False) if name in known}
    found: list[str] = []
    for path, part in module.named_modules():
        own = {id(value) for value in part.parameters()}
        if path and own and not own & held and not any(path.startswith(f"{one}.") for one in found):
            found.append(path)
    return tuple(found)


def _held(module: nn.Module, scopes: Scopes, paths: Sequence[str]) -> set[str]:
    """The groups whose sizes a submodule computes with, the first that has any, and others of its class."""
    for path in paths:
        if scopes.groups(path):
            kind = type(module.get_submodule(path))
            own = any(module.get_submodule(path).children()) or not kind.__module__.startswith("torch.nn")
            same = [one for one, part in module.named_modules() if own and type(part) is kind]
            return set().union(*(scopes.groups(one) for one in (path, *same)))
    return set()


def _cut(
    module: nn.Module,
    traced: Network,
    keep: Mapping[str, NDArray[np.bool_]],
    inputs: Any,
    attention: Sequence[tuple[str, int]],
) -> ModuleCut:
    """One try; the module is as it was if it fails."""
    grouping = traced.grouping
    names = traced.program.parameter_names
    examples = dict(traced.program.examples)
    model = Shrink(keep)(grouping)
    cuts = _cuts(module, traced, keep)
    cut = network_of(model, examples, traced.name, names)  # before the parameters it may share memory with are cut
    trials = [(one, _expected(cut, feeds)) for one, feeds in _trials(in_order(module, inputs), examples)]
    undo: list[Callable[[], None]] = [_remember(part) for part in module.modules()]
    try:
        _cut_tensors(module, cuts, undo)
        changes = attribute_changes(module, cuts, traced, cut)
        _set_attributes(module, changes, undo)

        def run() -> Any:
            return call(module, inputs)

        sizes = find_sizes(module, Scopes(traced, keep), {(path, name) for path, name, _ in changes}, run)
        makers = {name for name, axis, _, _ in cuts if axis == 0}
        named = {name: one for name, one in module.named_parameters(remove_duplicate=False) if name in makers}
        scaled = keep_scales(module, run, attention, named)
        return ModuleCut(cuts, (*changes, *sizes), _checked(module, trials), scaled)
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _cuts(
    module: nn.Module, traced: Network, keep: Mapping[str, NDArray[np.bool_]]
) -> tuple[tuple[str, int, int, tuple[int, ...]], ...]:
    """What goes of the module's tensors: name, axis, size, indices."""
    gone: dict[tuple[str, int], NDArray[np.bool_]] = {}
    held = _tensors(module)
    for tensor, name in traced.program.parameter_names.items():
        if name not in held:
            continue
        for axis, space in enumerate(traced.grouping.coupling.of(tensor)):
            mask = ~traced.grouping.mask(space, keep)
            if held[name].ndim <= axis or held[name].shape[axis] != len(mask):
                raise InputError(
                    f"'{name}' has the shape {list(held[name].shape)} in the module, and {len(mask)} indices on axis "
                    f"{axis} in the network that the plan is for"
                )
            if mask.any():
                gone[name, axis] = mask
    for member in members_of(traced.grouping, keep):  # a vector that is read twice has a space for each time
        name = traced.program.parameter_names.get(member.tensor, "")
        if name in held and member.removed.size:
            mask = gone.setdefault((name, member.axis), np.zeros(member.size, dtype=np.bool_))
            mask[member.removed] = True
    recurrent_biases(module, gone)
    return tuple(
        (name, axis, len(mask), tuple(int(one) for one in np.flatnonzero(mask))) for (name, axis), mask in gone.items()
    )


def _remember(part: nn.Module) -> Callable[[], None]:
    """How to give a submodule its attributes back, with what lists and dictionaries among them hold (caches)."""
    held = {
        name: (value, copy(value) if type(value) in (dict, list) else value)
        for name, value in vars(part).items()
        if name not in _OWN
    }

    def back() -> None:
        for name in [name for name in vars(part) if name not in held and name not in _OWN]:
            del vars(part)[name]
        for name, (value, content) in held.items():
            if type(value) is dict:
                value.clear()
                value.update(content)
            elif type(value) is list:
                value[:] = content
            vars(part)[name] = value

    return back


def save_module(module: nn.Module, cut: ModuleCut, path: str | os.PathLike[str]) -> None:
    """Write a pruned module's values and its cut to one file that is read without pickle's risks.

    Args:
        cut: what the last :func:`prune_module` (or :func:`load_module`) gave; it holds the earlier ones.

    Raises:
        UsageError: the module was cut again since.
    """
    if _record(module) not in (None, cut):
        raise UsageError(
            "the cut is not the module's last one: give what its last prune_module or load_module returned"
        )
    document = {"format": _FORMAT, **asdict(cut)}
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
        found = _read_cut(document)
    except OSError as error:
        raise InputError(f"cannot read '{path}': {(error.strerror or str(error)).lower()}") from error
    except Exception as error:
        raise InputError(f"'{path}' is not a file that graphprune.save_module wrote: {first_line(error)}") from error
    undo: list[Callable[[], None]] = []
    try:
        for cut in found.in_turn():
            _check_sizes(module, cut)
            _cut_tensors(module, cut.cuts, undo)
            _set_attributes(module, cut.attributes, undo)
        _check_state(module, held["state"])
        module.load_state_dict(held["state"])
    except RuntimeError as error:
        for step in reversed(undo):
            step()
        raise InputError(f"'{path}' is of another module: {error}") from error
    return _recorded(module, found)


def _read_cut(document: Mapping[str, Any]) -> ModuleCut:
    cuts = tuple((str(n), int(a), int(s), tuple(int(one) for one in r)) for n, a, s, r in document["cuts"])
    changes = tuple((str(p), str(n), tuple(v) if isinstance(v, list) else v) for p, n, v in document["attributes"])
    scaled, left, idle = (tuple(str(one) for one in document[key]) for key in ("scaled", "left", "idle"))
    earlier = None if document.get("earlier") is None else _read_cut(document["earlier"])
    return ModuleCut(cuts, changes, float(document["difference"]), scaled, left, idle, earlier)


def _check_sizes(module: nn.Module, cut: ModuleCut) -> None:
    """Raise ``RuntimeError`` where a tensor has not the size that it had before it was cut."""
    tensors = _tensors(module)
    for name, axis, size, _ in cut.cuts:
        here = tensors.get(name)
        if here is None or here.ndim <= axis or here.shape[axis] != size:
            raise RuntimeError(f"'{name}' has to have {size} indices on axis {axis}")


def _check_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise ``RuntimeError`` before anything is copied where names or shapes are not the module's."""
    own = module.state_dict()
    if alone := sorted(own.keys() ^ state.keys()):
        raise RuntimeError(f"'{alone[0]}' is in one of them only")
    for name, value in own.items():
        if isinstance(value, Tensor) and value.shape != state[name].shape:
            raise RuntimeError(f"'{name}' has the shape {list(state[name].shape)} there and {list(value.shape)} here")


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
        vars(new).update(vars(old))  # marks that an optimiser's parameter groups are made by
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
        set_attribute(owner, name, value)
        touched[path] = owner
    for owner in touched.values():
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()
            undo.insert(0, owner._init_flat_weights)  # undone last, when its weights are back
        if isinstance(owner, nn.MultiheadAttention):
            undo.append(adapt(owner))


def _attribute_setter(owner: nn.Module, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def _expected(cut: Network, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    names = [value.name or "" for value in cut.program.model.graph.outputs]
    found = OrtRunner()(cut.program.model, feeds, names)
    return [found[name] for name in names]


def _trials(given: tuple[Any, ...], examples: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Any, Any]]:
    """The inputs and random ones of their sizes and spread, each with the arrays that the network's inputs get.

    Args:
        given: inputs as :func:`graphprune.frontends.module_inputs.in_order` gives them.
        examples: by name, in the same order.
    """
    leaves, spec = tree.tree_flatten(given)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if len(places) != len(examples):
        yield given, examples
        return
    arrays = [leaves[place].detach().cpu().numpy() for place in places]
    yield given, dict(zip(examples, arrays, strict=True))
    for seed in range(_TRIES) if any(array.dtype.kind == "f" for array in arrays) else ():
        rng = np.random.default_rng(seed)
        feeds = {}
        for name, place, array in zip(examples, places, arrays, strict=True):
            feeds[name] = array
            if array.dtype.kind == "f":
                feeds[name] = (rng.standard_normal(array.shape) * max(float(array.std()), 1e-3)).astype(array.dtype)
            leaves[place] = torch.from_numpy(np.array(feeds[name]))
        yield tree.tree_unflatten(leaves, spec), feeds


def _checked(module: nn.Module, trials: Sequence[Any]) -> float:
    far = 0.0
    for inputs, expected in trials:
        try:
            far = max(far, difference(expected, call(module, inputs)))
        except InputError as error:
            raise UnsupportedError(f"the module cannot be cut in place: {error}; use graphprune.to_torch") from error
        except Exception as error:
            raise UnsupportedError(
                f"the module cannot be cut in place: on other inputs {failing_line(error)} fails "
                f"({first_line(error)}); use graphprune.to_torch"
            ) from error
        if far > _RTOL:
            raise UnsupportedError(
                f"the module cannot be cut in place: it runs, but differs from the cut network by {far:.1e} relative, "
                "so its forward() computes with a size that the cut changed (a scale of attention that follows the "
                "head dimension, a fixed index); use the cut network as a module instead: graphprune.to_torch"
            )
    return far
