"""Intervals and tests for images that come in subjects.

The subject is the unit: images of one subject are not independent, so every interval is robust to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats
from statsmodels.stats.proportion import proportion_confint

from audit.records import Estimate

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
POWER = 0.8
EXACT_SEEDS = 12  # at most so many seeds have all their sign patterns enumerated
PATTERNS = 9_999  # drawn at random of more seeds
SEEDS_AS_UNIT = 6  # the fewest whose sign-flip test can reach p = 0.05 two-sided: 2 / 2^6
NO_SPREAD = 1e-24  # variance of a mean that is nothing but rounding


def excludes_zero(estimate: Estimate) -> bool:
    """Tell whether an interval is known, finite, and on one side of 0."""
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and bool(np.isfinite([low, high]).all()) and (low > 0 or high < 0)


def is_more(value: float | None, limit: float) -> bool:
    """Tell whether a number is known, finite, and more than ``limit``: what is missing shows nothing."""
    return value is not None and bool(np.isfinite(value)) and value > limit


def is_at_most(value: float | None, limit: float) -> bool:
    """Tell whether a number is known, finite, and at most ``limit``: what is missing shows nothing."""
    return value is not None and bool(np.isfinite(value)) and value <= limit


def as_fraction(estimate: Estimate) -> Estimate:
    """Return an estimate with its bounds cut at 0 and 1; a bound that is missing stays so."""
    return _within(estimate, 0.0)


def as_difference(estimate: Estimate) -> Estimate:
    """Return the estimate of a difference of rates with its bounds cut at -1 and 1; a missing one stays so."""
    return _within(estimate, -1.0)


def _within(estimate: Estimate, least: float) -> Estimate:
    low, high = estimate.low, estimate.high
    return estimate.model_copy(
        update={"low": None if low is None else max(least, low), "high": None if high is None else min(1.0, high)}
    )


def rate_interval(hits: npt.NDArray[np.bool_], subjects: Codes, *, level: float = 0.95) -> Estimate:
    """Return a rate with Wilson's interval at the effective sample size.

    The number of images is divided by the design effect of the subjects (never raised by it); where that cannot be
    seen, with one subject or with all images alike, the subjects are counted instead of the images.

    Parameters
    ----------
    hits : numpy.ndarray of bool, shape (N,)
    subjects : numpy.ndarray of int, shape (N,)
    level : float

    Returns
    -------
    Estimate
        Without a value where N is 0.
    """
    n = len(hits)
    if n == 0:
        return Estimate(value=None)
    rate = float(hits.mean())
    spread = rate * (1 - rate) / n
    of_subject = np.unique(subjects, return_inverse=True)[1]
    totals = np.bincount(of_subject, weights=hits - rate)
    effective = float(len(totals))
    if spread > 0 and len(totals) > 1:
        effective = n / max(1.0, float((totals**2).sum()) / n**2 / spread)
    low, high = proportion_confint(rate * effective, effective, alpha=1 - level, method="wilson")
    return Estimate(value=rate, low=float(low), high=float(high), level=level)


@dataclass(frozen=True)
class Combination:
    """A weighted sum of cell means with its standard error and two-sided p."""

    value: float
    error: float
    p: float

    def interval(self, level: float = 0.95) -> Estimate:
        """Return the normal interval."""
        half = float(stats.norm.ppf(0.5 + level / 2)) * self.error
        return Estimate(value=self.value, low=self.value - half, high=self.value + half, level=level)


def combine_cells(y: Array, cells: Codes, weights: Sequence[float], subjects: Codes) -> Combination:
    """Estimate ``sum_k weights[k] * mean(y | cell k)``, robust to correlation within subjects.

    Parameters
    ----------
    y : numpy.ndarray, shape (N,)
        Outcomes in [0, 1].
    cells : numpy.ndarray of int, shape (N,)
        Cell of each image, 0..K-1; no cell may be empty.
    weights : sequence of float, length K
    subjects : numpy.ndarray of int, shape (N,)

    Returns
    -------
    Combination
        Cluster-robust (Liang & Zeger 1986). A cell whose subjects do not differ, or that holds one subject only,
        shows no spread of its own and would look certain; its variance is that of Agresti & Caffo's (2000)
        adjusted proportion over its subjects. Likewise all cells, where no subject moves the sum.
    """
    n, k = len(y), len(weights)
    w = np.asarray(weights, dtype=np.float64)
    of_subject = np.unique(subjects, return_inverse=True)[1]
    counts = np.bincount(cells, minlength=k)
    means = np.bincount(cells, weights=y, minlength=k) / counts
    pull = np.zeros((of_subject.max() + 1, k))  # of each subject on each cell's mean
    deviations = y - means[cells]
    deviations /= counts[cells]
    np.add.at(pull, (of_subject, cells), deviations)
    seen = np.zeros_like(pull, dtype=bool)
    seen[of_subject, cells] = True
    clusters, in_cell = len(pull), seen.sum(axis=0)
    correction = clusters / (clusters - 1) * (n - 1) / (n - k) if clusters > 1 and n > k else 1.0
    adjusted = (means * in_cell + 1) / (in_cell + 2)
    spread = float(((pull @ w) ** 2).sum())
    certain = (np.square(pull, out=pull).sum(axis=0) < NO_SPREAD) | (spread < NO_SPREAD)
    hidden = np.where(certain, adjusted * (1 - adjusted) / (in_cell + 2), 0.0)
    error = float(np.sqrt(correction * spread + (w**2 * hidden).sum()))
    value = float(w @ means)
    return Combination(value, error, float(2 * stats.norm.sf(abs(value) / error)) if error > 0 else np.nan)


def cluster_variance(y: Array, cells: Codes, weights: Array, subjects: Codes) -> float:
    """Return the cluster-robust variance (Liang & Zeger 1986) of ``sum_k weights[k] * mean(y | cell k)``.

    As in :func:`combine_cells`, but a cell whose images agree counts as certain.
    """
    n, k = len(y), len(weights)
    of_subject = np.unique(subjects, return_inverse=True)[1]
    counts = np.bincount(cells, minlength=k)
    means = np.bincount(cells, weights=y, minlength=k) / counts
    pull = np.bincount(of_subject, weights=(weights / counts)[cells] * (y - means[cells]))
    clusters = len(pull)
    correction = clusters / (clusters - 1) * (n - 1) / (n - k) if clusters > 1 and n > k else 1.0
    return correction * float(pull @ pull)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(q) for q in adjusted]


def smallest_detectable(error: float, *, alpha: float, family: int) -> float:
    """Return the smallest true difference found with 80% power by a two-sided test at ``alpha / family``."""
    return float((stats.norm.ppf(1 - alpha / (2 * max(1, family))) + stats.norm.ppf(POWER)) * error)


def equivalence_p(value: float, error: float, margin: float) -> float:
    """Return the p-value of two one-sided tests that the true value lies within ``margin`` of 0 (Schuirmann 1987).

    Small: the effect is shown to be smaller than the margin. Large: it may or may not be.
    """
    if not np.isfinite([value, error, margin]).all():
        return 1.0
    if error <= 0:
        return 0.0 if abs(value) < margin else 1.0
    return float(stats.norm.sf((margin - abs(value)) / error))


@dataclass(frozen=True)
class OverSeeds:
    """What training seeds say together, each counting once: mean with Student's t interval, exact two-sided p."""

    estimate: Estimate
    p: float


