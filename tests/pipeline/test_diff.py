"""Two runs side by side, from their records alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import html as lxml_html

from audit.pipeline.diff import compare_runs
from audit.records import RunComparison
from audit.report.html import render_diff
from audit.report.wording import forbidden_words
from tests.report.examples import examples

pytestmark = pytest.mark.unit


def compared(folder: Path, before: str, after: str) -> RunComparison:
    for name in (before, after):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "audit.json").write_text(examples()[name].model_dump_json(), encoding="utf-8")
    return compare_runs(folder / before, folder / after)


def test_what_came_of_each_finding(tmp_path: Path) -> None:
    def states(before: str, after: str) -> set[tuple[str, str]]:
        return {(f.state, f.reason) for f in compared(tmp_path, before, after).findings}

    invalid = "a control failed"
    assert states("disparity", "disparity") == {("persisting", "")}
    assert states("disparity", "passed") == {("gone", "")}
    assert states("passed", "disparity") == {("new", "")}
    assert states("invalid", "disparity") == {("new", f"the run before could not test it: {invalid}")}
    assert states("disparity", "invalid") == {("no longer testable", invalid)}
    assert states("disparity", "inconclusive") >= {
        ("no longer testable", "too little data: 12 subjects in the smaller group, fewer than 30")
    }
    empty = examples()["invalid"].model_copy(update={"findings": []})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "audit.json").write_text(empty.model_dump_json(), encoding="utf-8")
    found = compare_runs(tmp_path / "cut", tmp_path / "disparity").findings
    assert {(f.state, f.reason) for f in found} == {("new", f"the run before could not test it: {invalid}")}
    found = compare_runs(tmp_path / "disparity", tmp_path / "cut").findings
    assert {(f.state, f.reason) for f in found} == {("no longer testable", invalid)}


@pytest.mark.parametrize("after", ["many", "passed", "inconclusive", "invalid"])
def test_a_comparison_uses_no_forbidden_word(tmp_path: Path, after: str) -> None:
    page = render_diff(compared(tmp_path, "disparity", after))
    text = lxml_html.document_fromstring(page).find("body").text_content()
    assert "Findings:" in text
    assert forbidden_words(text) == []
