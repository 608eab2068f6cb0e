"""How measured numbers become a control's verdict, and become it again from what a run keeps of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from audit.records import Control, Estimate
from audit.units import Unit, said_of

AnyControl = TypeVar("AnyControl", bound=Control)
Relation = Literal["==", "<=", "<", ">=", ">"]
Kind = Literal["identity", "initialisation", "effect", "null"]
COMPARE: Mapping[Relation, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}


def is_met(value: float | None, relation: Relation, threshold: float) -> bool:
    """Compare a number with a threshold; one that is missing or not finite meets none."""
    return value is not None and bool(np.isfinite(value)) and COMPARE[relation](value, threshold)


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
    fix: str,
    judged: float | None = None,
    n: int | None = None,
) -> Control:
    """Compare a number with its threshold. A number that is missing or not finite never passes.

    Parameters
    ----------
    judged : float, optional
        What is compared; the estimate's value by default, a bound of its interval where that is what counts.
    """
    passed = is_met(estimate.value if judged is None else judged, relation, threshold)
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
        fix=fix,
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


def _largest(numbers: npt.NDArray[np.float64]) -> Estimate:
    """Return the largest absolute value; not a number where any of them is none, which Python's max would pass over."""
    return Estimate(value=float(np.abs(numbers).max()))


def _smallest(numbers: npt.NDArray[np.float64]) -> Estimate:
    return Estimate(value=float(numbers.min()))


Reduction = Literal["largest", "smallest", "mean"]
REDUCE: Mapping[Reduction, Callable[[npt.NDArray[np.float64]], Estimate]] = {
    "largest": _largest,
    "smallest": _smallest,
    "mean": mean_interval,
}
LOWER_END = "lower end"  # how the statistic begins of a control whose interval's lower end is compared


class MeasuredControl(Control):
    """A control with the numbers that its statistic sums up; a record of it as ``Control`` leaves these out."""

    numbers: list[float]
    reduced: Reduction


def judge_numbers(
    *,
    id: str,  # noqa: A002 - the record's own word
    title: str,
    kind: Kind,
    setting: str,
    statistic: str,
    numbers: Sequence[float],
    reduced: Reduction,
    relation: Relation,
    threshold: float,
    meaning: str,
    fix: str,
    n: int | None = None,
) -> MeasuredControl:
    """Sum up numbers and judge the sum; where ``statistic`` begins with "lower end", that of its interval.

    Parameters
    ----------
    numbers : sequence of float
    reduced : {"largest", "smallest", "mean"}
        How: by the largest absolute value, by the smallest value, by the mean with its interval.
    """
    estimate = REDUCE[reduced](np.asarray(numbers, dtype=np.float64))
    control = judge(
        id=id,
        title=title,
        kind=kind,
        setting=setting,
        statistic=statistic,
        estimate=estimate,
        judged=estimate.low if statistic.startswith(LOWER_END) else None,
        relation=relation,
        threshold=threshold,
        meaning=meaning,
        fix=fix,
        n=n,
    )
    return MeasuredControl(**dict(control), numbers=[float(v) for v in numbers], reduced=reduced)


def said_of_controls(unit: Unit, controls: Iterable[AnyControl]) -> list[AnyControl]:
    """Return controls whose sentences are about the parts of the model that was controlled."""
    return [
        c.model_copy(update={f: said_of(unit, getattr(c, f)) for f in ("title", "statistic", "meaning", "fix")})
        for c in controls
    ]


COLUMNS = ("control", "setting", "gates", "n", "reduced", "lower_end", "relation", "threshold")


def numbers_table(controls: Iterable[Control]) -> pd.DataFrame:
    """Return the numbers of weighed controls, one row per number, with all that judging them again needs."""
    rows = [
        (
            c.id,
            c.setting,
            c.gates,
            -1 if c.n is None else c.n,
            c.reduced,
            c.statistic.startswith(LOWER_END),
            c.relation,
            c.threshold,
            number,
        )
        for c in controls
        if isinstance(c, MeasuredControl)
        for number in c.numbers
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "number"])


def judge_again(control: Control, numbers: pd.DataFrame) -> Control:
    """Judge a control from its rows of ``numbers_table``; without any it has no value and fails."""
    rows = numbers[numbers["control"] == control.id]
    if rows.empty:
        return control.model_copy(update={"estimate": Estimate(value=None), "passed": False})
    first = rows.iloc[0]
    estimate = REDUCE[first["reduced"]](rows["number"].to_numpy(dtype=np.float64))
    judged = estimate.low if first["lower_end"] and estimate.low is not None else estimate.value
    threshold = float(first["threshold"])
    return control.model_copy(
        update={
            "setting": first["setting"],
            "gates": first["gates"],
            "n": None if first["n"] < 0 else int(first["n"]),
            "estimate": estimate,
            "relation": first["relation"],
            "threshold": threshold,
            "passed": is_met(judged, first["relation"], threshold),
        }
    )
