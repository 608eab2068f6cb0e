"""Frozen records that pass between the stages and make up ``audit.json``.

Numbers here are the only numbers a report may show: HTML, PDF and CSV are printed from these records.
Probabilities and rates are fractions in [0, 1]; differences of rates are fractions in [-1, 1];
``None`` means "not estimable", never zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from audit.records.base import (
    SCHEMA_VERSION,
    Access,
    Bound,
    ChanceReason,
    Confidence,
    DataWarningCode,
    Design,
    Direction,
    Estimate,
    HarmfulError,
    LeftOut,
    Localisation,
    LocalisationStatus,
    Metric,
    NextStep,
    NotRunCode,
    Outcome,
    PreprocessingSource,
    ReasonCode,
    Record,
    Separator,
    Shortfall,
    SourceKind,
    State,
    TableKind,
    TextEncoding,
    Verdict,
    WhyNoSensitivity,
)
from audit.records.covariate_rows import AdjustedRow, CovariateInfo
from audit.records.ledger_rows import (
    CarriedRow,
    GapAnswer,
    LedgerLevel,
    LedgerRow,
    LedgerTotal,
    SmallestSetRow,
    TrainedRow,
    TrainedTotal,
)
from audit.records.read_rows import ReadMap, ReadRow, ReadWriter
from audit.records.sensitivity_rows import SensitivityRow
from audit.units import Unit

FORMER_REASONS = {  # what ``Control.form`` said of a model at chance before there was ``Control.reason``
    "the classes are in another order": ChanceReason.CLASS_ORDER,
    "it always gives one answer": ChanceReason.CONSTANT,
    "its answers do not go with the labels": ChanceReason.UNRELATED,
}


class AddedWords(Record):
    """What is said of a control that another package adds, in its own words."""

    package: str  # with its version
    title: str
    statistic: str
    meaning: str
    fix: str


class Control(Record):
    """One check of the method: what was measured, and against what. Its words are in ``templates/controls.yaml``."""

    id: str
    check: str  # what is checked, a key of templates/controls.yaml
    kind: Literal["model", "served", "identity", "initialisation", "effect", "null"]
    channel: Literal["colour", "blur"] | None = None  # None: this audit's own models
    form: str = ""  # which models or images: "models", "input", "null models", "donors", "second seed" ...
    contrast: str = ""  # of edited pictures
    head: str = ""  # the one that was patched, by name
    figures: dict[str, float] = {}  # further numbers that the words name
    names: list[str] = []  # likewise: classes in the order that would fit
    reason: ChanceReason | None = None  # the likeliest, where a model is not shown to be above chance
    added: AddedWords | None = None  # of a control of another package
    estimate: Estimate
    judged: Bound = Bound.VALUE  # what of the estimate is compared with the threshold
    relation: Literal["==", "<=", "<", ">=", ">"]
    threshold: float
    passed: bool
    gates: Literal["audit", "Design B", "Design C"] = "audit"  # what is withheld if it fails
    n: int | None = None  # images behind the number

    @model_validator(mode="before")
    @classmethod
    def _with_reason(cls, given: Any) -> Any:
        """Read an earlier record, in which the reason stood in ``form``."""
        former = FORMER_REASONS.get(given.get("form", "")) if isinstance(given, dict) else None
        return given if former is None else {**given, "form": "", "reason": former}


class HeadGrid(Record):
    """A layer x head picture: ``values[layer][head]``, verdict symbols beside."""

    id: str  # "colour", "colour_null", "blur_input", "bias:<contrast>:<outcome>"
    kind: Literal["effect", "null", "input", "gap", "no gap"]
    channel: Literal["colour", "blur"] | None = None
    contrast: str = ""
    outcome: str = ""
    unit: Literal["log-odds", "probability"]  # nats, or a fraction
    values: list[list[float | None]]
    marks: list[list[Literal["", "confirmed", "no gap", "discovered", "above zero"]]]
    layers: list[int]  # 0-based layer numbers of the rows
    images: int | None = None  # behind each value
    patched: int | None = None  # on how few of them some heads were patched, and on the rest estimated


class ControlLook(Record):
    """Where a head of a clean control model looks in one rendered control image; of no other image."""

    channel: Literal["colour", "blur"]
    image: int  # its place among the evaluated images
    name: str  # of the head that the channel's effect was found in
    weights: list[list[float]]  # share of its attention by patch, row by row; the prefix tokens have the rest


class ControlSetup(Record):
    """What the known effects were measured on, and when."""

    images: str
    train: int  # images
    evaluate: int
    models: int
    weights: str  # file that the control models start from; "" for the audit's own backbone
    measured_on: str  # ISO 8601 date
    version: str  # of vit-audit
    rendered: int | None = None  # images that were rendered, the evaluated ones last; None: real ones, or not recorded
    seed: int | None = None  # that they were rendered with


class NotRun(Record):
    """A control that was not run, or a design that is left out because its controls failed."""

    code: NotRunCode
    design: Literal["Design B", "Design C", "colour", "all"]
    failed: int = 0
    of: int = 0
    contrast: str = ""


class ControlReport(Record):
    """The gate: every control, and the grids that show them."""

    valid: bool
    controls: list[Control]
    grids: list[HeadGrid]
    setup: ControlSetup | None = None
    not_run: list[NotRun] = []
    looks: list[ControlLook] = []


class CountRow(Record):
    """Images and subjects in one attribute x group x label x split cell. ``group`` may be "unknown"."""

    attribute: str
    group: str
    label: str
    split: str  # "train" | "discovery" | "confirmation" | "repair" | "sealed"
    images: int
    subjects: int


class LabelShareRow(Record):
    """Labels of the images with one value of a column that donors are matched on, such as an annotator."""

    column: str
    value: str  # "all others" where a column has many values
    images: int
    shares: dict[str, float]  # of its images, by label


class ExcludedRow(Record):
    """Images that were left out, and why. Nothing is left out that is not in such a row.

    ``templates/text/data.j2`` has the sentence.
    """

    kind: LeftOut
    of: str = ""  # column, attribute or key of the card
    names: list[str] = []  # the label; the group and the label of a thinned cell
    kept: float | None = None  # share of a thinned cell
    detail: str = ""  # a suffix, a size, what a library said
    images: int
    examples: list[str] = []  # relative paths; every one where a file could not be read, else at most five
    by_group: dict[str, dict[str, int]] = {}  # attribute -> group -> images, where their rows tell the group


class DataWarning(Record):
    """Something about the data that a reader of the results must know; ``templates/text/data.j2`` has the sentence."""

    code: DataWarningCode
    of: str = ""  # attribute or column
    images: int | None = None  # how many it concerns; cells or subjects, where these are counted
    total: int | None = None  # ... of how many
    names: list[str] = []  # groups, labels, cells or statistics
    examples: list[str] = []  # images
    subjects: list[str] = []  # examples
    values: list[str] = []  # of the column
    numbers: dict[str, float] = {}


class TableForm(Record):
    """How a table of the data was read; ``templates/text/data.j2`` has the sentence."""

    file: str  # its name, without folders
    kind: TableKind
    encoding: TextEncoding | None = None  # of text
    separator: Separator | None = None  # of columns in text
    sheet: str = ""  # of a workbook: the first
    sheets: int = 0


class AttributeInfo(Record):
    """Where a group annotation comes from."""

    attribute: str
    assigned_by: str
    reference: str
    groups: list[str]
    display: dict[str, str] = {}  # what the report calls a group, where the card says
    unknown_images: int
    note: str = ""  # of the card
    not_kept: dict[str, int] = {}  # images by value that is no group of the card, the commonest five
    not_kept_values: int = 0
    not_kept_images: int = 0
    permuted: int | None = None  # seed of a null run, in which groups are assigned at random


class GapLimit(Record):
    """What gaps between a group and its reference the number of subjects lets an audit detect."""

    attribute: str
    group: str
    reference: str
    subjects_group: int  # kept out of training
    subjects_reference: int
    subjects_needed: int  # in each
    in_both: int = 0  # subjects with images in both groups
    shortfall: Shortfall | None = None
    detectable: dict[str, float | None] = {}  # smallest gap by outcome, in (0, 1]; None: no gap, however large
    absent: list[str] = []  # outcomes that no image outside the training split is labelled as
    power: float
    tests: int  # that p-values are adjusted over


class IntersectionSize(Record):
    """How many groups of an intersection are large enough to be compared."""

    attributes: list[str]
    groups: int
    enough: int
    subjects_needed: int


class HeadLimit(Record):
    """Whether there is data enough to ask which heads carry a label-standardised gap."""

    attribute: str
    group: str
    reference: str
    unit: Unit
    shortfall: Shortfall | None
    clusters: tuple[int, int]  # independent groups of donor pairs and recipients: discovery, confirmation
    clusters_needed: int  # in each


class DataSource(Record):
    """Where the images are from; ``templates/text/data.j2`` has the sentence."""

    kind: SourceKind
    reader: str = ""  # of the card, where these are files
    path: str = ""  # as the card has it, absolute ones without their folders
    name: str = ""  # as the set's own metadata have it; of a table in memory, what it is called
    version: str = ""  # of the renderer
    seed: int | None = None  # of what was rendered


class DetectionRow(Record):
    """How many images of a group never reached the classifier, compared with the reference's."""

    attribute: str
    group: str
    reference: str
    images: int  # of the group, those that never reached it included
    subjects: int
    not_detected: int  # images
    rate: Estimate  # not_detected / images
    difference: Estimate | None = None  # group minus reference; None of the reference itself
    p_raw: float | None = None
    p_adjusted: float | None = None  # Holm over all groups that can be compared
    family_size: int = 0
    smallest_detectable: float | None = None  # at 80% power and the family's level
    state: State | None = None  # None of the reference itself


