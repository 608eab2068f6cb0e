"""Two models on the same images: what changed, tested image by image and robust to images of one subject."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.special import ndtr, ndtri

from audit.evidence.stats import NO_SPREAD, Array, Codes, Combination
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


def power_within(error: float, margin: float, alpha: float) -> float:
    """Return the power of two one-sided tests that a value with this standard error, truly 0, is within a margin."""
    return max(0.0, 2 * float(ndtr(margin / error + ndtri(alpha))) - 1)


def combine_changes(change: Array, cells: Codes, weights: Sequence[float], subjects: Codes) -> Combination:
    """Estimate ``sum_k weights[k] * mean(change | cell k)``, robust to correlation within subjects.

    Parameters
    ----------
    change : numpy.ndarray, shape (N,)
        In [-1, 1]: after minus before on the same images.
    cells : numpy.ndarray of int, shape (N,)
        0..K-1; no cell may be empty.
    weights : sequence of float, length K
    subjects : numpy.ndarray of int, shape (N,)

    Returns
    -------
    Combination
        Cluster-robust (Liang & Zeger 1986); every cell has the variance of one more subject that changes, half of it
        either way (Agresti & Min 2005), so that a cell without a change is not certain.
    """
    n, k, w = len(change), len(weights), np.asarray(weights, dtype=np.float64)
    of_subject = np.unique(subjects, return_inverse=True)[1]
    counts = np.bincount(cells, minlength=k)
    means = np.bincount(cells, weights=change, minlength=k) / counts
    pull = np.bincount(of_subject, weights=(w / counts)[cells] * (change - means[cells]))
    clusters, in_cell = len(pull), np.bincount(np.unique(of_subject * k + cells) % k, minlength=k)
    correction = clusters / (clusters - 1) * (n - 1) / (n - k) if clusters > 1 and n > k else 1.0
    error = math.sqrt(correction * float(pull @ pull) + float((w**2 / (in_cell + 2) ** 2).sum()))
    value = float(w @ means)
    return Combination(value, error, float(2 * ndtr(-abs(value) / error)))
