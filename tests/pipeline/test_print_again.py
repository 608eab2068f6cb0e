"""Pages printed again in another process: what differs is named, and a process that is ended costs no check."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.pipeline.print_again import printing_again
from audit.report.exports import PRINTED_WITH, printed_with
from audit.report.render import Source, read_run
from tests.report.examples import examples

pytestmark = pytest.mark.unit
HERE = os.getpid()
Printed = Callable[..., dict[str, bytes]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "audit.json").write_text(examples()["passed"].model_dump_json(), encoding="utf-8")
    (tmp_path / "report.html").write_bytes(b"one\ntwo\n")
    return tmp_path


def faults_of(run: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed) -> tuple[list[str], list[tuple[int, int]]]:
    monkeypatch.setattr("audit.pipeline.print_again.printed", printed)
    told: list[tuple[int, int]] = []
    with printing_again(run, read_run(run)) as wait:
        return [str(fault) for fault in wait(lambda done, total: told.append((done, total)))], told


def test_a_page_is_printed_elsewhere_and_what_differs_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(_source: Source, *, pdf: bool) -> dict[str, bytes]:
        return {"report.html": b"one\nthree\n" if os.getpid() != HERE and not pdf else b""}

    faults, told = faults_of(run, monkeypatch, printed)
    assert faults == ["report.html: line 2 says …two…, audit.json prints …three…"]
    assert told == [(0, 1)]


def test_the_pdf_is_printed_in_a_process_of_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.pdf").write_bytes(b"")
    (run / "printers").mkdir()

    def printed(_source: Source, *, pages: bool = True, pdf: bool = True) -> dict[str, bytes]:
        (run / "printers" / f"{os.getpid()}-{pages}-{pdf}").touch()
        return {"report.pdf" if pdf else "report.html": b"other"}

    faults, told = faults_of(run, monkeypatch, printed)
    assert [fault.partition(":")[0] for fault in faults] == ["report.html", "report.pdf"]
    assert told == [(0, 2), (1, 2)]
    printers = [path.name.split("-") for path in (run / "printers").iterdir()]
    assert len({process for process, *_ in printers} | {str(HERE)}) == 3
    assert sorted(asked for _, *asked in printers) == [["False", "True"], ["True", "False"]]


def test_a_process_that_is_ended_costs_no_check(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(_source: Source, **_named: object) -> dict[str, bytes]:
        if os.getpid() != HERE:
            os._exit(1)
        return {"report.html": b"one\nthree\n"}

    assert len(faults_of(run, monkeypatch, printed)[0]) == 1


def test_a_page_that_cannot_be_printed_is_a_fault_and_the_others_are_compared(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "report.pdf").write_bytes(b"")

    def printed(_source: Source, *, pages: bool = True, **_named: object) -> dict[str, bytes]:
        if not pages:
            raise OSError("no Pango")
        return {"report.html": b"one\n2\n"}

    assert faults_of(run, monkeypatch, printed)[0] == [
        "report.html: line 2 says …two…, audit.json prints …2…",
        "report.pdf: cannot be printed again (no Pango)",
    ]


def test_other_versions_are_said_once_and_nothing_is_compared(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    then = json.loads(printed_with())
    (run / "exports").mkdir()
    (run / "exports" / PRINTED_WITH).write_text(json.dumps({**then, "weasyprint": "1"}), encoding="utf-8")
    (run / "report.pdf").write_bytes(b"")
    faults, told = faults_of(run, monkeypatch, lambda _source, **_named: {"report.html": b""})
    assert len(faults) == 1 and "printed with weasyprint 1 (here: " in faults[0]
    assert told == []
