"""The parts that a researcher wants alone, on tensors and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.api.tables import Gaps, Rates
from audit.errors import DataError
from audit.evidence.disparity import Question, Thresholds, contrasts, rates_by_group
from audit.patching.api import attribution, patch_heads, sweep

__all__ = ["Disparity", "attribution", "disparity", "patch_heads", "sweep"]


class Disparity:
    """Rates by group and gaps between groups, as :func:`disparity` returns them."""

    def __init__(self, rates: Rates, gaps: Gaps) -> None:
        self.rates, self.gaps = rates, gaps

    def __repr__(self) -> str:
        return f"Disparity({len(self.rates)} rates, {len(self.gaps)} gaps)"


def disparity(
    y_true: Sequence[Any] | npt.NDArray[Any],
    y_pred: Sequence[Any] | npt.NDArray[Any],
    groups: Sequence[Any] | npt.NDArray[Any] | pd.Series | pd.DataFrame,
    subjects: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    outcomes: Sequence[str] | None = None,
    reference: str | None = None,
    alpha: float = 0.05,
    min_group_size: int = 30,
) -> Disparity:
    """Compare what is predicted of groups, with intervals that are robust to several images per person.

    Parameters
    ----------
    y_true, y_pred : array-like (N,)
        Labels and predicted labels.
    groups : array-like (N,) or pandas.DataFrame (N, attributes)
        Group of each image; missing values are groups of their own, called "unknown".
    subjects : array-like (N,), optional
        Who is in the picture; by default each image is a subject of its own.
    outcomes : sequence of str, optional
        Predicted labels to compare; by default all but the first of two.
    reference : str, optional
        The group that others are compared with; by default the largest. With several attributes, each one's largest.
    alpha : float
        Level of the tests, adjusted by Holm over all of them.
    min_group_size : int
        Fewer subjects are "too little data".

    Returns
    -------
    Disparity
        ``rates`` (selection, true- and false-positive rate, accuracy) and ``gaps`` (label-standardised,
        true-positive, false-positive), each with ``to_frame()`` and ``plot()``.

    Raises
    ------
    DataError
        If lengths differ or there is no second group or label.

    Examples
    --------
    >>> import vit_audit as va
    >>> truth, group = ["no", "yes"] * 100, ["a"] * 100 + ["b"] * 100
    >>> predicted = ["no", "yes"] * 50 + ["no"] * 100
    >>> gaps = va.disparity(truth, predicted, group).gaps.to_frame().set_index("metric")
    >>> float(gaps.loc["tpr_gap", "estimate"])
    -1.0
    """
    table = pd.DataFrame({"sensitive_feature": groups}) if not isinstance(groups, pd.DataFrame) else groups.copy()
    table = table.reset_index(drop=True).astype(object).where(lambda g: g.notna(), "unknown").astype(str)
    truth, predicted = (np.asarray(values).astype(str) for values in (y_true, y_pred))
    sizes = {len(truth), len(predicted), len(table)}
    people = np.arange(len(truth)) if subjects is None else np.asarray(subjects)
    if len(sizes | {len(people)}) > 1:
        raise DataError(
            "disparity", f"y_true, y_pred, groups, subjects differ in length: {sorted(sizes)}", "align them"
        )
    labels = sorted(set(truth) | set(predicted))
    if len(labels) < 2:
        raise DataError("disparity", f"one label only ({', '.join(labels)})", "give two")
    asked = list(outcomes) if outcomes is not None else labels[1:] if len(labels) == 2 else labels
    frame = table.assign(label=truth, predicted=predicted, subject=people)
    frame = frame.assign(**{f"p:{o}": (predicted == o).astype(float) for o in asked})
    questions = [_question(table[name], str(name), reference) for name in table]
    limits = Thresholds(alpha=alpha, min_group_size=min_group_size, impact_ratio_below=0.8, gap_above=0.1)
    rates = [row for question in questions for row in rates_by_group(frame, question, asked)]
    return Disparity(Rates(rates), Gaps(contrasts(frame, questions, asked, limits)))


def _question(groups: pd.Series, name: str, reference: str | None) -> Question:
    known = groups[groups != "unknown"].value_counts()
    if len(known) < 2:
        raise DataError(f"groups, {name}", f"{len(known)} group only", "give two")
    largest = str(known.index[0])
    chosen = reference if reference in known.index else largest
    if reference is not None and reference not in known.index:
        raise DataError(f"groups, {name}", f"no group '{reference}'", f"choose from {', '.join(map(str, known.index))}")
    return Question(name, str(chosen), sorted(map(str, known.index)))
