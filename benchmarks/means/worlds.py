"""Small transformers and images of which it is known what is true of the group: drawn from patterns and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch

from audit.evidence.effects import SwapEffects
from audit.patching.mean_shift import measure_shifts, parts_shifted
from audit.patching.parts import Part
from audit.patching.shifts import draw_shifts

SIDE, PATCH = 16, 4
SPREAD = 1.5  # nats: standard deviation of the log-odds over images of no group
SEEN = 512  # images by which a model is brought to that spread
TRUTH = 5_000  # images by which the truth is known
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Who is in the pictures, and how the group shows.

    Parameters
    ----------
    images : int
        Evenly over two labels and two groups.
    group : float
        How strongly the group's pattern shows: by how many nats it moves the log-odds to first order. The pattern is
        the mean slope of the log-odds with respect to the pixels.
    a_person : int
        Images of one person, of one label.
    alike : float
        How strongly what the images of a person share shows, in standard deviations of the noise of a pixel.
    """

    images: int = 120
    group: float = 0.0
    a_person: int = 1
    alike: float = 0.5


@dataclass(frozen=True)
class Sample:
    """Images with their codes."""

    images: torch.Tensor
    label: npt.NDArray[np.int64]
    is_group: npt.NDArray[np.bool_]
    subject: npt.NDArray[np.int64]

    def layout(self) -> SwapEffects:
        """Lay out the images, of which labels count alike."""
        nothing = np.zeros((len(self.label), 0))
        return SwapEffects(
            cross=nothing, placebo=nothing, unpatched=np.zeros(len(self.label)), is_group=self.is_group,
            label=self.label, subject=self.subject, unit=self.subject, heads=[], shares={0: 0.5, 1: 0.5},
        )  # fmt: skip


class Maker:
    """One model of a world, and its patterns; every draw is new."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        generator = torch.Generator().manual_seed(seed)
        self.of_label, self.of_group = torch.randn((3, SIDE, SIDE), generator=generator), torch.zeros(3, SIDE, SIDE)
        self.model = made(generator)
        self._settle(np.random.default_rng(seed))

    def _settle(self, rng: np.random.Generator) -> None:
        """Bring the log-odds to one spread, and let the group show where they look."""
        images, head = self.draw(rng, SEEN).images.requires_grad_(), self.model.head
        with torch.enable_grad():
            odds = self.model(images).diff(dim=1)
            (slope,) = torch.autograd.grad(odds.sum(), images)
        with torch.no_grad():
            louder = SPREAD / odds.std()
            self.of_group = slope.mean(0) / (louder * slope.mean(0).square().sum())
            head.weight *= louder
            head.bias.zero_()
            head.bias[0] = self.model(images).diff(dim=1).mean()

    def draw(self, rng: np.random.Generator, images: int) -> Sample:
        """Draw people and their pictures."""
        world = self.world
        people = images // world.a_person
        cell = np.repeat(np.arange(people) % 4, world.a_person)
        label, is_group, subject = cell // 2, cell % 2 == 1, np.repeat(np.arange(people), world.a_person)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        shape = (3, SIDE, SIDE)
        own = torch.randn(people, *shape, generator=generator)[torch.from_numpy(subject)]
        pixels = torch.randn(len(label), *shape, generator=generator) + world.alike * own
        pixels += 0.5 * torch.from_numpy(label - 0.5).float()[:, None, None, None] * self.of_label
        pixels += world.group * torch.from_numpy(is_group - 0.5).float()[:, None, None, None] * self.of_group
        return Sample(pixels, label, is_group, subject)

    def truth(self, rng: np.random.Generator) -> tuple[list[Part], Array, Array]:
        """Return the parts, and what each takes of the gap in log-odds, probability and rate (parts, 3); the gaps (3,).

        Exactly nothing without a group; else with a crowd, of which the noise is a small part of that of a sample.
        """
        if not self.world.group:
            parts = parts_shifted(self.model)
            return parts, np.zeros((len(parts), 3)), np.zeros(3)
        sample, parts = self.draw(rng, TRUTH), parts_shifted(self.model)
        layout = sample.layout()
        weights = layout.gap_weights()
        shifts = draw_shifts(
            sample.label, sample.is_group, sample.subject, np.abs(weights), shuffles=0, again=0, seed=0
        )
        found = measure_shifts(
            self.model, lambda rows: sample.images[torch.from_numpy(rows)], shifts, parts, [1], influence=False
        )
        gaps = np.einsum("n,ns->s", weights, found.unpatched[:, 0])
        after = np.einsum("n,nps->ps", weights, found.patched[:, :, 0, 0])
        return parts, gaps - after, gaps


def made(generator: torch.Generator) -> Any:
    """Return a transformer with large random weights."""
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, depth=2, embed_dim=32, num_heads=4, num_classes=2
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(float("norm" in name and name.endswith("weight")) + 0.2 * noise)
            elif name.endswith("weight"):
                weight.copy_(noise * (2.0 if "attn" in name else 1.0) / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.5 * noise)
    return model.eval().requires_grad_(False)
