"""What all records are made of: immutable models, estimates, contrasts, and the enumerations of answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = "2.0"


class Outcome(StrEnum):
    """The answer of a whole audit.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.Outcome("DISPARITY FOUND").name
    'DISPARITY_FOUND'
    """

    PASSED = "PASSED"
    DISPARITY_FOUND = "DISPARITY FOUND"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


class State(StrEnum):
    """The answer to one comparison of a group with its reference."""

    DISPARITY = "disparity"
    NOT_DETECTED = "no disparity detected"
    TOO_LITTLE_DATA = "too little data"
    NOT_ESTIMABLE = "not estimable"


class Verdict(StrEnum):
    """What is known of one head."""

    CONFIRMED = "confirmed"
    CONFIRMED_NO_GAP = "confirmed, no gap"  # moves the outcome by group on both splits, but no gap was detected
    NOT_CONFIRMED = "found, not confirmed"
    NOT_FOUND = "no effect found"
    TOO_LITTLE_DATA = "too little data"


class LocalisationStatus(StrEnum):
    """Whether a detected gap was traced to heads."""

    LOCALISED = "localised"
    NOT_LOCALISABLE = "not localisable"
    NO_GAP = "no gap detected, nothing to localise"
    TOO_LITTLE_DATA = "too little data"
    NOT_ASKED = "not asked"  # the model's inside was not given


class Metric(StrEnum):
    """A gap between two groups."""

    STANDARDISED_GAP = "standardised_gap"
    TPR_GAP = "tpr_gap"
    FPR_GAP = "fpr_gap"


class Access(StrEnum):
    """What of the audited model was given."""

    INSIDE = "inside"  # layers and weights: what carries a gap can be asked
    ANSWERS = "answers"  # it answers images, as an ONNX file does
    PREDICTIONS = "predictions"  # its answers to these images, made elsewhere


class DataWarningCode(StrEnum):
    """What may be wrong with data that can be audited all the same."""

    REPEATED_ROWS = "repeated rows"
    UNNAMED_FILES = "images that no row names"
    UNEVEN_LOSS = "loss differs between groups"
    SIMILAR_NAMES = "names differ in case or blanks only"
    NAMES_MERGED = "names merged"
    EMPTY_GROUPS = "groups without an image"
    MANY_NUMBERS = "many groups that are numbers"
    SUBJECT_IN_SEVERAL_GROUPS = "subject in several groups"
    IDENTICAL_IMAGES = "byte-identical images"
    NEAR_COPIES = "near-copies across splits"
    NEAR_COPIES_LIMITED = "near-copies looked for among some pairs"
    SOURCES_DIFFER = "groups look different"
    LABELS_BY_COLUMN = "labels depend on a column"
    METADATA_IGNORED = "metadata ignored"
    DEPTH_GUESSED = "bit depth from the largest value"
    EXIF_AS_STORED = "turned by EXIF, read as stored"
    EXIF_APPLIED = "turned by EXIF, turned upright"
    TRANSPARENCY_DROPPED = "transparency dropped"
    DEPTH_CUT = "more than 8 bits cut off"
    SMALL_CELLS = "cells under the least size"
    UNTRAINED_CELLS = "cells without training images"
    WITHOUT_DONOR = "images without a donor"
    NULL_RUN = "groups permuted"
    UNUSED_PREDICTIONS = "predictions of other images"
    UNEVEN_DETECTION = "detection differs between groups"
    NO_NUMBER = "covariate is no number"
    COVARIATE_MISSING = "covariate missing"
    CALLED_UNKNOWN = "value called unknown"


class PreprocessingSource(StrEnum):
    """Who says how images are preprocessed."""

    WEIGHTS = "weights"  # what lies beside them, or their library's entry for them
    LIBRARY_DEFAULT = "library default"  # the weights carry nothing: what the library has for a model of that name
    CARD = "card"
    CALLABLE = "callable"  # the user's own function
    LEGACY = "legacy"


class WhyNoSensitivity(StrEnum):
    """Why the texts of a zero-shot model's prompts were not tried one by one."""

    ONE_TEXT = "one text a class"
    UNEQUAL = "classes with different numbers of texts"


