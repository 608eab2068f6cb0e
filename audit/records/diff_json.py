"""``diff.json``: two runs compared."""

from __future__ import annotations

from typing import Literal

from audit.records.audit_json import Finding
from audit.records.base import Estimate, Outcome, Record
from audit.units import Unit


class RunName(Record):
    """Which run a comparison is of."""

    audit_id: str
    audit_sha256: str
    name: str
    outcome: Outcome
    started: str
    weights_sha256: str
    data_fingerprint: str


class ComparedFinding(Record):
    """What became of one finding between two runs."""

    id: str
    finding: Finding  # of the later run where both have it
    kind: Literal["disparity", "head"]
    state: Literal["new", "gone", "persisting", "no longer testable"]
    before: Estimate | None  # the first run's number, finding or not
    after: Estimate | None
    change: Estimate | None = None  # after minus before, where both measured the same images
    p: float | None = None  # of no change, by swapping the runs within people
    images: int | None = None  # measured by both
    reason: str = ""  # why it cannot be tested, or not pairwise


class RunComparison(Record):
    """The whole of ``diff.json``."""

    diff_version: Literal["2.0"] = "2.0"
    before: RunName
    after: RunName
    unit: Unit = "head"  # what was patched in the later run
    same_images: bool
    findings: list[ComparedFinding]
    notes: list[str] = []
