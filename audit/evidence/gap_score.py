"""Gaps and their changes against margins: score tests of weighted sums, robust to images of one subject."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.special import ndtr, ndtri

from audit.evidence.paired import HALF_AN_IMAGE, score_variance
from audit.evidence.stats import NO_SPREAD, Array, Codes, cluster_variance
from audit.records import Estimate

ROUNDING = 1e-12
EDGE = 1e-6  # how near to -1 and 1 a gap is looked for


@dataclass(frozen=True)
class GapScore:
    """Rates of the cells of a gap, as if each image were a subject of its own.

    Parameters
    ----------
    rates : numpy.ndarray, shape (K,)
        Share of each cell's images that are called the outcome.
    sizes : numpy.ndarray, shape (K,)
        Images over the design effect.
    weights : numpy.ndarray, shape (K,)
        The gap is their product with the rates.
    """

    rates: Array
    sizes: Array
    weights: Array

    @classmethod
    def of(cls, called: Array, cells: Codes, weights: Array, subjects: Codes) -> GapScore:
        """Count calls, and divide numbers of images by the design effect of the gap (Rao & Scott 1992).

        The effect is never under 1. One subject more in each cell, whose images are all called otherwise, is added to
        what is seen, as in :class:`audit.evidence.paired.PairedCounts`.

        Parameters
        ----------
        called : numpy.ndarray, shape (N,)
            0 or 1.
        cells : numpy.ndarray of int, shape (N,)
            No cell may be empty.
        weights : numpy.ndarray, shape (K,)
        subjects : numpy.ndarray of int, shape (N,)
        """
        images = np.bincount(cells, minlength=len(weights)).astype(np.float64)
        rates: Array = np.bincount(cells, weights=called, minlength=len(weights)) / images
        plain = float((weights**2 * rates * (1 - rates) / images).sum())
        return cls(rates, images / _design_effect(called, cells, weights, subjects, plain), weights)

    @property
    def value(self) -> float:
        """The gap."""
        return float(self.weights @ self.rates)

    def p_within(self, margin: float) -> float:
        """Return the p-value that the true gap is within a margin of 0: the larger of two one-sided ones."""
        return max(float(ndtr(side * self.z(side * margin))) for side in (1, -1))

    def p_beyond(self, margin: float) -> float:
        """Return the one-sided p-value that the true gap is beyond the margin, on the side where it is seen."""
        side = 1 if self.value >= 0 else -1
        return float(ndtr(-side * self.z(side * margin)))

    def interval(self, level: float) -> Estimate:
        """Return the gap with the bounds that one-sided tests at half of 1 - level do not reject."""
        z = -float(ndtri((1 - level) / 2))
        return Estimate(value=self.value, low=solve(self.z, z), high=solve(self.z, -z), level=level)

    def power(self, margin: float, alpha: float) -> Callable[[float], float]:
        """Return the power of ``p_within`` with so many times the images, if both groups have these rates together."""
        together = self._without_gap()
        at_margin = max(together.variance(together.rates_at(side * margin)) for side in (1, -1))
        return _power(margin, alpha, at_margin, together.variance(together.rates), together.step)

    def _without_gap(self) -> GapScore:
        """Return the same with the rate of each label taken over both groups."""
        half = len(self.rates) // 2
        images, called = (x.reshape(2, half).sum(axis=0) for x in (self.sizes, self.sizes * self.rates))
        return GapScore(np.tile(called / images, 2), self.sizes, self.weights)

    @property
    def step(self) -> float:
        """Half of what one image moves the gap by, at most."""
        return _step(self.weights, self.sizes)

    def variance(self, rates: Array) -> float:
        """Return the variance of the gap if these are the true rates."""
        return float((self.weights**2 * rates * (1 - rates) / self.sizes).sum())

    def rates_at(self, gap: float) -> Array:
        """Return the likeliest true rates under which the gap is this one, in (-1, 1)."""
        away = self.value - gap
        if abs(away) < ROUNDING:
            return self.rates
        most = 2 * away / max(self.variance(self.rates), NO_SPREAD**0.5)  # at first order half of it would do
        while away * (float(self._moved(most) @ self.weights) - gap) > 0:
            most *= 4
        pull = optimize.brentq(lambda x: float(self._moved(x) @ self.weights) - gap, 0, most, rtol=1e-9)
        return self._moved(float(pull))

    def _moved(self, pull: float) -> Array:
        """Return the rates that solve size (rate - true) = pull weight true (1 - true): 0 leaves them as they are."""
        a = pull * self.weights
        b = self.sizes + a
        root = np.sqrt(np.maximum(b * b - 4 * a * self.sizes * self.rates, 0))
        below = np.where(b > 0, b + root, 1)
        other = np.where(b > 0, 1, 2 * a)
        found: Array = np.where(b > 0, 2 * self.sizes * self.rates / below, (b - root) / other)
        return found

    def z(self, gap: float) -> float:
        """Return how far the gap is above a true one, in standard errors, one step nearer to it."""
        return _towards(self.value - gap, self.step, self.variance(self.rates_at(gap)))


@dataclass(frozen=True)
class GapChange:
    """Gained and lost calls of the cells of a gap, as if each image were a subject of its own.

    Parameters
    ----------
    gained, lost, sizes : numpy.ndarray, shape (K,)
        Images that are newly called the outcome, and no longer, and all; over the design effect.
    weights : numpy.ndarray, shape (K,)
    """

    gained: Array
    lost: Array
    sizes: Array
    weights: Array

    @classmethod
    def of(cls, change: npt.NDArray[np.int64], cells: Codes, weights: Array, subjects: Codes) -> GapChange:
        """Count changes (1, -1, 0), and divide by their design effect as :meth:`GapScore.of` does."""
        k = len(weights)
        images = np.bincount(cells, minlength=k).astype(np.float64)
        gained, lost = (np.bincount(cells, weights=change == way, minlength=k) for way in (1, -1))
        spread = (gained + lost) / images - ((gained - lost) / images) ** 2
        plain = float((weights**2 * spread / images).sum())
        effect = _design_effect(change.astype(np.float64), cells, weights, subjects, plain)
        return cls(gained / effect, lost / effect, images / effect, weights)

    @property
    def value(self) -> float:
        """By how much the gap rose."""
        return float(self.weights @ ((self.gained - self.lost) / self.sizes))

    @property
    def step(self) -> float:
        """Half of what one image moves the gap by, at most."""
        return _step(self.weights, self.sizes)

    def z(self, rise: float) -> float:
        """Return how far the rise is above a true one, in standard errors, one step nearer to it.

        The variance of each cell is Tango's (1998), with what is missing to the true rise shared out evenly.
        """
        return _towards(self.value - rise, self.step, self.variance(rise))

    def variance(self, rise: float) -> float:
        """Return the variance of the rise, if this is the true one."""
        missing = (rise - self.value) / float(np.abs(self.weights).sum())
        true = (self.gained - self.lost) / self.sizes + np.sign(self.weights) * missing
        true = np.clip(true, -1 + EDGE, 1 - EDGE)
        cells = zip(self.gained, self.lost, self.sizes, true, self.weights, strict=True)
        return float(sum(w**2 / n * score_variance(float(b), float(c), float(n), float(d)) for b, c, n, d, w in cells))

    def power(self, margin: float, alpha: float) -> Callable[[float], float]:
        """Return the power to show a rise under the margin and a fall under it, if there is neither.

        With so many times the images, of which as many change as here, and one more in each cell (Agresti & Min 2005),
        as many one way as the other.
        """
        half = self.sizes * (self.gained + self.lost + 1) / (self.sizes + 2) / 2
        even = GapChange(half, half, self.sizes, self.weights)
        at_margin = max(even.variance(side * margin) for side in (1, -1))
        spread = float((self.weights**2 * 2 * half / self.sizes**2).sum())
        return _power(margin, alpha, at_margin, spread, self.step)


def solve(z: Callable[[float], float], at: float) -> float:
    """Return where z, which falls with the true gap, has a value; the end of the scale where it has it nowhere."""
    if z(-1 + EDGE) <= at:
        return -1.0
    if z(1 - EDGE) >= at:
        return 1.0
    return float(optimize.brentq(lambda gap: z(gap) - at, -1 + EDGE, 1 - EDGE, xtol=1e-6))


def _design_effect(y: Array, cells: Codes, weights: Array, subjects: Codes, plain: float) -> float:
    """Return how many times the plain variance the clustered one is, never under 1.

    In every cell one subject more is added, all of whose images deviate by 1.
    """
    k = len(weights)
    images = np.bincount(cells, minlength=k)
    pairs, own = np.unique(subjects * k + cells, return_counts=True)
    typical = np.bincount(pairs % k, weights=own.astype(np.float64) ** 2, minlength=k) / images
    one_more = weights**2 / images**2 * typical
    seen = cluster_variance(y, cells, weights, subjects) + float((one_more * typical).sum())
    return max(1.0, seen / (plain + float(one_more.sum())))


def _step(weights: Array, sizes: Array) -> float:
    return HALF_AN_IMAGE * float((np.abs(weights) / sizes).max())


def _towards(away: float, step: float, variance: float) -> float:
    """Return a distance in standard errors, a step shorter."""
    return math.copysign(max(0.0, abs(away) - step), away) / math.sqrt(max(variance, NO_SPREAD))


def _power(margin: float, alpha: float, at_margin: float, spread: float, step: float) -> Callable[[float], float]:
    """Return the power of two one-sided tests with so many times the images, from variances at the margin and at 0."""
    z = -float(ndtri(alpha))

    def at(times: float) -> float:
        spare = margin - step / times - z * math.sqrt(at_margin / times)
        if spread <= 0:
            return float(spare >= 0)
        return max(0.0, 2 * float(ndtr(spare / math.sqrt(spread / times))) - 1)

    return at
