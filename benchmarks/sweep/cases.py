"""What is raced over: models with weights drawn by seed, recipients and donors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer

from audit.card.load import load_card
from audit.card.schema import ModelSpec
from audit.models.build import Backbone
from audit.resources import resource_dir

DEMO = "demo"
CLASSES = 1000
DEMO_CLASSES = 2


@dataclass(frozen=True)
class Case:
    """One model and batch.

    Parameters
    ----------
    model : str
        A timm name, or "demo" for the model that the demo's card names.
    images : int
        Recipients; each has a donor of its own.
    repeats : int
        Rounds.
    depth, heads : int, optional
        Instead of the model's own.
    """

    model: str
    images: int
    repeats: int
    depth: int | None = None
    heads: int | None = None

    @property
    def label(self) -> str:
        """For tables: "vit_tiny_patch16_224, 16 images"."""
        return f"{self.model}, {self.images} image{'s' if self.images > 1 else ''}"


def build(case: Case, seed: int) -> VisionTransformer:
    """Return the model with all weights drawn from ``seed``: matrices at unit gain, so that every head is heard."""
    changes = {"depth": case.depth, "num_heads": case.heads}
    spec = _spec(case.model)
    overrides = {**spec.overrides, **{name: value for name, value in changes.items() if value is not None}}
    spec = spec.model_copy(update={"weights": "none", "overrides": overrides})
    model = Backbone(spec, None).build(DEMO_CLASSES if case.model == DEMO else CLASSES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.normal_(float("norm" in name and name.endswith("weight")), 0.1, generator=generator)
    return model


def _spec(name: str) -> ModelSpec:
    if name != DEMO:
        return ModelSpec(name=name, weights="none")
    return load_card(resource_dir("datasets") / "synthetic-expressions.yaml").model


def draw_images(model: VisionTransformer, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return recipients and donors (n, 3, H, W) each, of noise."""
    generator = torch.Generator().manual_seed(seed)
    size = model.patch_embed.img_size
    images, donors = torch.randn(2, n, 3, *size, generator=generator)
    return images, donors
