"""Which images a gap between two groups compares, cell by cell, and how it weighs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.stats import Array, Codes
from audit.records import Metric


@dataclass(frozen=True)
class Question:
    """What is compared: an attribute or intersection, its groups, the reference, and the thresholds."""

    attribute: str  # column of the group; for an intersection such as ``gender x skin_tone`` a joined column
    reference: str
    groups: Sequence[str]  # reported even where no image is of the group


@dataclass(frozen=True)
class GapCells:
    """The images of one gap: the sum over cells of weight times mean is group minus reference.

    Parameters
    ----------
    rows : numpy.ndarray of int, shape (N,)
        Positions in the frame.
    cells : numpy.ndarray of int, shape (N,)
        Labels of the group first, then the same of the reference; one cell each where labels are not kept apart.
    weights : numpy.ndarray, shape (K,)
    is_group : numpy.ndarray of bool, shape (N,)
    labels : list of str
        Of each group's cells, in order; one that is empty, or the outcome's, where labels are not kept apart.
    """

    rows: Codes
    cells: Codes
    weights: Array
    is_group: npt.NDArray[np.bool_]
    labels: list[str]

    @property
    def none_empty(self) -> bool:
        """Tell whether there is a cell, and every one has an image."""
        return 0 < len(np.unique(self.cells)) == len(self.weights)


def label_shares(frame: pd.DataFrame, question: Question) -> dict[str, float]:
    """Return the common label weights: shares of each label among images of known group."""
    known = frame[frame[question.attribute].isin(question.groups)]
    return {str(k): float(v) for k, v in known["label"].value_counts(normalize=True).sort_index().items()}


def gap_cells(frame: pd.DataFrame, question: Question, group: str, outcome: str, metric: Metric) -> GapCells:
    """Lay out the images of a gap.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``label`` and the attribute's column; no prediction is needed.
    question : Question
    group : str
        Compared with the question's reference.
    outcome : str
    metric : Metric
    """
    of_group = (frame[question.attribute] == group).to_numpy()
    keep = of_group | (frame[question.attribute] == question.reference).to_numpy()
    if metric != Metric.STANDARDISED_GAP:
        keep &= ((frame["label"] == outcome) == (metric == Metric.TPR_GAP)).to_numpy()
    rows = np.flatnonzero(keep)
    shares = label_shares(frame, question) if metric == Metric.STANDARDISED_GAP else {"": 1.0}
    labels = frame["label"].iloc[rows] if metric == Metric.STANDARDISED_GAP else np.repeat("", len(rows))
    is_group = of_group[rows]
    cells = pd.Index([*shares]).get_indexer(pd.Index(labels)) + len(shares) * ~is_group
    weights = np.array([*shares.values()])
    named = [outcome] if metric == Metric.TPR_GAP else [*shares]
    return GapCells(rows, cells.astype(np.int64), np.concatenate([weights, -weights]), is_group, named)