class DataReport(Record):
    """What was audited: every image accounted for."""

    source: DataSource
    tables: list[TableForm] = []
    images: int
    subjects: int
    labels: list[str]
    display: dict[str, str] = {}  # what the report calls a label, where the card says
    fingerprint: str  # SHA-256 over table and images
    attributes: list[AttributeInfo]
    counts: list[CountRow]
    label_shares: list[LabelShareRow] = []
    covariates: list[CovariateInfo] = []
    excluded: list[ExcludedRow]
    quarantined: list[ExcludedRow]
    splits: dict[str, int]
    images_opened: bool = True  # False: predictions stand for the images, and the fingerprint is of the table alone
    detection: list[DetectionRow] = []  # where the card says which images never reached the classifier
    sealed_opened: int = 0  # times that the sealed rows were read, each for a certificate
    licence: str = ""
    citation: str = ""
    limits: list[GapLimit] = []  # by group
    intersections: list[IntersectionSize] = []
    head_limits: list[HeadLimit] = []  # of a plan only
    warnings: list[DataWarning] = []


class RateRow(Record):
    """Rates of one outcome in one group; ``attribute`` may be an intersection "gender x skin_tone"."""

    attribute: str
    group: str
    outcome: str
    is_reference: bool
    images: int
    subjects: int
    positives: int  # images whose label is the outcome
    negatives: int = 0  # images of another label
    true_positives: int = 0  # labelled and predicted as the outcome
    false_positives: int = 0  # of another label, predicted as the outcome
    false_negatives: int = 0  # labelled as the outcome, and missed
    selection_rate: Estimate  # P(predicted = outcome)
    true_positive_rate: Estimate
    false_positive_rate: Estimate
    false_negative_rate: Estimate = Estimate(value=None)  # one minus the true-positive rate
    mean_probability: Estimate  # mean p(outcome)
    standardised_rate: Estimate  # selection rate at common label weights
    accuracy: Estimate
    impact_ratio: float | None  # selection rate / reference's
    impact_ratio_highest: float | None  # selection rate / the highest group's
    difference: Estimate | None = None  # of the raw selection rates, group minus reference
    equalised_odds: float | None = None  # larger of the differences in true- and false-positive rate to the reference


