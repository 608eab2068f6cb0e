"""How wrong labels, groups or sampling may be before a detected gap vanishes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from audit.evidence.disparity import Question
from audit.evidence.error_bounds import (
    ROUNDING,
    Bounds,
    Cells,
    count_cells,
    gap_with_random_groups,
    gap_with_random_labels,
    group_bounds,
    label_bounds,
    sampling_bounds,
)
from audit.evidence.stats import Array
from audit.records import ContrastRow, SensitivityKind, SensitivityRow

MOST = 0.5  # share of wrong annotations that is thought of
STRONGEST = 1000.0  # times that some images are as likely to be in the sample as others
SCANNED = 201  # amounts among which the tipping point is looked for, where any amount is possible
POINTS = 21  # at which bounds are recorded
BEYOND = 1.25  # ... up to so many times the tipping point
LEAST_SHARE, LEAST_TIMES = 0.02, 2.0  # ... and at least up to these
JOINED = " x "  # between the attributes, and the groups, of an intersection


@dataclass(frozen=True)
class DeclaredErrors:
    """What a card estimates of its own annotations: shares in [0, 0.5]."""

    labels: float | None = None
    groups: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)  # by attribute, or by its groups

    def of_groups(self, row: ContrastRow) -> tuple[float, float] | None:
        """Return the shares of the two groups; of an intersection, either part may be wrong. None: not declared."""
        attributes = row.attribute.split(JOINED)
        if not any(name in self.groups for name in attributes):
            return None
        group, reference = (
            min(MOST, sum(self._share(*part) for part in zip(attributes, name.split(JOINED), strict=False)))
            for name in (row.group, row.reference)
        )
        return group, reference

    def _share(self, attribute: str, group: str) -> float:
        found = self.groups.get(attribute, 0.0)
        return found.get(group, 0.0) if isinstance(found, Mapping) else found


NOTHING_DECLARED = DeclaredErrors()


def sensitivities(
    frame: pd.DataFrame,
    questions: Iterable[Question],
    gaps: Iterable[ContrastRow],
    declared: DeclaredErrors = NOTHING_DECLARED,
) -> list[SensitivityRow]:
    """Say of detected gaps how wrong annotations would have to be for them to vanish.

    Parameters
    ----------
    frame : pandas.DataFrame
        As :func:`audit.evidence.disparity.contrasts` takes it.
    questions : iterable of Question
    gaps : iterable of ContrastRow
        Detected ones.
    declared : DeclaredErrors
        The card's own estimates.

    Returns
    -------
    list of SensitivityRow
        One of each gap and kind.
    """
    by_attribute = {question.attribute: question for question in questions}
    return [
        row
        for gap in gaps
        for row in judge_sensitivity(count_cells(frame, by_attribute[gap.attribute], gap), gap, declared)
    ]


def judge_sensitivity(
    cells: Cells, gap: ContrastRow, declared: DeclaredErrors = NOTHING_DECLARED
) -> list[SensitivityRow]:
    """Return the rows of one gap, of the images counted in ``cells``."""
    of_groups = declared.of_groups(gap)
    of_labels = None if declared.labels is None else (declared.labels, declared.labels)
    errors = {kind: _error(cells, kind) for kind in SensitivityKind}
    tips = {kind: _tipping_points(gap, error) for kind, error in errors.items()}
    shown = [*tips[SensitivityKind.LABELS], *tips[SensitivityKind.GROUPS], *(of_groups or ()), *(of_labels or ())]
    furthest = max((share for share in shown if share is not None), default=MOST)
    shares = np.linspace(0, min(MOST, max(LEAST_SHARE, BEYOND * furthest)), POINTS)
    furthest = max((times for times in tips[SensitivityKind.SAMPLING] if times is not None), default=1.0)
    ratios = np.linspace(1.0, max(LEAST_TIMES, BEYOND * furthest), POINTS)
    about = {
        SensitivityKind.LABELS: (shares, of_labels),
        SensitivityKind.LABELS_AT_RANDOM: (shares, of_labels),
        SensitivityKind.GROUPS: (shares, of_groups),
        SensitivityKind.GROUPS_AT_RANDOM: (shares, of_groups),
        SensitivityKind.SAMPLING: (ratios, None),
    }
    return [_row(gap, kind, errors[kind], tips[kind], *about[kind]) for kind in SensitivityKind]


@dataclass(frozen=True)
class _Error:
    """What one kind of error does to a gap."""

    bounds: Callable[[float, float], Bounds | None]  # by its amount in the group and in the reference
    amounts: Array  # rising, among which the tipping point is looked for
    is_counted: bool = False  # bounds widen with the amount, and change at these amounts only


def _error(cells: Cells, kind: SensitivityKind) -> _Error:
    """Return what a kind of error does to the gap of some images."""
    images = max(cells.images.sum(axis=1).max(), 1.0)
    counted = np.arange(int(MOST * images) + 1) / images
    shares = np.linspace(0, MOST, SCANNED)
    if kind == SensitivityKind.LABELS:
        return _Error(lambda a, _: label_bounds(cells, a), counted, is_counted=True)
    if kind == SensitivityKind.GROUPS:
        return _Error(lambda a, b: group_bounds(cells, a, b), counted, is_counted=True)
    if kind == SensitivityKind.LABELS_AT_RANDOM:
        return _Error(lambda a, _: _as_bounds(gap_with_random_labels(cells, a)), shares)
    if kind == SensitivityKind.GROUPS_AT_RANDOM:
        return _Error(lambda a, b: _as_bounds(gap_with_random_groups(cells, a, b)), shares)
    return _Error(lambda a, _: sampling_bounds(cells, a), np.geomspace(1.0, STRONGEST, SCANNED))


def _as_bounds(corrected: float | None) -> Bounds | None:
    return None if corrected is None else (corrected, corrected)


def _nearest(gap: ContrastRow, bounds: Bounds | None) -> float | None:
    """Return the bound on a gap's size that is nearer to 0: negative where it is beyond."""
    if bounds is None:
        return None
    return bounds[0] if (gap.estimate.value or 0.0) >= 0 else -bounds[1]


