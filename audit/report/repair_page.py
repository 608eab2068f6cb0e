"""The pages of a repair: HTML and PDF, printed from ``repair.json``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from audit.records.repair_run import Repair
from audit.report.html import render_repair
from audit.store import write_bytes, write_text

PAGE, PRINTED = "repair.html", "repair.pdf"


def write_repair_pages(folder: Path, record: Repair) -> list[Path]:
    """Write both pages; the record lies in the folder already."""
    from audit.report.pdf import render_pdf  # needs system libraries

    content = (folder / "repair.json").read_bytes()
    write_text(folder / PAGE, render_repair(record))
    page = render_repair(record, for_print=True)
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(folder / PRINTED, render_pdf(page, content, digest, record.started, name="repair.json"))
    return [folder / PAGE, folder / PRINTED]
