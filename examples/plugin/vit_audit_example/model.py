"""A family of models: a network that timm makes by name, and what vit-audit must know to patch it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from audit.models.adapters.heads import Heads


class ScaledViT(VisionTransformer):
    """A vision transformer whose patches are scaled before the first block."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return super()._pos_embed(x * self.scale)


default_cfgs = generate_default_cfgs(
    {"scaled_vit_tiny.untrained": {"input_size": (3, 224, 224), "first_conv": "patch_embed.proj", "classifier": "head"}}
)


@register_model
def scaled_vit_tiny(pretrained: bool = False, **named: Any) -> ScaledViT:
    """Return the network; the card's ``model.overrides`` change its arguments."""
    shape = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    made: ScaledViT = build_model_with_cfg(ScaledViT, "scaled_vit_tiny", pretrained, **{**shape, **named})
    return made


class ScaledHeads(Heads):
    """What differs from timm's vision transformers: here, names alone; ``Adapter`` has all that may differ."""

    called = "ViT with scaled patches"
    named = ("scaled_vit_*",)
    notes = "as ViT"
    mark = "scale"


FAMILY = (ScaledViT, ScaledHeads)