class ContrastRow(Record):
    """One group against its reference in one metric: the four-state answer."""

    id: str  # "gender:female-male:happiness:standardised_gap"
    attribute: str
    group: str
    reference: str
    outcome: str
    metric: Metric
    estimate: Estimate  # group minus reference
    ratio: float | None  # of standardised rates (standardised_gap only)
    p_raw: float | None
    p_adjusted: float | None
    family_size: int
    smallest_detectable: float | None  # at 80% power and the family's level
    state: State
    above_policy: bool
    equivalence_margin: float | None = None  # the policy's gap
    equivalence_p: float | None = None  # two one-sided tests
    within_margin: bool | None = None  # the gap is shown to be below the margin, at the audit's alpha
    by_seed: list[float]  # the same estimate for each training seed
    over_seeds: Estimate | None = None  # mean and interval with the seed as the unit, from six seeds on
    p_over_seeds: float | None = None  # exact sign-flip test over seeds
    n_group: int
    n_reference: int
    shortfall: Shortfall | None = None  # why "too little data" or "not estimable"
    fewest_subjects: int | None = None  # in the smaller group, where it has too few
    subjects_needed: int | None = None


class AccuracyRow(Record):
    """How often the model is right: of all audited images, or of one group's."""

    attribute: str = ""  # "" for all images
    group: str = ""
    images: int
    subjects: int
    accuracy: Estimate
    balanced_accuracy: Estimate  # mean over labels of the share that is recognised; chance has 1 / classes


