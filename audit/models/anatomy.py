"""Which family a model is of, and with it all that patching must know of its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.models.families.body import Anatomy
from audit.models.families.convnext import ConvNext
from audit.models.families.heads import Heads
from audit.models.families.positions import Biased, Rotary
from audit.models.families.residual import Residual
from audit.models.families.windows import Windowed

Model: TypeAlias = VisionTransformer | Beit | Eva | SwinTransformer | ResNet | ConvNeXt

ANATOMIES: Mapping[type[nn.Module], type[Anatomy]] = {
    VisionTransformer: Heads,
    Beit: Biased,
    Eva: Rotary,
    SwinTransformer: Windowed,
    ResNet: Residual,
    ConvNeXt: ConvNext,
}


def anatomy(model: Model) -> Anatomy:
    """Return what is known of a model.

    Raises
    ------
    TypeError
        If it is of no supported family; ``why_not_patchable`` tells beforehand.
    """
    for kind, made in ANATOMIES.items():
        if isinstance(model, kind):
            return made(model)
    raise TypeError(f"{type(model).__name__} is of no family that can be patched")
