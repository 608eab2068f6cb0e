"""Tiny transformers of which it is known what carries the group: one head, and nothing else.

Images are noise whose red tells the label, imperfectly, and whose blue tells the group. Attention is uniform, there is
no norm and no MLP. ``LABEL`` reads red, ``PLANTED`` reads blue, and the classifier reads what these two write; all
other heads read green, which tells nothing, and write as loudly to where nobody reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from audit.data.pixels import Pixels
from audit.models.finetune import Recipe
from audit.patching.sites import Site
from audit.repair.base import Aim, RepairData, RepairInput, Split
from tests.models_for_tests import tiny

LABEL, PLANTED = Site(1, 0), Site(1, 2)
HEAD, RED, GREEN, BLUE, OUTCOME, NOWHERE = 8, 0, 1, 2, 3, 4  # width of a head; channels of the stream
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=1e-3, weight_decay=0.0, warmup_share=0.0, seed=0)
BLUES = np.array([-20, 20, 0])  # of each group
GROUP_WEIGHT = 0.8  # of blue, in the outcome's log-odds, by that of red


def planted_images(n: int, seed: int, groups_there: int = 2) -> tuple[Pixels, Split]:
    """Draw images of two labels and of two groups or three, in all combinations equally often."""
    draw = np.random.default_rng(seed)
    targets, groups = (np.arange(n) % 2).astype(np.int64), (np.arange(n) // 2 % groups_there).astype(np.int64)
    pixels = draw.integers(90, 110, (n, 32, 32, 3)).astype(np.float64)
    pixels[..., 0] += (40 * targets - 20 + draw.normal(0, 12, n))[:, None, None]
    pixels[..., 1] += draw.normal(0, 12, n)[:, None, None]
    pixels[..., 2] += (BLUES[groups] + draw.normal(0, 4, n))[:, None, None]
    images = pixels.clip(0, 255).astype(np.uint8)
    return images, Split(images, targets, groups, np.arange(n, dtype=np.int64))


@torch.no_grad()
def planted_model(*, group_weight: float = GROUP_WEIGHT, seed: int = 0, heads_each: int = 4) -> Any:
    """Build a model of which ``PLANTED`` alone writes the group into the outcome, with so much weight."""
    width = heads_each * HEAD
    model = tiny(classes=2, embed_dim=width, num_heads=heads_each)
    for weight in model.parameters():
        weight.zero_()
    noise = torch.Generator().manual_seed(seed)
    for channel in range(3):
        model.patch_embed.proj.weight[channel, channel] = 1 / 64
    model.norm = nn.Identity()
    for layer, block in enumerate(model.blocks):
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()
        for head in range(heads_each):
            site = Site(layer, head)
            reads = {LABEL: RED, PLANTED: BLUE}.get(site, GREEN)
            values = block.attn.qkv.weight[2 * width + head * HEAD : 2 * width + (head + 1) * HEAD]
            values[:, reads] = HEAD**-0.5
            values[:, GREEN] += 0.02 * torch.randn(HEAD, generator=noise)
            writes = block.attn.proj.weight[:, head * HEAD : (head + 1) * HEAD]
            scale = {LABEL: 1.0, PLANTED: group_weight}.get(site, 0.0)
            writes[OUTCOME] = scale * HEAD**-0.5
            writes[NOWHERE + head] = HEAD**-0.5
    model.head.weight[1, OUTCOME], model.head.weight[0, OUTCOME] = 6.0, -6.0
    centre = -(100 / 255 - 0.5) / 0.5 * 16 / 17 * (1.0 + group_weight) * 6.0
    model.head.bias[1], model.head.bias[0] = centre, -centre
    return model.eval()


@dataclass(frozen=True)
class World:
    """A repair to be made, and images that it has not seen."""

    given: RepairInput
    pixels: Pixels
    split: Split  # of these


def planted_world(
    n: int = 320, *, heads: tuple[Site, ...] = (PLANTED,), groups: int = 2, heads_each: int = 4, **changes: Any
) -> World:
    """Return a planted model with its data; a reference without the group in it."""
    (_, repair), (_, training), (pixels, sealed) = (planted_images(n, seed, groups) for seed in (1, 2, 3))
    reference = planted_model(group_weight=0.0, seed=1, heads_each=heads_each)
    given = RepairInput(
        planted_model(heads_each=heads_each),
        RepairData(repair, training),
        Aim("kind", group=1, reference=0, outcome=1),
        accuracy_margin=0.05,
        recipe=RECIPE,
        reference=reference,
        heads=heads,
    )
    return World(replace(given, **changes), pixels, sealed)
