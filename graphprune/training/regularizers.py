"""Sparse regularisers: terms to be added to the loss, over the units of a module's groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.training.groups import ModuleGroups

__all__ = ["group_lasso", "mask_sparsity"]


def group_lasso(groups: ModuleGroups) -> Tensor:
    """``sum sqrt(n_j) * |x_j|`` over all units, n_j the number of elements of the unit's vector x_j.

    Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006; for structures of
    networks: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016.
    """
    return (groups.sizes().sqrt() * groups.norms()).sum()


def mask_sparsity(groups: ModuleGroups, units: Tensor | NDArray[np.bool_]) -> Tensor:
    """The same over some units alone, a mask (count,): those that are to go (Jiang et al., "MaskSparsity", 2021)."""
    mask: Any = torch.as_tensor(units)
    if tuple(mask.shape) != (groups.count,):
        raise UsageError(f"the mask has the shape {tuple(mask.shape)}, there are {groups.count} units")
    norms = groups.norms()
    total: Tensor = (mask.to(norms) * groups.sizes().sqrt() * norms).sum()
    return total