def over_seeds(values: Sequence[float], *, level: float = 0.95) -> OverSeeds | None:
    """Take the training seed as the unit: what would another model of the same recipe do.

    Parameters
    ----------
    values : sequence of float
        One estimate for each seed.
    level : float

    Returns
    -------
    OverSeeds or None
        The p-value is that of the sign-flip test: over all 2^S patterns up to twelve seeds, over random ones and the
        observed above. None under six seeds, for fewer cannot reach 0.05, or where a value is not a number.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < SEEDS_AS_UNIT or not np.isfinite(sample).all():
        return None
    p = _sign_flip_p(sample)
    mean, half = float(sample.mean()), float(stats.t.ppf(0.5 + level / 2, len(sample) - 1) * stats.sem(sample))
    return OverSeeds(Estimate(value=mean, low=mean - half, high=mean + half, level=level), p)


def _sign_flip_p(sample: Array) -> float:
    """Return the two-sided p-value of the sum under random signs."""
    s = len(sample)
    if s <= EXACT_SEEDS:
        signs = 1.0 - 2.0 * ((np.arange(2**s)[:, None] >> np.arange(s)) & 1)
    else:
        drawn = np.random.default_rng(0).choice((-1.0, 1.0), size=(PATTERNS, s))
        signs = np.vstack([np.ones((1, s)), drawn])
    reached = np.abs(signs @ sample) >= abs(sample.sum()) - 1e-9 * np.abs(sample).sum()
    return float(reached.mean())


def components(first: Codes, second: Codes) -> Codes:
    """Return a cluster number for each row, rows that share a value in either column being in one cluster."""
    a = np.unique(first, return_inverse=True)[1]
    b = np.unique(second, return_inverse=True)[1]
    size = a.max() + b.max() + 2
    graph = sparse.coo_matrix((np.ones(len(a)), (a, b + a.max() + 1)), shape=(size, size))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    return np.unique(labels[a], return_inverse=True)[1].astype(np.int64)
