"""Losses on a network's outputs: the user's own, or without labels by the network's own outputs. Torch tensors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphprune.errors import GraphpruneError, InputError, Terminated, UsageError
from graphprune.frontends.modules import first_line, named
from graphprune.ir.program import Array

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Kind", "Loss", "distance", "kind_of", "own_loss", "read_loss"]

Kind = Literal["probabilities", "logits", "values"]
Run = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Loss:
    """The user's own loss: called with ``run``, yields one scalar tensor per batch.

    ``run`` maps inputs by name (arrays or tensors) to outputs by name (tensors with gradients):

    >>> def loss(run):
    ...     for images, labels in batches:
    ...         yield torch.nn.functional.cross_entropy(run({"x": images})["y"], labels)
    """

    function: Callable[[Run], Iterable[Any]] = field(repr=False)
    source: str

    def __call__(self, run: Run) -> Iterator[Tensor]:
        """The losses, one by one. Raises InputError: it raised, or yielded something else."""
        import torch

        try:
            with contextlib.redirect_stdout(sys.stderr):
                made = self.function(run)
                single = isinstance(made, torch.Tensor) or not isinstance(made, Iterable)
                losses = iter([made] if single else made)
        except (GraphpruneError, Terminated):
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"'{self.source}' raised {first_line(error)}") from error
        while True:
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    one = next(losses)
            except StopIteration:
                return
            except (GraphpruneError, Terminated):
                raise
            except (Exception, SystemExit) as error:
                raise InputError(f"'{self.source}' raised {first_line(error)}") from error
            if not isinstance(one, torch.Tensor) or one.numel() != 1 or not one.requires_grad:
                raise InputError(f"'{self.source}' yielded no scalar tensor that depends on what run(inputs) gave")
            yield one.reshape(())


def read_loss(source: str | Callable[[Run], Any]) -> Loss:
    """The loss that ``module:function`` names, or a function itself. Raises UsageError, InputError."""
    if callable(source):
        return Loss(source, getattr(source, "__name__", "loss"))
    found = named(source)
    if not callable(found):
        raise UsageError(f"'{source}' is a {type(found).__name__}, not a function of run(inputs)")
    return Loss(found, source)


def kind_of(output: Array, moving: frozenset[int] = frozenset()) -> Kind:
    """What the rows on an output's last axis are.

    Probabilities where they add up to one; logits where there are up to three axes and the last, of several entries,
    has a fixed size (classes); else values.
    """
    if output.ndim and output.shape[-1] > 1 and output.size and np.issubdtype(output.dtype, np.floating):
        if float(output.min()) >= 0 and np.allclose(output.astype(np.float64).sum(axis=-1), 1, atol=1e-3):
            return "probabilities"
        if 2 <= output.ndim <= 3 and output.ndim - 1 not in moving:
            return "logits"
    return "values"


def distance(kind: Kind, found: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the rows in nats from the wanted ones (Hinton et al., 2015), or, of values, the
    mean square of the difference over that of the wanted ones.
    """
    from torch.nn import functional

    if kind == "values":
        return functional.mse_loss(found.float(), wanted.float()) / (wanted.float() ** 2).mean().clamp_min(1e-12)
    log_q, log_p = (_logarithms(kind, one, temperature) for one in (found, wanted))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() * temperature**2


def own_loss(kind: Kind, output: Tensor, generator: Any) -> Tensor:
    """The negative log-likelihood of a label that is drawn from the output itself; of values, with unit variance.

    The divergence from a network's own outputs is at its minimum, and its gradient zero. The mean square of this
    loss's gradient over the draws is that divergence's second derivative (Martens, "New Insights and Perspectives on
    the Natural Gradient Method", 2020), which is what a removed unit is to be ranked by.
    """
    import torch
    from torch.nn import functional

    if kind == "values":
        noise = torch.randn(output.shape, generator=generator).to(output)
        return -(output * noise).sum() / max(output.shape[0] if output.ndim else 1, 1)
    logs = _logarithms(kind, output, 1.0)
    rows = logs.reshape(-1, logs.shape[-1])
    labels = torch.multinomial(rows.detach().cpu().exp().clamp_min(0), 1, generator=generator)[:, 0]
    return functional.nll_loss(rows, labels.to(rows.device))


def _logarithms(kind: Kind, output: Tensor, temperature: float) -> Tensor:
    from torch.nn import functional

    logits = output.float().clamp_min(1e-12).log() if kind == "probabilities" else output.float()
    return functional.log_softmax(logits / temperature, dim=-1)
