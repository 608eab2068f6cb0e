"""Gaps of the parts of a sum with both groups at equal covariates; the parts' gaps sum to the whole's.

Within each label and group every part is regressed on restricted cubic splines of the covariates by least squares, and
the curves are averaged over the covariates of all images of that label (g-computation: Robins 1986). A least-squares
curve is linear in what it is fitted to, so curves of parts sum to the curve of their sum, to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.stats import norm

from audit.evidence.curves import Flags, spline_design
from audit.evidence.effects import SwapEffects
from audit.evidence.stats import NO_SPREAD, Array, Codes
from audit.records import Estimate

AT_ONCE = 4  # columns, so that memory grows with images alone
LEVEL = 0.95


def at_equal_covariates(columns: Iterable[Array], effects: SwapEffects, covariates: Array) -> list[Estimate]:
    """Return each column's gap with both groups at the same covariates.

    Parameters
    ----------
    columns : iterable of numpy.ndarray (N,)
        Few are held at a time.
    effects : SwapEffects
        Labels, sides, subjects and weights of the same N images. Where sides weigh labels differently (a gap in false
        positives), all labels with a weight are one.
    covariates : numpy.ndarray (N, C)
        Not a number where one is unknown: such images are left out.

    Returns
    -------
    list of Estimate
        Intervals are robust to what images of one subject have in common. Without a value where a label with a weight
        has no image with covariates in a group.
    """
    known = ~np.isnan(covariates).any(axis=1) & effects.weighted
    strata = [(weight, rows & known) for weight, rows in _strata(effects)]
    is_group, subjects = effects.is_group, np.unique(effects.subject, return_inverse=True)[1]
    if not strata or any(not (rows & (is_group == side)).any() for _, rows in strata for side in (True, False)):
        return [Estimate(value=None) for _ in columns]
    curves = [(weight, rows, _Curves.of(covariates[rows], is_group[rows], subjects[rows])) for weight, rows in strata]
    clusters = len(np.unique(subjects[known]))
    found: list[Estimate] = []
    for some in _side_by_side(columns):
        value, influence = np.zeros(some.shape[1]), np.zeros(some.shape)
        for weight, rows, fitted in curves:
            gap, moved = fitted.difference(some[rows])
            value += weight * gap
            influence[rows] += weight * moved
        variance = _variance(influence, subjects) * clusters / max(1, clusters - 1)
        half = norm.ppf(0.5 + LEVEL / 2) * np.sqrt(variance)
        found += [
            Estimate(value=float(v), low=float(v - h), high=float(v + h), level=LEVEL)
            if h**2 >= NO_SPREAD
            else Estimate(value=float(v))
            for v, h in zip(value, half, strict=True)
        ]
    return found


def _side_by_side(columns: Iterable[Array]) -> Iterator[Array]:
    """Yield tables (N, ``AT_ONCE``) of the columns."""
    rest = iter(columns)
    for first in rest:
        yield np.stack([first, *islice(rest, AT_ONCE - 1)], axis=1)


def _strata(effects: SwapEffects) -> Iterator[tuple[float, Flags]]:
    """Yield the labels that count, each with its weight and images."""
    if effects.group_shares is not None:
        yield 1.0, effects.weighted
        return
    for label, weight in effects.label_weights().items():
        if weight > 0:
            yield weight, effects.label == label


@dataclass(frozen=True)
class _Curves:
    """How curves are fitted to images of one label."""

    design: Array  # (n, T)
    sides: tuple[tuple[float, Flags, Array, Array], ...]  # sign, images, pseudo-inverse, subjects' leverages

    @classmethod
    def of(cls, covariates: Array, is_group: Flags, subjects: Codes) -> _Curves:
        design = spline_design(covariates, is_group, subjects)
        sides: list[tuple[float, Flags, Array, Array]] = []
        for sign, own in ((1.0, is_group), (-1.0, ~is_group)):
            solved: Array = np.asarray(np.linalg.pinv(design[own]), dtype=np.float64)
            of_subject = np.unique(subjects[own], return_inverse=True)[1]
            of_image = np.einsum("ij,ji->i", design[own], solved)
            leverage = np.bincount(of_subject, weights=of_image).astype(np.float64)[of_subject]
            sides.append((sign, own, solved, leverage))
        return cls(design, tuple(sides))

    def difference(self, columns: Array) -> tuple[Array, Array]:
        """Return each column's difference between curves, averaged over all images, and what each image adds to it."""
        value, influence = np.zeros(columns.shape[1]), np.zeros(columns.shape)
        for sign, own, solved, leverage in self.sides:
            curve = solved @ columns[own]
            everywhere = self.design @ curve
            rest = columns[own] - everywhere[own]
            rest /= np.sqrt(np.maximum(1 - leverage, 0.5))[:, None]  # as HC2, by subject: Bell & McCaffrey 2002
            moved = (everywhere - everywhere.mean(axis=0)) / len(self.design)
            moved[own] += (self.design.mean(axis=0) @ solved)[:, None] * rest
            value += sign * everywhere.mean(axis=0)
            influence += sign * moved
        return value, influence


def _variance(influence: Array, subjects: Codes) -> Array:
    summed = np.zeros((int(subjects.max()) + 1, influence.shape[1]))
    np.add.at(summed, subjects, influence)
    variance: Array = (summed**2).sum(axis=0)
    return variance
