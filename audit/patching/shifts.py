"""Whose output is averaged with whose, for the mean-shift patch: halves of the subjects, and coefficients of means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Sides = npt.NDArray[np.bool_]
SCALES = ("log_odds", "probability", "rate")


@dataclass(frozen=True)
class Shifts:
    """Who is moved, and by which means.

    Parameters
    ----------
    label, half : numpy.ndarray of int (N,)
        Codes of the label, and 0 or 1: images are moved by the means of the other half.
    is_group : numpy.ndarray of bool (N,)
        Whether the image is of the group, else of the reference.
    weights : numpy.ndarray (N,)
        How much each image counts in its side of the gap; 0 of those that are not moved.
    coefficients : numpy.ndarray (N, S)
        By which outputs sum to D, label by label and half by half: of the groups as they are, of groups shuffled at
        random, and of the groups with their subjects drawn again.
    shuffles : int
        How many columns are of groups shuffled at random.
    """

    label: Codes
    half: Codes
    is_group: Sides
    weights: Array
    coefficients: Array
    shuffles: int = 0


@dataclass(frozen=True)
class Moved:
    """What shifts do. The last axis is log-odds (nats), probability, and being called so (0 or 1)."""

    rows: Codes  # (R,), which images were moved
    unpatched: Array  # (N, outcomes, 3), not a number of images that neither donate nor are moved
    patched: Array  # (R, parts, S, outcomes, 3)
    pulls: Array  # (N, parts, outcomes, 3), of images as donors


def draw_shifts(
    labels: Codes, is_group: Sides, subjects: Codes, weights: Array, *, shuffles: int, again: int, seed: int
) -> Shifts:
    """Cut subjects in halves, and draw who is averaged with whom.

    Parameters
    ----------
    labels, is_group, weights
        As of :class:`Shifts`; images of a label without weight do nothing.
    subjects : numpy.ndarray of int (N,)
    shuffles, again : int
        How often groups are shuffled at random, and means drawn again.
    seed : int
    """
    rng = np.random.default_rng(seed)
    halves = halves_of(labels, is_group, subjects, rng)
    columns = [coefficients_of(labels, halves, is_group)]
    columns += [
        coefficients_of(labels, halves, random_groups(labels, halves, is_group, subjects, rng)) for _ in range(shuffles)
    ]
    columns += [
        coefficients_of(labels, halves, is_group, drawn_again(halves, is_group, subjects, rng)) for _ in range(again)
    ]
    return Shifts(labels, halves, is_group, weights, np.stack(columns, axis=1), shuffles)


def halves_of(labels: Codes, is_group: Sides, subjects: Codes, rng: np.random.Generator) -> Codes:
    """Cut subjects in two halves, as equal as can be in each label and group: 0 or 1 of each image (N,)."""
    _, first, of_image = np.unique(subjects, return_index=True, return_inverse=True)
    by_cell = np.lexsort([rng.permutation(len(first)), is_group[first], labels[first]])
    half = np.empty(len(first), dtype=np.int64)
    half[by_cell] = np.arange(len(first)) % 2
    return half[of_image]


def coefficients_of(labels: Codes, halves: Codes, is_group: Sides, counts: Array | None = None) -> Array:
    """Return the coefficients (N,) by which outputs sum to D, with images counted so many times.

    0 throughout a label and half in which a side has no image.
    """
    counted = np.ones(len(labels)) if counts is None else counts
    found = np.zeros(len(labels))
    for cell in _cells(labels, halves):
        totals = [counted[cell & (is_group == side)].sum() for side in (False, True)]
        if min(totals) > 0:
            found[cell] = np.where(is_group, -0.5 / totals[1], 0.5 / totals[0])[cell] * counted[cell]
    return found


def random_groups(labels: Codes, halves: Codes, is_group: Sides, subjects: Codes, rng: np.random.Generator) -> Sides:
    """Shuffle the groups among the subjects of a label and half: (N,)."""
    found = is_group.copy()
    for cell in _cells(labels, halves):
        names, of_image = np.unique(np.stack([subjects, is_group])[:, cell], axis=1, return_inverse=True)
        found[cell] = rng.permutation(names[1].astype(bool))[of_image.reshape(-1)]
    return found


def drawn_again(halves: Codes, is_group: Sides, subjects: Codes, rng: np.random.Generator) -> Array:
    """Draw subjects with replacement within a half, and return how often each image (N,) counts."""
    counts = np.zeros(len(halves))
    for half in np.unique(halves):
        for side in (False, True):
            names, of_image = np.unique(subjects[(halves == half) & (is_group == side)], return_inverse=True)
            drawn = rng.multinomial(len(names), np.full(len(names), 1 / max(len(names), 1)))
            counts[(halves == half) & (is_group == side)] = drawn[of_image]
    return counts


def _cells(labels: Codes, halves: Codes) -> Iterator[Sides]:
    for label in np.unique(labels):
        for half in np.unique(halves):
            yield (labels == label) & (halves == half)
