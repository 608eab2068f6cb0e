from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.evidence.outcome import EXIT_CODES, decide, localisation, main_gaps, without_gap
from audit.records import ContrastRow, Localisation, Reason
from tests.evidence.rows import around, contrast_row, contrast_rows, controls, head_row

pytestmark = pytest.mark.unit

QUIET = {"state": "no disparity detected", "above_policy": False, "p_adjusted": 0.4, "estimate": around(0.01)}


def quiet(**changes: object) -> ContrastRow:
    return contrast_row(**QUIET | changes)


def test_exit_codes_are_those_of_the_manual() -> None:
    assert EXIT_CODES == {"PASSED": 0, "DISPARITY FOUND": 1, "INVALID": 3, "INCONCLUSIVE": 4}


def test_a_failed_control_overrides_everything() -> None:
    verdict = decide(controls(failed=2), [contrast_row()], gap_above=0.1)
    assert (verdict.outcome, verdict.exit_code) == ("INVALID", 3)
    assert verdict.reasons == [Reason(code="control failed", control=f"c{i}") for i in range(2)]
    assert verdict.next_steps == ["fix controls"]


def test_controls_that_could_not_run_are_no_pass() -> None:
    verdict = decide(controls(valid=False), [quiet()], gap_above=0.1)
    assert verdict.outcome == "INVALID"
    assert [r.code for r in verdict.reasons] == ["controls not run"]


def test_disparity_above_policy_names_one_gap_a_question() -> None:
    more = contrast_row(metric="tpr_gap", estimate=around(0.2), group="darker")
    wider = contrast_row(metric="fpr_gap", estimate=around(-0.18))
    verdict = decide(controls(), [quiet(attribute="hair"), contrast_row(), more, wider], gap_above=0.1)
    assert (verdict.outcome, verdict.exit_code) == ("DISPARITY FOUND", 1)
    assert {r.code for r in verdict.reasons} == {"gap above policy"}
    assert [r.contrast for r in verdict.reasons] == [more.id, contrast_row().id]


def test_a_disparity_is_told_even_where_another_attribute_is_too_small() -> None:
    small = quiet(attribute="age", state="too little data", smallest_detectable=None)
    assert decide(controls(), [small, contrast_row()], gap_above=0.1).outcome == "DISPARITY FOUND"


