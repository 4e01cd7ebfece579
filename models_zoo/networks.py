"""The architectures of the small trained networks (``models_zoo.small``): images ``(b, 1, size, size)`` to logits."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["PlainNet", "ResidualNet", "SeparableNet", "SmallViT"]


def _conv(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]


class PlainNet(nn.Module):
    """Convolutions with BatchNorm and ReLU (a 2x2 max pool after each of the first ``pools``), Flatten, two Linears."""

    def __init__(self, classes: int, size: int, widths: tuple[int, ...], hidden: int, pools: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n, (i, o) in enumerate(pairwise((1, *widths))):
            layers += [*_conv(i, o), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if n < pools else []
        side = size >> pools
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * side * side, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 1, size, size)`` to logits ``(b, classes)``."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(i, o, 3, stride), nn.ReLU(), *_conv(o, o))
        self.shortcut = nn.Identity() if i == o and stride == 1 else nn.Sequential(*_conv(i, o, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem of stride ``stem_stride``, residual blocks (He et al. 2016) of ``(width, stride)``, a global mean."""

    def __init__(self, classes: int, stem: int, stem_stride: int, blocks: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(1, stem, 3, stem_stride), nn.ReLU())
        widths = (stem, *(width for width, _ in blocks))
        strides = (stride for _, stride in blocks)
        self.blocks = nn.Sequential(
            *(_BasicBlock(i, o, s) for (i, o), s in zip(pairwise(widths), strides, strict=True))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 1, size, size)`` to logits ``(b, classes)``."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class _InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int, expansion: int) -> None:
        super().__init__()
        h = i * expansion
        self.body = nn.Sequential(
            *_conv(i, h, 1), nn.ReLU6(), *_conv(h, h, 3, stride, groups=h), nn.ReLU6(), *_conv(h, o, 1)
        )
        self.residual = i == o and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class SeparableNet(nn.Module):
    """A stem, inverted residuals (Sandler et al. 2018) of ``(width, stride)``, a 1x1 convolution, a global mean."""

    def __init__(
        self,
        classes: int,
        stem: int,
        stem_stride: int,
        blocks: tuple[tuple[int, int], ...],
        last: int,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(1, stem, 3, stem_stride), nn.ReLU6())
        widths = (stem, *(width for width, _ in blocks))
        strides = (stride for _, stride in blocks)
        self.blocks = nn.Sequential(
            *(_InvertedResidual(i, o, s, expansion) for (i, o), s in zip(pairwise(widths), strides, strict=True))
        )
        self.last = nn.Sequential(*_conv(widths[-1], last, 1), nn.ReLU6())
        self.head = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 1, size, size)`` to logits ``(b, classes)``."""
        logits: Tensor = self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, c))
        return out


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class SmallViT(nn.Module):
    """A stem of convolutions of stride 2, pre-norm encoder blocks (Dosovitskiy et al. 2021), a mean over the tokens."""

    def __init__(
        self, classes: int, size: int, stem: tuple[int, ...], width: int, heads: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in pairwise((1, *stem)):
            layers += [*_conv(i, o, 3, 2), nn.ReLU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(stem[-1], width, 1))
        tokens = (size >> len(stem)) ** 2
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.Sequential(*(_EncoderBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 1, size, size)`` to logits ``(b, classes)``."""
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits
