"""Pages printed again in another process: what differs is named, and a process that is ended costs no check."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.pipeline.print_again import printing_again
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
    def printed(_source: Source, *, progress: Callable[[int, int], None], pdf: bool) -> dict[str, bytes]:
        progress(1, 2)
        return {"report.html": b"one\nthree\n" if os.getpid() != HERE and not pdf else b""}

    faults, told = faults_of(run, monkeypatch, printed)
    assert faults == ["report.html: line 2 says …two…, audit.json prints …three…"]
    assert told == [(1, 2)]


def test_a_process_that_is_ended_costs_no_check(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(_source: Source, **_named: object) -> dict[str, bytes]:
        if os.getpid() != HERE:
            os._exit(1)
        return {"report.html": b"one\nthree\n"}

    assert len(faults_of(run, monkeypatch, printed)[0]) == 1


def test_a_page_that_cannot_be_printed_is_a_fault(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(_source: Source, **_named: object) -> dict[str, bytes]:
        raise OSError("no Pango")

    assert faults_of(run, monkeypatch, printed)[0] == ["report: cannot be printed again (no Pango)"]
