"""How a number becomes a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from audit.controls.verdict import Relation, judge, mean_interval
from audit.records import Control, Estimate

pytestmark = pytest.mark.unit


def verdict(value: float | None, relation: Relation, threshold: float, **more: Any) -> Control:
    words = dict.fromkeys(("id", "title", "setting", "statistic", "meaning", "fix"), "-")
    return judge(
        **words, kind="identity", estimate=Estimate(value=value), relation=relation, threshold=threshold, **more
    )


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


@pytest.mark.parametrize("relation", ["==", "<=", "<", ">=", ">"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_never_passes(relation: Relation, value: float | None) -> None:
    assert not verdict(value, relation, 0.0).passed


@pytest.mark.parametrize("relation", ["==", "<=", "<", ">=", ">"])
def test_a_threshold_that_is_none_is_never_passed(relation: Relation) -> None:
    assert not verdict(1.0, relation, float("nan")).passed


def test_a_bound_is_judged_where_one_is_named() -> None:
    assert verdict(5.0, ">", 0.0).passed
    assert not verdict(5.0, ">", 0.0, judged=-1.0).passed
    assert not verdict(5.0, ">", 0.0, judged=float("nan")).passed


def test_a_mean_with_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.value == 4.0
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_few_values_have_no_interval() -> None:
    assert mean_interval(np.array([])) == Estimate(value=None)
    assert mean_interval(np.array([3.0])) == Estimate(value=3.0)


def test_an_interval_that_could_not_be_had_does_not_pass_as_the_mean() -> None:
    """Where a bound is what is judged and there is none, the control fails."""
    single = mean_interval(np.array([3.0]))
    control = verdict(single.value, ">", 0.0, judged=single.low if single.low is not None else float("nan"))
    assert not control.passed
