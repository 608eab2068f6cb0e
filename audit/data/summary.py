"""The data section of a report: every image counted, and what these sizes can detect."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
from statsmodels.stats.power import NormalIndPower

from audit.card.faults import did_you_mean
from audit.card.schema import Card
from audit.data.covariates import covariate_info
from audit.data.groups import check_display
from audit.data.samples import AUDIT_SPLITS, HELD_BACK, OTHERS, SPLITS, UNKNOWN, Samples
from audit.errors import DataError
from audit.records import (
    AttributeInfo,
    CountRow,
    DataReport,
    DataWarning,
    DataWarningCode,
    GapLimit,
    IntersectionSize,
    LabelShareRow,
    Shortfall,
)

METRICS_TESTED = 3  # standardised, true-positive and false-positive gap
POWER = 0.8
_VALUES = 12  # values of a nuisance column whose labels are counted one by one


def describe_data(samples: Samples, card: Card) -> DataReport:
    """Count every image and say what can be detected.

    Parameters
    ----------
    samples : Samples
        What the readers found.
    card : Card
        Its card.

    Returns
    -------
    DataReport
        Counts by attribute x group x label x split, with "unknown" as a group of its own; cells without an
        image are rows with 0.
    """
    frame = samples.frame
    check_display("data.display", card.data.display, samples.labels)
    return DataReport(
        source=samples.origin,
        tables=list(samples.tables),
        images=len(frame),
        subjects=int(frame["subject"].nunique()),
        labels=list(samples.labels),
        display=dict(card.data.display),
        fingerprint=samples.fingerprint,
        attributes=list(samples.attributes.values()),
        counts=[row for info in samples.attributes.values() for row in _count_rows(samples, info)],
        covariates=[covariate_info(frame, column, caliper) for column, caliper in samples.calipers.items()],
        label_shares=[row for column in samples.nuisance for row in _label_shares(samples, column)],
        excluded=list(samples.excluded),
        quarantined=list(samples.quarantined),
        images_opened=samples.opened,
        splits={split: int((frame["split"] == split).sum()) for split in _splits_of(frame)},
        licence=card.data.licence or samples.licence,
        citation=card.data.citation or samples.citation,
        limits=[limit for info in samples.attributes.values() for limit in _limits(samples, card, info)],
        intersections=[_crossed(samples, card, combination) for combination in card.intersections],
        warnings=[*samples.warnings, *_small_cells(samples, card), *_untrained_cells(samples)],
    )


def detectable_difference(rate: float, n_group: int, n_reference: int, alpha: float) -> float | None:
    """Return the smallest difference of two proportions that a test finds with 80% power.

    Cohen's effect size of proportions (arcsine scale, "Statistical Power Analysis", 1988, chapter 6), solved
    by statsmodels and turned back into a difference around ``rate``.

    Parameters
    ----------
    rate : float
        The reference's rate, in [0, 1].
    n_group, n_reference : int
        Independent subjects on each side.
    alpha : float
        Two-sided level of one test.

    Returns
    -------
    float or None
        In (0, 1]; the larger one where a rise and a fall differ. None where not even the largest possible
        difference would be found.
    """
    if min(n_group, n_reference) < 2:
        return None
    effect = float(
        NormalIndPower().solve_power(None, nobs1=n_group, ratio=n_reference / n_group, alpha=alpha, power=POWER)
    )
    angle = math.asin(math.sqrt(rate))
    found = []
    if angle + effect / 2 <= math.pi / 2:
        found.append(math.sin(angle + effect / 2) ** 2 - rate)
    if angle - effect / 2 >= 0:
        found.append(rate - math.sin(angle - effect / 2) ** 2)
    return max(found, default=None)


def _splits_of(frame: pd.DataFrame) -> list[str]:
    """Return the splits that are reported; those that are held back only where they hold an image."""
    present = set(frame["split"].unique())
    return [split for split in SPLITS if split not in HELD_BACK or split in present]


def _count_rows(samples: Samples, info: AttributeInfo) -> Iterator[CountRow]:
    frame = samples.frame
    cells = frame.groupby([info.attribute, "label", "split"])
    images = cells.size()
    subjects = cells["subject"].nunique()
    groups = [*info.groups, UNKNOWN] if info.unknown_images else info.groups
    splits = _splits_of(frame)
    for group in groups:
        for label in samples.labels:
            for split in splits:
                cell = (group, label, split)
                yield CountRow(
                    attribute=info.attribute,
                    group=group,
                    label=label,
                    split=split,
                    images=int(images.get(cell, 0)),
                    subjects=int(subjects.get(cell, 0)),
                )


def _label_shares(samples: Samples, column: str) -> Iterator[LabelShareRow]:
    """Count labels by who gave them, or whatever else a column holds; values with the most images come first."""
    frame = samples.frame[~samples.frame["split"].isin(HELD_BACK)]
    values = frame[column]
    sizes = values.groupby(values, sort=False).size().sort_values(ascending=False, kind="stable")
    named = sizes.index[:_VALUES]
    shown = values.where(values.isin(named), OTHERS)
    counts = pd.crosstab(shown, frame["label"]).reindex(columns=list(samples.labels), fill_value=0)
    for value in [*named, *([OTHERS] if len(sizes) > _VALUES else [])]:
        by_label, images = counts.loc[value], int(counts.loc[value].sum())
        shares = {label: float(by_label[label]) / images for label in samples.labels}
        yield LabelShareRow(column=column, value=value, images=images, shares=shares)


def _untrained_cells(samples: Samples) -> Iterator[DataWarning]:
    """Yield one warning per attribute about groups of which the training split lacks a label."""
    if samples.of_split("train").empty:
        return
    for info in samples.attributes.values():
        rows = [row for row in _known_cells(samples, info) if row.split == "train"]
        empty = [f"{row.group} x {row.label}" for row in rows if row.images == 0]
        if empty:
            code = DataWarningCode.UNTRAINED_CELLS
            yield DataWarning(code=code, of=info.attribute, images=len(empty), total=len(rows), names=empty)


def _small_cells(samples: Samples, card: Card) -> Iterator[DataWarning]:
    """Yield one warning per attribute about audit cells under the least size that is tested."""
    least = card.audit.min_group_size
    for info in samples.attributes.values():
        rows = [row for row in _known_cells(samples, info) if row.split in AUDIT_SPLITS]
        small = [f"{r.group} x {r.label} in {r.split} ({r.subjects})" for r in rows if r.subjects < least]
        if small:
            yield DataWarning(
                code=DataWarningCode.SMALL_CELLS,
                of=info.attribute,
                images=len(small),
                total=len(rows),
                names=small,
                numbers={"least": float(least)},
            )


def _known_cells(samples: Samples, info: AttributeInfo) -> list[CountRow]:
    """Return the counts of groups that have an image; of others a warning of their own says that they have none."""
    present = set(samples.frame[info.attribute].unique()) - {UNKNOWN}
    return [row for row in _count_rows(samples, info) if row.group in present]


def audited_outcomes(card: Card, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels whose prediction is audited: the card's, else the second of two, else all."""
    if card.audit.outcomes is not None:
        unknown = [outcome for outcome in card.audit.outcomes if outcome not in labels]
        if unknown:
            raise DataError("audit.outcomes", f"'{unknown[0]}' is not a label", did_you_mean(unknown[0], labels))
        return tuple(card.audit.outcomes)
    return labels[1:] if len(labels) == 2 else labels


