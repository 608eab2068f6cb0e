"""A repair on paper: its own pages, HTML and PDF, printed from ``repair.json``, and the chapter in its run's report."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from audit.records.repair_run import Repair
from audit.report.html import render_repair
from audit.report.manifest import check_kept, write_manifest
from audit.report.names import Names
from audit.report.render import printed, read_run, write_files
from audit.report.repairs import in_order, kept_name, kept_of
from audit.store import locked, write_bytes, write_text

PAGE, PRINTED = "repair.html", "repair.pdf"


def write_repair_pages(folder: Path, record: Repair, names: Names) -> list[Path]:
    """Write both pages, with what the run's card calls groups and labels; the record lies in the folder already."""
    from audit.report.pdf import render_pdf  # needs system libraries

    content = (folder / "repair.json").read_bytes()
    write_text(folder / PAGE, render_repair(record, names))
    page = render_repair(record, names, for_print=True)
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(folder / PRINTED, render_pdf(page, content, digest, record.started, name="repair.json"))
    return [folder / PAGE, folder / PRINTED]


def add_repair(run: Path, content: bytes) -> None:
    """Have a run keep the record of a repair of its model, and print its pages with it; the manifest holds both.

    A run that was printed without pages, or without a PDF, stays so.

    Parameters
    ----------
    run : pathlib.Path
    content : bytes
        Of ``repair.json``; of a repair that had something to do.

    Raises
    ------
    InputError
        If the run's record or its decisions were changed.
    UnfinishedError
        If another command is at work in the run, or it cannot be written.
    """
    plan = Repair.model_validate_json(content).plan
    assert plan is not None
    with locked(run):
        source = read_run(run)
        check_kept(run)
        new = kept_of(run, kept_name(plan), content)
        source = replace(source, repairs=in_order([*(k for k in source.repairs if k.file != new.file), new]))
        pages = printed(source, pdf=(run / "report.pdf").is_file()) if (run / "report.html").is_file() else {}
        write_files(run, {new.file: content, **pages})
        write_manifest(run, only=[new.file, *pages])
