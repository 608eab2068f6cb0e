"""Which head carries most: every head is patched on a few images, the best on all that heads are ranked on.

In between, heads are estimated as in audits that patch in part: to first order, corrected by exact patches of images
drawn at random (a difference estimator; see ``evidence.sampled``). Whatever first order misses makes it wider, not
wrong. It ranks heads and fills the grids; what is said of the best head is measured on other images, all of them
patched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from audit.controls.measure import Array, ControlDonor, Index, Mask, estimate_heads, existing, measure_heads
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model
from audit.patching.sites import Site

SCREENED = 12  # images on which every head is patched
FINALISTS = 6  # heads, the largest by then, that are patched on all images
SumUp = Callable[[Mapping[str, Array]], Array]  # from effects by donor to the effect that is asked for


@dataclass(frozen=True)
class HeadEffects:
    """The effect of each head, image by image.

    Parameters
    ----------
    values : numpy.ndarray (N, layers, heads)
        Nats; not a number where a layer has fewer heads. As measured where a head was patched on all images; else
        values whose mean is the estimate, and whose spread gives its error.
    patched : numpy.ndarray of int (layers, heads)
        On how many images a head was patched.
    """

    FIELDS: ClassVar = ("values", "patched")
    values: Array
    patched: Index

    @property
    def fewest(self) -> int | None:
        """On how few images some heads were patched; None where all were on all."""
        fewest = int(self.patched[self.patched > 0].min())
        return None if fewest == len(self.values) else fewest

    def best(self, layers: range) -> Site:
        """Return the head of the largest mean among those that were patched on all images.

        A head that is no number on some image is taken before all others, so that what is wrong with it shows.
        """
        finalists = self.patched == len(self.values)
        means = np.where(finalists, self.values.mean(0), -np.inf)
        row, head = np.unravel_index(int(means.argmax()), means.shape)
        return Site(layers[int(row)], int(head))


def measure_ranking(
    recipient: Model,
    pixels: Pixels,
    donors: Mapping[str, ControlDonor],
    targets: Index,
    layers: range,
    *,
    sums: Sequence[SumUp],
    screened: int = SCREENED,
    finalists: int = FINALISTS,
) -> list[HeadEffects]:
    """Measure the effect of every head, to find the best.

    Parameters
    ----------
    recipient, pixels, donors, targets, layers
        As of ``measure_heads``; the images in random order.
    sums : sequence of callable
        Each from the shifts by donor to an effect; the heads that are largest in the first one go on.
    screened : int
        Images, the first ones, on which every head is patched.
    finalists : int
        Heads that are patched on all images.

    Returns
    -------
    list of HeadEffects
        One for each of ``sums``.
    """
    there = existing(recipient, layers)
    chosen: Mask = np.zeros((len(targets), *there.shape), dtype=bool)
    chosen[:screened] = there
    if len(targets) <= screened or there.sum() <= finalists:
        chosen[:] = there
        exact = measure_heads(recipient, pixels, donors, targets, layers)
        return [_combined(of(exact), np.zeros(chosen.shape), chosen, there) for of in sums]
    first_order = estimate_heads(recipient, pixels, donors, targets, layers)
    exact = measure_heads(recipient, pixels, donors, targets, layers, chosen=chosen)
    so_far = _combined(sums[0](exact), sums[0](first_order), chosen, there).values.mean(0)
    later = chosen.copy()
    later[screened:] = largest(so_far, there, finalists)
    more = measure_heads(recipient, pixels, donors, targets, layers, chosen=later & ~chosen)
    exact = {name: np.where(chosen, found, more[name]) for name, found in exact.items()}
    return [_combined(of(exact), of(first_order), later, there) for of in sums]


def largest(means: Array, there: Mask, count: int) -> Mask:
    """Tell which of (layers, heads) are the ``count`` largest; what is no number counts as largest."""
    order = np.argsort(np.where(there, means, -np.inf), axis=None)  # not a number comes last
    found = np.zeros(means.shape, dtype=bool)
    found.flat[order[-count:]] = True
    return found & there


def _combined(exact: Array, first_order: Array, chosen: Mask, there: Mask) -> HeadEffects:
    """Correct first-order effects (N, layers, heads) by the exact ones of the images where a head was patched.

    The coefficient is the slope of exact on first-order effects through the origin, or 0 where nothing is left to
    estimate.
    """
    patched = chosen.sum(axis=0)
    share = np.maximum(patched, 1) / len(chosen)
    known, own = (np.where(chosen, v, 0.0) for v in (exact, first_order))
    alone = (own**2).sum(axis=0)
    slope = np.divide((known * own).sum(axis=0), alone, out=np.zeros_like(alone), where=alone > 0)
    expected = np.where(chosen.all(axis=0), 0.0, slope) * first_order
    values = np.where(chosen.all(axis=0), exact, expected + np.where(chosen, exact - expected, 0.0) / share)
    return HeadEffects(np.ascontiguousarray(np.where(there, values, np.nan)), patched.astype(np.int64))
