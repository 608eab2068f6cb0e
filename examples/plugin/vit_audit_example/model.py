"""A family of models: a network that timm makes by name, and what vit-audit must know to patch it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from audit.models.adapters.heads import Heads


class ScaledViT(VisionTransformer):
    """A vision transformer whose patches are scaled before the first block."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return super()._pos_embed(x * self.scale)


@register_model
def scaled_vit_tiny(pretrained: bool = False, **named: Any) -> ScaledViT:
    """Return the network; the card's ``model.overrides`` change its arguments."""
    if pretrained:
        raise ValueError("there are no pretrained weights of scaled_vit_tiny")
    return ScaledViT(**{"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3, **_made_by_timm(named)})


def _made_by_timm(named: dict[str, Any]) -> dict[str, Any]:
    """Leave out what timm's own factory would use up."""
    return {key: value for key, value in named.items() if not key.startswith("pretrained")}


class ScaledHeads(Heads):
    """What differs from timm's vision transformers: here, names alone; ``Adapter`` has all that may differ."""

    called = "ViT with scaled patches"
    named = ("scaled_vit_*",)
    notes = "as ViT"
    mark = "scale"


FAMILY = (ScaledViT, ScaledHeads)
