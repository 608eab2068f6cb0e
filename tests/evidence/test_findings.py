from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.findings import make_findings, stable_id
from audit.evidence.outcome import localisation
from audit.records import ContrastRow, Finding, HeadRow, Metric
from tests.evidence.rows import CONTEXT, around, contrast_row, contrast_rows, head_row, head_rows

pytestmark = pytest.mark.unit


def findings(*rows: ContrastRow, heads: tuple[HeadRow, ...] = ()) -> list[Finding]:
    return make_findings(rows, heads, localisation(heads, rows), CONTEXT)


def of_head(gap: ContrastRow | None = None, **changes: object) -> Finding:
    return next(f for f in findings(gap or contrast_row(), heads=(head_row(**changes),)) if f.kind == "head")


def test_one_finding_a_question_in_the_standardised_gap_where_it_is_detected() -> None:
    wider = contrast_row(metric="tpr_gap", estimate=around(-0.25))
    quiet = contrast_row(metric="fpr_gap", state="no disparity detected", above_policy=False)
    (found,) = findings(wider, contrast_row(estimate=around(-0.15)), quiet)
    assert (found.kind, found.metric, found.expected) == ("disparity", "standardised_gap", -0.15)
    assert (found.severity, found.worst_metric, found.worst) == ("high", "tpr_gap", -0.25)
    assert (found.n_group, found.n_reference, found.unknown, found.family_size) == (300, 310, 7, 3)


def test_else_in_the_surer_of_the_detected_gaps_in_rates_by_label() -> None:
    quiet = contrast_row(state="no disparity detected", above_policy=False)
    gaps = [
        contrast_row(metric=m, estimate=around(v), p_adjusted=p)
        for m, v, p in (("tpr_gap", 0.22, 0.01), ("fpr_gap", -0.2, 0.001))
    ]
    (found,) = findings(quiet, *gaps)
    assert (found.metric, found.estimate.value) == ("fpr_gap", -0.2)


@pytest.mark.parametrize("metric", ["tpr_gap", "fpr_gap"])
def test_a_head_is_of_the_metric_of_its_gap(metric: str) -> None:
    """A gap in rates by label is not explained by a number on another scale."""
    quiet = contrast_row(state="no disparity detected", above_policy=False)
    gap = contrast_row(metric=metric, estimate=around(0.2))
    row = head_row(confirmation=around(-0.01), confirmation_rate=around(0.05), direction="widens")
    disparity, head = findings(quiet, gap, heads=(row,))
    assert disparity.metric == head.metric == metric
    assert head.estimate == row.confirmation_rate
    assert head.probability == row.confirmation
    assert (head.direction, head.expected) == ("widens", -0.01)


@pytest.mark.parametrize("direction", ["widens", "narrows", "not determined"])
def test_a_head_is_said_to_do_what_its_own_interval_shows(direction: str) -> None:
    assert of_head(direction=direction).direction == direction


def test_nothing_detected_nothing_found() -> None:
    quiet = contrast_row(state="no disparity detected", above_policy=False)
    assert findings(quiet, contrast_row(state="too little data", above_policy=False)) == []
    assert findings(quiet, heads=(head_row(verdict="confirmed, no gap"),)) == []  # they may cancel each other


@pytest.mark.parametrize(
    ("value", "above", "severity"),
    [(-0.21, True, "high"), (0.21, True, "high"), (0.15, True, "medium"), (0.04, True, "medium"), (0.04, False, "low")],
)
def test_severity_of_a_disparity_is_its_size_against_policy(value: float, above: bool, severity: str) -> None:
    (found,) = findings(contrast_row(estimate=around(value), above_policy=above))
    assert (found.severity, found.above_policy) == (severity, above)


