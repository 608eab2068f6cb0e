"""Whether images of one group are lost more often than the reference's before they reach the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audit.card.schema import Card
from audit.data.samples import UNKNOWN, Samples
from audit.evidence.stats import (
    Combination,
    as_difference,
    combine_cells,
    holm,
    is_at_most,
    rate_interval,
    smallest_detectable,
)
from audit.records import DataReport, DataWarning, DataWarningCode, DetectionRow, State

LOST = "lost"  # column of images that never reached the classifier


@dataclass(frozen=True)
class _Draft:
    row: DetectionRow
    compared: Combination | None = None


def with_detection(report: DataReport, samples: Samples, card: Card) -> DataReport:
    """Return a report with what never reached the classifier, and warnings where that differs between groups."""
    rows = detection(samples, card)
    return report.model_copy(
        update={"detection": rows, "warnings": [*report.warnings, *detection_warnings(rows)]} if rows else {}
    )


def detection(samples: Samples, card: Card) -> list[DetectionRow]:
    """Compare how many images of each group never reached the classifier.

    Images of all splits count, those that never reached it included: nothing that is trained or found has a part in it.
    Intervals and tests are those of any other rate; Holm over all groups.

    Parameters
    ----------
    samples : Samples
    card : Card
        Its ``audit.alpha`` and ``audit.min_group_size``.

    Returns
    -------
    list of DetectionRow
        One for each group of each attribute; none where the card does not say which images were lost, and none of
        attributes whose groups are permuted.
    """
    if samples.undetected is None:
        return []
    asked = [name for name, spec in card.groups.items() if spec.permuted is None]
    columns = ["image", "label", "subject", *asked]
    reached, lost = samples.frame[columns], samples.undetected[columns]
    every = pd.concat([reached.assign(**{LOST: False}), lost.assign(**{LOST: True})], ignore_index=True)
    drafts = [draft for name in asked for draft in _drafts(every, name, samples, card)]
    tested = [d.compared for d in drafts if d.compared is not None]
    adjusted = iter(holm([found.p for found in tested]))
    return [d.row if d.compared is None else _decided(d, next(adjusted), len(tested), card) for d in drafts]


def _drafts(every: pd.DataFrame, attribute: str, samples: Samples, card: Card) -> list[_Draft]:
    """Count the groups of an attribute, and compare each with the reference where there are subjects enough."""
    info = samples.attributes[attribute]
    found = sorted(set(every[attribute]) - {UNKNOWN, *info.groups})
    rows = [_counted(every, attribute, group, info.reference) for group in [*info.groups, *found]]
    return [_compared(every, row, card.audit.min_group_size) for row in rows]


def _counted(every: pd.DataFrame, attribute: str, group: str, reference: str) -> DetectionRow:
    part = every[every[attribute] == group]
    subjects = pd.factorize(part["subject"])[0].astype(np.int64)
    return DetectionRow(
        attribute=attribute,
        group=group,
        reference=reference,
        images=len(part),
        subjects=int(part["subject"].nunique()),
        not_detected=int(part[LOST].sum()),
        rate=rate_interval(part[LOST].to_numpy(dtype=bool), subjects),
    )


def _compared(every: pd.DataFrame, row: DetectionRow, least: int) -> _Draft:
    if row.group == row.reference:
        return _Draft(row)
    pair = every[every[row.attribute].isin([row.group, row.reference])]
    of_reference = (pair[row.attribute] == row.reference).to_numpy()
    if of_reference.all() or not of_reference.any():
        return _Draft(row.model_copy(update={"state": State.NOT_ESTIMABLE}))
    found = combine_cells(
        pair[LOST].to_numpy(dtype=np.float64),
        of_reference.astype(np.int64),
        [1.0, -1.0],
        pd.factorize(pair["subject"])[0].astype(np.int64),
    )
    row = row.model_copy(update={"difference": as_difference(found.interval())})
    if min(pair.loc[side, "subject"].nunique() for side in (of_reference, ~of_reference)) < least:
        return _Draft(row.model_copy(update={"state": State.TOO_LITTLE_DATA}))
    return _Draft(row, found)


def _decided(draft: _Draft, p_adjusted: float, family: int, card: Card) -> DetectionRow:
    assert draft.compared is not None
    alpha = card.audit.alpha
    return draft.row.model_copy(
        update={
            "p_raw": draft.compared.p,
            "p_adjusted": p_adjusted,
            "family_size": family,
            "smallest_detectable": smallest_detectable(draft.compared.error, alpha=alpha, family=family),
            "state": State.DISPARITY if is_at_most(p_adjusted, alpha) else State.NOT_DETECTED,
        }
    )


def detection_warnings(rows: Sequence[DetectionRow]) -> list[DataWarning]:
    """Return a warning for each attribute with a group that is lost more, or less, often than the reference."""
    found = []
    for attribute in dict.fromkeys(row.attribute for row in rows):
        mine = [row for row in rows if row.attribute == attribute]
        named = [row for row in mine if row.state == State.DISPARITY]
        if named:
            shown = [row for row in mine if row in named or row.group == row.reference]
            numbers = {f"lost:{r.group}": float(r.not_detected) for r in shown}
            numbers |= {f"of:{r.group}": float(r.images) for r in shown}
            found.append(
                DataWarning(
                    code=DataWarningCode.UNEVEN_DETECTION,
                    of=attribute,
                    images=sum(row.not_detected for row in mine),
                    total=sum(row.images for row in mine),
                    names=[row.group for row in shown],
                    numbers={"p": min(row.p_adjusted or 0.0 for row in named), **numbers},
                )
            )
    return found
