from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.findings import make_findings, stable_id
from audit.evidence.outcome import localisation
from audit.records import ContrastRow, Finding, HeadRow
from audit.report.wording import forbidden_words
from tests.evidence.rows import CONTEXT, around, contrast_row, contrast_rows, head_row, head_rows

pytestmark = pytest.mark.unit


def findings(*rows: ContrastRow, heads: tuple[HeadRow, ...] = ()) -> list[Finding]:
    return make_findings(rows, heads, localisation(heads, rows), CONTEXT)


def sentences(found: Finding) -> list[str]:
    texts = [v for v in found.model_dump().values() if isinstance(v, str)]
    return [*texts, *found.other_explanations]


def test_one_finding_a_question_with_the_other_metrics_named() -> None:
    (found,) = findings(
        contrast_row(estimate=around(-0.15)),
        contrast_row(metric="tpr_gap", estimate=around(-0.25)),
        contrast_row(metric="fpr_gap", state="no disparity detected", above_policy=False),
    )
    assert (found.kind, found.metric, found.expected) == ("disparity", "tpr_gap", -0.25)
    assert "standardised gap -15.0 points" in found.condition
    assert "fpr" not in found.condition
    assert found.title == "tone: 'dark' is called 'smiling' less often than 'light'"
    assert (found.n_group, found.n_reference, found.unknown, found.family_size) == (300, 310, 7, 3)


@pytest.mark.parametrize(("mediated", "verb", "change"), [(-0.05, "widens", "+5.0"), (0.05, "narrows", "-5.0")])
def test_a_head_that_widens_the_gap_is_said_to_move_it_towards_zero_when_patched(
    mediated: float, verb: str, change: str
) -> None:
    """The gap is -15 points; a head that mediates -5 of it widens it, and patched from both groups moves it by +5."""
    row = head_row(confirmation=around(mediated), discovery=around(mediated), share_of_gap=around(-mediated / 0.15))
    head = next(f for f in findings(contrast_row(estimate=around(-0.15)), heads=(row,)) if f.kind == "head")
    assert f" {verb} the gap" in head.title
    assert f"changes by {change} points" in head.effect
    assert f"by {change} points" in head.wording
    assert head.effect.endswith("it narrows." if verb == "widens" else "it widens.")


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
    assert found.severity == severity
    assert f"{100 * value:+.1f} points" in found.severity_reason
    assert ("within the policy" in found.severity_reason) == (not above)
    crossed = "above the policy of 10 points" if abs(value) > 0.1 else "the ratio is beyond the policy of 0.80"
    assert (crossed in found.severity_reason) == above


@pytest.mark.parametrize(
    ("by_seed", "p", "confidence"),
    [
        ([-0.15, -0.1], 0.009, "high"),
        ([-0.15, -0.1], 0.02, "moderate"),
        ([-0.15, 0.01], 0.001, "moderate"),
        ([-0.15], 0.001, "moderate"),
    ],
)
def test_confidence_asks_for_every_seed_and_a_small_p(by_seed: list[float], p: float, confidence: str) -> None:
    (found,) = findings(contrast_row(by_seed=by_seed, p_adjusted=p))
    assert found.confidence == confidence
    same = "one training seed only" if len(by_seed) == 1 else f"in {sum(v < 0 for v in by_seed)} of {len(by_seed)}"
    assert same in found.agreement_over_seeds


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


def test_a_head_that_works_against_the_gap_is_said_to_narrow_it() -> None:
    widens, narrows = (
        findings(contrast_row(estimate=around(-0.15)), heads=(head_row(confirmation=around(v)),))[1].title
        for v in (-0.04, 0.04)
    )
    assert "widens" in widens
    assert "narrows" in narrows


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
def test_no_sentence_claims_more_than_was_measured(data: st.DataObject) -> None:
    rows = data.draw(st.lists(contrast_rows(), min_size=1, max_size=4))
    heads = [data.draw(head_rows(row)) for row in rows if row.metric == "standardised_gap" and data.draw(st.booleans())]
    for found in findings(*rows, heads=tuple(heads)):
        assert found.estimate.value is not None
        for sentence in sentences(found):
            assert not forbidden_words(sentence), sentence
            assert "None" not in sentence
        assert found.other_explanations
        assert found.wording.endswith(".")
