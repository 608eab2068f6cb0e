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


class LedgerTotal(Record):
    """A gap of log-odds that is given as a sum."""

    contrast: str
    outcome: str
    metric: Metric  # of the gap in rates: which labels count
    among: LedgerImages
    gap: Estimate  # nats, group minus reference
    clip: float | None = None  # nats; log-odds beyond it count as this
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
    by_training: Estimate  # in rates: the sum of all parts
    closure: float | None  # |sum of rows - gap|, in rates
