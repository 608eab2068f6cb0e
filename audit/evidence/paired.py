"""Two models on the same images: what changed, tested cell by cell and robust to images of one subject."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.special import ndtr, ndtri

from audit.evidence.stats import NO_SPREAD, Codes
from audit.records import Estimate

HALF_AN_IMAGE = 0.5  # correction for continuity: gains less losses move in whole images
EDGE = 1e-9  # how near to -1 and 1 bounds are looked for


@dataclass(frozen=True)
class PairedCounts:
    """Gained and lost images of one cell, as if each were a subject of its own.

    Parameters
    ----------
    gained, lost, size : float
        Counts over the design effect.
    """

    gained: float
    lost: float
    size: float

    @classmethod
    def of(cls, change: npt.NDArray[np.int64], subjects: Codes) -> PairedCounts:
        """Count changes and divide by the design effect of the subjects (Rao & Scott 1992), never under 1.

        One subject more, all of whose images change together, is added to what is seen: where few images change, how
        alike a subject's images are cannot be seen, and with none, subjects count (Kish's effective number).

        Parameters
        ----------
        change : numpy.ndarray of int, shape (N,)
            1 gained, -1 lost, 0 as before.
        subjects : numpy.ndarray of int, shape (N,)
            Codes from 0 on; not all need to be seen.
        """
        n = len(change)
        if n == 0:
            return cls(0.0, 0.0, 0.0)
        away, sizes = change - change.mean(), np.bincount(subjects)
        totals = np.bincount(subjects, weights=away)
        typical = float((sizes**2).sum()) / n
        effect = max(1.0, float((totals**2).sum() + typical**2) / float((away**2).sum() + typical))
        return cls(float((change > 0).sum()) / effect, float((change < 0).sum()) / effect, n / effect)

    @property
    def value(self) -> float:
        """Share gained less share lost."""
        return (self.gained - self.lost) / self.size

    def reversed(self) -> PairedCounts:
        """Return the same with gains and losses exchanged."""
        return PairedCounts(self.lost, self.gained, self.size)

    def z_above(self, bound: float) -> float:
        """Return the score statistic of a true difference above a bound in (-1, 1)."""
        if self.size == 0:
            return -math.inf
        spread = self.size * score_variance(self.gained, self.lost, self.size, bound)
        return (self.gained - self.lost - self.size * bound - HALF_AN_IMAGE) / math.sqrt(spread)

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value that the true difference is above a bound.

        Tango's (1998) score test of paired proportions, corrected for continuity by half an image: without that
        correction it certifies up to 6.5% at 5% where few images change. Shows nothing from no image.
        """
        return float(ndtr(-self.z_above(bound)))

    def interval(self, level: float) -> Estimate:
        """Return the difference with the bounds that the test above does not reject, each side at half of 1 - level."""
        if self.size == 0:
            return Estimate(value=None, level=level)
        z = -float(ndtri((1 - level) / 2))
        low, high = self._lowest(z), -self.reversed()._lowest(z)
        return Estimate(value=self.value, low=low, high=high, level=level)

    def _lowest(self, z: float) -> float:
        if self.z_above(-1 + EDGE) <= z:
            return -1.0
        return float(optimize.brentq(lambda bound: self.z_above(bound) - z, -1 + EDGE, 1 - EDGE, xtol=1e-10))


def score_variance(gained: float, lost: float, size: float, bound: float) -> float:
    """Return the variance of one image's change if the true difference is ``bound``, likeliest given the counts.

    Parameters
    ----------
    gained, lost, size : float
    bound : float
        Share gained less share lost, in (-1, 1).
    """
    linear = (2 * size - gained + lost) * bound - gained - lost
    square = linear**2 + 8 * size * lost * bound * (1 - bound)
    share_lost = (math.sqrt(max(square, 0.0)) - linear) / (4 * size)
    return max(2 * share_lost + bound * (1 - bound), NO_SPREAD)


def power_above(size: float, changed: float, margin: float, alpha: float) -> float:
    """Return the power of :meth:`PairedCounts.p_above` of ``-margin``, if as many are gained as lost.

    Parameters
    ----------
    size : float
        Images over the design effect.
    changed : float
        Share of images that change, in [0, 1].
    margin, alpha : float
    """
    half = size * changed / 2
    if size <= 0:
        return 0.0
    limit = -float(ndtri(alpha)) * math.sqrt(size * score_variance(half, half, size, -margin))
    spare = size * margin - HALF_AN_IMAGE - limit
    return float(ndtr(spare / math.sqrt(size * changed))) if changed > 0 else float(spare >= 0)