class RangeRow(Record):
    """The widest difference between any two groups of an attribute, which chance alone makes positive."""

    attribute: str
    outcome: str
    highest: str
    lowest: str
    groups: int  # with enough subjects
    widest: float  # difference of the standardised rates
    by_chance: float  # its mean when group labels are assigned at random
    corrected: float  # widest minus by_chance, at least 0
    p: float  # share of random permutations at least as wide


class PromptGap(Record):
    """A standardised gap of a zero-shot model with each text of its prompts alone."""

    attribute: str
    group: str
    reference: str
    outcome: str
    together: Estimate  # the audited model's, which averages the texts of a class
    alone: list[Estimate]  # with the first text of every class, with the second, ...
    spread: float | None  # the largest of these minus the smallest; None where none can be estimated


class PromptSensitivity(Record):
    """How far a zero-shot model's gaps depend on the words that its classes are described by."""

    left_out: WhyNoSensitivity | None  # why there are no rows
    gaps: list[PromptGap]


class HeadRow(Record):
    """One head x outcome x contrast in Design A (and C where it ran). Heads with no effect included."""

    contrast: str  # "gender:female-male"
    outcome: str
    layer: int
    head: int
    name: str  # "L9H3"
    metric: Metric = Metric.STANDARDISED_GAP  # the gap that was asked about; its weights are those of all gaps below
    direction: Direction = Direction.NOT_DETERMINED  # widens or narrows that gap: sign of confirmation_rate, if known
    discovery: Estimate  # mediated gap in mean probability, discovery split: gap(same-group donors) - gap(pooled ones)
    discovery_p: float | None
    discovery_p_adjusted: float | None
    confirmation: Estimate
    confirmation_p: float | None  # only for heads found in discovery
    confirmation_p_adjusted: float | None
    iie_forward: Estimate  # reference images, donors of the group (confirmation split)
    iie_backward: Estimate  # group images, donors of the reference
    confirmation_rate: Estimate | None = None  # mediated gap in the question's own metric, instead of in mean p
    confirmation_log_odds: Estimate | None = None  # ... and in the class log-odds (nats)
    null_bound: float | None = None  # 95% of permutations lie within +- this, over all heads at once (confirmation)
    placebo: Estimate  # same-group donors against the unpatched image: disruption alone
    share_of_gap: Estimate  # confirmation_rate / rate gap of the same images; None where that gap's interval holds 0
    percentile_in_layer: float | None  # of |confirmation| among heads of its layer, 0..100
    accuracy_change: float | None  # with cross-group donors, against unpatched
    design_c: Estimate | None  # gap change with the balanced reference model's head, minus other seed's
    transplant: Estimate | None = None  # likewise, with the head's weights instead of what it writes there
    natural_indirect: Estimate | None = None  # Design B: on exact pairs, by this head alone
    natural_direct: Estimate | None = None  # Design B: on exact pairs, past this head
    attribution: float | None = None  # first-order estimate of the mediated gap, confirmation split
    by_seed: list[float]
    over_seeds: Estimate | None = None  # mean and interval with the seed as the unit, from six seeds on
    p_over_seeds: float | None = None
    equivalence_margin: float | None = None  # the policy's head_share_above times its gap_above
    equivalence_p: float | None = None  # two one-sided tests on the confirmation split
    within_margin: bool | None = None  # the effect is shown to be below the margin, at the audit's alpha
    n_group: int = 0  # images that were patched, confirmation split
    n_reference: int = 0
    verdict: Verdict
    smallest_detectable: float | None
    patched_share: float = 1.0  # of the recipients, confirmation split; the others are estimated to first order
    first_order_correlation: float | None = None  # with exact effects, where some are not patched
    exact_where_patched: float | None = None  # mediated gap of the patched recipients alone, where some are not
    attribution_where_patched: float | None = None  # the same recipients' to first order