class TextEncoding(StrEnum):
    """What the text of a table was taken for: names that Python's codecs know."""

    UTF_8 = "utf-8"
    UTF_8_MARKED = "utf-8-sig"
    UTF_16_MARKED = "utf-16"
    UTF_16_LE = "utf-16-le"
    UTF_16_BE = "utf-16-be"
    UTF_32_MARKED = "utf-32"
    WINDOWS_1252 = "cp1252"
    LATIN_1 = "latin-1"


class Separator(StrEnum):
    """The sign between the columns of a table."""

    COMMA = ","
    SEMICOLON = ";"
    TAB = "\t"
    BAR = "|"


class TableKind(StrEnum):
    """The format of a table."""

    TEXT = "text"
    JSON_LINES = "JSON lines"
    EXCEL = "Excel"
    PARQUET = "Parquet"


class LeftOut(StrEnum):
    """Why images were left out; of one that cannot be read, its error says the same."""

    NO_VALUE = "no value"  # in a column
    NO_SUBJECT = "no subject"
    NO_GROUP = "no group"  # of an attribute whose card leaves such images out
    LABEL_NOT_KEPT = "label not kept"
    NOT_DETECTED = "not detected"  # never reached the classifier
    PLANTED = "planted"  # thinned in one cell of training, as the card asks
    BALANCED = "balanced"  # thinned in training, as the card asks
    NO_ROW = "no row"  # in the table of groups
    NO_CLASS_FOLDER = "in no class folder"
    SUFFIX = "suffix of no image"
    HIDDEN = "hidden file"
    NAME_NOT_UTF8 = "name is not UTF-8"
    LINK_IN_CIRCLE = "link in a circle"
    NO_FILE = "no file"
    MISSING = "missing file"
    IMPOSSIBLE_NAME = "no file can have such a name"
    LINK_OUT = "link out of its folder"
    NOT_OPENED = "cannot be opened"
    NOT_AN_IMAGE = "not an image"
    DAMAGED = "damaged or truncated image"
    TOO_SMALL = "under 8 px on a side"
    TOO_LARGE = "over 50,000,000 pixels"
    PIXELS_OUT_OF_RANGE = "pixels out of range"
    NO_BOX = "no box"
    SMALL_BOX = "box under 8 px on a side"


class SourceKind(StrEnum):
    """Where images are from."""

    FILES = "files"
    MEMORY = "memory"
    RENDERED = "rendered"


class Removed(StrEnum):
    """What a shareable copy has lost besides names and files."""

    COMMENTS = "comments"
    FOLDERS = "folders"
    RUN_BY = "run by"
    MESSAGES = "messages"
    REVIEWERS = "reviewers"
    SIGNATURE = "signature"


class Direction(StrEnum):
    """What a head does to the gap that it was asked about, as far as its own interval tells."""

    WIDENS = "widens"
    NARROWS = "narrows"
    NOT_DETERMINED = "not determined"


class Shortfall(StrEnum):
    """Of what there is too little to answer a question."""

    SUBJECTS = "subjects"  # in a group
    LABELS = "labels"  # without an image, or without donors, in one of the two groups
    CLUSTERS = "clusters"  # independent groups of donor pairs and recipients
    SPREAD = "spread"  # no weight, or no variance to test with


class NotRunCode(StrEnum):
    """Why a control was not run, or what it gates was left out."""

    NEEDS_TRAINING = "needs training"
    CHECKS_FAILED = "checks failed"
    PAIRS_AS_GIVEN = "pairs as given"
    NOT_APPLICABLE = "not applicable"  # the model's input rules it out: it neither passes nor fails
    NO_INSIDE = "no inside"


