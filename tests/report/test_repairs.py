"""A report's chapter on repairs: printed from the records that the run keeps, and held by its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from jsonpointer import resolve_pointer
from lxml import html as lxml_html

from audit.errors import InputError
from audit.records.repair_run import Repair, RepairState
from audit.report.html import render_html
from audit.report.manifest import MANIFEST, holds, manifest_rows, write_manifest
from audit.report.render import printed, read_run, write_files
from audit.report.repair_page import add_repair
from audit.report.repairs import kept_name, kept_of

from .example_repairs import HOSTILE, repair
from .examples import examples
from .run_folder import digest_of, page_faults, write_run
from .test_traceable import NUMBER, is_there, leaves, plain, rows

pytestmark = pytest.mark.unit


def planned(digest: str, registered: str = "2026-02-01T12:00:00+00:00", **changes: object) -> Repair:
    """Return a repair of the run with this record."""
    record = repair(RepairState.NOT_SHOWN, **changes)
    assert record.plan is not None
    plan = record.plan.model_copy(update={"audit_sha256": digest, "registered": registered})
    return record.model_copy(update={"plan": plan})


def content_of(record: Repair) -> bytes:
    return record.model_dump_json(indent=1).encode()


def report_of(records: Sequence[Repair], *, for_print: bool = False) -> str:
    audit = examples()["disparity"]
    kept = [kept_of(Path(), f"repairs/{n}.json", content_of(record)) for n, record in enumerate(records)]
    return render_html(audit, sha256(audit.model_dump_json().encode()).hexdigest(), repairs=kept, for_print=for_print)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a finished run with its pages, but for the PDF."""
    folder = write_run(tmp_path / "run", examples()["disparity"])
    write_files(folder, printed(read_run(folder), pdf=False))
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("for_print", [False, True])
def test_the_chapter_has_before_and_after_the_certificate_and_who_pays(*, for_print: bool) -> None:
    page = report_of([planned("a" * 64)], for_print=for_print)
    assert HOSTILE not in page
    (chapter,) = lxml_html.document_fromstring(page).xpath("//section[@id='repair']")
    text = " ".join(chapter.text_content().split())
    for said in (
        "I Repair", "Before−20.0 points", "−18.0 points [−19.0, −17.0] on sealed images",
        "After−3.0 points", "fitted on 608, ranked on 300 of other people",
        "What sealed images show of the chosen model", "Who pays", "456 images would do",
        "In repairs/0.json: /rows/0 to 1", "In repairs/0.json: /certificates/0/certificate/changed/0",
    ):  # fmt: skip
        assert said in text, (said, text)


def test_a_reader_comes_to_it_from_the_contents_and_from_what_is_to_be_decided() -> None:
    tree = lxml_html.document_fromstring(report_of([planned("a" * 64)]))
    links = tree.xpath("//a[@href='#repair']")
    assert [a.xpath("ancestor::section/@id | ancestor::nav/@class") for a in links] == [["contents"], ["actions"]]
    told = " ".join(links[1].getparent().text_content().split())
    assert told.startswith("Repair: ")
    assert "NOT SHOWN" in told
    assert "Appendix I" in told


def test_without_a_repair_nothing_is_said_of_one() -> None:
    page = report_of([])
    assert 'id="repair"' not in page
    assert "#repair" not in page


def test_several_repairs_are_all_told_of_and_no_name_is_given_twice() -> None:
    page = report_of([planned("a" * 64), planned("a" * 64, "2026-03-01")])
    assert "repair 1 of 2" in page
    assert "repair 2 of 2" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_number_of_its_tables_is_in_the_part_of_the_record_that_it_names() -> None:
    record = planned("a" * 64)
    known, checked = json.loads(content_of(record)), 0
    for table, row, source in rows(lxml_html.document_fromstring(report_of([record]))):
        if not table.startswith("repair-1-"):
            continue
        tokens = [t for cell in row.xpath("td[contains(@class, 'number')]") for t in NUMBER.findall(plain(cell))]
        numbers = [*leaves(resolve_pointer(known, source))]
        assert [token for token in tokens if not is_there(token, numbers)] == [], (table, source)
        checked += len(tokens)
    assert checked > 20


def test_a_run_keeps_the_record_prints_it_and_its_manifest_holds_both(run: Path) -> None:
    record, before = planned(digest_of(run)), (run / "report.html").read_bytes()
    audited = digest_of(run)
    add_repair(run, content_of(record))
    assert record.plan is not None
    name = kept_name(record.plan)
    assert (run / name).read_bytes() == content_of(record)
    for file in (name, "report.html"):
        assert holds(run, file)
    assert (run / "report.html").read_bytes() != before
    assert b"Who pays" in (run / "report.html").read_bytes()
    assert not (run / "report.pdf").exists()  # it had none
    assert digest_of(run) == audited
    assert page_faults(run) == []


def test_the_same_repair_again_takes_the_place_of_the_first_and_another_comes_beside_it(run: Path) -> None:
    first = planned(digest_of(run))
    assert first.plan is not None
    audited_too = first.model_copy(update={"plan": first.plan.model_copy(update={"reaudit": False}), "exit_code": 4})
    later = planned(digest_of(run), "2026-03-01T12:00:00+00:00")
    for record in (later, first, audited_too):
        add_repair(run, content_of(record))
    assert [kept.record for kept in read_run(run).repairs] == [audited_too, later]
    assert sum(name.startswith("repairs/") for name in manifest_rows((run / MANIFEST).read_bytes())) == 2


def test_a_repair_of_another_record_is_not_printed(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "repairs").mkdir()
    (run / "repairs" / "old.json").write_bytes(content_of(planned("f" * 64)))
    assert read_run(run).repairs == []
    assert printed(read_run(run), pdf=False)["report.html"] == before


@pytest.mark.parametrize("content", [b"{}", b"no json", None])
def test_a_damaged_record_is_named_in_a_line(run: Path, content: bytes | None) -> None:
    nothing = repair(RepairState.NOTHING_TO_REPAIR, plan=None)
    (run / "repairs").mkdir()
    (run / "repairs" / "one.json").write_bytes(content_of(nothing) if content is None else content)
    with pytest.raises(InputError, match=r"repairs/one.json: is damaged \(.*\); repair again, or restore it"):
        read_run(run)
