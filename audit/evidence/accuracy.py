"""How often the model is right, overall and by group, and why it may be right no more often than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linear_sum_assignment

from audit.data.samples import UNKNOWN
from audit.evidence.stats import as_fraction, combine_cells, rate_interval
from audit.records import AccuracyRow, ChanceReason, Estimate

NEARLY_ALL = 0.99  # share of the images that get one answer
FITS = 1 / 3  # of the way from chance to 1 that balanced accuracy comes with another order of the classes
ROUNDING = 1e-9


def accuracy(frame: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> list[AccuracyRow]:
    """Return accuracy and balanced accuracy of all audited images, then of every group.

    Parameters
    ----------
    frame : pandas.DataFrame
        Audited images: ``label``, ``predicted``, ``subject`` and the attributes' columns.
    groups : mapping of str to sequence of str
        Groups of each attribute; images of unknown group have a row of their own.

    Returns
    -------
    list of AccuracyRow
        Accuracy with Wilson's interval, balanced accuracy (mean over the labels seen of the share recognised) with a
        cluster-robust one, both by subject.
    """
    rows = [_row(frame, "", "")]
    for attribute, names in groups.items():
        seen = [*names, UNKNOWN] if (frame[attribute] == UNKNOWN).any() and UNKNOWN not in names else names
        rows += [_row(frame[frame[attribute] == group], attribute, group) for group in seen]
    return rows


def _row(part: pd.DataFrame, attribute: str, group: str) -> AccuracyRow:
    subjects = pd.factorize(part["subject"])[0].astype(np.int64)
    right = (part["label"] == part["predicted"]).to_numpy()
    balanced = Estimate(value=None)
    if len(part):
        cells, names = pd.factorize(part["label"])
        weights = [1 / len(names)] * len(names)
        combined = combine_cells(right.astype(np.float64), cells.astype(np.int64), weights, subjects)
        balanced = as_fraction(combined.interval())
    return AccuracyRow(
        attribute=attribute,
        group=group,
        images=len(part),
        subjects=int(part["subject"].nunique()),
        accuracy=rate_interval(right, subjects),
        balanced_accuracy=balanced,
    )


def chance(frame: pd.DataFrame) -> float:
    """Return the balanced accuracy of a model that answers as often as this one does, whatever an image shows.

    One over the number of labels seen, where all answers are among them. A model of more classes that gives some of its
    answers to others would hit less often by chance: that share of each label's images, the labels counted alike, over
    the number of labels.
    """
    labels = frame["label"].unique()
    among = frame["predicted"].isin(labels).groupby(frame["label"], observed=True).mean()
    return float(among.mean()) / len(labels)


def is_above_chance(row: AccuracyRow, by_chance: float) -> bool:
    """Tell whether the interval of balanced accuracy shows that the model does better than chance.

    False where it could not be measured.
    """
    low = row.balanced_accuracy.low
    return low is not None and bool(np.isfinite(low)) and low > by_chance + ROUNDING


@dataclass(frozen=True)
class LikelyReason:
    """Why a model is at chance; ``order``: for each label the class under which the model seems to know it."""

    reason: ChanceReason
    order: tuple[int, ...] | None = None


def likely_reason(confusion: npt.NDArray[np.int64]) -> LikelyReason:
    """Guess why a model is right no more often than chance.

    Parameters
    ----------
    confusion : numpy.ndarray of int (k, k)
        Images by label (rows) and predicted class (columns), in the same order.

    Returns
    -------
    LikelyReason
        A constant answer; another order of the classes, found by the assignment problem (Kuhn 1955), with which
        balanced accuracy comes a third of the way from chance to 1; or answers that do not go with the labels.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.sum() == 0:
        return LikelyReason(ChanceReason.UNRELATED)
    if counts.sum(axis=0).max() >= NEARLY_ALL * counts.sum():
        return LikelyReason(ChanceReason.CONSTANT)
    images = counts.sum(axis=1, keepdims=True)
    recalled = np.divide(counts, images, out=np.zeros_like(counts), where=images > 0)
    labels, order = linear_sum_assignment(recalled, maximize=True)
    seen = int((images > 0).sum())
    fitted = float(recalled[labels, order].sum()) / seen
    chance = 1 / len(counts)
    if (order != labels).any() and fitted >= chance + (1 - chance) * FITS:
        return LikelyReason(ChanceReason.CLASS_ORDER, tuple(int(k) for k in order))
    return LikelyReason(ChanceReason.UNRELATED)
