"""How a measured number becomes a control's verdict."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from audit.records import Control, Estimate

Relation = Literal["==", "<=", "<", ">=", ">"]
Kind = Literal["identity", "initialisation", "effect", "null"]
COMPARE: Mapping[Relation, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}


def judge(
    *,
    id: str,  # noqa: A002 - the record's own word
    title: str,
    kind: Kind,
    setting: str,
    statistic: str,
    estimate: Estimate,
    relation: Relation,
    threshold: float,
    meaning: str,
    mend: str,
    judged: float | None = None,
    n: int | None = None,
) -> Control:
    """Compare a number with its threshold. A number that is missing or not finite never passes.

    Parameters
    ----------
    judged : float, optional
        What is compared; the estimate's value by default, a bound of its interval where that is what counts.
    """
    value = estimate.value if judged is None else judged
    passed = value is not None and bool(np.isfinite(value)) and COMPARE[relation](value, threshold)
    return Control(
        id=id,
        title=title,
        kind=kind,
        setting=setting,
        statistic=statistic,
        estimate=estimate,
        relation=relation,
        threshold=threshold,
        passed=passed,
        n=n,
        meaning=meaning,
        mend=mend,
    )


def mean_interval(values: npt.NDArray[np.float64], *, level: float = 0.95) -> Estimate:
    """Return a mean with Student's t interval; without bounds where fewer than two values stand."""
    if len(values) == 0:
        return Estimate(value=None)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(value=mean)
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * stats.sem(values))
    return Estimate(value=mean, low=mean - half, high=mean + half, level=level)