class PairRow(Record):
    """Design B of one question: the same pictures in both groups."""

    contrast: str
    outcome: str
    pairs: int
    subjects: int
    total: Estimate  # from the reference's version to the group's, label-standardised


class JointRow(Record):
    """Several heads patched at once, on the confirmation split, compared with the sum of what they do one by one."""

    contrast: str
    outcome: str
    heads: list[str]
    all_heads: bool  # every swept head
    metric: Metric = Metric.STANDARDISED_GAP
    together: Estimate  # mediated gap of the set, in mean probability
    together_rate: Estimate | None = None  # in the rate of being called so
    sum_of_singles: Estimate  # of the mediated gaps of its heads
    beyond_sum: Estimate  # together minus the sum; towards 0 from the sum: redundant
    share_of_gap: Estimate  # together_rate / rate gap of the same images
    sum_share_of_gap: Estimate


class Finding(Record):
    """One claim that a reviewer can accept or reject, as data; ``templates/text/finding.j2`` has the sentences."""

    id: str  # stable across reruns of the same question, e.g. "F-3fa9c1d2"
    kind: Literal["disparity", "head"]
    severity: Literal["high", "medium", "low"]
    confidence: Confidence
    attribute: str
    group: str
    reference: str
    outcome: str
    metric: Metric  # of the question, and of ``estimate``
    n_group: int
    n_reference: int
    unknown: int
    estimate: Estimate  # the gap, or what the head mediates of it, in ``metric``
    by_seed: list[float] = []  # of the number that was tested
    p_raw: float | None
    p_adjusted: float | None
    family_size: int
    heads: list[str]
    alternatives: list[str] = []  # other explanations, by their keys in the templates
    hashes: dict[str, str]
    reproduce: str  # the command
    expected: float  # what the command gives: the gap, or a head's mediated gap in mean probability
    tolerance: float
    # of a disparity
    above_policy: bool = False  # in this or another metric
    worst_metric: Metric | None = None  # that the severity is by: the widest gap above policy
    worst: float | None = None
    ratio: float | None = None  # of its rates, where it is the standardised gap
    localisation: LocalisationStatus | None = None  # None: not examined
    # of a head
    direction: Direction = Direction.NOT_DETERMINED
    probability: Estimate | None = None  # mediated gap in mean probability, which was tested
    discovery: Estimate | None = None  # the same on the discovery split
    discovery_p_adjusted: float | None = None
    placebo: Estimate | None = None
    share_of_gap: float | None = None
    matched_on: list[str] = []  # besides the label
    calipers: dict[str, float] = {}  # covariates of the donors, and how far apart they may be
    patched_share: float = 1.0
    percentile_in_layer: float | None = None  # by size among the heads of its layer
    accuracy_change: float | None = None


