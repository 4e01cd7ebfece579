"""A forward pass watched: how far it comes, where it fails, and attention whose scale follows the cut."""

from __future__ import annotations

import linecache
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

__all__ = ["Watch", "failing_line", "failing_module", "keep_scales", "watching"]

_OWN = Path(__file__).parent


class Watch(TorchFunctionMode):
    """What happens in a forward pass.

    Attributes:
        calls: number of calls of PyTorch's functions, up to the one that failed.
        order: paths of the submodules in the order in which they ended.
        attention: of every call of attention that is scaled by the queries' own size: path of the submodule, that size.
    """

    def __init__(self, module: nn.Module, sources: Callable[[int, str, Tensor], None] | None = None) -> None:
        super().__init__()
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.sources = sources
        self.calls = 0
        self.stack: list[str] = []
        self.order: list[str] = []
        self.attention: list[tuple[str, int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention and given.get("scale") is None:
            query = given["query"] if "query" in given else args[0]
            path = self.stack[-1] if self.stack else ""
            if self.sources is not None:
                self.sources(len(self.attention), path, query)
            self.attention.append((path, int(query.shape[-1])))
        if self.sources is not None:
            with torch.enable_grad():
                made = func(*args, **given)
        else:
            made = func(*args, **given)
        self.calls += 1
        return made

    def enter(self, part: nn.Module, _: Any) -> None:
        """A submodule begins."""
        self.stack.append(self.paths.get(id(part), self.stack[-1] if self.stack else ""))

    def leave(self, part: nn.Module, _: Any, __: Any) -> None:
        """A submodule has ended."""
        self.order.append(self.stack.pop())


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Watch every forward pass within the block."""
    hooks = [register_module_forward_pre_hook(watch.enter), register_module_forward_hook(watch.leave)]
    try:
        with watch:
            yield watch
    finally:
        for hook in hooks:
            hook.remove()


def keep_scales(
    module: nn.Module, run: Callable[[], Any], before: Sequence[tuple[str, int]], rows: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Scale what makes the queries, where attention divides by the root of a head dimension that the cut changed.

    ``scaled_dot_product_attention`` without a scale divides by the root of the size that it is given; the cut network
    divides as the original does. The rows of weights and biases that make the queries take up the difference: they are
    those that the queries have a gradient in, of the last submodule that has any.

    Args:
        run: one forward pass.
        before: ``Watch.attention`` of the module before the cut.
        rows: the cut tensors, by name, that may make queries on their first axis.

    Returns:
        Names of the parameters that were changed.
    """
    if not before:
        return ()
    plain = Watch(module)
    with watching(plain):
        run()
    if [path for path, _ in plain.attention] != [path for path, _ in before]:
        return ()
    changed = {
        i: math.sqrt(now / then)
        for i, ((_, then), (_, now)) in enumerate(zip(before, plain.attention, strict=True))
        if now != then
    }
    if not changed:
        return ()
    rank = {path: i for i, path in enumerate(plain.order)}
    found: list[tuple[str, Tensor, float]] = []

    def sources(number: int, path: str, query: Tensor) -> None:
        near = {name: one for name, one in rows.items() if name.startswith(f"{path}." if path else "")}
        if number not in changed or not near or not query.requires_grad:
            return
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(query.shape, generator=generator).to(query)
        grads = torch.autograd.grad((query * weights).sum(), list(near.values()), allow_unused=True, retain_graph=True)
        made = {name: grad for name, grad in zip(near, grads, strict=True) if grad is not None and bool(grad.any())}
        owners = {name.rpartition(".")[0] for name in made}
        last = max(owners, key=lambda one: -1 if one == path and len(owners) > 1 else rank.get(one, -1), default=None)
        for name, grad in made.items():
            if name.rpartition(".")[0] == last:
                found.append((name, grad.flatten(1).any(1) if grad.ndim > 1 else grad != 0, changed[number]))

    asked = {name: one.requires_grad for name, one in rows.items()}
    try:
        for one in rows.values():
            one.requires_grad_(True)
        with watching(Watch(module, sources)):
            run()
    finally:
        for name, one in rows.items():
            one.requires_grad_(asked[name])
    with torch.no_grad():
        for name, chosen, factor in found:
            rows[name][chosen] *= factor
    return tuple(dict.fromkeys(name for name, _, _ in found))


def failing_module(error: BaseException, module: nn.Module) -> tuple[str, str]:
    """Paths of the innermost submodule that an error came through: of those not written in PyTorch, and of all."""
    paths = {id(part): path for path, part in module.named_modules()}
    own, found = "", ""
    step: TracebackType | None = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            found = paths[id(owner)]
            if not _of_torch(step.tb_frame.f_code.co_filename):
                own = found
        step = step.tb_next
    return own, found


def failing_line(error: BaseException) -> str:
    """The innermost line outside PyTorch that an error came through."""
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if not _of_torch(one.filename) and Path(one.filename).parent != _OWN
    ]
    if not frames:
        return "a layer of PyTorch"
    last = frames[-1]
    text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"line {last.lineno} of '{Path(last.filename).name}' (in {last.name}: {text})"


def _of_torch(file: str) -> bool:
    return Path(torch.__file__).parent in Path(file).parents
