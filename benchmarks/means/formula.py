"""The same without a network: one part puts out a few numbers, and the log-odds are a formula of them.

    log-odds = w . u + r (v . u),    r a number of the image that the part does not put out

so that what the means add depends on who is moved by them, and the probability is curved besides. A run takes
milliseconds, so that many can be counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from audit.evidence.effects import SwapEffects
from audit.evidence.mean_shift import judge_shifts, means_of
from audit.evidence.stats import Array, excludes_zero
from audit.patching.shifts import SCALES, Moved, Shifts, draw_shifts

NUMBERS = 12  # that the part puts out
SHUFFLES, RESAMPLES = 5, 500
CROWD = 200_000  # images by which the truth is known
COUNTED = SCALES[:2]  # a rate has no exact slope


@dataclass(frozen=True)
class Formula:
    """Who is in the pictures: evenly over two labels and two groups, which differ by so many nats to first order."""

    images: int = 120
    group: float = 0.0
    a_person: int = 1

    def draw(self, rng: np.random.Generator, images: int) -> tuple[Array, Array, SwapEffects]:
        """Return what the part puts out (N, numbers), r (N,), and the layout of the images."""
        people = images // self.a_person
        person = np.repeat(np.arange(people), self.a_person)
        label, is_group = person % 4 // 2, person % 2 == 1
        out = (rng.standard_normal((people, NUMBERS))[person] + rng.standard_normal((images, NUMBERS))) / np.sqrt(2)
        out[:, 0] += self.group * (is_group - 0.5) + (label - 0.5)
        nothing = np.zeros((images, 0))
        layout = SwapEffects(
            cross=nothing, placebo=nothing, unpatched=np.zeros(images), is_group=is_group, label=label,
            subject=person, unit=person, heads=[], shares={0: 0.5, 1: 0.5},
        )  # fmt: skip
        return out, rng.standard_normal(images), layout


def slopes_of(r: Array) -> Array:
    """Return the slopes of the log-odds with respect to what the part puts out: (N, numbers)."""
    slopes = np.zeros((len(r), NUMBERS))
    slopes[:, 0] = 1.0
    slopes[:, 1] = r
    return slopes


def move(out: Array, r: Array, shifts: Shifts) -> Moved:
    """Do to the formula what the patch does to a network."""
    n, columns = shifts.coefficients.shape
    slopes = slopes_of(r)
    odds = (slopes * out).sum(axis=1)
    patched, pulls = np.repeat(odds[:, None], columns, axis=1), np.zeros((n, 2))
    for label in np.unique(shifts.label):
        for half in (0, 1):
            donors = (shifts.label == label) & (shifts.half == half)
            rows = np.flatnonzero((shifts.label == label) & (shifts.half != half))
            sign = np.where(shifts.is_group[rows], 1.0, -1.0)
            patched[rows] += sign[:, None] * (slopes[rows] @ (shifts.coefficients[donors].T @ out[donors]).T)
            p = expit(patched[rows, 0])
            for scale, chain in enumerate((np.ones(len(rows)), p * (1 - p))):
                pulls[donors, scale] = out[donors] @ ((shifts.weights[rows] * chain) @ slopes[rows]) / 2

    def laid_out(values: Array) -> Array:
        return np.stack([values, expit(values), values > 0], axis=-1)

    return Moved(
        rows=np.arange(n),
        unpatched=laid_out(odds)[:, None],
        patched=laid_out(patched)[:, None, :, None],
        pulls=np.pad(pulls, ((0, 0), (0, 1)))[:, None, None],
    )


def truth(world: Formula, rng: np.random.Generator) -> Array:
    """Return what the part takes of the gap, in log-odds and probability."""
    if not world.group:
        return np.zeros(len(COUNTED))
    out, r, layout = world.draw(rng, CROWD)
    weights = layout.gap_weights()
    shifts = draw_shifts(layout.label, layout.is_group, layout.subject, np.abs(weights), shuffles=0, again=0, seed=0)
    moved = move(out, r, shifts)
    effects: Array = weights @ (moved.unpatched[:, 0] - moved.patched[:, 0, 0, 0])
    return effects[: len(COUNTED)]


def count(world: Formula, runs: int, seed: int) -> dict[str, Any]:
    """Draw images many times, and count how often the truth is held and something taken."""
    rng = np.random.default_rng(seed)
    true = truth(world, rng).tolist()
    held = {(name, of): 0 for name in ("with", "without") for of in COUNTED}
    taken = quiet = 0
    for run in range(runs):
        out, r, layout = world.draw(rng, world.images)
        weights = np.abs(layout.gap_weights())
        shifts = draw_shifts(
            layout.label, layout.is_group, layout.subject, weights, shuffles=SHUFFLES, again=0, seed=seed * 10_000 + run
        )
        moved = move(out, r, shifts)
        for scale, of in enumerate(COUNTED):
            means = means_of(moved, shifts, layout, 0, scale)
            for name in ("with", "without"):
                (found,) = judge_shifts(means, resamples=RESAMPLES, seed=run, of_means=name == "with")
                low, high = found.effect.low, found.effect.high
                held[name, of] += low is not None and high is not None and low <= true[scale] <= high
                if (name, of) == ("with", "probability"):
                    taken += found.takes(float(means.images.gap_weights() @ means.images.unpatched))
                    quiet += not excludes_zero(found.placebo)
    return {
        "runs": runs,
        "true": [round(t, 4) for t in true],
        "coverage": {name: {of: held[name, of] / runs for of in COUNTED} for name in ("with", "without")},
        "taken": taken / runs,
        "placebo_quiet": quiet / runs,
    }
