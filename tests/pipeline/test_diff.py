"""Two runs side by side, from their records alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import html as lxml_html

from audit.pipeline.diff import compare_runs
from audit.records import (
    ComparedFinding,
    ComparisonNote,
    FindingState,
    NoteCode,
    RunComparison,
    Shortfall,
    Untested,
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
    assert states("disparity", "passed") == {(FindingState.GONE, "")}
    assert states("passed", "disparity") == {(FindingState.NEW, "")}
    assert states("invalid", "disparity") == {(FindingState.NEW, f"the run before could not test it: {invalid}")}
    assert states("disparity", "invalid") == {(FindingState.NO_LONGER_TESTABLE, invalid)}
    assert states("disparity", "inconclusive") >= {
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


def test_a_head_that_is_confirmed_without_a_finding_persists(tmp_path: Path) -> None:
    after = examples()["disparity"]
    after = after.model_copy(update={"findings": [f for f in after.findings if f.kind != "head"]})
    compared(tmp_path, "disparity", "passed")
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "audit.json").write_text(after.model_dump_json(), encoding="utf-8")
    rows = [f for f in compare_runs(tmp_path / "disparity", tmp_path / "after").findings if f.kind == "head"]
    assert rows
    assert {(f.state, f.confirmed_only, f.untested) for f in rows} == {(FindingState.PERSISTING, True, None)}
    assert {because(f, "head") for f in rows} == {"confirmed, below the share from which a finding is made of it"}


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
    assert diff_summary(found)[1:] == sentences
    page = lxml_html.document_fromstring(render_diff(found))
    assert [item.text_content() for item in page.xpath("//main//ul/li")] == sentences


def test_states_are_those_of_the_word_list_and_all_are_counted(tmp_path: Path) -> None:
    assert list(data_file("words.yaml")["changes"]) == list(FindingState)
    found = compared(tmp_path, "disparity", "passed")
    n = len(found.findings)
    assert counted_findings(found) == f"0 new, 0 persisting, 0 no longer testable, {n} gone"


@pytest.mark.parametrize("after", ["many", "passed", "inconclusive", "invalid"])
def test_a_comparison_uses_no_forbidden_word(tmp_path: Path, after: str) -> None:
    page = render_diff(compared(tmp_path, "disparity", after))
    text = lxml_html.document_fromstring(page).find("body").text_content()
    assert "Findings:" in text
    assert forbidden_words(text) == []
