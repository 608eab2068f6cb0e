"""Records of ``repair.json``: what was planned before any sealed image was opened, and what each method did."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import Field

from audit.records.base import Estimate, Outcome, Record
from audit.records.repair_json import Aim, Certificate, CertificateState, Margins
from audit.records.repair_methods import Method, WhyNotOffered

REPAIR_VERSION = "1"


class HeadsFrom(StrEnum):
    """Why the heads that a repair edits are those."""

    SMALLEST_SET = "smallest set"  # that was confirmed to carry the gap jointly
    ONE_BY_ONE = "one by one"  # confirmed by themselves
    NONE = "none"


class FittedOn(StrEnum):
    """Of which images the two parts are that methods were fitted on and ranked on."""

    REPAIR = "repair"  # a split that no audit reads
    AUDITED = "audited"  # those of the audit, where nothing was held back: their gap is known too well


class SealedFrom(StrEnum):
    """Where the sealed images are from."""

    SPLIT = "split"  # of the audited data
    TABLE = "table"  # another table, of other people
    NONE = "none"  # there are none: nothing can be certified


class RepairPlan(Record):
    """What is fixed, and written to the disk, before any method is run."""

    audit_sha256: str  # of the audit.json that is repaired
    aim: Aim
    methods: list[Method]
    margins: Margins
    candidates: int  # how many of the methods are judged on sealed images, those ranked first
    heads: list[str]
    heads_from: HeadsFrom
    random_draws: int
    seed: int
    legal_basis: str
    fitted_on: FittedOn
    sealed_from: SealedFrom
    images: dict[str, int]  # of each split that is read; of what methods are fitted on, and of what they are ranked on
    sealed_table: str = ""  # SHA-256 of the table of other people's images
    reaudit: bool  # whether the repaired model is audited again, as a certificate asks
    code: str  # SHA-256 of the source that fits, measures and judges
    registered: str = ""  # ISO 8601, UTC: when it was written down


class CellChange(Record):
    """The group x label cell that loses most accuracy."""

    group: str
    label: str
    change: Estimate  # after minus before, same images


class Figures(Record):
    """A repaired model on one split."""

    images: int
    gap: Estimate  # the aimed one
    accuracy: Estimate
    worst: CellChange | None  # None of the audited model itself
    # Accuracy that some group and label is shown to lose, by the end of its change's interval that is nearer to 0.
    loss_shown: float = Field(default=0.0, ge=0, le=1)


class RepairRow(Record):
    """One method."""

    method: Method
    not_offered: WhyNotOffered | None = None
    group_at_training: bool
    group_at_prediction: bool
    settings: dict[str, Any] = {}
    seconds: float | None = None
    heads: list[str] = []
    weights: str | None = None  # file, relative to the folder of the repair
    weights_sha256: str | None = None
    ranked: Figures | None = None  # on images of people that it was not fitted on
    sealed: Figures | None = None  # of candidates


class RandomRow(Record):
    """The same edit at random heads of the same layers that write about as much."""

    method: Method
    draws: int
    gap: float  # absolute, left by the edit at the named heads, on the images that methods are ranked on
    smallest: float | None  # absolute gap that is left at the best of the random ones
    median: float | None
    p: float | None  # (1 + random ones at least as good) / (1 + draws)
    layers_apart: int = 0  # between a named head and one that stands for it
    not_offered: WhyNotOffered | None = None


class Reaudit(Record):
    """The repaired model, audited again."""

    folder: str  # relative to that of the repair
    audit_sha256: str
    outcome: str
    exit_code: int
    controls_passed: int
    controls: int
    confirmed: list[str]  # heads with an effect by group now that had none confirmed before, and were not edited


class RepairState(StrEnum):
    """The answer of a repair."""

    CERTIFIED = "CERTIFIED"
    NOT_SHOWN = "NOT SHOWN"
    FAILED = "FAILED"
    NOTHING_TO_REPAIR = "NOTHING TO REPAIR"  # no gap was detected
    NOT_CERTIFIABLE = "NOT CERTIFIABLE"  # there are no sealed images
    NO_METHOD_HELPS = "NO METHOD HELPS"  # none leaves a smaller gap at the accuracy that is asked for


class Judgement(Record):
    """A candidate's certificate, and that of the same method on the models of every other seed."""

    method: Method
    certificate: Certificate


class Judged(Record):
    """What sealed images showed of the audited model and of all candidates."""

    audited: Figures | None = None
    certificates: list[Judgement]
    sealed: dict[Method, Figures]


class Repair(Record):
    """The whole of ``repair.json``."""

    repair_version: str = REPAIR_VERSION
    name: str
    state: RepairState
    exit_code: int
    plan: RepairPlan | None  # None where there is nothing to repair
    audited: Figures | None  # the audited model on the images that methods are ranked on
    audited_sealed: Figures | None = None  # and on the sealed ones; None where they stayed sealed
    rows: list[RepairRow] = []
    random: list[RandomRow] = []
    recommended: Method | None = None  # the first candidate that is certified; else the first that did not fail
    certificates: list[Judgement] = []
    reaudit: Reaudit | None = None
    started_from: dict[str, str] = {}  # SHA-256 of the audited weights
    stages: dict[str, float]  # seconds
    versions: dict[str, str]
    command: str
    started: str  # ISO 8601, UTC

    @property
    def certificate(self) -> Certificate | None:
        """The certificate of the recommended method."""
        return next((j.certificate for j in self.certificates if j.method == self.recommended), None)


def states_of(certificate: Certificate) -> set[CertificateState]:
    """Return what came of a method on the models of all seeds."""
    return {certificate.state, *certificate.by_seed}


def best_of(certificates: Sequence[Judgement]) -> Judgement:
    """Return the first candidate that is certified on every seed's model; else the first that did not fail."""

    def rank(one: Judgement) -> int:
        states = states_of(one.certificate)
        return 2 if CertificateState.FAILED in states else int(states != {CertificateState.CERTIFIED})

    return min(certificates, key=rank)


def state_of_repair(certificate: Certificate, reaudit: Reaudit | None) -> RepairState:
    """Return the answer of a repair that was judged on sealed images.

    It is certified where every line is shown on the model of every seed, and the repaired model's own audit is valid
    and confirms no other head.
    """
    states = states_of(certificate)
    taken_over = reaudit is not None and (reaudit.outcome == Outcome.INVALID or bool(reaudit.confirmed))
    if CertificateState.FAILED in states or taken_over:
        return RepairState.FAILED
    shown = states == {CertificateState.CERTIFIED} and reaudit is not None
    return RepairState.CERTIFIED if shown else RepairState.NOT_SHOWN
