"""Breadth: more architectures of torchvision, timm, transformers and diffusers with random weights.

Every name in ``TORCHVISION``, ``TIMM``, ``TRANSFORMERS`` and ``DIFFUSERS`` is a factory of this module without
arguments: ``models_zoo/wide.py:seresnet50``. Nothing is downloaded; ``models_zoo.randomise`` draws the weights. Each
returns ``(module in eval mode, example inputs)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from models_zoo.names import DIFFUSERS, HELD_OUT, TIMM, TORCHVISION, TRANSFORMERS
from models_zoo.randomise import randomise, seeded

__all__ = ["DIFFUSERS", "TIMM", "TORCHVISION", "TRANSFORMERS"]

Example = tuple[nn.Module, tuple[Tensor, ...]]
_IDS = 500


class _Output(nn.Module):
    """A transformers model as a function from its first input to one of its outputs."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """Token ids, an image or features to the output's tensor."""
        result: Tensor = getattr(self.model(x), self.output)
        return result


class _Translator(nn.Module):
    """An encoder and decoder of transformers, both fed with the same ids."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``(b, t)`` to the decoder's states ``(b, t, hidden)``."""
        result: Tensor = getattr(self.model(input_ids=ids, decoder_input_ids=ids), self.output)
        return result


class _Detector(nn.Module):
    """A detector's backbone and head, up to the raw outputs: what follows picks boxes and has no weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.head = model.head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(n, 3, h, w)`` to scores ``(n, anchors, classes)`` and box offsets ``(n, anchors, 4)``."""
        found = self.head(list(self.backbone(image).values()))
        return found["cls_logits"], found["bbox_regression"]


class _Flow(nn.Module):
    """RAFT's last estimate after two updates."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two images ``(n, 3, h, w)`` to the flow between them ``(n, 2, h, w)``."""
        result: Tensor = self.model(first, second, num_flow_updates=2)[-1]
        return result


class _Denoiser(nn.Module):
    """A diffusers model as a function of tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, step: Tensor, *condition: Tensor) -> Tensor:
        """Latents ``(n, c, h, w)``, time steps ``(n,)`` and what the model is conditioned on, to latents."""
        result: Tensor = self.model(sample, step, *condition, return_dict=False)[0]
        return result


class _Named(nn.Module):
    """A segmentation network's output ``out`` alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        """Image ``(n, 3, h, w)`` to class maps ``(n, 21, h, w)``."""
        result: Tensor = self.module(image)["out"]
        return result


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _torchvision(name: str) -> Example:
    from torchvision import models

    if name in ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"):
        module: nn.Module = seeded(lambda: _Named(models.get_model(name, weights=None, weights_backbone=None)), 0)
        example: tuple[Tensor, ...] = (_noise(1, 3, 224, 224),)
    elif name.startswith(("ssdlite", "retinanet")):
        module = seeded(lambda: _Detector(models.get_model(name, weights=None, weights_backbone=None)), 0)
        example = (_noise(1, 3, *((320, 320) if name.startswith("ssdlite") else (224, 224))),)
    elif name == "raft_small":
        module = seeded(lambda: _Flow(models.get_model(name, weights=None)), 0)
        example = (_noise(1, 3, 128, 128), _noise(1, 3, 128, 128).flip(3))
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        module = seeded(lambda: models.get_model(name, weights=None, **options), 0)
        shape = {
            "r3d_18": (1, 3, 8, 112, 112),
            "swin3d_t": (1, 3, 8, 112, 112),
            "mvit_v2_s": (1, 3, 16, 224, 224),
            "inception_v3": (1, 3, 299, 299),
        }
        example = (_noise(*shape.get(name, (1, 3, 224, 224))),)
    return randomise(module, 0, example), example


def _timm(name: str) -> Example:
    import timm

    # Where fused attention's result is viewed as it lies, PyTorch 2.14 cannot trace it.
    timm.layers.set_fused_attn(name not in ("beit_base", "maxvit_tiny"))
    module: nn.Module = seeded(lambda: timm.create_model(TIMM.get(name, name), pretrained=False), 0)
    example = (_noise(1, *module.default_cfg["input_size"]),)  # type: ignore[index,arg-type,misc]
    return randomise(module, 0, example), example


def _transformers(name: str) -> Example:
    import transformers

    model, config, options, field = TRANSFORMERS[name]
    made = getattr(transformers, config)(**options)
    if hasattr(transformers, model):
        build = getattr(transformers, model)
    else:  # parts that the package does not show at its top
        build = getattr(transformers.models.whisper.modeling_whisper, model)
    wrap = _Translator if name == "t5" else _Output
    module = seeded(lambda: wrap(build(made), field), 0)
    if "image_size" in options or name == "segformer":
        example: tuple[Tensor, ...] = (_noise(1, 3, 64, 64),)
    elif "num_mel_bins" in options:
        example = (_noise(1, 16, 64),)
    else:
        example = (torch.randint(1, _IDS, (2, 16), generator=torch.Generator().manual_seed(0)),)
    return randomise(module, 0, example), example


def _diffusers(name: str) -> Example:
    import diffusers

    model, options, conditions = DIFFUSERS[name]
    module = seeded(lambda: _Denoiser(getattr(diffusers, model)(**options)), 0)
    side = options["sample_size"]
    more = tuple(_noise(*shape) for shape in conditions)
    if name == "dit":
        more = (torch.tensor([3]),)  # a class
    example = (_noise(1, options["in_channels"], side, side), torch.tensor([7]), *more)
    return randomise(module, 0, example), example


def __getattr__(name: str) -> Callable[[], Example]:
    table: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(TORCHVISION, _torchvision),
        **dict.fromkeys((*TIMM, *HELD_OUT), _timm),
        **dict.fromkeys(TRANSFORMERS, _transformers),
        **dict.fromkeys(DIFFUSERS, _diffusers),
    }
    if name not in table:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def factory() -> Example:
        try:
            return partial(table[name], name)()
        except ImportError as error:
            raise UsageError(f"The recipe '{name}' needs {error.name}: install graphprune[zoo].") from error

    return factory
