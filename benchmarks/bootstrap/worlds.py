"""Mediated gaps whose truth is known: many labels, rare ones, ones without weight, and few changes of class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from audit.evidence.effects import SwapEffects
from audit.evidence.sampled import FirstOrder, Sampled, draw

EFFECT = 0.05  # mean over labels
Sizes = Sequence[tuple[int, int]]  # images of each label, in the group and in the reference


@dataclass(frozen=True)
class Labels:
    """Images of many labels, whose effects differ in size and spread.

    Parameters
    ----------
    sizes : sequence of (int, int)
    several : float
        Share of the images that come three to a subject, whatever their labels.
    skewed : bool
        Whether effects are lognormal rather than normal.
    weightless : sequence of int
        Labels without weight.
    """

    sizes: Sizes
    several: float = 0.0
    skewed: bool = False
    weightless: Sequence[int] = field(default_factory=tuple)

    def draw(self, rng: np.random.Generator) -> SwapEffects:
        """Draw the effects of one head."""
        label = np.concatenate([np.full(a + b, y) for y, (a, b) in enumerate(self.sizes)]).astype(np.int64)
        is_group = np.concatenate([np.arange(a + b) < a for a, b in self.sizes])
        subject = self._subjects(is_group, rng)
        noise = 0.7 * rng.standard_normal(len(label))[subject] + 0.71 * rng.standard_normal(len(label))
        if self.skewed:
            noise = (np.exp(noise) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1))
        spread = np.linspace(0.05, 0.15, len(self.sizes))[label]
        change = np.where(is_group, -1.0, 1.0) * self._means()[label] + spread * noise
        return SwapEffects(
            cross=change[:, None],
            placebo=np.zeros((len(label), 1)),
            unpatched=np.zeros(len(label)),
            is_group=is_group,
            label=label,
            subject=subject,
            unit=subject,
            heads=[(0, 0)],
            shares={y: 0.0 if y in self.weightless else 1.0 + y % 3 for y in range(len(self.sizes))},
        )

    def true(self, effects: SwapEffects) -> float:
        """Return the mediated gap."""
        return float(sum(weight * self._means()[y] for y, weight in effects.label_weights().items()))

    def _means(self) -> np.ndarray:
        return EFFECT + np.linspace(-0.02, 0.02, len(self.sizes))

    def _subjects(self, is_group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        subject = np.arange(len(is_group), dtype=np.int64)
        for side in (True, False):
            rows = rng.permutation(np.flatnonzero(is_group == side))
            threes = int(self.several * len(rows)) // 3
            subject[rows[: 3 * threes]] = np.repeat(rows[:threes], 3)
        return subject


def sizes_of_forty_labels(rng: np.random.Generator) -> Sizes:
    """Draw 3 to 30 images of each label and side."""
    return [(int(a), int(b)) for a, b in rng.integers(3, 31, (40, 2))]


RARE: Sizes = [(60, 60), *[(1, 2)] * 5, *[(2, 1)] * 5, *[(3, 3)] * 5]
ONE_IMAGE_A_CELL: Sizes = [(1, 1)] * 40


@dataclass(frozen=True)
class Flips:
    """Images that seldom change their class.

    Parameters
    ----------
    patched : int
        Recipients that are patched.
    towards, away : float
        Probability that a patch makes an image change its class, in the direction of the gap or against it.
    share : float
        Share of all recipients that is patched; the others are estimated to first order.
    labels : int
    """

    patched: int
    towards: float
    away: float = 0.0
    share: float = 1.0
    labels: int = 2

    @property
    def true(self) -> float:
        return self.towards - self.away

    def draw(self, rng: np.random.Generator) -> SwapEffects:
        """Draw the changes of class by one head, with first-order estimates that know something of them."""
        n = round(self.patched / self.share)
        label, is_group = np.arange(n) % self.labels, (np.arange(n) // self.labels) % 2 == 0
        uniform = rng.random(n)
        flips = 1.0 * (uniform < self.towards) - ((uniform >= self.towards) & (uniform < self.towards + self.away))
        change = (np.where(is_group, -1.0, 1.0) * flips)[:, None]
        effects = SwapEffects(
            cross=change,
            placebo=np.zeros_like(change),
            unpatched=np.zeros(n),
            is_group=is_group,
            label=label.astype(np.int64),
            subject=np.arange(n),
            unit=np.arange(n),
            heads=[(0, 0)],
            counts=True,
        )
        if self.share == 1:
            return effects
        chosen = draw(effects.label * 2 + effects.is_group, np.array([self.share]), seed=int(rng.integers(1 << 30)))
        cross, placebo = (np.where(chosen, values, np.nan) for values in (effects.cross, effects.placebo))
        first = np.stack([0.05 * change + rng.normal(0, 0.02, change.shape), np.zeros_like(change)])
        patched = replace(effects, cross=cross, placebo=placebo)
        return Sampled(patched, FirstOrder(first, first, first)).combined()
