"""The pages on repairs hold what results.json holds, and every case that was run is drawn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.pages import MARKED
from benchmarks.repair import run

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    held: dict[str, Any] = json.loads((run.HERE / "results.json").read_text(encoding="utf-8"))
    return held


def test_tables_are_those_of_the_results(stored: dict[str, Any]) -> None:
    for page, tables in (
        (run.HERE / "README.md", run.table(stored)),
        (run.DOCUMENT, "\n".join(run.cases_told(stored["cases"]))),
    ):
        (between,) = MARKED.findall(page.read_text(encoding="utf-8"))
        assert between == f"<!-- figures: begin -->\n{tables}\n<!-- figures: end -->"


def test_every_case_with_methods_is_drawn_and_shown(stored: dict[str, Any]) -> None:
    page = (run.HERE / "README.md").read_text(encoding="utf-8")
    with_methods = [case for case, found in stored["cases"].items() if found["audited"] is not None]
    assert with_methods
    for case in stored["cases"]:
        picture = run.drawn(case, stored)
        assert (picture is not None) == (case in with_methods)
        if picture is None:
            continue
        assert f": {case}</title>" in picture.decode()
        assert (run.HERE / f"{run.drawn_as(case)}.svg").is_file()
        assert f"({run.drawn_as(case)}.svg)" in page
