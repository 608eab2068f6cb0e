"""Records of ledgers: parts that sum to a gap."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from audit.records.base import Estimate, Metric, Record


class PartKind(StrEnum):
    """What a part of the sum is."""

    TOKENS = "prefix tokens"  # class token and registers, as they enter the first layer
    PATCHES = "patches"  # patches with their positions, as they enter the first layer; of a CNN the stem
    HEAD = "head"
    SLICE = "slice"  # of a convolutional block's channels
    ATTENTION_BIAS = "attention bias"  # of a layer's output projection; belongs to no head
    MLP = "MLP"
    BIASES = "biases on the way"  # of what the stream passes on its way to the logits, through what is held
    POOL = "pool"  # biases and positions of an attention pool, through its held attention
    POOL_MLP = "pool's MLP"
    CONSTANT = "constant"  # biases of the final norm and the classifier
    ENTROPY = "entropy of the others"  # -H(q), q the softmax over the other classes
    HELD = "what is held"  # what differs between images in what is held: the scale of the norm, the other classes


class PartFamily(StrEnum):
    """What parts are together, over layers or within one."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    MLP = "MLP"
    SLICES = "slices"
    BEHIND = "behind the last layer"
    BIASES = "biases on the way"
    HELD = "what is held"
    CLIPPED = "beyond the clip"  # images that no decision hangs on


class WhyNoLedger(StrEnum):
    """Why a gap of log-odds is not given as a sum of what was written."""

    NONLINEAR_POOL = "what follows the stream is not linear once norms are held, or of no known kind"
    UNKNOWN_NORM = "a norm is neither a LayerNorm nor an RMSNorm"
    UNKNOWN_BLOCKS = "what a block makes of its heads' writes is its own code's"
    UNKNOWN_STAGES = "what leads from a stage to the next is of no known kind"
    CURVED = "what leads from a layer to the logits is curved, though norms are held"
    NOT_CLOSED = "the parts do not sum to the log-odds"
    LABELS = "a label with weight is missing in a group"


class HybridOrder(StrEnum):
    """In which order parts of a reference model are exchanged for those of the audited model."""

    INPUT_FIRST = "input first"
    OUTPUT_FIRST = "output first"
    HEADS = "heads of a layer"  # input first, with the attention of one layer parted into its heads
    SHAPLEY = "all orders"  # the mean over all of them, or over some that are drawn (Shapley 1953)


LedgerLevel = Literal["part", "family in layer", "family", "layer"]
LedgerImages = Literal["all", "near the decision"]


class LedgerRow(Record):
    """A part of a gap of log-odds."""

    contrast: str
    outcome: str
    among: LedgerImages
    level: LedgerLevel  # rows of one level sum to the gap; those of "layer" alone do not
    family: PartFamily | None = None  # None: a whole layer
    part: PartKind | None = None  # None: several
    layer: int | None = None  # 0-based; None: in none, or in all
    head: int | None = None  # or slice; 0-based
    gap: Estimate  # nats, group minus reference
    share: Estimate  # of the whole; without a value where its interval holds 0, or it has not the sign of the rate gap
    adjusted: Estimate | None = None  # the gap with both groups at equal covariates, where the card names some


class LedgerTotal(Record):
    """A gap of log-odds that is given as a sum."""

    contrast: str
    outcome: str
    metric: Metric  # of the gap in rates: which labels count
    among: LedgerImages
    gap: Estimate  # nats, group minus reference
    adjusted: Estimate | None = None  # with both groups at equal covariates, where the card names some
    clip: float | None = None  # nats; log-odds further than this from where the decision lies count as this
    decision: float = 0.0  # log-odds from which on an image is called the outcome
    cut: int | None = None  # of a network whose stages follow one another: the stage whose slices sum to the whole
    kept: float | None = None  # share of the weight of images within it
    closure: float | None = None  # |sum of the parts - gap|, nats
    closure_of_images: float | None = None  # largest |sum - log-odds| of an image, over the largest |log-odds| or 1 nat
    why_not: WhyNoLedger | None = None


class TrainedRow(Record):
    """What exchanging a part of a reference model for the audited model's changes: rows of an order sum to the gap."""

    contrast: str
    outcome: str
    order: HybridOrder
    player: str  # "": what is in the reference already
    same_weights: bool = False  # both models have the same weights there: 0, not measured
    rate: Estimate  # fractions; mean over the references, the interval is over subjects
    probability: Estimate
    log_odds: Estimate  # nats
    adjusted: Estimate | None = None  # of the rate, with both groups at equal covariates, where the card names some
    between: float | None = None  # standard deviation of the rate between references; None of one
    null: float | None = None  # root mean square of this row, in rates, between two references
    order_error: float | None = None  # standard error of the rate for having drawn some orders of many; 0: all
    accuracy: Estimate | None = None  # of the hybrid after this exchange; None of a mean over orders


class TrainedTotal(Record):
    """A gap whose growth from a reference to the audited model is shared out."""

    contrast: str
    outcome: str
    metric: Metric
    order: HybridOrder
    images: int
    references: int
    rate: Estimate  # the audited model's gap, on these images
    probability: Estimate
    log_odds: Estimate  # nats
    adjusted: Estimate | None = None  # of the rate, with both groups at equal covariates, where the card names some
    by_training: Estimate  # in rates: the sum of all parts
    closure: float | None  # |sum of rows - gap|, in rates


class CarriedKind(StrEnum):
    """What a part is that is patched as a whole."""

    ATTENTION = "attention"
    MLP = "MLP"
    LAYER = "layer"
    CLASS_TOKEN = "class token"  # noqa: S105
    PATCH_TOKENS = "patch tokens"


