"""Recipes of real networks, to prune, to measure and to test with.

``RECIPES`` names the main list, ``WIDE`` more architectures, ``FILES`` ONNX files of packages, ``VARIANTS`` what tools
make of ONNX networks, ``ZOO`` all of them; ``HELD_OUT`` are others that nothing was developed on. A recipe of kind
``torch`` builds ``(module in eval mode, example inputs)``, one of kind ``onnx`` gives ``(path of the file, {input name:
shape or array})``. Importing this package imports nothing heavy.

    >>> from models_zoo import RECIPES
    >>> module, example_inputs = RECIPES["resnet50"].build()      # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from graphprune.errors import UsageError
from models_zoo import names

__all__ = ["FILES", "HELD_OUT", "RECIPES", "VARIANTS", "WIDE", "ZOO", "Recipe", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """Where a network comes from.

    ``target`` is ``module:function`` within this package, ``needs`` are the import names of the packages that it needs
    besides graphprune's own, ``trained`` says whether its weights mean anything, ``suite`` is the part of the coverage
    table that it stands in.
    """

    name: str
    kind: Literal["torch", "onnx"]
    target: str
    needs: tuple[str, ...]
    trained: bool = False
    suite: str = ""

    @property
    def model(self) -> str:
        """How the command line names it, from the repository's root: ``models_zoo/vision.py:resnet50``.

        Raises UsageError for the kind ``onnx``.
        """
        if self.kind != "torch":
            raise UsageError(f"The recipe '{self.name}' is an ONNX file: give the path that build() returns.")
        module, function = self.target.split(":")
        return f"models_zoo/{module}.py:{function}"

    def missing(self) -> tuple[str, ...]:
        """Those of ``needs`` that are not installed (found without importing them)."""
        return tuple(package for package in self.needs if importlib.util.find_spec(package) is None)

    def build(self) -> Any:
        """``(module, example inputs)`` or ``(path, shapes)``. Trained networks are trained and cached on first use.

        Raises UsageError if a package is missing.
        """
        if missing := self.missing():
            raise UsageError(f"The recipe '{self.name}' needs {', '.join(missing)}: install graphprune[zoo].")
        module, function = self.target.split(":")
        return getattr(importlib.import_module(f"models_zoo.{module}"), function)()


_VISION = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "vgg16_bn",
    "densenet121",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
)
_SMALL = ("plain", "residual", "separable", "vit")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(Recipe(name, "torch", f"vision:{name}", ("torch", "torchvision"), suite="torchvision") for name in _VISION),
        *(
            Recipe(name, "torch", f"language:{name}", ("torch", "transformers"), suite="transformers")
            for name in ("bert", "bert_mini", "gpt2", "llama")
        ),
        *(
            Recipe(f"ocr_{name}", "onnx", f"ocr:{name}", ("rapidocr_onnxruntime",), True, "ONNX files")
            for name in ("detector", "recogniser", "classifier")
        ),
        *(
            Recipe(f"glyph_{name}", "torch", f"small:glyph_{name}", ("torch", "matplotlib", "PIL"), True, "small")
            for name in _SMALL
        ),
        *(
            Recipe(f"digits_{name}", "torch", f"small:digits_{name}", ("torch", "sklearn"), True, "small")
            for name in _SMALL
        ),
    )
}

#: More architectures, for the sweep: the same by name.
WIDE: dict[str, Recipe] = {
    name: Recipe(name, "torch", f"wide:{name}", ("torch", package), suite=package)
    for package, chosen in (
        ("torchvision", names.TORCHVISION),
        ("timm", names.TIMM),
        ("transformers", names.TRANSFORMERS),
        ("diffusers", names.DIFFUSERS),
    )
    for name in chosen
}

#: ONNX files that packages bring: the same by name.
FILES: dict[str, Recipe] = {
    name: Recipe(name, "onnx", f"files:{name}", (package,), package != "onnx", "ONNX files")
    for name, package in names.FILES.items()
}

#: Quantised, in float16 and with a dynamic batch: the same by name, ``resnet18_qdq``.
VARIANTS: dict[str, Recipe] = {
    f"{base}_{kind}": Recipe(
        f"{base}_{kind}", "onnx", f"variants:{base}_{kind}", (RECIPES | WIDE | FILES)[base].needs, suite=kind
    )
    for kind in names.VARIANTS
    for base in names.BASES
}

#: All of them by name.
ZOO: dict[str, Recipe] = {**RECIPES, **WIDE, **FILES, **VARIANTS}

#: Networks that graphprune did not see while it was built: the same by name.
HELD_OUT: dict[str, Recipe] = {
    name: Recipe(name, "torch", f"wide:{name}", ("torch", "timm"), suite="held out") for name in names.HELD_OUT
}


def recipe(name: str) -> Recipe:
    """The recipe of that name, in the zoo or held out."""
    return (ZOO | HELD_OUT)[name]
