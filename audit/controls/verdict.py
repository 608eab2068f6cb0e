"""How measured numbers become a control's verdict, and become it again from what a run keeps of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Required, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from audit.records import AddedWords, Bound, ChanceReason, Control, Estimate

Relation = Literal["==", "<=", "<", ">=", ">"]
Role = Literal["colour", "blur"]
Kind = Literal["model", "served", "identity", "initialisation", "effect", "null"]
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


class About(TypedDict, total=False):
    """What a control is of; the fields of its record that no number decides."""

    id: Required[str]
    check: Required[str]
    kind: Required[Kind]
    channel: Role | None
    form: str
    contrast: str
    head: str
    figures: dict[str, float]
    names: list[str]
    n: int | None
    reason: ChanceReason | None
    added: AddedWords | None


def judge(
    estimate: Estimate,
    relation: Relation,
    threshold: float,
    *,
    judged: Bound = Bound.VALUE,
    **about: Unpack[About],
) -> Control:
    """Compare a number with its threshold. A number that is missing or not finite never passes.

    Parameters
    ----------
    estimate : Estimate
    relation : {"==", "<=", "<", ">=", ">"}
    threshold : float
    judged : Bound
        Which of the estimate's numbers is compared: its value, or an end of its interval.
    **about
        Fields of the record: ``id``, ``check``, ``kind`` and more.
    """
    passed = is_met(bound_of(estimate, judged), relation, threshold)
    return Control(**about, estimate=estimate, judged=judged, relation=relation, threshold=threshold, passed=passed)


def bound_of(estimate: Estimate, judged: Bound) -> float | None:
    """Return the number of an estimate that is compared; None where there is none."""
    return {Bound.VALUE: estimate.value, Bound.LOW: estimate.low, Bound.HIGH: estimate.high}[judged]


def mean_interval(values: npt.NDArray[np.float64], *, level: float = 0.95) -> Estimate:
    """Return a mean with Student's t interval; without bounds where there are fewer than two values."""
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


class MeasuredControl(Control):
    """A control with the numbers that its statistic sums up; a record of it as ``Control`` leaves these out."""

    numbers: list[float]
    reduced: Reduction


def judge_numbers(
    numbers: Sequence[float],
    reduced: Reduction,
    relation: Relation,
    threshold: float,
    *,
    judged: Bound = Bound.VALUE,
    **about: Unpack[About],
) -> MeasuredControl:
    """Sum up numbers and judge the sum, as :func:`judge` does.

    Parameters
    ----------
    numbers : sequence of float
    reduced : {"largest", "smallest", "mean"}
        How: by the largest absolute value, by the smallest value, by the mean with its interval.
    relation, threshold, judged, **about
        As in :func:`judge`.
    """
    estimate = REDUCE[reduced](np.asarray(numbers, dtype=np.float64))
    control = judge(estimate, relation, threshold, judged=judged, **about)
    return MeasuredControl(**dict(control), numbers=[float(v) for v in numbers], reduced=reduced)


COLUMNS = ("control", "form", "gates", "n", "reduced", "judged", "relation", "threshold")


def numbers_table(controls: Iterable[Control]) -> pd.DataFrame:
    """Return the numbers of measured controls, one row per number, with all that judging them again needs."""
    rows = [
        (
            c.id,
            c.form,
            c.gates,
            -1 if c.n is None else c.n,
            c.reduced,
            str(c.judged),
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
    judged, threshold = Bound(first["judged"]), float(first["threshold"])
    return control.model_copy(
        update={
            "form": first["form"],
            "gates": first["gates"],
            "n": None if first["n"] < 0 else int(first["n"]),
            "estimate": estimate,
            "judged": judged,
            "relation": first["relation"],
            "threshold": threshold,
            "passed": is_met(bound_of(estimate, judged), first["relation"], threshold),
        }
    )