class CarriedRow(Record):
    """What a part carries of a gap, beyond the placebo, on the confirmation split."""

    contrast: str
    outcome: str
    metric: Metric  # of the gap: which labels count
    part: CarriedKind
    layer: int | None = None  # 0-based; of tokens the depth: they are those that enter this layer; None: all layers
    recipients: int
    denoised: Estimate  # the donor's part in the recipient, what it suffices for; mean probability, fractions
    denoised_rate: Estimate
    share_of_gap: Estimate  # of ``denoised_rate``
    noised: Estimate  # the recipient's part in the donor, what it is needed for; mean probability, fractions
    # ``denoised`` minus ``noised``: of the sign of the gap, others carry the same; of the other, it needs others
    apart: Estimate
    beyond_noise: bool  # whether it carries in the direction of the gap, tested with all parts of its kind


class MeanShiftRow(Record):
    """What a part takes of a gap where its output is moved to the midpoint of both groups' means of equal label.

    Gap as it is minus gap with the part moved. Intervals hold the noise of the means. No audit rests on it.
    """

    contrast: str
    outcome: str
    metric: Metric  # of the gap: which labels count
    part: str  # "embedding", "L7 attention", "L7 MLP", "L7H2", "residual stream at 11"
    moved: int  # images, by the means of the other half of the subjects
    donors: int  # images whose outputs are in the means
    probability: Estimate  # fractions
    rate: Estimate
    log_odds: Estimate  # nats
    placebo: Estimate  # of ``probability``, with groups shuffled at random among the donors; mean of several shuffles
    beyond: Estimate  # ``probability`` minus ``placebo``
    share_of_gap: Estimate  # of ``rate``; without a value where the gap's own interval holds 0
    # how far exact patches with means of subjects drawn again are from the first order that the intervals rest on: root
    # mean square, in standard errors of ``probability``; None where none was made
    off_first_order: float | None = None
    takes: bool  # whether ``probability`` and ``beyond`` exclude 0 in the direction of the gap


class WhyStopped(StrEnum):
    """Why no more heads were added to a set."""

    NOISE = "the next adds no more than its noise"
    WHOLE = "the set carries all of it"
    NONE_LEFT = "no candidate is left"
    TOO_LITTLE = "too little data"


class SetStep(Record):
    """A head that was added to the smallest set, in mean probability on the discovery split: biased by the choice."""

    head: str
    gain: float  # in the direction of the gap
    error: float  # its standard error
    joint: float  # of the set so far


class SmallestSetRow(Record):
    """The smallest set of heads that carries a gap: chosen on the discovery split, measured on the confirmation split.

    Estimates are of mean probability beyond the placebo, as fractions, where they are not said to be of rates.
    """

    contrast: str
    outcome: str
    metric: Metric  # of the gap: which labels count
    heads: list[str]  # in the order in which they were added; empty: none
    steps: list[SetStep]
    stopped: WhyStopped
    limit: float | None = None  # standard errors that a gain must exceed
    tried: int  # heads, the strongest ones
    patched: int  # sets, to choose it
    recipients: int  # of the confirmation split
    together: Estimate = Estimate(value=None)
    together_rate: Estimate = Estimate(value=None)
    share_of_gap: Estimate = Estimate(value=None)  # of ``together_rate``
    sum_of_singles: Estimate = Estimate(value=None)
    # sum of singles minus together: of the sign of ``together``, counted more than once; of the other, others make up
    redundancy: Estimate = Estimate(value=None)
    random: list[float] = []  # what random sets of as many heads of each layer carry
    beyond_random: Estimate = Estimate(value=None)  # ``together`` minus their mean
    p_random: float | None = None  # share of these sets, this one among them, that carry as much
    confirmed: bool = False  # intervals of ``together`` and ``beyond_random`` exclude 0, in the direction of the gap


class AnswerLevel(StrEnum):
    """The finest level at which it can be said where a gap runs."""

    HEADS = "localised to heads"
    LAYERS = "localised to layers"
    PARTS = "localised to parts"
    WRITTEN_LATE = "written late, not localised"
    NOT_LOCALISABLE = "not localisable"


class Reading(StrEnum):
    """What it means where ledgers name different places."""

    SAME = "the same place"
    CONDUIT = "carried earlier than written"
    ORIGIN = "trained elsewhere"
    BOTH = "carried earlier than written, and trained elsewhere"


class WhyNotTrained(StrEnum):
    """Why it is not said which trained weights put a gap there."""

    NO_TRAINING = "the audit did not train the model"
    NO_REFERENCE = "no balanced reference was asked for"
    OTHER_ATTRIBUTE = "the references are balanced on another attribute"
    NOT_COMPARED = "the references could not be compared with the audited model"


class GapAnswer(Record):
    """Where a gap runs: one answer from all ledgers."""

    contrast: str
    outcome: str
    metric: Metric
    level: AnswerLevel
    heads: list[str] = []  # the smallest set, or where none was confirmed the heads that were, one by one
    jointly: bool = False  # whether ``heads`` were confirmed as a set
    one_by_one: int = 0  # how many heads are confirmed by themselves, whatever the answer is
    layers: list[int] = []  # 0-based, that carry it
    parts: list[CarriedKind] = []
    # of the gap in rates, that heads carry together, or of several parts the largest; of the log-odds gap, where it is
    # written late
    share: Estimate
    not_attributed: Estimate  # the rest of that gap; without a value where several parts were patched one by one
    written_in: int | None = None  # 0-based layer that writes most of it
    trained_in: str | None = None  # the player that training changed most
    reading: Reading | None = None
    patched: bool = True  # whether there were subjects enough to patch heads and parts
    why_not_trained: WhyNotTrained | None = None
    pairs: int | None = None  # donor pairs of the discovery split
    pairs_needed: int | None = None  # with which a head that carries half of the gap would show
