"""Fewer exact patches: first-order estimates of all of them, corrected by exact patches of some.

The estimate of a mediated gap is the mean of the first-order estimates of every recipient and donor pair, plus the mean
of (exact - first order) over recipients drawn at random and patched exactly: a difference estimator, control variate or
prediction-powered inference (Angelopoulos et al. 2023). Whatever first order misses makes it wider, not wrong: it is
unbiased for a given coefficient, and nearly so for the one that the patches suggest. More patches make it
narrower. All of it can be written as one value per recipient, so that the permutations, intervals and shares of
``effects`` apply unchanged.

The control-variate coefficient is a ratio of sums of products of two differences. Swapping the labels of a donor
pair changes the sign of both factors, so that it does not see the labels that the permutation test swaps. How
many recipients are patched (``share_needed``) follows variances, which see them through means alone; simulations count
how often something is found in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats as sps

from audit.evidence.effects import SwapEffects
from audit.evidence.stats import Array, Codes, components

Mask = npt.NDArray[np.bool_]
LEAST = 30  # recipients that every head is patched for, or all where there are fewer
SLACK = 1.05  # of the variance: an interval that is wider by half as much counts as just as narrow
MARGIN = 1.5  # as many more patches than seem enough: what first order misses is known from a sample only


@dataclass(frozen=True)
class FirstOrder:
    """First-order changes of p_c, arrays (2, R, K) with the cross-group donor and with the placebo.

    ``own``, ``pair`` and ``both`` as in ``patching.first_order``.
    """

    own: Array
    pair: Array
    both: Array


@dataclass(frozen=True)
class Sampled:
    """Design A of one contrast, split and outcome, some of it patched."""

    effects: SwapEffects  # as laid out; cross and placebo are not numbers where nothing was patched
    first_order: FirstOrder

    @cached_property
    def chosen(self) -> Mask:
        """Which heads were patched for which recipient, (R, K)."""
        return np.isfinite(self.effects.cross)

    @property
    def cell(self) -> npt.NDArray[np.int64]:
        """Label and side of each recipient, (R,)."""
        return self.effects.label * 2 + self.effects.is_group

    @cached_property
    def share(self) -> Array:
        """Share of the recipient's label and side that is patched, (R, K)."""
        share = np.empty(self.effects.cross.shape)
        for code in np.unique(self.cell):
            rows = self.cell == code
            share[rows] = self.chosen[rows].mean(axis=0)
        return share

    @cached_property
    def lift(self) -> Array:
        """How many recipients of its label and side each patched one counts for, (R, K); 0 of those not patched."""
        return np.divide(1.0, self.share, out=np.zeros(self.share.shape), where=self.chosen)

    @property
    def exact(self) -> Array:
        """Exact differences between the two donors where patched, else 0."""
        return np.where(self.chosen, self.effects.difference, 0.0)

    @cached_property
    def control_variate_coefficient(self) -> Array:
        """Coefficient of first order as a control variate, (K,).

        The slope of exact on first-order differences where patched, through the origin.
        0 where every recipient is patched: there is nothing left to estimate.
        """
        own = self.first_order.own[0] - self.first_order.own[1]
        weight = (self.effects.mediated_weights() ** 2)[:, None] * self.lift
        together, alone = (weight * self.exact * own).sum(axis=0), (weight * own**2).sum(axis=0)
        slope = np.divide(together, alone, out=np.zeros_like(alone), where=alone > 0)
        coefficient: Array = np.where(self.chosen.all(axis=0), 0.0, slope)
        return coefficient

    @cached_property
    def correlation(self) -> Array:
        """Correlation (uncentred) of exact and first-order differences where patched, (K,)."""
        own = np.where(self.chosen, self.first_order.own[0] - self.first_order.own[1], 0.0)
        scale = np.sqrt((own**2).sum(axis=0) * (self.exact**2).sum(axis=0))
        together = (own * self.exact).sum(axis=0)
        correlation: Array = np.divide(together, scale, out=np.zeros_like(scale), where=scale > 0)
        return correlation

    def take(self, rows: Codes) -> Sampled:
        """Return some of the recipients; the share that is patched and the coefficient are theirs."""
        first = self.first_order
        return Sampled(self.effects.take(rows), FirstOrder(*(a[:, rows] for a in (first.own, first.pair, first.both))))

    def where_patched(self) -> tuple[Array, Array]:
        """Return the mediated gaps (K,) by exact patches and to first order, both of the patched recipients alone."""
        weights = self.effects.mediated_weights()[:, None] * self.lift
        own = self.first_order.own[0] - self.first_order.own[1]
        return (weights * self.exact).sum(axis=0), (weights * own).sum(axis=0)

    def combined(self) -> SwapEffects:
        """Return the effects with a value for every recipient: first order, corrected where patched."""
        coefficient, lifted = self.control_variate_coefficient, self.lift
        base = self.effects.unpatched[:, None]

        def corrected(exact: Array, own: Array, average: Array) -> Array:
            value: Array = coefficient * average + lifted * np.where(self.chosen, exact - coefficient * own, 0.0)
            return value

        measured = (self.effects.cross - base, self.effects.placebo - base)
        first = self.first_order
        cross, placebo = (base + corrected(measured[i], first.own[i], first.both[i]) for i in (0, 1))
        tested = corrected(self.exact, first.own[0] - first.own[1], first.pair[0] - first.pair[1])
        return replace(self.effects, cross=cross, placebo=placebo, tested=tested, measured=self.chosen)

    def share_needed(self, half_width: float | None = None) -> Array:
        """Return the share of recipients to patch, by head (K,), from those that are patched.

        Parameters
        ----------
        half_width : float, optional
            Of the 95% interval of a mediated gap, as probability. By default the interval is to be as narrow, to within
            the ``SLACK``, as if every recipient were patched: with what is estimated averaged over donors, or with
            nothing estimated, whichever is wider.
        """
        averaged, plain, missed = self._variances
        allowed = (
            SLACK * (np.maximum(plain, averaged) + missed)
            if half_width is None
            else (half_width / sps.norm.ppf(0.975)) ** 2
        )
        room = allowed - averaged
        share = np.divide(missed, room, out=np.ones_like(missed), where=room > missed)
        return np.where(missed > 0, (MARGIN * share).clip(0.0, 1.0), 0.0)

    def variance(self, share: Array) -> Array:
        """Return the variance (K,) of the mediated gaps when the shares (K,) of recipients are patched."""
        averaged, _, missed = self._variances
        return averaged + np.divide(missed, share, out=np.zeros_like(missed), where=share > 0)

    @cached_property
    def _variances(self) -> tuple[Array, Array, Array]:
        """Return what makes up the variance of the mediated gaps, each (K,).

        With weights w, clusters c and residuals e = exact - coefficient * first order, all within label and side,
        patching the share s leaves the variance ``sum_c (sum_{r in c} w both)^2 + sum_r (w e)^2 / s``; patching all
        of them and averaging nothing leaves that of ``own`` in place of ``both``, with s = 1. Returned are the terms
        of ``both``, of ``own``, and of e.
        """
        weights, coefficient, first = (
            self.effects.mediated_weights()[:, None],
            self.control_variate_coefficient,
            self.first_order,
        )
        own, both = (self._centred(coefficient * (a[0] - a[1])) for a in (first.own, first.both))
        rest = self._centred(np.where(self.chosen, self.exact - coefficient * (first.own[0] - first.own[1]), np.nan))
        missed: Array = np.nansum((weights * rest) ** 2 / self.share, axis=0)
        return self._variance(weights * both), self._variance(weights * own), missed

    def _centred(self, values: Array) -> Array:
        """Subtract the mean of each label and side, over those that have a value."""
        centred = np.empty_like(values)
        for code in np.unique(self.cell):
            rows = self.cell == code
            centred[rows] = values[rows] - np.nanmean(values[rows], axis=0)
        return centred

    def _variance(self, contributions: Array) -> Array:
        """Return the sum over clusters of their squared sums, (K,)."""
        clusters = components(self.effects.subject, self.effects.unit)
        sums = np.zeros((clusters.max() + 1, contributions.shape[1]))
        np.add.at(sums, clusters, contributions)
        total: Array = (sums**2).sum(axis=0)
        return total


def draw(cell: npt.NDArray[np.int64], share: Array, *, seed: int) -> Mask:
    """Draw recipients at random, at least ``LEAST`` of them and two of every cell.

    Parameters
    ----------
    cell : numpy.ndarray of int (R,)
        Label and side: the same share is drawn of each.
    share : numpy.ndarray (K,)
        For each head. The larger of two shares draws all that the smaller does: with the same seed, a later draw adds
        to an earlier one.
    seed : int

    Returns
    -------
    numpy.ndarray of bool (R, K)
    """
    order = np.random.default_rng(seed).permutation(len(cell))
    at_least = np.maximum(share, LEAST / len(cell))
    chosen = np.zeros((len(cell), len(share)), dtype=bool)
    for code in np.unique(cell):
        rows = order[cell[order] == code]
        counts = np.clip(np.ceil(at_least * len(rows) - 1e-9), 2, len(rows))
        chosen[rows] = np.arange(len(rows))[:, None] < counts
    return chosen