@pytest.mark.parametrize(
    ("by_seed", "p", "half", "grade"),
    [
        ([-0.15, -0.1], 0.009, 0.02, "high"),
        ([-0.15, -0.1], 0.02, 0.02, "moderate"),
        ([-0.15, 0.01], 0.001, 0.02, "moderate"),
        ([-0.15, 0.01, 0.02], 0.001, 0.02, "low"),  # most seeds disagree
        ([-0.15], 0.001, 0.02, "moderate"),
        ([-0.15, -0.1], 0.009, 0.16, "low"),  # the interval holds 0
        ([-0.15, -0.1], 0.06, 0.02, "low"),
        ([-0.15, -0.1], None, 0.02, "low"),
    ],
)
def test_confidence_follows_the_printed_rule(by_seed: list[float], p: float | None, half: float, grade: str) -> None:
    (found,) = findings(contrast_row(estimate=around(-0.15, half), by_seed=by_seed, p_adjusted=p))
    assert found.confidence == grade


def test_a_head_whose_rate_interval_holds_zero_is_of_low_confidence() -> None:
    assert of_head(confirmation_rate=around(-0.01, 0.02)).confidence == "low"
    assert of_head(confirmation_rate=None).confidence == "low"


def test_a_head_without_an_estimate_in_its_metric_is_not_given_one_in_probability() -> None:
    head = of_head(confirmation_rate=None, confirmation=around(-0.045), direction="not determined")
    assert (head.estimate.value, head.probability) == (None, around(-0.045))


@pytest.mark.parametrize(("share", "severity"), [(0.6, "high"), (0.3, "medium"), (0.07, "low"), (None, "low")])
def test_severity_of_a_head_is_its_share(share: float | None, severity: str) -> None:
    found = findings(contrast_row(), heads=(head_row(share_of_gap=around(share)),))[1]
    assert (found.kind, found.severity) == ("head", severity)


def test_only_confirmed_heads_that_carry_enough_are_findings() -> None:
    heads = (
        head_row(),
        head_row(name="L0H0", verdict="found, not confirmed"),
        head_row(name="L0H1", verdict="no effect found"),
        head_row(name="L0H2", share_of_gap=around(0.04)),
        head_row(name="L0H3", share_of_gap=around(-0.06)),
    )
    found = findings(contrast_row(), heads=heads)
    assert [f.heads for f in found[1:]] == [["L2H1"], ["L0H3"]]
    assert found[0].heads == ["L2H1", "L0H2", "L0H3"]  # confirmed all the same
    assert {f.family_size for f in found[1:]} == {5}


def test_findings_come_worst_first_and_disparities_before_heads() -> None:
    found = findings(
        contrast_row(group="low", estimate=around(0.02), above_policy=False),
        contrast_row(group="high", estimate=around(0.3)),
        contrast_row(group="medium", estimate=around(-0.12)),
        contrast_row(group="dark", estimate=around(0.4)),
        heads=(head_row(share_of_gap=around(0.9)),),
    )
    assert [f.group for f in found] == ["dark", "high", "medium", "low", "dark"]


def test_ids_are_stable_and_tell_questions_apart() -> None:
    rows = [
        contrast_row(),
        contrast_row(group="darker"),
        contrast_row(outcome="neutral"),
        contrast_row(reference="mid"),
        contrast_row(attribute="hair"),
    ]
    first = [f.id for f in findings(*rows, heads=(head_row(), head_row(name="L0H0")))]
    rerun = [r.model_copy(update={"estimate": around(-0.149), "p_adjusted": 0.0004}) for r in reversed(rows)]
    again = [f.id for f in findings(*rerun, heads=(head_row(by_seed=[-0.1]), head_row(name="L0H0")))]
    assert len(set(first)) == 7
    assert set(first) == set(again)
    assert stable_id(CONTEXT, "x") != stable_id(dataclasses.replace(CONTEXT, name="other"), "x")
    assert stable_id(CONTEXT, "x") != stable_id(dataclasses.replace(CONTEXT, model="other"), "x")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_finding_has_a_number_and_other_explanations(data: st.DataObject) -> None:
    rows = data.draw(st.lists(contrast_rows(), min_size=1, max_size=4))
    heads = [data.draw(head_rows(row)) for row in rows if row.metric == "standardised_gap" and data.draw(st.booleans())]
    for found in findings(*rows, heads=tuple(heads)):
        assert found.estimate.value is not None
        assert found.alternatives
        assert found.metric in Metric
