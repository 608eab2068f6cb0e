"""Bounds on a gap whose labels, groups or sampling may be wrong, from counts of images alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit

from audit.evidence.called import is_called
from audit.evidence.disparity import Question, label_shares
from audit.evidence.stats import Array
from audit.records import ContrastRow, Metric

TRIED = 1000  # numbers of wrong labels that are tried, where there could be more
ROUNDING = 1e-12
Numbers = npt.NDArray[np.int64]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Cells:
    """Images of two groups by label: how many there are, and how many are called the outcome.

    Parameters
    ----------
    labels : sequence of str, length K
    weights : numpy.ndarray, shape (K,)
        Of each label in the standardised gap; they sum to 1.
    called, images : numpy.ndarray, shape (2, K)
        Of the group and of the reference.
    outcome : str
    metric : Metric
    """

    labels: Sequence[str]
    weights: Array
    called: Array
    images: Array
    outcome: str
    metric: Metric

    @property
    def is_outcome(self) -> npt.NDArray[np.bool_]:
        """Tell which of the labels is the outcome."""
        return np.array([label == self.outcome for label in self.labels])

    def strata(self) -> tuple[Array, Array, Array]:
        """Return the cells that are compared: weights, called and images, by what the metric keeps apart."""
        if self.metric == Metric.STANDARDISED_GAP:
            return self.weights, self.called, self.images
        keep = self.is_outcome if self.metric == Metric.TPR_GAP else ~self.is_outcome
        called, images = (x[:, keep].sum(axis=1, keepdims=True) for x in (self.called, self.images))
        return np.ones(1), called, images

    def gap(self) -> float:
        """Return the gap, group minus reference."""
        weights, called, images = self.strata()
        used = weights > 0
        rates = called[:, used] / images[:, used]
        return float(weights[used] @ (rates[0] - rates[1]))

    def exchanged(self) -> Cells:
        """Return the same with group and reference exchanged."""
        return replace(self, called=self.called[::-1], images=self.images[::-1])


def count_cells(frame: pd.DataFrame, question: Question, row: ContrastRow) -> Cells:
    """Count the images behind a gap.

    Parameters
    ----------
    frame : pandas.DataFrame
        As :func:`audit.evidence.disparity.contrasts` takes it.
    question : Question
    row : ContrastRow
    """
    pair = frame[frame[question.attribute].isin([row.group, row.reference])]
    shares = label_shares(frame, question)
    labels = list(shares)
    side = (pair[question.attribute] != row.group).to_numpy().astype(np.int64)
    cells = side * len(labels) + pd.Index(labels).get_indexer(pd.Index(pair["label"]))
    called = is_called(pair, row.outcome).to_numpy().astype(np.float64)
    hits: Array = np.bincount(cells, weights=called, minlength=2 * len(labels)).astype(np.float64)
    images: Array = np.bincount(cells, minlength=2 * len(labels)).astype(np.float64)
    weights = np.array([*shares.values()])
    return Cells(labels, weights, hits.reshape(2, -1), images.reshape(2, -1), row.outcome, row.metric)


@dataclass(frozen=True)
class _Truth:
    """One group's images, by whether they are labelled as the outcome, and by whether they are called so.

    Images of another label count with the factor that gives their label its weight among these.
    """

    weight: float  # of images labelled as the outcome; the others have the rest
    called: int
    missed: int
    others_called: Numbers  # by label, those with large factors first
    others_rest: Numbers
    factors: Array

    @classmethod
    def of(cls, cells: Cells, side: int) -> _Truth:
        own, called, images = cells.is_outcome, cells.called[side], cells.images[side]
        weight = {Metric.TPR_GAP: 1.0, Metric.FPR_GAP: 0.0}.get(cells.metric, float(cells.weights[own].sum()))
        others = images[~own]
        factors = np.ones(len(others))
        if cells.metric == Metric.STANDARDISED_GAP and weight < 1:
            factors = cells.weights[~own] / (1 - weight) * others.sum() / np.maximum(others, 1)
        order = np.argsort(-factors, kind="stable")
        return cls(
            weight,
            int(called[own].sum()),
            int((images - called)[own].sum()),
            called[~own][order].astype(np.int64),
            (images - called)[~own][order].astype(np.int64),
            factors[order],
        )

    def opposite(self) -> _Truth:
        """Return the same with what is called and what is not exchanged."""
        return replace(
            self,
            called=self.missed,
            missed=self.called,
            others_called=self.others_rest,
            others_rest=self.others_called,
        )

    def least(self, share: float) -> float:
        """Return the smallest rate of the group with up to a share of the labels on either side wrong."""
        own, others = self.called + self.missed, int(self.others_called.sum() + self.others_rest.sum())
        from_own, from_others = (int(share * n + ROUNDING) for n in (own, others))
        z = _whole_numbers(-min(self.missed, from_own), min(int(self.others_rest.sum()), from_others))
        lowest = -np.minimum(self.called, from_own - np.maximum(-z, 0))
        highest = np.minimum(int(self.others_called.sum()), from_others - np.maximum(z, 0))
        # In the number of called images that change sides the rate is concave between these, so least at one of them.
        between = (np.minimum(step, highest) for step in (0, *np.cumsum(self.others_called)))
        return float(min(self._rate(x, z).min() for x in (lowest, highest, *between)))

    def _rate(self, x: Numbers, z: Numbers) -> Array:
        """Return the rate with so many called and other images more among those labelled as the outcome.

        Of the others, called images with large factors move first, and images that are not called with small ones.
        """
        called, rest = self.others_called, self.others_rest
        left_called = float(self.factors @ called) - _drawn(x, called, self.factors)
        left_rest = float(self.factors @ rest) - _drawn(z, rest[::-1], self.factors[::-1])
        rate = np.zeros(len(x))
        if self.weight > 0:
            rate += self.weight * (self.called + x) / (self.called + self.missed + x + z)
        if self.weight < 1:
            rate += (1 - self.weight) * left_called / (left_called + left_rest)
        return rate


def _whole_numbers(low: int, high: int) -> Numbers:
    """Return all whole numbers of a range, or some of a long one, its ends and 0 included."""
    if high - low <= TRIED:
        return np.arange(low, high + 1)
    return np.unique(np.append(np.linspace(low, high, TRIED).round().astype(np.int64), 0))


def _drawn(number: Numbers, counts: Numbers, factors: Array) -> Array:
    """Return what a number of images weighs, drawn in order; what is put there instead weighs 1 an image."""
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    weighed = np.concatenate([[0.0], np.cumsum(counts * factors)])
    found: Array = np.where(number > 0, np.interp(number, ends, weighed), number)
    return found


def label_bounds(cells: Cells, share: float) -> Bounds:
    """Bound a gap where labels may be wrong about the outcome, differently in the two groups.

    Parameters
    ----------
    cells : Cells
    share : float
        In [0, 0.5]. At most this share of the images that are labelled as the outcome, and of the others, is wrong, in
        each of the two groups.

    Returns
    -------
    (float, float)
        The smallest and the largest gap over all such errors. Exact for up to 1,000 wrong labels in a group.
    """
    group, reference = (_Truth.of(cells, side) for side in (0, 1))
    low = group.least(share) - (1 - reference.opposite().least(share))
    high = 1 - group.opposite().least(share) - reference.least(share)
    return low, high


def gap_with_random_labels(cells: Cells, share: float) -> float | None:
    """Correct a gap for labels that are wrong at random, alike in both groups.

    Parameters
    ----------
    cells : Cells
    share : float
        Of wrong labels: the label of an image was replaced by one drawn from all labels of the two groups.

    Returns
    -------
    float or None
        None where labels cannot be so wrong: a cell would hold less than nothing.
    """
    q = cells.images.sum(axis=0) / cells.images.sum()
    replaced = share / max(1 - float(q @ q), ROUNDING)
    if replaced >= 1:
        return None
    parts = (cells.called, cells.images - cells.called)
    called, rest = ((x - replaced * q * x.sum(axis=1, keepdims=True)) / (1 - replaced) for x in parts)
    return _checked(replace(cells, called=called, images=called + rest))


def group_bounds(cells: Cells, share: float, share_of_reference: float | None = None) -> Bounds:
    """Bound a gap where annotations of group may be wrong: images of one of the two groups that are the other's.

    Parameters
    ----------
    cells : Cells
    share : float
        In [0, 0.5]. At most this share of the group's images of each label is the reference's.
    share_of_reference : float, optional
        The same of the reference's images; by default as many.

    Returns
    -------
    (float, float)
        The smallest and the largest gap over all such errors, exact.
    """
    other = share if share_of_reference is None else share_of_reference
    return _exchanged_bound(cells, share, other), -_exchanged_bound(cells.exchanged(), other, share)


def _exchanged_bound(cells: Cells, share: float, other: float) -> float:
    """Return the smallest gap: called images of the group are the reference's, others of the reference the group's."""
    weights, called, images = cells.strata()
    x = np.minimum(called[0], np.floor(share * images[0] + ROUNDING))
    z = np.minimum((images - called)[1], np.floor(other * images[1] + ROUNDING))
    used = weights > 0
    rates = ((called[0] - x) / (images[0] - x + z) - (called[1] + x) / (images[1] + x - z))[used]
    return float(weights[used] @ rates)


def gap_with_random_groups(cells: Cells, share: float, share_of_reference: float | None = None) -> float | None:
    """Correct a gap for annotations of group that are wrong at random.

    Parameters
    ----------
    cells : Cells
    share : float
        Of the group's images that are annotated as the reference's.
    share_of_reference : float, optional
        Of the reference's images that are annotated as the group's; by default as many.

    Returns
    -------
    float or None
        None where annotations cannot be so wrong.
    """
    other = share if share_of_reference is None else share_of_reference
    if share + other >= 1:
        return None
    back = np.array([[1 - other, -other], [-share, 1 - share]]) / (1 - share - other)
    parts = (cells.called, cells.images - cells.called)
    called, rest = (back @ x for x in parts)
    return _checked(replace(cells, called=called, images=called + rest))


def _checked(cells: Cells) -> float | None:
    """Return a corrected gap; None where a cell that counts holds less than nothing, or nothing."""
    weights, called, images = cells.strata()
    used = weights > 0
    least = min(called[:, used].min(), (images - called)[:, used].min())
    return cells.gap() if least >= -ROUNDING * cells.images.sum() and (images[:, used] > 0).all() else None


def sampling_bounds(cells: Cells, times: float) -> Bounds:
    """Bound a gap where being in the sample may depend on group, label and answer.

    Parameters
    ----------
    cells : Cells
    times : float
        At least 1. In each group and label, images that are called the outcome are at most so many times as likely to
        be in the sample as the others, or the others as they are.

    Returns
    -------
    (float, float)
        The smallest and the largest gap over all such samples, exact.
    """
    weights, called, images = cells.strata()
    with np.errstate(divide="ignore"):
        at = logit(called / images)
    shift = float(np.log(times))
    low, high = (expit(at[0] - s) - expit(at[1] + s) for s in (shift, -shift))
    return float(weights @ low), float(weights @ high)
