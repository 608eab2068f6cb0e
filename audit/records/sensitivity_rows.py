"""Records of how wrong annotations may be before a gap vanishes."""

from __future__ import annotations

from enum import StrEnum

from audit.records.base import Estimate, Metric, Record


class SensitivityKind(StrEnum):
    """What may be wrong, and how."""

    LABELS = "labels"  # in the worst way, differently in the two groups
    LABELS_AT_RANDOM = "labels at random"  # alike in both groups
    GROUPS = "groups"  # annotations exchanged between the two groups, in the worst way
    GROUPS_AT_RANDOM = "groups at random"
    SAMPLING = "sampling"  # images that are called so are over- or underrepresented, differently in the two groups


class SensitivityRow(Record):
    """Bounds on a detected gap by how much is wrong, and how much it takes for the gap to vanish.

    Of what is wrong at random both bounds are the corrected gap.
    """

    contrast: str
    outcome: str
    metric: Metric
    kind: SensitivityKind
    gap: Estimate  # as measured
    # Smallest share of wrong annotations in each group and label, in [0, 0.5]; of sampling how many times as likely
    # some images would have to be in the sample as others.
    tipping: float | None  # at which 0 is within the bounds; None: at none
    tipping_of_interval: float | None  # at which the limit of the interval that is nearer to 0, moved alike, is at 0
    amounts: list[float]  # shares, or times, at which the bounds are given
    low: list[float]
    high: list[float]
    declared: float | None = None  # share of wrong annotations that the card estimates; of groups: of the group's
    declared_reference: float | None = None  # ... and of the reference's
    low_at_declared: float | None = None
    high_at_declared: float | None = None
    survives: bool | None = None  # the interval, moved by what is declared to be wrong, excludes 0
