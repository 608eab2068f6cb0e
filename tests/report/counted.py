"""Rates and comparisons of an example, computed from how many images of each group and label are called the outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from audit.records import AccuracyRow, ContrastRow, CountRow, Estimate, Metric, RateRow, Shortfall, State

NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)
ALPHA, POWER = 0.05, 0.8
GAP_ABOVE, RATIO_BELOW = 0.1, 0.8  # the policy
FEWEST = 30  # subjects in a group
LEAST_P = 0.0012  # a smaller one is not printed with its digits


@dataclass(frozen=True)
class Counted:
    """Images of one group, kept out of training: of each label, how many there are, and how many are called so."""

    group: str
    positives: int
    found: int
    negatives: int
    called: int

    @property
    def images(self) -> int:
        return self.positives + self.negatives

    @property
    def subjects(self) -> int:
        return subjects_of(self.positives) + subjects_of(self.negatives)

    @property
    def right(self) -> int:
        return self.found + self.negatives - self.called


def subjects_of(images: int) -> int:
    """Return of how many people so many images of one label are."""
    return (2 * images + 2) // 3


# The first group's and the reference's shares that are missed, and that get a false alarm.
SHARES = {
    State.DISPARITY: ((0.1, 0.108), (0.3, 0.103)),
    State.NOT_DETECTED: ((0.105, 0.108), (0.115, 0.103)),
    State.TOO_LITTLE_DATA: ((0.125, 0.108), (0.1, 0.103)),
}


def counted(groups: Sequence[str], state: State, scale: float = 1.0) -> list[Counted]:
    """Return groups whose first differs from the last, the reference, as the state says; others lie between."""
    (missed, missed_reference), (alarms, alarms_reference) = SHARES[state]
    cells = []
    for index, group in enumerate(groups):
        part = index / max(1, len(groups) - 1)
        positives, negatives = round(scale * (540 - 60 * part)), round(scale * (664 + 43 * part))
        if state == State.TOO_LITTLE_DATA and index == 0:
            positives, negatives = 8, 9
        miss = missed + part * (missed_reference - missed)
        alarm = alarms + part * (alarms_reference - alarms)
        cells.append(
            Counted(group, positives, positives - round(miss * positives), negatives, round(alarm * negatives))
        )
    return cells


def crossed(cells: Sequence[Counted]) -> list[Counted]:
    """Return groups by two attributes at once, which together are the first group and the reference.

    Of the first there are too few people, of the third no image has the label.
    """
    few, unlabelled = Counted("female x asian", 8, 7, 9, 3), Counted("male x asian", 0, 0, 48, 4)
    first, last = cells[0], cells[-1]
    rest = Counted(
        "female x caucasian", max(1, first.positives - 8), max(1, first.found - 7), max(1, first.negatives - 9),
        max(0, first.called - 3),
    )  # fmt: skip
    negatives, called = last.negatives - unlabelled.negatives, last.called - unlabelled.called
    return [few, rest, unlabelled, Counted("male x caucasian", last.positives, last.found, negatives, called)]


def share(part: int, of: int) -> Estimate:
    """Return a share with its 95% interval by the normal approximation."""
    if not of:
        return Estimate(value=None)
    value = part / of
    half = Z * math.sqrt(value * (1 - value) / of)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _of(value: float, error: float) -> Estimate:
    return Estimate(value=value, low=value - Z * error, high=value + Z * error)


def _error(of: Estimate) -> float:
    assert of.value is not None and of.high is not None and of.low is not None
    return (of.high - of.low) / (2 * Z)


def _weight(cells: Sequence[Counted]) -> float:
    """Return the share of the images that have the outcome's label, by which labels are standardised."""
    return sum(c.positives for c in cells) / sum(c.images for c in cells)


def _standardised(cell: Counted, weight: float) -> Estimate:
    if not cell.positives:
        return Estimate(value=None)
    right, wrong = share(cell.found, cell.positives), share(cell.called, cell.negatives)
    value = weight * cell.found / cell.positives + (1 - weight) * cell.called / cell.negatives
    return _of(value, math.hypot(weight * _error(right), (1 - weight) * _error(wrong)))


def rate_rows(attribute: str, cells: Sequence[Counted], outcome: str) -> list[RateRow]:
    """Return the rates of groups, of which the last is the reference."""
    weight, reference = _weight(cells), cells[-1]
    selected = {c.group: (c.found + c.called) / c.images for c in cells}
    return [
        RateRow(
            attribute=attribute, group=c.group, outcome=outcome, is_reference=c is reference, images=c.images,
            subjects=c.subjects, positives=c.positives, negatives=c.negatives, true_positives=c.found,
            false_positives=c.called, false_negatives=c.positives - c.found,
            selection_rate=share(c.found + c.called, c.images),
            true_positive_rate=share(c.found, c.positives), false_positive_rate=share(c.called, c.negatives),
            false_negative_rate=share(c.positives - c.found, c.positives),
            mean_probability=share(c.found + c.called, c.images), standardised_rate=_standardised(c, weight),
            accuracy=share(c.right, c.images), impact_ratio=selected[c.group] / selected[reference.group],
            impact_ratio_highest=selected[c.group] / max(selected.values()),
        )
        for c in cells
    ]  # fmt: skip