class Reason(Record):
    """One reason of an outcome."""

    code: ReasonCode
    control: str = ""  # id
    contrast: str = ""  # id of a comparison
    count: int | None = None
    smallest_detectable: float | None = None
    missing: dict[str, int] = {}  # about how many more images, by group


class AttentionMap(Record):
    """Where a head looks in the images of one group: an average over images, which shows none of them."""

    contrast: str
    name: str  # "L9H3"
    group: str
    images: int
    weights: list[list[float]]  # share of the head's attention on each patch, row by row from the top


class Stability(Record):
    """How far the ranking of heads repeats itself."""

    contrast: str
    outcome: str
    split_half_rank_correlation: float | None
    top10_overlap: float | None  # share of the top ten in common, discovery against confirmation
    seeds_rank_correlation: float | None  # mean over pairs of seeds
    heads: int
    seeds: int
    top: int = 10  # heads that the overlap is of


class Agreement(Record):
    """How far another way to rank the heads of one question agrees with Design A's exact patches."""

    contrast: str
    outcome: str
    design: Design
    rank_correlation: float | None  # Spearman, over all heads
    sign_agreement: float | None  # among Design A's ten largest heads
    top10_recall: float | None  # share of Design A's ten largest among the other's ten largest
    top10_by_chance: float | None = None  # the same for a ranking at random


class Effort(Record):
    """How many exact patches one sweep of Design A took; a patch is one head of one image from one donor."""

    contrast: str
    split: str
    seed: int
    patches: int
    of: int  # of all heads and recipients, both donors
    found_early: int = 0  # heads that were found at the first look, over all outcomes of the contrast
    given_up_early: int = 0  # heads that were not patched further because the second look would hardly find them
    found: list[tuple[int, int]] = []  # layer and head, discovery split


class SearchPrecision(Record):
    """Where heads are searched for in less than float32; what is found is computed in float32."""

    dtype: str  # "bfloat16" | "float16"
    largest_difference: float  # of a probability from float32, among the patches that were computed both ways
    compared: int  # patches


class TrainingRun(Record):
    """How this audit fine-tuned its model: AdamW, cosine schedule."""

    blocks: int | None  # the last ones; None: all parts
    images: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: str = "float32"  # of the matrix products; weights, loss and gradients are float32


class PreprocessingInfo(Record):
    """What is done to an image file before the model sees it."""

    source: PreprocessingSource
    library: str  # whose code does it, with its version
    steps: list[str]  # as the library names them, in order; normalisation aside
    input_size: list[int] = []  # channels, height, width of what the model sees
    mean: list[float] = []  # of each channel, 0 to 1
    std: list[float] = []
    opening: str = "as stored"  # how files become RGB: as stored, turned by EXIF, or careful (legacy)
    sha256: str | None = None  # of a callable's source and settings; None where they do not tell it from another

    @property
    def is_unnamed(self) -> bool:
        """Whether nothing in the record tells it from another."""
        return self.source == PreprocessingSource.CALLABLE and self.sha256 is None


class LoadedWeights(Record):
    """What of a file or folder of weights became the model's."""

    kind: str  # safetensors | PyTorch | sharded | torch.distributed
    place: str  # where in the file the weights are; "": the file itself
    stripped: str  # what was before the names of all tensors
    classifier: str  # the file's name of the classifier, where it stood outside the model; else ""
    left_over: list[str]  # tensors beside the model that are no part of it
    stored: dict[str, int]  # how many tensors in each type; floating-point ones are loaded as float32