def gaps_tested(samples: Samples, card: Card) -> int:
    """Return how many gaps are tested at most: groups and intersections x outcomes x metrics."""
    sizes_of = {name: len(each.groups) for name, each in samples.attributes.items()}
    contrasts = sum(n - 1 for n in sizes_of.values())
    contrasts += sum(math.prod(sizes_of[name] for name in combination) - 1 for combination in card.intersections)
    return contrasts * len(audited_outcomes(card, samples.labels)) * METRICS_TESTED


def _limits(samples: Samples, card: Card, info: AttributeInfo) -> Iterator[GapLimit]:
    """Yield for each group what gaps to the reference can be detected."""
    audited = samples.of_split(*AUDIT_SPLITS)
    subjects = audited.groupby(info.attribute)["subject"].nunique()
    outcomes, tests = audited_outcomes(card, samples.labels), gaps_tested(samples, card)
    absent = [o for o in outcomes if not (audited["label"] == o).any()]
    for group in info.groups:
        if group == info.reference:
            continue
        n_group, n_reference = int(subjects.get(group, 0)), int(subjects.get(info.reference, 0))
        limit = GapLimit(
            attribute=info.attribute,
            group=group,
            reference=info.reference,
            subjects_group=n_group,
            subjects_reference=n_reference,
            subjects_needed=card.audit.min_group_size,
            power=POWER,
            tests=tests,
        )
        if min(n_group, n_reference) < card.audit.min_group_size:
            yield limit.model_copy(update={"shortfall": Shortfall.SUBJECTS})
            continue
        both = audited[audited[info.attribute].isin([group, info.reference])]
        in_both = int((both.groupby("subject")[info.attribute].nunique() > 1).sum())
        detectable = {
            outcome: detectable_difference(
                float((audited["label"] == outcome).mean()), n_group, n_reference, card.audit.alpha / tests
            )
            for outcome in outcomes
            if outcome not in absent
        }
        yield limit.model_copy(update={"in_both": in_both, "absent": absent, "detectable": detectable})


def _crossed(samples: Samples, card: Card, combination: list[str]) -> IntersectionSize:
    """Count the groups of an intersection that are large enough to be compared."""
    audited = samples.of_split(*AUDIT_SPLITS)
    known = audited[(audited[combination] != UNKNOWN).all(axis=1)]
    sizes = known.groupby(combination)["subject"].nunique()
    return IntersectionSize(
        attributes=combination,
        groups=math.prod(len(samples.attributes[name].groups) for name in combination),
        enough=int((sizes >= card.audit.min_group_size).sum()),
        subjects_needed=card.audit.min_group_size,
    )
