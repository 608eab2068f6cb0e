"""The pages hold the figures of one code, rounded against the tool; the sample is a whole run."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from typing import Any

import pytest
from jinja2 import UndefinedError

import vit_audit as va
from audit.report.exports import PRINTED_WITH, printed_with
from benchmarks import results
from tests.small_world import without_pdf


@pytest.fixture
def stored() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(results.STORED.read_text(encoding="utf-8"))
    return held


@pytest.mark.unit
def test_pages_figures_and_sources_are_one(stored: dict[str, Any]) -> None:
    assert list(results.differences(stored)) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("place", "of"),
    [
        (("planted", "coverage", "estimate"), {"README.md", "docs/results.md", "planted/", "error_rates.json"}),
        (("sweep", "max_abs_diff", "demo, 64 images"), {"docs/results.md", "sweep/"}),
        (("faults", "lost"), {"README.md", "docs/results.md", "faults/"}),
        (("scale", "identical_records"), {"docs/results.md", "scale"}),
        (("synthetic-expressions", "controls", "passed"), {"docs/results.md", "reports/sample"}),
        (("synthetic-balanced", "rates", 0, "images"), {"docs/results.md"}),
    ],
)
def test_another_figure_is_noticed(stored: dict[str, Any], place: tuple[Any, ...], of: set[str]) -> None:
    changed = copy.deepcopy(stored)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] += 1
    found = list(results.differences(changed))
    assert len(found) == len(of)
    assert all(any(name in line for line in found) for name in of)


@pytest.mark.unit
def test_markers_are_filled_and_all_else_stays(stored: dict[str, Any]) -> None:
    page = "above\n<!-- results:faults -->\nold\n<!-- /results:faults -->\nbelow 1.0\n"
    again = results.filled(page, stored)
    assert re.fullmatch(
        r"above\n<!-- results:faults -->\nAfter \d+ kills .*\n<!-- /results:faults -->\nbelow 1.0\n", again, re.S
    )
    assert results.filled(again, stored) == again


@pytest.mark.unit
@pytest.mark.parametrize("name", [*results.AUDITS, *results.QUOTED])
def test_each_section_names_its_code_and_is_plain_prose(name: str, stored: dict[str, Any]) -> None:
    text = results.worded(name, stored)
    assert re.search(r"code of commit [0-9a-f]{7}|commit not recorded|sources with the hash [0-9a-f]{8}", text)
    assert not re.search(r"\S  +\S", text.replace("|  |", ""))
    assert "\n\n\n" not in text


@pytest.mark.unit
@pytest.mark.parametrize("name", ["preprocessing", "bootstrap"])
def test_a_commit_is_named_once_it_is_recorded(name: str, stored: dict[str, Any]) -> None:
    stored[name]["code"] = "0a1b2c3"
    assert "code of commit 0a1b2c3" in results.worded(name, stored)


@pytest.mark.unit
def test_a_case_without_a_gap_is_one_list(stored: dict[str, Any]) -> None:
    case = next(c for c in stored["ledgers"]["cases"].values() if not c["gaps"])
    asked = {"group": "old", "n_group": 12, "reference": "young", "n_reference": 900, "outcome": "yes",
             "estimate": {"value": 0.1, "low": -0.1, "high": 0.3}, "smallest_detectable": 0.4}  # fmt: skip
    case |= {"asked": [asked, asked], "reasons": [{"missing": {"old": 50}}]}
    text = results.worded("ledgers", {"ledgers": {"cases": {"made up": case}}})
    (listed,) = re.findall(r"(?:^- .*\n)+", text, re.M)
    assert listed.count("\n") == 4


def test_memory_is_said_not_to_be_measured_until_it_is(stored: dict[str, Any]) -> None:
    known = {**stored["scale"], "memory_ratio_10x": {"check": 1.0911, "ledgers": 1.2}}
    known["flat"] = {"peaks": {"2000": {}, "20000": {}}, "date": "2026-01-31", "hardware": "one", "code": "abc"}
    unknown = results.worded("scale", {"scale": known | {"memory_ratio_10x": None, "flat": None}})
    assert "over without | not measured |" in unknown
    told = results.worded("scale", {"scale": known})
    assert "not measured" not in told
    assert "with 20,000 images over that with 2,000: check | 1.10 |" in told
    lacking = {key: value for key, value in known.items() if key != "audits"}
    with pytest.raises(UndefinedError, match="audits"):
        results.worded("scale", {"scale": lacking})


@pytest.mark.unit
def test_nothing_is_rounded_in_favour_of_the_tool() -> None:
    assert results.down(2.2599, 1) == "2.2"
    assert results.down(0.29, 0, 100) == "29"  # 0.29 * 100 is 28.999999999999996
    assert results.down(-0.0194, 2) == "-0.02"
    assert results.up(0.0362, 1, 100) == "3.7"
    assert results.share_of({"estimate": 0.9499, "low": 0.9099, "high": 0.9701}) == "94.9% [90.9, 97.1]"
    assert results.counted({"estimate": 0.9375, "n": 16}) == "15 of 16"


@pytest.mark.unit
def test_an_interval_is_worded_as_far_as_it_is_known() -> None:
    assert results.interval({"value": 0.2049, "low": -0.01, "high": 0.3}, sign="+") == "+20.5 [-1.0, 30.0]"
    assert results.interval({"value": 0.2, "low": None, "high": None}, unit="%") == "20.0%"
    assert results.interval({"value": None, "low": None, "high": None}) == results.interval(None) == ""
    assert (results.p_value(0.0), results.p_value(0.0123), results.p_value(None)) == ("< .001", ".012", "")


@pytest.mark.unit
def test_readme_names_what_the_interface_has() -> None:
    text = (results.ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(block, "README.md", "exec")
    named = set(re.findall(r"\bva\.(\w+)", text))
    assert {"wrap", "plan", "audit", "open_run"} <= named <= set(va.__all__)
    assert all(hasattr(va.Result, name) for name in set(re.findall(r"\bresult\.(\w+)", block)))


@pytest.mark.end_to_end
def test_the_sample_verifies() -> None:
    with without_pdf():  # which another machine's fonts lay out otherwise
        found = va.verify(results.SAMPLE)
    printers = (results.SAMPLE / "exports" / PRINTED_WITH).read_text(encoding="utf-8")
    of_machine = "report.pdf" if printers == printed_with() else "report"  # its fonts, or its libraries that print
    assert {fault.place for fault in found.faults} <= {of_machine}, list(map(str, found.faults))
    assert found.figures > 3000
    assert found.shared is not None
    pdf = hashlib.sha256((results.SAMPLE / "report.pdf").read_bytes()).hexdigest()
    assert pdf in (results.SAMPLE / "manifest.json").read_text(encoding="utf-8")
