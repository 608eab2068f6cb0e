"""Which head carries most: every head is patched on a few images, the best on all that heads are ranked on.

In between, heads are estimated as in audits that patch in part: to first order, corrected by exact patches of images
drawn at random (a difference estimator; see ``evidence.sampled``). Whatever first order misses makes it wider, not
wrong. It ranks heads and fills the grids; what is said of the best head is measured on other images, all of them
patched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np

from audit.controls.looks import Found, Look, Measure, Measurement, measure_here
from audit.controls.measure import Array, ControlDonor, Index, Mask, estimate_heads, existing, measure_heads
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


@dataclass(frozen=True)
class Ranking:
    """What heads are ranked by.

    Parameters
    ----------
    name : str
        Tells it from the others.
    recipient, donors, targets, layers
        As of ``measure_heads``; the images in random order.
    sums : sequence of callable
        Each from the shifts by donor to an effect; the heads that are largest in the first one go on.
    screened : int
        Images, the first ones, on which every head is patched.
    finalists : int
        Heads that are patched on all images.
    """

    name: str
    recipient: ControlDonor
    donors: Mapping[str, ControlDonor]
    targets: Index
    layers: range
    sums: Sequence[SumUp]
    screened: int = SCREENED
    finalists: int = FINALISTS

    @cached_property
    def there(self) -> Mask:
        """Which of (layers, heads) there are."""
        return existing(self.recipient.model, self.layers)

    @property
    def few(self) -> int:
        """On how many images every head is patched: on all where images or heads are few."""
        n = len(self.targets)
        return n if self.there.sum() <= self.finalists else min(n, self.screened)

    def first_look(self) -> list[Measurement]:
        """Return what is measured of all heads: exactly on a few images, to first order on all."""
        exact = self._of_heads("every head", range(self.few), self.there)
        if self.few == len(self.targets):
            return [exact]
        estimated = self._measured(
            "first order", range(len(self.targets)), estimate_heads, patches=2 * len(self.donors)
        )
        return [exact, estimated]

    def second_look(self, found: Mapping[str, Found]) -> list[Measurement]:
        """Return what is measured of the largest heads: the images that they were not patched on."""
        if self.few == len(self.targets):
            return []
        return [self._of_heads("largest heads", range(self.few, len(self.targets)), self._largest(found))]

    def effects(self, found: Mapping[str, Found]) -> list[HeadEffects]:
        """Return the effects of heads after both looks, one for each of ``sums``."""
        return self._combined(found, self._largest(found), self.sums)

    def _of_heads(self, what: str, images: range, heads: Mask) -> Measurement:
        measure = partial(measure_heads, heads=heads)
        made_of = {"heads": np.argwhere(heads).tolist()}
        return self._measured(what, images, measure, patches=int(heads.sum()) * len(self.donors), made_of=made_of)

    def _measured(
        self,
        what: str,
        images: range,
        measure: Callable[..., Found],
        *,
        patches: int,
        made_of: Mapping[str, object] | None = None,
    ) -> Measurement:
        model, pixels = self.recipient.model, self.recipient.pixels
        of_images: Measure = partial(measure, model, pixels, self.donors, self.targets, self.layers)
        shapes = dict.fromkeys(self.donors, self.there.shape)
        return Measurement(f"{self.name}: {what}", model, images, shapes, of_images, patches, made_of or {})

    def _largest(self, found: Mapping[str, Found]) -> Mask:
        """Tell which heads are the largest after the first look."""
        nothing = np.zeros_like(self.there)
        (effects,) = self._combined(found, nothing, self.sums[:1])
        return largest(effects.values.mean(0), self.there, self.finalists)

    def _combined(self, found: Mapping[str, Found], on_all: Mask, sums: Sequence[SumUp]) -> list[HeadEffects]:
        """Combine what was found, with the heads ``on_all`` patched on all images, the others on few."""
        few, chosen = self.few, np.broadcast_to(on_all, (len(self.targets), *self.there.shape)).copy()
        chosen[:few] = self.there
        exact = {name: np.full(chosen.shape, np.nan) for name in self.donors}
        for name, values in exact.items():
            values[:few] = found[f"{self.name}: every head"][name]
            if on_all.any() and few < len(chosen):
                values[few:] = found[f"{self.name}: largest heads"][name]
        nothing = dict.fromkeys(self.donors, np.zeros(chosen.shape))
        first_order = found.get(f"{self.name}: first order", nothing)
        return [_combined(of(exact), of(first_order), chosen, self.there) for of in sums]


def measure_rankings(rankings: Sequence[Ranking], look: Look = measure_here) -> list[list[HeadEffects]]:
    """Measure the effect of every head, to find the best; return for each ranking one for each of its ``sums``."""
    found = look("a few images", [m for ranking in rankings for m in ranking.first_look()])
    more = [m for ranking in rankings for m in ranking.second_look(found)]
    if more:
        found = found | look("the largest effects", more)
    return [ranking.effects(found) for ranking in rankings]


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
