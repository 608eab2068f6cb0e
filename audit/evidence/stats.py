"""Intervals and tests for images that come in subjects.

The subject is the unit: images of one subject are not independent, so every interval is robust to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import statsmodels.api as sm
from scipy import sparse, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from audit.records import Estimate

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
POWER = 0.8


def rate_interval(hits: npt.NDArray[np.bool_], subjects: Codes, *, level: float = 0.95) -> Estimate:
    """Return a rate with Wilson's interval at the effective sample size.

    The number of images is divided by the design effect of the subjects (never raised by it).

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
    totals = np.bincount(np.unique(subjects, return_inverse=True)[1], weights=hits - rate)
    design_effect = max(1.0, float((totals**2).sum()) / n**2 / spread) if spread > 0 else 1.0
    effective = n / design_effect
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
        Cluster-robust (Liang & Zeger 1986), but never below the error that Agresti & Caffo's (2000) adjusted
        proportions give, so that cells without a single hit do not look certain.
    """
    k = len(weights)
    counts = np.bincount(cells, minlength=k)
    means = np.bincount(cells, weights=y, minlength=k) / counts
    design = np.eye(k)[cells]
    fit = sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": subjects, "use_correction": True})
    w = np.asarray(weights, dtype=np.float64)
    robust = float(np.sqrt(max(0.0, w @ np.asarray(fit.cov_params()) @ w)))
    adjusted = (means * counts + 1) / (counts + 2)
    floor = float(np.sqrt((w**2 * adjusted * (1 - adjusted) / (counts + 2)).sum()))
    plain = float(np.sqrt((w**2 * means * (1 - means) / counts).sum()))
    error = robust if plain > 0 and (counts * means * (1 - means)).min() > 0 else max(robust, floor)
    value = float(w @ means)
    return Combination(value, error, float(2 * stats.norm.sf(abs(value) / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values, in the order given."""
    if not len(p_values):
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def smallest_detectable(error: float, *, alpha: float, family: int) -> float:
    """Return the smallest true difference found with 80% power by a two-sided test at ``alpha / family``."""
    return float((stats.norm.ppf(1 - alpha / (2 * max(1, family))) + stats.norm.ppf(POWER)) * error)


def components(first: Codes, second: Codes) -> Codes:
    """Return a cluster number for each row, rows that share a value in either column being in one cluster."""
    a = np.unique(first, return_inverse=True)[1]
    b = np.unique(second, return_inverse=True)[1]
    size = a.max() + b.max() + 2
    graph = sparse.coo_matrix((np.ones(len(a)), (a, b + a.max() + 1)), shape=(size, size))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    return np.unique(labels[a], return_inverse=True)[1].astype(np.int64)
