"""A difference of two groups' rates, with both groups at the same covariates: regression standardisation.

Each group's curve of its rate over the covariates is a logistic regression on restricted cubic splines, fitted to that
group alone, so that nothing says that the curves are alike. Both are averaged over the covariates of all images of
either group (g-computation: Robins 1986). What an image adds to the spread of the result is its influence, by the delta
method; sums over subjects make it robust to what images of one subject have in common (Liang & Zeger 1986).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from audit.evidence.stats import NO_SPREAD, Array, Codes

KNOTS = (0.1, 0.5, 0.9)  # quantiles: lines beyond the outer two, a bend between them (Harrell 2015)
SUBJECTS_A_TERM = 10  # in the smaller group; with fewer the curves have fewer terms
SLOPE_SD = 2.5  # of the normal prior of a standardised slope, so that a curve is finite where it could be a step
SAME = 1e-8  # of the largest singular value: terms that say the same

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """A difference between two groups, and what moves it."""

    value: float
    influence: Array  # (N,), what each image adds to its spread
    unseen: float  # variance that the images do not show

    @staticmethod
    def of(group: Difference, reference: Difference) -> Difference:
        """Subtract a rate from another."""
        influence = group.influence - reference.influence
        return Difference(group.value - reference.value, influence, group.unseen + reference.unseen)


def plain_difference(called: Array, is_group: Flags) -> Difference:
    """Return the difference of two rates as they are."""
    return Difference.of(*(_plain_rate(called, own) for own in (is_group, ~is_group)))


def standardised_difference(called: Array, is_group: Flags, covariates: Array, subjects: Codes) -> Difference:
    """Return the difference of two rates with both groups at the covariates of all images.

    Parameters
    ----------
    called : numpy.ndarray (N,)
        0 or 1.
    is_group : numpy.ndarray of bool (N,)
        Both groups have an image.
    covariates : numpy.ndarray (N, C)
    subjects : numpy.ndarray of int (N,)

    Returns
    -------
    Difference
        With fewer than ten subjects in a group for each term, curves are lines; with fewer for these, constant.
    """
    design = spline_design(covariates, is_group, subjects)
    return Difference.of(*(_rate(design, called, own, subjects) for own in (is_group, ~is_group)))


def spline_design(covariates: Array, is_group: Flags, subjects: Codes) -> Array:
    """Return the terms (N, T) on which curves are fitted; the fewer subjects, the fewer."""
    return _design(covariates, _most_terms(is_group, subjects))


def _most_terms(is_group: Flags, subjects: Codes) -> int:
    return min(len(np.unique(subjects[own])) for own in (is_group, ~is_group)) // SUBJECTS_A_TERM


def _plain_rate(called: Array, own: Flags) -> Difference:
    size, rate = int(own.sum()), float(called[own].mean())
    influence = np.zeros(len(called))
    influence[own] = (called[own] - rate) / (size * np.sqrt(max(1 - 1 / size, 0.5)))
    return Difference(rate, influence, 0.0)


def _rate(design: Array, called: Array, own: Flags, subjects: Codes) -> Difference:
    """Return what one group's rate would be with the covariates of all images."""
    x, y = design[own], called[own]
    slopes = design.shape[1] - 1
    if y.min() == y.max():
        everywhere, pull = np.full(len(design), y[0]), np.zeros(len(y))
    else:
        curve = _fitted(x, y)
        everywhere, here = expit(design @ curve), expit(x @ curve)
        weights = here * (1 - here)
        information = (x * weights[:, None]).T @ x + np.diag([0.0] + [SLOPE_SD**-2] * slopes)
        gradient = (design * (everywhere * (1 - everywhere))[:, None]).mean(axis=0)
        solved = np.linalg.solve(information, np.column_stack([gradient, x.T]))
        leverage = weights * np.einsum("ij,ji->i", x, solved[:, 1:])
        pull = (x @ solved[:, 0]) * (y - here) / np.sqrt(1 - leverage)  # HC2: MacKinnon & White 1985
    influence = (everywhere - everywhere.mean()) / len(design)
    influence[own] += pull
    return Difference(float(everywhere.mean()), influence, _unseen(y, pull, subjects[own]))


def _unseen(called: Array, pull: Array, subjects: Codes) -> float:
    """Return the variance of an adjusted proportion (Agresti & Caffo 2000) where no subject moves a rate; else 0."""
    of_subject = np.unique(subjects, return_inverse=True)[1]
    if (np.bincount(of_subject, weights=pull) ** 2).sum() >= NO_SPREAD:
        return 0.0
    seen = int(of_subject.max()) + 1
    adjusted = (float(called.mean()) * seen + 1) / (seen + 2)
    return adjusted * (1 - adjusted) / (seen + 2)


def _fitted(x: Array, y: Array) -> Array:
    """Return intercept and slopes of a logistic regression."""
    if x.shape[1] == 1:
        return np.array([logit(y.mean())])
    found = LogisticRegression(C=SLOPE_SD**2, solver="newton-cholesky", tol=1e-8).fit(x[:, 1:], y)
    return np.concatenate([found.intercept_, found.coef_[0]])


def _design(covariates: Array, most: int) -> Array:
    """Return a column of ones and at most so many terms of the covariates, uncorrelated and standardised.

    While there is room for all of a kind: a line for each number, then whether a category is a value of its, then a
    bend for each number.
    """
    columns = [column for column in covariates.T if np.ptp(column) > 0]
    kinds = [
        [column for column in columns if not _is_category(column)],
        [column for column in columns if _is_category(column)],
        [bend for column in columns if (bend := _bend(column)) is not None],
    ]
    terms: list[Array] = []
    for kind in kinds:
        if len(terms) + len(kind) > most:
            break
        terms += kind
    ones = np.ones((len(covariates), 1))
    if not terms:
        return ones
    table = np.column_stack([(term - term.mean()) / term.std() for term in terms])
    left, sizes, _ = np.linalg.svd(table, full_matrices=False)
    return np.hstack([ones, left[:, sizes > SAME * sizes[0]] * np.sqrt(len(table))])


def has_room(covariates: Array, is_group: Flags, subjects: Codes) -> npt.NDArray[np.bool_]:
    """Tell of each covariate (C,) whether curves have a term of it, or it is the same in all images."""
    most = _most_terms(is_group, subjects)
    varies = np.array([np.ptp(column) > 0 for column in covariates.T], dtype=np.bool_)
    category = np.array([_is_category(column) for column in covariates.T], dtype=np.bool_)
    lines = int((varies & ~category).sum())
    room = np.where(category, int(varies.sum()) <= most, lines <= most)
    found: npt.NDArray[np.bool_] = ~varies | room
    return found


def _is_category(column: Array) -> bool:
    return len(np.unique(column)) <= 2


def _bend(values: Array) -> Array | None:
    """Return the second term of a restricted cubic spline; None where the knots are not three."""
    low, middle, high = np.quantile(values, KNOTS)
    if not low < middle < high:
        return None

    def cubed(knot: float) -> Array:
        rise: Array = np.maximum((values - knot) / (high - low), 0.0) ** 3
        return rise

    share = (high - low) / (high - middle)
    bend: Array = cubed(low) - share * cubed(middle) + (share - 1) * cubed(high)
    return bend
