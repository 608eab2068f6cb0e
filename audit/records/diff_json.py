"""``diff.json``: two runs compared."""

from __future__ import annotations

from typing import Literal

from audit.records.audit_json import Finding
from audit.records.base import Estimate, FindingState, NoteCode, Outcome, Record, Shortfall, WhyUntested
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


class Untested(Record):
    """Why a run cannot answer a finding's question; the fields but ``why`` are those of its comparison."""

    why: WhyUntested
    shortfall: Shortfall | None = None
    fewest_subjects: int | None = None
    subjects_needed: int | None = None


class ComparedFinding(Record):
    """What became of one finding between two runs."""

    id: str
    finding: Finding  # of the later run where both have it
    kind: Literal["disparity", "head"]
    state: FindingState
    before: Estimate | None  # the first run's number, finding or not
    after: Estimate | None
    change: Estimate | None = None  # after minus before, where both measured the same images
    p: float | None = None  # of no change, by swapping the runs within people
    images: int | None = None  # measured by both
    untested: Untested | None = None  # in the later run; of a new finding, in the earlier one
    confirmed_only: bool = False  # the later run confirms the head, which carries too small a share for a finding


class ComparisonNote(Record):
    """What a reader of a comparison must know; ``templates/text/diff.j2`` has the sentence."""

    code: NoteCode
    error: str = ""  # the message of what could not be read


class RunComparison(Record):
    """The whole of ``diff.json``."""

    diff_version: Literal["2.0"] = "2.0"
    before: RunName
    after: RunName
    unit: Unit = "head"  # what was patched in the later run
    same_images: bool
    findings: list[ComparedFinding]
    notes: list[ComparisonNote] = []
