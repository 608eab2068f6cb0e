"""``diff.json``: two runs compared."""

from __future__ import annotations

from typing import Literal

from audit.records.audit_json import Finding
from audit.records.base import (
    Estimate,
    FindingState,
    Metric,
    NoteCode,
    Outcome,
    RateField,
    Record,
    Shortfall,
    State,
    Verdict,
    WhyBelow,
    WhyUntested,
)
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
    gap_above: float | None  # the policy's gap; None where nothing was compared
    above_policy: int | None  # comparisons above policy; None where a control failed


class Untested(Record):
    """Why a run cannot answer a finding's question; the fields but ``why`` are those of its comparison."""

    why: WhyUntested
    shortfall: Shortfall | None = None
    fewest_subjects: int | None = None
    subjects_needed: int | None = None


class InBoth(Record):
    """A number of both runs; None where a run did not measure it."""

    before: Estimate | None
    after: Estimate | None
    change: Estimate | None = None  # after minus before, where both measured the same images
    p: float | None = None  # of no change, by swapping the runs within people
    images: int | None = None  # measured by both


class ComparedFinding(InBoth):
    """What became of one finding between two runs; numbers are there, finding or not."""

    id: str
    finding: Finding  # of the later run where both have it
    kind: Literal["disparity", "head"]
    state: FindingState
    untested: Untested | None = None  # in the later run; of a new finding, in the earlier one
    below: WhyBelow | None = None  # what the later run lacks for a finding


class ComparedGap(InBoth):
    """One comparison of a group with its reference, and where it stands against the policy."""

    id: str  # as in ``contrasts``
    attribute: str
    group: str
    reference: str
    outcome: str
    metric: Metric
    before_state: State | None
    after_state: State | None
    before_above: bool | None  # above policy
    after_above: bool | None


class ComparedRate(InBoth):
    """One rate of one group."""

    attribute: str
    group: str
    outcome: str
    rate: RateField


class ComparedHead(InBoth):
    """A head that either run confirms: its mediated gap in mean probability, confirmation split."""

    contrast: str
    outcome: str
    name: str
    before_verdict: Verdict | None
    after_verdict: Verdict | None


class ComparisonNote(Record):
    """What a reader of a comparison must know; ``templates/text/diff.j2`` has the sentence."""

    code: NoteCode
    error: str = ""  # the message of what could not be read


class Display(Record):
    """What the cards call groups and labels; what is not here is called as in the data."""

    groups: dict[str, dict[str, str]] = {}  # by attribute
    labels: dict[str, str] = {}


class RunComparison(Record):
    """The whole of ``diff.json``."""

    diff_version: Literal["3.0"] = "3.0"
    before: RunName
    after: RunName
    unit: Unit = "head"  # what was patched in the later run
    same_images: bool
    findings: list[ComparedFinding]
    gaps: list[ComparedGap] = []
    rates: list[ComparedRate] = []
    heads: list[ComparedHead] = []
    notes: list[ComparisonNote] = []
    display: Display = Display()
