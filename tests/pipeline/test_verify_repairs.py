"""A repair that a run keeps is judged again by its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit.data.sealed import note_opening
from audit.pipeline.verify_repairs import repair_faults
from audit.records.repair_json import Certificate, CertificateState, LineState
from audit.records.repair_run import Judgement, Repair, RepairState
from audit.report.repairs import kept_name, kept_of
from tests.report.example_repairs import line, repair

pytestmark = pytest.mark.unit
Change = Callable[[Certificate], Certificate]


def faults(run: Path, record: Repair, *, openings: int = 2, file: str | None = None) -> list[str]:
    assert record.plan is not None
    for _ in range(openings):
        note_opening(run, purpose="certificate")
    kept = kept_of(run, file or kept_name(record.plan), record.model_dump_json().encode())
    return [str(fault).partition(": ")[2] for fault in repair_faults(run, [kept])]


def with_certificate(change: Change) -> Repair:
    record = repair(RepairState.NOT_SHOWN)
    (judged,) = record.certificates
    changed = Judgement(method=judged.method, certificate=change(judged.certificate))
    return record.model_copy(update={"certificates": [changed]})


def test_a_repair_that_follows_from_its_lines_holds(tmp_path: Path) -> None:
    assert faults(tmp_path, repair(RepairState.NOT_SHOWN)) == []


def test_another_name_or_fewer_openings_are_found(tmp_path: Path) -> None:
    assert faults(tmp_path, repair(RepairState.NOT_SHOWN), file="repairs/x.json") == [
        "has not the name that its plan gives it"
    ]
    (tmp_path / "sealed.jsonl").unlink()
    found = faults(tmp_path, repair(RepairState.NOT_SHOWN), openings=1)
    assert found == ["tells of 2 openings of sealed images, sealed.jsonl of 1"]
    (tmp_path / "sealed.jsonl").write_text("no json\n", encoding="utf-8")
    assert "is damaged" in faults(tmp_path, repair(RepairState.NOT_SHOWN), openings=0)[0]


def test_an_answer_that_does_not_follow_is_found(tmp_path: Path) -> None:
    found = faults(tmp_path, repair(RepairState.CERTIFIED))
    assert found == ["says CERTIFIED, its certificate gives NOT SHOWN"]
    better = with_certificate(lambda c: c.model_copy(update={"state": CertificateState.CERTIFIED}))
    assert "says CERTIFIED of dfr, its lines give NOT SHOWN" in faults(tmp_path, better)


def test_an_answer_that_sealed_images_give_needs_a_certificate(tmp_path: Path) -> None:
    bare = repair(RepairState.CERTIFIED).model_copy(update={"certificates": []})
    assert faults(tmp_path, bare) == ["says CERTIFIED, with 0 certificates"]
    assert faults(tmp_path, repair(RepairState.NO_METHOD_HELPS)) == ["says NO METHOD HELPS, with 1 certificates"]


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"p": 0.2}, "is shown with p = 0.2 at 0.05"),
        ({"after": 0.95}, "is -0.004, before and after give 0.0499"),
        ({"before": None}, "is -0.004, before and after give None"),
    ],
)
def test_a_line_that_contradicts_itself_is_found(tmp_path: Path, update: dict[str, object], said: str) -> None:
    torn = line(LineState.SHOWN).model_copy(update=update)
    record = with_certificate(lambda c: c.model_copy(update={"lines": [c.lines[0], torn]}))
    (found,) = faults(tmp_path, record)
    assert found.startswith(said)
