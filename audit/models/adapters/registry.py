"""Which family a model is of, and with it all that patching must know of its architecture."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TypeAlias

import timm
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.models.adapters.base import Adapter
from audit.models.adapters.convnext import ConvNext
from audit.models.adapters.heads import Heads
from audit.models.adapters.own import Adapted, Plain
from audit.models.adapters.positions import Biased, Rotary
from audit.models.adapters.residual import Residual
from audit.models.adapters.windows import NormedWindows, Windowed
from audit.models.named import AdaptedNetwork, NamedNetwork, PlainNetwork
from audit.plugins import MODELS, broken, load_plugin, plugins

Model: TypeAlias = (
    VisionTransformer | Beit | Eva | SwinTransformer | SwinTransformerV2 | ResNet | ConvNeXt | NamedNetwork
)


def _of_other_packages() -> dict[type[nn.Module], type[Adapter]]:
    """Return the families that other packages declare: each a pair of a class that timm makes, and its adapter."""
    found: dict[type[nn.Module], type[Adapter]] = {}
    for point in plugins(MODELS).values():
        family = load_plugin(point)
        match family:
            case (type() as kind, type() as made) if issubclass(kind, nn.Module) and issubclass(made, Adapter):
                found[kind] = made
            case _:
                raise broken(point, "is no pair of a torch.nn.Module's class and an Adapter's class")
    return found


FAMILIES: Mapping[type[nn.Module], type[Adapter]] = {  # timm's, and those of other packages, which may derive from them
    **_of_other_packages(),
    VisionTransformer: Heads,
    Beit: Biased,
    Eva: Rotary,
    SwinTransformer: Windowed,
    SwinTransformerV2: NormedWindows,
    ResNet: Residual,
    ConvNeXt: ConvNext,
}
ADAPTERS: Mapping[type[nn.Module], type[Adapter]] = {**FAMILIES, PlainNetwork: Plain, AdaptedNetwork: Adapted}


def adapter(model: Model) -> Adapter:
    """Return what is known of a model.

    Raises
    ------
    TypeError
        If it is of no supported family; ``why_not_patchable`` tells beforehand.
    """
    for kind, made in ADAPTERS.items():
        if isinstance(model, kind):
            return made(model)
    raise TypeError(f"{type(model).__name__} is of no family that can be patched")


def input_channels(model: Model) -> int:
    """Return how many channels the images have that a model reads."""
    return int((model.pretrained_cfg.get("input_size") or (3,))[0])


def family_of(name: str) -> type[Adapter] | None:
    """Return which family a timm model is of, by the module that makes it, or None if of none that is known."""
    module = inspect.getmodule(timm.model_entrypoint(name))
    made = {inspect.getmodule(kind): found for kind, found in FAMILIES.items()}
    return made.get(module, FAMILIES[VisionTransformer] if name.startswith("deit") else None)