class ModelInfo(Record):
    """The audited model."""

    name: str  # as the card has it: what it is built as, or read by
    display: str = ""  # what the report calls it, where the card says
    access: Access = Access.INSIDE
    weights: str  # name of the file that the model or its predictions were read from, or training started from
    state: Literal["ema", "raw"] | None = None  # which weights of its file; None where there was no file
    loaded: LoadedWeights | None = None  # likewise
    weights_sha256: str  # where the inside is not given: of the file
    parameters: int | None  # None: not known
    unit: Unit = "head"  # what is patched: an attention head or a slice of channels, called a head below
    layers: int  # 0 where the inside is not given
    heads: int  # of the first layer
    heads_by_layer: list[int] = []
    image_size: int | None  # None: predictions need no image
    preprocessing: PreprocessingInfo | None  # None: predictions, and images were not seen by this audit
    classes: list[str]
    output: Literal["softmax", "sigmoid"] = "softmax"  # of the logits: classes that exclude each other, or each its own
    decision: Literal["argmax", "threshold"] = "argmax"  # what an image is called
    threshold: float | None = None  # called so from this probability on; None with argmax
    one_logit: bool = False  # the network has one output, the log-odds of the second of two classes
    output_key: str | None = None  # which of its outputs, where the network has several
    prompts: dict[str, list[str]] | None = None  # of a zero-shot model: by what its classes are described
    training: TrainingRun | None  # None: the user's own model, audited as it is
    seeds: list[int]
    accuracy_by_seed: list[float]  # held-out images
    balanced_accuracy_by_seed: list[float]

    @property
    def has_inside(self) -> bool:
        """Tell whether its layers were given."""
        return self.access == Access.INSIDE

    @property
    def built_here(self) -> bool:
        """Tell whether all its weights are of this audit, so that it has the pattern of ``name`` and nothing else."""
        return self.training is not None and self.weights in ("rendered", "none")


class LegalAnswer(Record):
    """An answer of the legal screen, recorded and not judged."""

    clause: str
    question: str
    answer: str  # "not answered" where the card is silent


class EngineReport(Record):
    """What ran, and how well it agrees with plain hooks."""

    device: str
    largest_difference: float | None  # of a logit from plain hooks, in this run; None: not measured
    whole_blocks: list[int] = []  # layers that are run whole, and by plain hooks where sets of heads are patched


class PatchChoice(Record):
    """Whether all patches were made or a sample of them, and what either costs, in forward passes of an image."""

    sampled: bool
    asked: Literal["auto", "all", "sampled"]  # by the card
    every: float
    sample: float
    affordable: float


class MethodReport(Record):
    """What was fixed before the run."""

    preregistration_sha256: str  # of preregistration.json, written before anything was measured
    words_sha256: str  # of templates/method.yaml: hypotheses, measures, designs and estimands
    thresholds: dict[str, float]
    harmful_error: HarmfulError = HarmfulError.BOTH  # in the use of this model, by the card
    layers: int  # that were searched; heads of these x outcomes x contrasts are one family
    first_look: float | None = None  # share of alpha that is spent on the first of two looks at discovery
    permutations: int
    bootstrap: int
    engine: EngineReport
    patches: PatchChoice | None = None  # None: nothing was patched
    effort: list[Effort] = []  # by contrast, split and seed
    precision: SearchPrecision | None = None  # None: float32 throughout


class Provenance(Record):
    """Enough to repeat the run."""

    command: str
    started: str  # ISO 8601, UTC
    run_by: str | None = None  # by the card; None where it does not say
    hardware: str
    versions: dict[str, str]
    seeds: list[int]
    hashes: dict[str, str]

    @field_validator("run_by")
    @classmethod
    def _stated(cls, given: str | None) -> str | None:
        """Read an earlier record, in which words stood for what was not said."""
        return None if given == "not stated" else given


