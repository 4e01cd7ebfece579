"""Optimisers that prune while they train, and regularisers: ``graphprune.optim.HESSO`` and others. Needs PyTorch."""

from __future__ import annotations

from graphprune.training.cric import CRIC
from graphprune.training.dhspg import DHSPG
from graphprune.training.groups import ModuleGroups, module_groups
from graphprune.training.hesso import HESSO
from graphprune.training.regularizers import group_lasso, mask_sparsity

__all__ = ["CRIC", "DHSPG", "HESSO", "ModuleGroups", "group_lasso", "mask_sparsity", "module_groups"]
