"""How a number becomes a verdict."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from audit.controls.verdict import (
    Reduction,
    Relation,
    judge,
    judge_again,
    judge_numbers,
    mean_interval,
    numbers_table,
)
from audit.records import Bound, Control, Estimate

pytestmark = pytest.mark.unit


RELATIONS: tuple[Relation, ...] = ("==", "<=", "<", ">=", ">")
NO_NUMBERS = (None, float("nan"), float("inf"), float("-inf"))


def verdict(value: float | None, relation: Relation, threshold: float) -> Control:
    return judge(Estimate(value=value), relation, threshold, id="-", check="-", kind="identity")


def by_bound(judged: Bound, relation: Relation, **bounds: float | None) -> bool:
    """Judge an estimate of 5 with an interval against 1."""
    estimate = Estimate(**{"value": 5.0, "low": 4.0, "high": 6.0} | bounds)
    return judge(estimate, relation, 1.0, judged=judged, id="-", check="-", kind="effect").passed


@pytest.mark.parametrize(
    ("relation", "below", "at", "above"),
    [
        ("==", False, True, False),
        ("<=", True, True, False),
        ("<", True, False, False),
        (">=", False, True, True),
        (">", False, False, True),
    ],
)
def test_each_relation(relation: Relation, below: bool, at: bool, above: bool) -> None:
    assert [verdict(v, relation, 1.0).passed for v in (0.5, 1.0, 1.5)] == [below, at, above]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_number_that_is_none_never_passes(relation: Relation, value: float | None) -> None:
    assert not verdict(value, relation, 0.0).passed
    for bound, field in ((Bound.VALUE, "value"), (Bound.LOW, "low"), (Bound.HIGH, "high")):
        assert not by_bound(bound, relation, **{field: value})


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_threshold_that_is_none_is_never_passed(relation: Relation) -> None:
    assert not verdict(1.0, relation, float("nan")).passed


def test_the_bound_that_is_named_is_judged() -> None:
    assert by_bound(Bound.LOW, ">")
    assert not by_bound(Bound.LOW, ">", low=0.5)
    assert by_bound(Bound.VALUE, ">", low=0.5)
    assert by_bound(Bound.HIGH, "<=", high=1.0)
    assert not by_bound(Bound.HIGH, "<=", low=0.0, value=0.5, high=1.5)
    assert by_bound(Bound.LOW, "<=", low=0.0, value=0.5, high=1.5)


NOISE = [-3.0, 3.0, 0.5, -0.5]


@pytest.mark.parametrize(
    ("numbers", "reduced", "judged", "relation"),
    [
        ([0.0, -0.5], "largest", Bound.VALUE, "<="),
        ([2.0, 3.0], "smallest", Bound.VALUE, ">="),
        (NOISE, "mean", Bound.LOW, "<="),
        (NOISE, "mean", Bound.HIGH, "<="),
        ([0.2], "mean", Bound.HIGH, "<="),
        ([0.2], "mean", Bound.LOW, "<="),
        ([0.2, float("nan")], "mean", Bound.LOW, "<="),
        ([], "mean", Bound.VALUE, "<="),
    ],
)
def test_numbers_are_judged_again_as_they_were(
    numbers: list[float], reduced: Reduction, judged: Bound, relation: Relation
) -> None:
    """One number has no interval, so what is judged by an end of it fails, both times."""
    made = judge_numbers(numbers, reduced, relation, 1.0, judged=judged, id="a", check="-", kind="null", form="x")
    again = judge_again(made.model_copy(update={"passed": True}), numbers_table([made]))
    assert again.passed == made.passed
    assert again.judged == judged or not numbers
    if reduced == "mean" and (len(numbers) < 2 or np.isnan(numbers).any()):
        assert made.passed == (judged == Bound.VALUE and len(numbers) > 0)


def test_few_numbers_do_not_pass_an_at_most_claim() -> None:
    """Noise around 0 with an interval of many points on either side shows nothing."""
    judged = [
        judge_numbers(NOISE, "mean", "<=", 1.0, judged=b, id="a", check="-", kind="null").passed
        for b in (Bound.LOW, Bound.HIGH)
    ]
    assert judged == [True, False]


def test_a_control_without_numbers_fails_again() -> None:
    made = judge_numbers([0.0], "largest", "==", 0.0, id="a", check="-", kind="identity")
    assert made.passed
    assert not judge_again(made, numbers_table([])).passed


def test_a_mean_with_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.value == 4.0
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_few_values_have_no_interval() -> None:
    assert mean_interval(np.array([])) == Estimate(value=None)
    assert mean_interval(np.array([3.0])) == Estimate(value=3.0)
