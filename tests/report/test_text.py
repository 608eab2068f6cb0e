"""Sentences that are made from any record claim no more than was measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.findings import make_findings
from audit.evidence.outcome import decide, localisation
from audit.records import Audit, Control, ControlReport, Estimate, Finding
from audit.report.text import Sentences, data_file, finding_title
from audit.report.wording import forbidden_words
from tests.evidence.rows import CONTEXT, around, contrast_row, contrast_rows, controls, head_row, head_rows

from .examples import examples
from .test_html import PARTS

pytestmark = pytest.mark.unit
AUDIT = examples()["disparity"]


def with_(**update: object) -> Audit:
    return AUDIT.model_copy(update=update)


def title(**changes: object) -> str:
    gap = contrast_row(estimate=around(-0.15))
    heads = [head_row(**changes)]
    found = make_findings([gap], heads, localisation(heads, [gap]), CONTEXT)
    return finding_title(next(f for f in found if f.kind == "head"), "head")


def is_sound(sentence: str) -> bool:
    return bool(sentence) and not forbidden_words(sentence) and "None" not in sentence and "{{" not in sentence


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_sentence_of_a_finding_claims_more_than_was_measured(data: st.DataObject) -> None:
    rows = data.draw(st.lists(contrast_rows(), min_size=1, max_size=4))
    heads = [data.draw(head_rows(row)) for row in rows if row.metric == "standardised_gap" and data.draw(st.booleans())]
    found: list[Finding] = make_findings(rows, heads, localisation(heads, rows), CONTEXT)
    say = Sentences(with_(contrasts=rows, findings=found, rates=[]))
    for finding in found:
        said = {part: say.finding(part, finding) for part in PARTS}
        assert [part for part, sentence in said.items() if not is_sound(sentence)] == []
        assert said["wording"].endswith(".")
        assert all(map(is_sound, say.alternatives(finding)))


@settings(max_examples=60, deadline=None)
@given(st.lists(contrast_rows(), max_size=6), st.integers(0, 2), st.floats(0.01, 1))
def test_every_reason_and_step_is_a_sentence(rows: list, failed: int, gap_above: float) -> None:
    report = controls(failed=failed)
    verdict = decide(report, rows, gap_above=gap_above)
    audit = with_(
        controls=report, contrasts=rows, outcome=verdict.outcome, reasons=verdict.reasons, next_steps=verdict.next_steps
    )
    say = Sentences(audit)
    sentences = [*say.reasons(), *say.next_steps(), *say.not_shown()]
    assert len(sentences) >= 3
    assert [s for s in sentences if not is_sound(s) or not s.endswith(".")] == []


@pytest.mark.parametrize(
    ("direction", "words"), [("widens", "widens the gap"), ("narrows", "narrows the gap"), ("not determined", "moves")]
)
def test_a_head_is_said_to_widen_or_narrow_only_where_its_own_interval_says_so(direction: str, words: str) -> None:
    said = title(direction=direction)
    assert words in said
    assert ("widens" in said, "narrows" in said) == (direction == "widens", direction == "narrows")


def test_an_effect_without_direction_says_what_is_known() -> None:
    finding = next(f for f in AUDIT.findings if f.kind == "head").model_copy(update={"direction": "not determined"})
    effect = Sentences(AUDIT).finding("effect", finding)
    assert "the interval holds 0, so it is not known whether the head widens or narrows the gap" in effect


@pytest.mark.parametrize("check", data_file("controls.yaml")["checks"])
@pytest.mark.parametrize("unit", ["head", "slice"])
@pytest.mark.parametrize("judged", ["value", "low", "high"])
def test_every_control_has_its_words(check: str, unit: str, judged: str) -> None:
    kinds = dict.fromkeys(("same_base", "heads_match", "barrier", "barrier_bound"), "initialisation")
    kinds |= dict.fromkeys(("gap", "joint", "head", "noising"), "effect")
    kind = "null" if check.startswith("null") else kinds.get(check, "identity")
    figures = {"joint": 0.9, "single": 0.2, "null": 0.1, "effect": 0.3, "seeds": 3, "pairs": 3, "raw": 0.5}
    control = Control(
        id=check, check=check, kind=kind, channel=None if kind == "identity" else "blur", form="models", head="L1H2",
        figures=figures, estimate=Estimate(value=1.0), judged=judged, relation=">", threshold=0.5, passed=False,
    )  # fmt: skip
    audit = with_(
        model=AUDIT.model.model_copy(update={"unit": unit}),
        controls=ControlReport(valid=False, controls=[control], grids=[], setting=""),
    )
    say = Sentences(audit)
    said = {part: say.control(part, control) for part in ("title", "where", "statistic", "meaning", "fix")}
    assert [part for part, sentence in said.items() if not is_sound(sentence)] == []
    assert ("head" in " ".join(said.values()).lower()) <= (unit == "head")
    end = {"low": "lower end of ", "high": "upper end of "}.get(judged, "")
    assert said["statistic"].startswith(end)
    assert is_sound(say.kind(control, "blur"))
