"""Two runs side by side, from their records alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import html as lxml_html

from audit.pipeline.diff import compare_runs
from audit.records import (
    ComparedFinding,
    ComparisonNote,
    Estimate,
    FindingState,
    NoteCode,
    RunComparison,
    Shortfall,
    Untested,
    WhyBelow,
    WhyUntested,
)
from audit.report.html import render_diff
from audit.report.text import because, counted_findings, data_file, note_sentences
from audit.terminal import diff_summary
from tests.report.examples import examples
from tests.report.forbidden import forbidden_words

pytestmark = pytest.mark.unit


def compared(folder: Path, before: str, after: str) -> RunComparison:
    for name in (before, after):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "audit.json").write_text(examples()[name].model_dump_json(), encoding="utf-8")
    return compare_runs(folder / before, folder / after)


def test_what_came_of_each_finding(tmp_path: Path) -> None:
    def states(before: str, after: str) -> set[tuple[FindingState, str]]:
        return {(f.state, because(f, "head")) for f in compared(tmp_path, before, after).findings}

    invalid = "a control failed"
    assert states("disparity", "disparity") == {(FindingState.PERSISTING, "")}
    below = {row.below: because(row, "head") for row in compared(tmp_path, "disparity", "passed").findings}
    assert {state for state, _ in states("disparity", "passed")} == {FindingState.BELOW_THRESHOLD}
    assert below[WhyBelow.NOT_DETECTED] == "11.6 → 0.8 points, not paired: a gap is no longer detected"
    assert states("passed", "disparity") == {(FindingState.NEW, "")}
    assert states("invalid", "disparity") == {(FindingState.NEW, f"the run before could not test it: {invalid}")}
    assert states("disparity", "invalid") == {(FindingState.NO_LONGER_TESTABLE, invalid)}
    assert states("disparity", "too_few") >= {
        (FindingState.NO_LONGER_TESTABLE, "too little data: 12 subjects in the smaller group, fewer than 30")
    }
    empty = examples()["invalid"].model_copy(update={"findings": []})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "audit.json").write_text(empty.model_dump_json(), encoding="utf-8")
    failed = Untested(why=WhyUntested.CONTROL_FAILED)
    found = compare_runs(tmp_path / "cut", tmp_path / "disparity").findings
    assert {(f.state, f.untested) for f in found} == {(FindingState.NEW, failed)}
    found = compare_runs(tmp_path / "disparity", tmp_path / "cut").findings
    assert {(f.state, f.untested) for f in found} == {(FindingState.NO_LONGER_TESTABLE, failed)}


def test_a_finding_below_the_threshold_is_told_with_both_numbers_and_the_paired_interval() -> None:
    """Sizes are those of the direction that the first run had; the interval is turned with them."""
    row = ComparedFinding(
        id="F-1",
        finding=next(f for f in examples()["disparity"].findings if f.kind == "head"),
        kind="head",
        state=FindingState.BELOW_THRESHOLD,
        before=Estimate(value=-0.041, low=-0.05, high=-0.03),
        after=Estimate(value=-0.022, low=-0.03, high=-0.01),
        change=Estimate(value=0.019, low=0.008, high=0.030),
        below=WhyBelow.NOT_CONFIRMED,
    )
    said = "4.1 → 2.2 points, difference −1.9 [−3.0, −0.8]: the head is not confirmed"
    assert because(row, "head") == said
    turned = {"before": Estimate(value=0.041), "after": Estimate(value=0.022)}
    other = row.model_copy(update=turned | {"change": Estimate(value=-0.019, low=-0.030, high=-0.008)})
    assert because(other, "head") == said
    unpaired = row.model_copy(update={"change": None, "below": WhyBelow.SMALL_SHARE})
    assert because(unpaired, "slice").startswith("4.1 → 2.2 points, not paired: confirmed, below the share")


def test_a_head_that_is_confirmed_without_a_finding_is_below_the_threshold(tmp_path: Path) -> None:
    after = examples()["disparity"]
    after = after.model_copy(update={"findings": [f for f in after.findings if f.kind != "head"]})
    compared(tmp_path, "disparity", "passed")
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "audit.json").write_text(after.model_dump_json(), encoding="utf-8")
    found = compare_runs(tmp_path / "disparity", tmp_path / "after")
    rows = [f for f in found.findings if f.kind == "head"]
    assert rows
    assert {(f.state, f.below) for f in rows} == {(FindingState.BELOW_THRESHOLD, WhyBelow.SMALL_SHARE)}
    assert all("confirmed, below the share" in because(f, "head") for f in rows)
    assert {(h.before_verdict, h.after_verdict) for h in found.heads} == {("confirmed", "confirmed")}


def test_rates_and_gaps_are_set_side_by_side_with_where_they_stand_against_the_policy(tmp_path: Path) -> None:
    found = compared(tmp_path, "disparity", "passed")
    before, after = (examples()[name] for name in ("disparity", "passed"))
    assert {g.id for g in found.gaps} == {c.id for a in (before, after) for c in a.contrasts}
    gap = next(g for g in found.gaps if g.id == before.contrasts[0].id)
    was, now = (next(c for c in a.contrasts if c.id == gap.id) for a in (before, after))
    assert (gap.before, gap.after) == (was.estimate, now.estimate)
    assert (gap.before_above, gap.after_above) == (was.above_policy, now.above_policy) == (True, False)
    assert found.before.above_policy == sum(c.above_policy for c in before.contrasts) > 0
    assert found.after.above_policy == 0
    assert len(found.rates) == 3 * len({(r.attribute, r.group, r.outcome) for a in (before, after) for r in a.rates})
    rate = next(r for r in found.rates if r.rate == "false_positive_rate")
    assert rate.before == next(
        r.false_positive_rate
        for r in before.rates
        if (r.attribute, r.group, r.outcome) == (rate.attribute, rate.group, rate.outcome)
    )
    page = lxml_html.document_fromstring(render_diff(found))
    for name, rows in (("compared-gaps", found.gaps), ("compared-rates", found.rates), ("compared-heads", found.heads)):
        assert len(page.xpath(f"//table[@id='{name}']/tbody/tr")) == len(rows) > 0
    invalid = compared(tmp_path, "disparity", "invalid")
    assert invalid.after.above_policy is None
    assert {g.after for g in invalid.gaps} == {None}
    assert "not asked: a control failed" in render_diff(invalid)


def test_every_reason_has_its_sentence(tmp_path: Path) -> None:
    row = compared(tmp_path, "disparity", "disparity").findings[0]
    said = set()
    for why in WhyUntested:
        few = Untested(why=why, shortfall=Shortfall.SUBJECTS, fewest_subjects=12, subjects_needed=30)
        then = _untested(row, why)
        assert because(then, "head")
        assert because(then.model_copy(update={"untested": few}), "head") == (
            f"{because(then, 'head')}: 12 subjects in the smaller group, fewer than 30"
        )
        new = then.model_copy(update={"state": FindingState.NEW})
        assert because(new, "head") == f"the run before could not test it: {because(then, 'head')}"
        said.add(because(then, "head"))
    assert len(said) == len(WhyUntested)
    assert any("slice" in because(_untested(row, why), "slice") for why in WhyUntested)


def _untested(row: ComparedFinding, why: WhyUntested) -> ComparedFinding:
    return row.model_copy(update={"state": FindingState.NO_LONGER_TESTABLE, "untested": Untested(why=why)})


def test_every_note_has_its_sentence_in_the_terminal_and_on_the_page(tmp_path: Path) -> None:
    found = compared(tmp_path, "disparity", "passed")
    notes = [ComparisonNote(code=code, error="effects/swap.parquet: cut short") for code in NoteCode]
    found = found.model_copy(update={"notes": notes})
    sentences = note_sentences(found)
    assert len(set(sentences)) == len(NoteCode)
    assert all(sentences)
    assert sum("cut short" in said for said in sentences) == 2
    assert any(f"'{found.before.name}', '{found.after.name}'" in said for said in sentences)
    lines = diff_summary(found)
    assert lines[-len(sentences) :] == sentences
    assert lines[1].startswith("policy: ")
    assert sum("below the threshold now: " in line for line in lines[2:]) == len(found.findings)
    page = lxml_html.document_fromstring(render_diff(found))
    assert [item.text_content() for item in page.xpath("//main//ul/li")] == sentences


def test_states_are_those_of_the_word_list_and_all_are_counted(tmp_path: Path) -> None:
    assert list(data_file("words.yaml")["changes"]) == list(FindingState)
    found = compared(tmp_path, "disparity", "passed")
    n = len(found.findings)
    assert counted_findings(found) == f"0 new, 0 persisting, 0 no longer testable, {n} below the threshold now"


@pytest.mark.parametrize("after", ["many", "passed", "inconclusive", "invalid"])
def test_a_comparison_uses_no_forbidden_word(tmp_path: Path, after: str) -> None:
    page = render_diff(compared(tmp_path, "disparity", after))
    text = lxml_html.document_fromstring(page).find("body").text_content()
    assert "Findings:" in text
    assert forbidden_words(text) == []