class Audit(Record):
    """The whole of ``audit.json``."""

    schema_version: str = SCHEMA_VERSION
    audit_id: str
    name: str
    task: str
    outcome: Outcome
    exit_code: int
    reasons: list[Reason]
    next_steps: list[NextStep]
    intended_use: str
    out_of_scope: str
    owner: str = ""  # who decides about the model, by the card
    decide_by: str = ""  # ISO 8601 date; "" where the card says none
    model: ModelInfo
    legal: list[LegalAnswer]
    controls: ControlReport
    data: DataReport
    rates: list[RateRow]
    contrasts: list[ContrastRow]
    accuracy: list[AccuracyRow] = []
    ranges: list[RangeRow] = []
    adjusted: list[AdjustedRow] = []  # where the card names covariates
    prompt_sensitivity: PromptSensitivity | None = None  # None: not a zero-shot model, or nothing may be said
    findings: list[Finding]
    heads: list[HeadRow]
    joint: list[JointRow] = []
    ledgers: list[LedgerTotal] = []  # gaps of log-odds that are given as sums
    ledger: list[LedgerRow] = []  # their parts
    trained: list[TrainedTotal] = []  # gaps shared out between a reference model's parts and those trained otherwise
    trained_parts: list[TrainedRow] = []
    carried: list[CarriedRow] = []  # what attention, MLPs, layers and tokens carry of a gap
    smallest: list[SmallestSetRow] = []  # of heads, by gap
    answers: list[GapAnswer] = []  # where each gap runs
    sensitivity: list[SensitivityRow] = []  # how wrong annotations may be before a detected gap vanishes
    read_writers: list[ReadWriter] = []  # the largest writers of the ledger, where the card asks what they read
    read: list[ReadRow] = []  # what they read
    read_maps: list[ReadMap] = []  # and where in the image
    pairs: list[PairRow] = []
    attention: list[AttentionMap] = []
    grids: list[HeadGrid]
    stability: list[Stability]
    agreement: list[Agreement] = []
    localisation: dict[str, Localisation]  # by question, "contrast:outcome"
    method: MethodReport
    provenance: Provenance
    synthetic: bool  # True for rendered data: examples may be shown

    @property
    def is_invalid(self) -> bool:
        """Tell whether a control failed, so that nothing about groups may be said."""
        return self.outcome == "INVALID" or not self.controls.valid

    def parts_of(self, total: LedgerTotal, level: LedgerLevel) -> list[LedgerRow]:
        """Return the rows of a sum, at one level, in the order of the network."""
        own = (total.contrast, total.outcome, total.among, level)
        return [r for r in self.ledger if (r.contrast, r.outcome, r.among, r.level) == own]

    def families_of(self, total: LedgerTotal) -> list[LedgerRow]:
        """Return the coarsest rows of a sum, larger before smaller."""
        return sorted(self.parts_of(total, "family"), key=lambda r: -abs(r.gap.value or 0.0))

    def sensitivity_of(self, gap: ContrastRow) -> list[SensitivityRow]:
        """Return how wrong annotations may be before a gap vanishes; nothing of one that was not looked at."""
        own = (f"{gap.attribute}:{gap.group}-{gap.reference}", gap.outcome, gap.metric)
        return [r for r in self.sensitivity if (r.contrast, r.outcome, r.metric) == own]

    def read_by(self, writer: ReadWriter) -> list[ReadRow]:
        """Return what a writer reads, in the order of the network."""
        own = (writer.contrast, writer.outcome, writer.among, writer.part, writer.layer, writer.head)
        return [r for r in self.read if (r.contrast, r.outcome, r.among, r.part, r.layer, r.head) == own]

    def trained_of(self, total: TrainedTotal) -> list[TrainedRow]:
        """Return what of a gap is in the reference, and what each part's training put there."""
        own = (total.contrast, total.outcome, total.order)
        return [r for r in self.trained_parts if (r.contrast, r.outcome, r.order) == own]

    def answer_to(self, contrast: str, outcome: str) -> GapAnswer | None:
        """Return where the gap of a question runs; None where that was not asked."""
        return next((a for a in self.answers if (a.contrast, a.outcome) == (contrast, outcome)), None)

    def smallest_of(self, contrast: str, outcome: str) -> SmallestSetRow | None:
        """Return the smallest set of heads that carries a gap; None where it was not asked for."""
        return next((s for s in self.smallest if (s.contrast, s.outcome) == (contrast, outcome)), None)

    def carried_of(self, contrast: str, outcome: str) -> list[CarriedRow]:
        """Return what parts carry of a gap, in the order of the network."""
        return [r for r in self.carried if (r.contrast, r.outcome) == (contrast, outcome)]