@pytest.mark.parametrize(
    "row",
    [
        quiet(smallest_detectable=0.11),
        quiet(state="too little data", smallest_detectable=None),
        quiet(state="not estimable", smallest_detectable=None, estimate=around(None)),
    ],
)
def test_inconclusive_where_an_attribute_could_not_be_seen(row: ContrastRow) -> None:
    verdict = decide(controls(), [row, quiet(attribute="hair")], gap_above=0.1)
    assert (verdict.outcome, verdict.exit_code) == ("INCONCLUSIVE", 4)
    (reason,) = verdict.reasons
    assert (reason.code, reason.contrast) == ("gap not excluded", row.id)
    assert reason.smallest_detectable == row.smallest_detectable
    assert verdict.next_steps == ["add images"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_shows_nothing(number: float) -> None:
    verdict = decide(controls(), [quiet(smallest_detectable=number), quiet(attribute="hair")], gap_above=0.1)
    assert (verdict.outcome, verdict.exit_code) == ("INCONCLUSIVE", 4)
    (reason,) = verdict.reasons
    assert (reason.code, reason.smallest_detectable, reason.missing) == ("gap not excluded", None, {})
    rare = quiet(metric="tpr_gap", smallest_detectable=number)
    assert decide(controls(), [quiet(), rare], gap_above=0.1).reasons[-1] == Reason(code="untested", count=1)


def test_inconclusive_says_how_many_images_are_missing() -> None:
    """The detectable gap falls with the square root of n: twice the policy's gap needs four times the images."""
    (reason,) = decide(controls(), [quiet(smallest_detectable=0.2)], gap_above=0.1).reasons
    assert reason.missing == {"dark": 900, "light": 930}
    (untested,) = decide(controls(), [quiet(smallest_detectable=None)], gap_above=0.1).reasons
    assert untested.missing == {}


def test_one_group_that_could_not_be_seen_is_enough_to_be_inconclusive() -> None:
    blind = quiet(group="grey", state="too little data", smallest_detectable=None)
    verdict = decide(controls(), [quiet(), blind], gap_above=0.1)
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.reasons[0].contrast == blind.id


def test_passed_counts_what_could_not_be_tested() -> None:
    rare = quiet(metric="tpr_gap", state="too little data", smallest_detectable=None)
    verdict = decide(controls(), [quiet(), rare], gap_above=0.1)
    assert verdict.outcome == "PASSED"
    assert verdict.reasons[-1] == Reason(code="untested", count=1)


def test_an_audit_that_compared_nothing_does_not_pass() -> None:
    verdict = decide(controls(), [], gap_above=0.1)
    assert verdict.outcome == "INCONCLUSIVE"
    assert [r.code for r in verdict.reasons] == ["nothing compared"]


def test_a_small_intersection_does_not_make_the_audit_inconclusive() -> None:
    small = quiet(attribute="tone x hair", state="too little data", smallest_detectable=None)
    assert decide(controls(), [quiet(), small], gap_above=0.1).outcome == "PASSED"


def test_passed_says_how_small_a_gap_could_have_been_seen() -> None:
    rows = [quiet(smallest_detectable=0.04), quiet(metric="tpr_gap", smallest_detectable=0.083)]
    verdict = decide(controls(), rows, gap_above=0.1)
    assert (verdict.outcome, verdict.exit_code) == ("PASSED", 0)
    assert verdict.reasons[-1] == Reason(code="smallest detectable", smallest_detectable=0.083)
    within = contrast_row(above_policy=False, estimate=around(0.05))
    assert Reason(code="smaller gaps", count=1) in decide(controls(), [within], gap_above=0.1).reasons


@given(st.lists(contrast_rows(), max_size=6), st.integers(0, 3), st.floats(0, 1))
def test_every_audit_has_an_outcome_with_reasons(rows: list[ContrastRow], failed: int, gap_above: float) -> None:
    verdict = decide(controls(failed=failed), rows, gap_above=gap_above)
    assert verdict.exit_code == EXIT_CODES[verdict.outcome]
    assert verdict.reasons and verdict.next_steps
    assert (verdict.outcome == "INVALID") == (failed > 0)
    assert (verdict.outcome == "DISPARITY FOUND") == (failed == 0 and any(r.above_policy for r in rows))


def test_localisation_names_confirmed_heads_or_says_why_none() -> None:
    heads = [
        head_row(),
        head_row(name="L3H0", layer=3, head=0),
        head_row(name="L3H1", layer=3, head=1, verdict="found, not confirmed"),
        head_row(outcome="neutral", verdict="no effect found"),
        head_row(contrast="age:old-young", verdict="too little data"),
    ]
    gaps = [contrast_row(), contrast_row(outcome="neutral", metric="tpr_gap")]
    assert localisation(heads, gaps) == {
        "tone:dark-light:smiling": Localisation(status="localised", metric="standardised_gap", heads=["L2H1", "L3H0"]),
        "tone:dark-light:neutral": Localisation(status="not localisable", metric="tpr_gap"),
        "age:old-young:smiling": Localisation(status="too little data"),
    }
    (one,) = localisation(heads[2:3] + heads[:1], gaps).values()
    assert one.heads == ["L2H1"]


def test_the_question_localised_is_of_the_gap_that_was_detected() -> None:
    quiet = contrast_row(state="no disparity detected", above_policy=False)
    surer = [contrast_row(metric=m, p_adjusted=p) for m, p in (("tpr_gap", 0.01), ("fpr_gap", 0.001))]
    assert {key: gap.metric for key, gap in main_gaps([quiet, *surer]).items()} == {
        "tone:dark-light:smiling": "fpr_gap"
    }
    assert main_gaps([*surer, contrast_row()])["tone:dark-light:smiling"].metric == "standardised_gap"
    (where,) = localisation([head_row()], [quiet, *surer]).values()
    assert where.metric == "fpr_gap"


def test_confirmed_heads_without_a_gap_are_called_so() -> None:
    heads = [
        head_row(),
        head_row(name="L3H0", layer=3, head=0, verdict="no effect found"),
        head_row(outcome="neutral"),
        head_row(contrast="age:old-young", verdict="found, not confirmed"),
    ]
    where = localisation(heads, [contrast_row(outcome="neutral")])
    verdicts = [h.verdict for h in without_gap(heads, where)]
    assert verdicts == ["confirmed, no gap", "no effect found", "confirmed", "found, not confirmed"]
    assert [h.model_copy(update={"verdict": ""}) for h in without_gap(heads, where)] == [
        h.model_copy(update={"verdict": ""}) for h in heads
    ]


def test_without_a_gap_there_is_nothing_to_localise() -> None:
    quiet = contrast_row(state="no disparity detected", above_policy=False)
    answer = {"tone:dark-light:smiling": Localisation(status="no gap detected, nothing to localise")}
    assert localisation([head_row()], [quiet]) == answer
    assert localisation([head_row()], []) == answer
