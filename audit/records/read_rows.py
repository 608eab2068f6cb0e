"""Records of one step back: what the largest writers of a gap of log-odds read of what was written before them."""

from __future__ import annotations

from enum import StrEnum

from audit.records.base import Estimate, Metric, Record
from audit.records.ledger_rows import LedgerImages, PartKind


class WhyNotRead(StrEnum):
    """Why what a writer reads is not said."""

    NOT_PLAIN = "its block is of a kind whose parts are not known"
    SLICES = "slices of a convolutional network are not read back"
    NO_WRITER = "no head or MLP writes beyond noise"
    NOT_CLOSED = "what it reads does not sum to what it writes"


class ReadWriter(Record):
    """One of the largest writers of a gap, whose row of the sum is given as a sum itself."""

    contrast: str
    outcome: str
    metric: Metric  # of the gap in rates: which labels count
    among: LedgerImages
    part: PartKind | None = None  # None: there is none, and ``why_not`` says why
    layer: int | None = None  # 0-based
    head: int | None = None
    gap: Estimate = Estimate(value=None)  # nats: its row of the ledger
    closure: float | None = None  # |sum of the rows - gap|, nats
    closure_of_images: float | None = None  # largest |sum - what it writes| of an image, over the largest or 1 nat
    why_not: WhyNotRead | None = None


class ReadRow(Record):
    """What a writer adds to a gap by reading one source; the rows of a writer sum to its own row of the ledger."""

    contrast: str
    outcome: str
    among: LedgerImages
    part: PartKind  # the writer
    layer: int
    head: int | None = None
    source: PartKind
    source_layer: int | None = None
    source_head: int | None = None
    gap: Estimate  # nats, group minus reference
    share: Estimate  # of the writer's gap; without a value where its interval holds 0


class ReadMap(Record):
    """Where in the image a writer reads what differs between two groups: a difference of means over all their images.

    ``values`` and ``prefix`` sum to the writer's gap over all images, but for what is held.
    """

    contrast: str
    outcome: str
    part: PartKind  # the writer
    layer: int
    head: int | None = None
    images_group: int
    images_reference: int
    prefix: float  # nats, read at the class token and registers
    values: list[list[float]]  # nats, read at each patch, row by row from the top
