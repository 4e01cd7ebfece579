"""torchvision's image classifiers with random weights (see ``models_zoo.randomise``), at their usual 1x3x224x224.

Each factory returns ``(module in eval mode, (image,))``. Nothing is downloaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from models_zoo.randomise import randomise, seeded

__all__ = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "shufflenet_v2_x1_0",
    "swin_t",
    "vgg16_bn",
    "vit_b_16",
]

Example = tuple[nn.Module, tuple[Tensor, ...]]


def _classifier(name: str, *, seed: int = 0, side: int = 224) -> Example:
    try:
        from torchvision import models  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError(f"The recipe '{name}' needs torchvision: install graphprune[zoo].") from error
    module: nn.Module = seeded(lambda: models.get_model(name, weights=None), seed)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return randomise(module, seed, (image,)), (image,)


def resnet18() -> Example:
    """ResNet-18 (He et al. 2016): module, example ``(1, 3, 224, 224)``."""
    return _classifier("resnet18")


def resnet50() -> Example:
    """ResNet-50 (He et al. 2016): module, example ``(1, 3, 224, 224)``."""
    return _classifier("resnet50")


def mobilenet_v2() -> Example:
    """MobileNetV2 (Sandler et al. 2018): module, example ``(1, 3, 224, 224)``."""
    return _classifier("mobilenet_v2")


def mobilenet_v3_small() -> Example:
    """MobileNetV3-Small (Howard et al. 2019): module, example ``(1, 3, 224, 224)``."""
    return _classifier("mobilenet_v3_small")


def vgg16_bn() -> Example:
    """VGG-16 with BatchNorm (Simonyan and Zisserman 2015): module, example ``(1, 3, 224, 224)``."""
    return _classifier("vgg16_bn")


def densenet121() -> Example:
    """DenseNet-121 (Huang et al. 2017): module, example ``(1, 3, 224, 224)``."""
    return _classifier("densenet121")


def shufflenet_v2_x1_0() -> Example:
    """ShuffleNetV2 1.0x (Ma et al. 2018): module, example ``(1, 3, 224, 224)``."""
    return _classifier("shufflenet_v2_x1_0")


def efficientnet_b0() -> Example:
    """EfficientNet-B0 (Tan and Le 2019): module, example ``(1, 3, 224, 224)``."""
    return _classifier("efficientnet_b0")


def regnet_y_400mf() -> Example:
    """RegNetY-400MF (Radosavovic et al. 2020): module, example ``(1, 3, 224, 224)``."""
    return _classifier("regnet_y_400mf")


def convnext_tiny() -> Example:
    """ConvNeXt-T (Liu et al. 2022): module, example ``(1, 3, 224, 224)``."""
    return _classifier("convnext_tiny")


def swin_t() -> Example:
    """Swin-T (Liu et al. 2021): module, example ``(1, 3, 224, 224)``."""
    return _classifier("swin_t")


def vit_b_16() -> Example:
    """ViT-B/16 (Dosovitskiy et al. 2021): module, example ``(1, 3, 224, 224)``."""
    return _classifier("vit_b_16")
