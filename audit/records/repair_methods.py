"""The methods that repair a gap, and why one of them is not offered."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """What is done to a model so that a gap becomes smaller."""

    UNTOUCHED = "untouched"
    CONTINUED = "continued"
    GLOBAL_THRESHOLD = "global_threshold"
    DFR = "dfr"
    OXONFAIR = "oxonfair"
    THRESHOLD_OPTIMIZER = "threshold_optimizer"
    LEACE = "leace"
    GROUP_DRO = "group_dro"
    HEADS_TO_REFERENCE = "heads_to_reference"
    HEADS_FINETUNED = "heads_finetuned"
    HEADS_SHIFTED = "heads_shifted"
    RANDOM_HEADS = "random_heads"  # a control of the three before, asked for with any of them


# In the settings of a row: what the group and label that lose most lose in accuracy at the cheapest strength tried that
# halves the gap, on the images by which strengths are chosen. Missing where none halves it.
LOSS_AT_HALF = "largest_loss_at_half_the_gap"
SMALLEST_CELL = "smallest_cell"  # images of the smallest group and label there
AT_HEADS = (Method.HEADS_TO_REFERENCE, Method.HEADS_FINETUNED, Method.HEADS_SHIFTED)


class WhyNotOffered(StrEnum):
    """Why a method is not offered."""

    NO_CONFIRMED_HEAD = "no confirmed head"
    NO_OTHER_HEAD = "no other head"  # in any layer, to draw at random
    NO_REFERENCE = "no reference model"
    HEADS_NOT_SEPARABLE = "heads are not separable"  # slices of channels, or weights that heads share
    NO_TRAINING_IMAGES = "no training images"
    NO_LINEAR_CLASSIFIER = "no linear classifier"  # with a bias, whose outputs are the logits
    PIXELS_NOT_BYTES = "pixels are not bytes"  # so that they cannot be augmented
    CELL_TOO_SMALL = "a cell is too small"  # of group x label, on the repair split
    NO_LEGAL_BASIS = "no legal basis"  # stated in the card, for a method that needs the group at prediction
    DIVERGED = "training diverged"
    OTHER_REFERENCE = "reference is built otherwise"  # than the model
    EXTRA_MISSING = "package is missing"
