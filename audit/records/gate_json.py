"""``gate.json``: whether a run passes, by itself and beside an earlier one."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from audit.records.base import Estimate, Metric, Record
from audit.records.diff_json import ComparisonNote, RunName


class GateVerdict(StrEnum):
    """Whether a run passes the gate, and what stops it; where several do, the first of these in order."""

    INVALID = "INVALID"  # a control failed
    WORSE = "WORSE THAN BASELINE"
    ABOVE_POLICY = "ABOVE POLICY"
    TOO_LITTLE_DATA = "TOO LITTLE DATA"
    PASSED = "PASSED"


class GapState(StrEnum):
    """What became of one gap since the baseline."""

    LARGER = "larger"  # beyond noise, and beyond what is tolerated
    NOT_LARGER = "not shown to be larger"
    TOO_LITTLE_DATA = "too little data"  # in this run; the baseline had enough
    NOT_IN_BASELINE = "not in the baseline"  # which had too little data, or did not ask


class GapCheck(Record):
    """One gap of a run beside the same gap of the baseline."""

    id: str  # of its comparison in audit.json
    attribute: str
    group: str
    reference: str
    outcome: str
    metric: Metric
    state: GapState
    before: Estimate
    after: Estimate
    change: Estimate | None = None  # after minus before
    p: float | None = None  # of no change
    p_adjusted: float | None = None  # for all gaps that were compared
    images: int | None = None  # measured by both, where they were paired
    smallest_detectable: float | None = None  # change, at 80% power and the family's level


class Gate(Record):
    """The whole of ``gate.json``."""

    gate_version: Literal["1.0"] = "1.0"
    run: RunName
    baseline: RunName | None
    verdict: GateVerdict
    exit_code: int
    with_policy: bool  # whether gaps above the card's policy stop a run
    tolerance: float  # by so much a gap may be larger than before, a fraction
    alpha: float  # of the run's card
    controls_failed: list[str]  # by id
    above_policy: list[str]  # comparisons, by id
    paired: bool  # image by image
    gaps: list[GapCheck]  # empty without a baseline, or where a control failed
    notes: list[ComparisonNote] = []
