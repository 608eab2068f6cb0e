"""Records of a repair's certificate: what each line says of the sealed images, and what it would take."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from audit.records.base import Estimate, HarmfulError, Metric, Record, Shortfall


class CertificateState(StrEnum):
    """The answer of a whole certificate."""

    CERTIFIED = "CERTIFIED"  # every line is shown
    NOT_SHOWN = "NOT SHOWN"  # too little data for at least one line, and none failed
    FAILED = "FAILED"  # at least one line is shown not to hold


class LineState(StrEnum):
    """The answer of one line."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    FAILED = "failed"  # the true value is shown to be beyond the margin


class LineKind(StrEnum):
    """What a line of a certificate bounds."""

    GAP = "gap"  # the aimed gap of the repaired model: within the margin of 0
    CELL_ACCURACY = "cell accuracy"  # of a group and label: lowered by less than the margin
    GROUP_ERROR = "group error"  # a harmful error of a group: raised by less than the margin; else levelling down
    OTHER_GAP = "other gap"  # of another group, attribute or intersection: widened by less than the margin


class Aim(Record):
    """The gap that a repair is to close, and the error that harms."""

    attribute: str
    group: str
    reference: str
    outcome: str
    metric: Metric
    harm: HarmfulError = HarmfulError.BOTH


class Margins(Record):
    """What a certificate allows, in shares of images, and its level."""

    gap: float = Field(gt=0, lt=1)  # of the aimed gap, from 0; and of the widening of any other
    accuracy: float = Field(gt=0, lt=1)  # lost in a group and label
    error: float = Field(gt=0, lt=1)  # gained by a group
    alpha: float = Field(default=0.05, gt=0, lt=0.5)  # of the whole certificate, before candidates share it


class CertificateLine(Record):
    """One claim about the repaired model, with its test.

    ``estimate`` is the number that is compared with the margin, with the interval that decides: of a gap, the gap
    after the repair; of accuracy and errors, after minus before on the same images; of another gap, its absolute
    value after minus that before.
    """

    kind: LineKind
    attribute: str
    group: str
    reference: str | None = None  # of a gap
    label: str | None = None  # of a cell
    outcome: str | None = None  # of a gap or an error
    metric: Metric | None = None  # of a gap
    error: HarmfulError | None = None  # missed or false_alarm
    estimate: Estimate
    before: float | None  # the same rate or gap of the model before and after the repair
    after: float | None
    margin: float
    p: float | None  # one-sided: small where the line holds
    state: LineState
    shortfall: Shortfall | None = None  # why it cannot be tested
    images: int
    subjects: int  # of the smaller group where two are compared
    needed_images: int | None = None  # with which the line alone is shown at 80% power, if nothing truly changes
    needed_subjects: int | None = None  # ... with as many images of each as here


class Changed(Record):
    """Who is newly wrong and newly right in one group: counts, without a test."""

    attribute: str
    group: str
    images: int
    subjects: int
    images_newly_wrong: int
    images_newly_right: int
    subjects_newly_wrong: int  # with at least one such image
    subjects_newly_right: int


class Certificate(Record):
    """What was shown of a repaired model on sealed images; all lines must hold, each at the same level."""

    state: CertificateState
    aim: Aim
    margins: Margins
    alpha: float  # of each line: that of the margins, shared by the candidates
    candidates: int  # repaired models that were judged on the same sealed images
    min_subjects: int  # under which a line is not tested
    images: int
    subjects: int
    lines: list[CertificateLine]
    levelled_down: list[str]  # groups whose error is shown to be raised beyond its margin, where the gap got smaller
    changed: list[Changed]
    needed_images: int | None = None  # sealed images, of the same mix, with which all lines together reach 80% power
    needed_subjects: int | None = None
    by_seed: list[CertificateState] = []  # of each training seed
    sealed_openings: int  # how often the sealed images were read, this time included


class Expected(Record):
    """What is assumed of a repair when images are counted before one is made."""

    changed: float = Field(ge=0, le=1)  # share of images whose answer the repair changes
    error: float = Field(ge=0, le=1)  # share of images of any group and label that the repaired model gets wrong
    within_subject: float = Field(default=0.0, ge=0, le=1)  # correlation of two images of a subject in either


class ReachLine(Record):
    """What one line of a certificate needs."""

    kind: LineKind
    attribute: str
    group: str
    label: str | None = None
    error: HarmfulError | None = None
    images: int
    subjects: int
    power: float  # of the line with these images, if the true effect is 0
    needed_images: int | None = None  # for 80% of this line alone; None where no image is of it


class Reach(Record):
    """Whether a certificate can be had with the sealed images there are, and with how many it could."""

    sealed: bool = True  # whether there are sealed images; else audited ones are counted, in whose mix they would come
    expected: Expected
    margins: Margins
    candidates: int
    images: int
    subjects: int
    power: float  # of the whole certificate, at least: 1 less what each line may miss
    reachable: bool  # at 80%
    needed_images: int | None  # sealed images of the same mix for 80% of the whole; None where a cell has none
    needed_subjects: int | None
    lines: list[ReachLine]
