"""The folder of a finished run, from an example's record alone."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from audit.pipeline.print_again import Fault, printing_again
from audit.records import Audit, Decision
from audit.report.manifest import write_manifest
from audit.report.render import read_run


def write_run(folder: Path, audit: Audit) -> Path:
    """Write a record with its manifest."""
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(audit.model_dump_json(), encoding="utf-8")
    write_manifest(folder)
    return folder


def digest_of(run: Path) -> str:
    """Return the hash that a review of a run names."""
    return sha256((run / "audit.json").read_bytes()).hexdigest()


def page_faults(run: Path) -> list[Fault]:
    """Return where a page is not what the record prints."""
    with printing_again(run, read_run(run)) as wait:
        return wait(lambda _done, _total: None)


def decision(subject: str, **update: Any) -> Decision:
    """Return a decision about a finding."""
    made = {
        "finding": subject, "decision": "accept", "name": "R. Reader", "role": "compliance", "reason": "seen",
        "decided": "2026-03-02T10:00:00.123Z",
    }  # fmt: skip
    return Decision.model_validate(made | update)