def _limit(gap: ContrastRow) -> float | None:
    """Return how far the interval of a gap stays away from 0; negative where it holds it."""
    low, high = gap.estimate.low, gap.estimate.high
    if low is None or high is None:
        return None
    return low if (gap.estimate.value or 0.0) >= 0 else -high


def _tipping_points(gap: ContrastRow, error: _Error) -> tuple[float | None, float | None]:
    """Return the least amounts at which the gap, and the limit of its interval that is nearer to 0, may be 0."""
    size, limit = abs(gap.estimate.value or 0.0), _limit(gap)

    def left(amount: float) -> float | None:
        return _nearest(gap, error.bounds(amount, amount))

    return _first(left, error, 0.0), None if limit is None else _first(left, error, size - limit)


def _first(nearest: Callable[[float], float | None], error: _Error, reached: float) -> float | None:
    """Return the first amount at which the nearer bound has come down so far; None where none is."""
    amounts, before = [float(a) for a in error.amounts], None
    if error.is_counted:
        at = bisect_left(range(len(amounts)), True, key=lambda i: (nearest(amounts[i]) or 0.0) - reached <= ROUNDING)
        return amounts[at] if at < len(amounts) else None
    for amount in amounts:
        near = nearest(amount)
        if near is None:
            return None
        if near - reached <= ROUNDING:
            if before is None or near >= reached:
                return amount
            return float(brentq(lambda a: (nearest(a) or 0.0) - reached, before, amount))
        before = amount
    return None


def _row(
    gap: ContrastRow,
    kind: SensitivityKind,
    error: _Error,
    tipping: tuple[float | None, float | None],
    amounts: Array,
    declared: tuple[float, float] | None,
) -> SensitivityRow:
    known = [(float(a), bounds) for a in amounts if (bounds := error.bounds(a, a)) is not None]
    found = SensitivityRow(
        contrast=f"{gap.attribute}:{gap.group}-{gap.reference}",
        outcome=gap.outcome,
        metric=gap.metric,
        kind=kind,
        gap=gap.estimate,
        tipping=tipping[0],
        tipping_of_interval=tipping[1],
        amounts=[amount for amount, _ in known],
        low=[low for _, (low, _) in known],
        high=[high for _, (_, high) in known],
    )
    if declared is None:
        return found
    bounds, limit = error.bounds(*declared), _limit(gap)
    near = _nearest(gap, bounds)
    size = abs(gap.estimate.value or 0.0)
    update = {
        "declared": declared[0],
        "declared_reference": declared[1],
        "low_at_declared": None if bounds is None else bounds[0],
        "high_at_declared": None if bounds is None else bounds[1],
        "survives": None if near is None or limit is None else limit - size + near > 0,
    }
    return found.model_copy(update=update)