NOT_ESTIMABLE = {
    "estimate": Estimate(value=None), "ratio": None, "p_raw": None, "p_adjusted": None, "smallest_detectable": None,
    "state": State.NOT_ESTIMABLE, "above_policy": False, "by_seed": [], "shortfall": Shortfall.LABELS,
}  # fmt: skip


def contrast_rows(
    attribute: str, cells: Sequence[Counted], outcome: str, metrics: Sequence[Metric], *, number: int = 0
) -> list[ContrastRow]:
    """Return the comparisons of a group with the last, the reference."""
    group, reference = cells[number], cells[-1]
    few = group.subjects < FEWEST
    return [_contrast(attribute, group, reference, outcome, metric, _weight(cells), few=few) for metric in metrics]


def _contrast(
    attribute: str, group: Counted, reference: Counted, outcome: str, metric: Metric, weight: float, *, few: bool
) -> ContrastRow:
    rates = [
        _standardised(c, weight)
        if metric == Metric.STANDARDISED_GAP
        else share(c.found, c.positives)
        if metric == Metric.TPR_GAP
        else share(c.called, c.negatives)
        for c in (group, reference)
    ]
    about = {"attribute": attribute, "group": group.group, "reference": reference.group, "outcome": outcome}
    about |= {"id": f"{attribute}:{group.group}-{reference.group}:{outcome}:{metric}", "metric": metric}
    about |= {"family_size": len(Metric), "n_group": group.images, "n_reference": reference.images}
    if rates[0].value is None:
        return ContrastRow.model_validate(about | NOT_ESTIMABLE)
    first, second = (r.value or 0.0 for r in rates)
    gap, error = first - second, math.hypot(*map(_error, rates))
    tests = len(Metric)
    p = max(LEAST_P, 2 * (1 - NORMAL.cdf(abs(gap) / error)))
    adjusted = min(1.0, tests * p)
    ratio = first / second if metric == Metric.STANDARDISED_GAP else None
    detected = not few and adjusted <= ALPHA
    odd = ratio is not None and not RATIO_BELOW <= ratio <= 1 / RATIO_BELOW
    seen = error * (NORMAL.inv_cdf(1 - ALPHA / (2 * tests)) + NORMAL.inv_cdf(POWER))
    tested = {"p_raw": p, "p_adjusted": adjusted, "smallest_detectable": seen}
    untested = {"shortfall": Shortfall.SUBJECTS, "fewest_subjects": group.subjects, "subjects_needed": FEWEST}
    return ContrastRow.model_validate(
        about
        | {
            "estimate": _of(gap, error), "ratio": ratio, "by_seed": [gap, gap + 0.0022],
            "state": State.TOO_LITTLE_DATA if few else State.DISPARITY if detected else State.NOT_DETECTED,
            "above_policy": detected and (abs(gap) > GAP_ABOVE or odd),
        }
        | (dict.fromkeys(tested) | untested if few else tested)
    )  # fmt: skip


def accuracy_rows(attribute: str, cells: Sequence[Counted]) -> list[AccuracyRow]:
    """Return how often the model is right: of all images, then by group."""
    whole = Counted(
        "", *(sum(getattr(c, name) for c in cells) for name in ("positives", "found", "negatives", "called"))
    )
    return [
        AccuracyRow(
            attribute=attribute if c.group else "", group=c.group, images=c.images,
            subjects=c.subjects if c.group else sum(each.subjects for each in cells),
            accuracy=share(c.right, c.images), balanced_accuracy=_balanced(c),
        )
        for c in (whole, *cells)
    ]  # fmt: skip


def _balanced(cell: Counted) -> Estimate:
    found, passed = share(cell.found, cell.positives), share(cell.negatives - cell.called, cell.negatives)
    return _of(((found.value or 0) + (passed.value or 0)) / 2, math.hypot(_error(found), _error(passed)) / 2)


def count_rows(attribute: str, cells: Sequence[Counted], labels: Sequence[str]) -> list[CountRow]:
    """Return images by group, label and split: the audited ones in halves, and training ones that favour the first."""
    rows: list[CountRow] = []
    for index, cell in enumerate(cells):
        part = index / max(1, len(cells) - 1)
        for label, audited, trained in (
            (labels[0], cell.negatives, round(180 + 570 * part)),
            (labels[1], cell.positives, round(620 - 380 * part)),
        ):
            halves = {"train": trained, "discovery": audited // 2, "confirmation": audited - audited // 2}
            subjects = {"train": subjects_of(trained), "discovery": subjects_of(audited) // 2}
            subjects["confirmation"] = subjects_of(audited) - subjects["discovery"]
            about = {"attribute": attribute, "group": cell.group, "label": label}
            rows += [CountRow(**about, split=s, images=n, subjects=subjects[s]) for s, n in halves.items()]
    unknown = [("train", 31), ("discovery", 0), ("confirmation", 0)]
    rows += [
        CountRow(attribute=attribute, group="unknown", label=label, split=split, images=n, subjects=subjects_of(n))
        for label in labels
        for split, n in unknown
    ]
    return rows