class ChanceReason(StrEnum):
    """Why a model may be right no more often than chance."""

    CLASS_ORDER = "class order"  # the classes are in another one
    CONSTANT = "constant"  # it always gives one answer
    UNRELATED = "unrelated"  # its answers do not go with the labels


class Bound(StrEnum):
    """Which number of an estimate is compared with a control's threshold."""

    VALUE = "value"
    LOW = "low"
    HIGH = "high"


class FindingState(StrEnum):
    """What became of a finding between two runs."""

    NEW = "new"
    PERSISTING = "persisting"
    NO_LONGER_TESTABLE = "no longer testable"
    BELOW_THRESHOLD = "below the threshold now"


class WhyBelow(StrEnum):
    """What a run that asked a finding's question again lacks for a finding."""

    NOT_DETECTED = "gap not detected"
    NOT_CONFIRMED = "head not confirmed"
    SMALL_SHARE = "small share of the gap"


class WhyUntested(StrEnum):
    """Why a run cannot answer the question of another run's finding."""

    CONTROL_FAILED = "control failed"
    NOT_ASKED = "not asked"
    NO_GAP = "no gap"  # so no head was looked for
    NOT_PATCHED = "not patched"  # this head; others were
    TOO_LITTLE_DATA = "too little data"
    NOT_ESTIMABLE = "not estimable"


class NoteCode(StrEnum):
    """What a reader of a comparison of two runs must know."""

    OTHER_IMAGES = "other images"
    OTHER_NAMES = "other names"
    NOT_OPENED = "not opened"
    EFFECTS_UNREADABLE = "effects unreadable"


class ReasonCode(StrEnum):
    """Why an audit has the outcome that it has."""

    CONTROL_FAILED = "control failed"
    CONTROLS_NOT_RUN = "controls not run"
    GAP_ABOVE_POLICY = "gap above policy"
    GAP_NOT_EXCLUDED = "gap not excluded"
    NOTHING_COMPARED = "nothing compared"
    NO_GAP_ABOVE_POLICY = "no gap above policy"
    SMALLER_GAPS = "smaller gaps"
    SMALLEST_DETECTABLE = "smallest detectable"
    UNTESTED = "untested"
    NOT_ABOVE_CHANCE = "not above chance"


class NextStep(StrEnum):
    """What to do after an audit."""

    FIX_CONTROLS = "fix controls"
    REVIEW_FINDINGS = "review findings"
    BALANCE_TRAINING = "balance training"
    ADD_IMAGES = "add images"
    CHECK_MODEL = "check model"
    REPEAT = "repeat"


class HarmfulError(StrEnum):
    """Which error about the outcome harms."""

    MISSED = "missed"  # of the outcome, and not called so
    FALSE_ALARM = "false_alarm"  # called the outcome, and of another label
    BOTH = "both"


class Confidence(StrEnum):
    """How sure a finding is, by the rule that docs/method.md prints."""

    HIGH = "high"
    MODERATE = "moderate"
    LOW = "low"


RateField = Literal["selection_rate", "true_positive_rate", "false_positive_rate"]  # fields of ``RateRow``
Design = Literal["attribution patching", "Design B", "Design C", "weight transplant"]


@dataclass(frozen=True)
class Contrast:
    """One group of an attribute against its reference."""

    attribute: str
    group: str
    reference: str

    def __str__(self) -> str:
        return f"{self.attribute}:{self.group}-{self.reference}"


class Record(BaseModel):
    """Base of all records: immutable, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Record):
    """A number with its interval (``level`` coverage); bounds are None where no interval could be had."""

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = 0.95


class Localisation(Record):
    """Where a detected gap was found."""

    status: LocalisationStatus
    metric: Metric | None = None  # of the gap that was detected
    heads: list[str] = []  # confirmed ones, by name

    @property
    def was_asked(self) -> bool:
        """Tell whether there was a gap, and data enough to ask for heads."""
        return self.status in (LocalisationStatus.LOCALISED, LocalisationStatus.NOT_LOCALISABLE)
