"""Two runs on the same images: whether a number changed between them, image by image and person by person."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from audit.evidence.called import is_called
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import LabelShares, label_shares_of
from audit.evidence.paired import PairedCounts
from audit.evidence.run_change import Change, paired_change
from audit.evidence.stored_rows import Rows, distinct, some
from audit.pipeline.analyze import predictions
from audit.pipeline.load_run import OpenedRun
from audit.records import Contrast, ContrastRow, Finding, HeadRow, Metric, RateField
from audit.units import name_of


@dataclass(frozen=True)
class Asked:
    """What is compared: a gap in a metric, or what a head carries of it."""

    contrast: Contrast
    outcome: str
    metric: Metric
    head: str = ""

    @classmethod
    def of(cls, row: Finding | ContrastRow) -> Asked:
        """Return the question of a finding or of a comparison."""
        head = row.heads[0] if isinstance(row, Finding) and row.kind == "head" else ""
        return cls(Contrast(row.attribute, row.group, row.reference), row.outcome, row.metric, head)

    @classmethod
    def of_head(cls, row: HeadRow, contrast: Contrast) -> Asked:
        """Return the question of a head."""
        return cls(contrast, row.outcome, row.metric, row.name)


@dataclass(frozen=True)
class _Side:
    """One of the runs."""

    run: OpenedRun

    @cached_property
    def answers(self) -> pd.DataFrame:
        """What the first seed's model answers to each audited image."""
        return predictions(self.run.scope, self.run.effects.unpatched, self.run.scope.seeds[0])


class PairedRuns:
    """Two opened runs that measured the same images."""

    def __init__(self, first: OpenedRun, second: OpenedRun) -> None:
        self._sides = _Side(first), _Side(second)

    def change(self, asked: Asked) -> Change | None:
        """Compare the two on the images that both measured; None where there are none."""
        measure = _of_head if asked.head else _of_gap
        before, after = (measure(side, asked) for side in self._sides)
        if before is None or after is None:
            return None
        rows = before.merge(after, left_index=True, right_index=True, suffixes=("", ":after"))
        if rows["is_group"].nunique() < 2:
            return None
        label, names = pd.factorize(rows["label"], sort=True)
        shares = _shares(self._sides[1], asked)
        effects = SwapEffects(
            cross=rows[["value:after"]].to_numpy(dtype=np.float64),
            placebo=rows[["value"]].to_numpy(dtype=np.float64),
            unpatched=np.zeros(len(rows)),
            is_group=rows["is_group"].to_numpy(dtype=bool),
            label=label.astype(np.int64),
            subject=pd.factorize(rows["subject"])[0].astype(np.int64),
            unit=pd.factorize(rows["unit"])[0].astype(np.int64),
            heads=[(0, 0)],
            shares=by_code(shares["label_shares"], names),
            group_shares=by_code(shares["group_shares"], names),
            counts=not asked.head,
        )
        return paired_change(effects, effects.mediated_weights() if asked.head else effects.gap_weights())

    def rate_change(self, attribute: str, group: str, outcome: str, rate: RateField) -> Change | None:
        """Compare a rate of one group on the images that both measured; None where there are none."""
        before, after = (_of_rate(side, attribute, group, outcome, rate) for side in self._sides)
        if before is None or after is None:
            return None
        rows = before.merge(after[["called"]], left_index=True, right_index=True, suffixes=("", ":after"))
        if rows.empty:
            return None
        moved = rows["called:after"].to_numpy(dtype=np.int64) - rows["called"].to_numpy(dtype=np.int64)
        counts = PairedCounts.of(moved, pd.factorize(rows["subject"])[0].astype(np.int64))
        p = 2 * min(counts.p_above(0.0), counts.reversed().p_above(0.0))
        return Change(counts.interval(0.95), min(1.0, p), len(rows))


def _shares(side: _Side, asked: Asked) -> LabelShares:
    """Return the weights of the labels, as the measure has them."""
    if asked.head:
        return side.run.effects.label_shares(asked.contrast, asked.outcome)
    if asked.metric != Metric.STANDARDISED_GAP:
        return {"label_shares": {asked.metric: 1.0}, "group_shares": None}  # all images are laid out as of one label
    return label_shares_of(side.answers, asked.contrast, asked.outcome, Metric.STANDARDISED_GAP)


def _of_gap(side: _Side, asked: Asked) -> pd.DataFrame | None:
    """Return by image whether it is called the outcome, of the images that the measure is about."""
    contrast, outcome = asked.contrast, asked.outcome
    frame = side.answers
    if contrast.attribute not in frame:
        return None
    frame = frame[frame[contrast.attribute].isin([contrast.group, contrast.reference])]
    if asked.metric != Metric.STANDARDISED_GAP:
        frame = frame[(frame["label"] == outcome) == (asked.metric == Metric.TPR_GAP)]
    # Rates of images with another label than the outcome are not standardised over these labels.
    label = frame["label"] if asked.metric == Metric.STANDARDISED_GAP else asked.metric
    called = is_called(frame, outcome).astype(np.float64)
    is_group = frame[contrast.attribute] == contrast.group
    return pd.DataFrame(
        {"value": called, "is_group": is_group, "label": label, "subject": frame["subject"], "unit": frame["image"]}
    ).set_index(frame["image"])


def _of_rate(side: _Side, attribute: str, group: str, outcome: str, rate: RateField) -> pd.DataFrame | None:
    """Return by image of a group whether it is called the outcome, of the images that the rate is about."""
    frame = side.answers
    if attribute not in frame:
        return None
    frame = frame[frame[attribute] == group]
    if rate != "selection_rate":
        frame = frame[(frame["label"] == outcome) == (rate == "true_positive_rate")]
    called = is_called(frame, outcome).astype(np.int64)
    return pd.DataFrame({"called": called, "subject": frame["subject"]}).set_index(frame["image"])


def _recipients(rows: Rows, seed: int, contrast: Contrast) -> pd.DataFrame:
    """Return who receives on the confirmation split."""
    part = some(rows, seed=seed, contrast=str(contrast), split="confirmation")
    return distinct(part, ["position", "recipient", "label", "unit"], by=["position"]).sort_values("position")


def _of_head(side: _Side, asked: Asked) -> pd.DataFrame | None:
    """Return by recipient what its cross-group donor does through the head beyond the placebo, first seed."""
    run, contrast = side.run, asked.contrast
    stored, seed = run.effects, run.scope.seeds[0]
    if contrast not in stored.patched_in_both_splits([contrast]):
        return None
    effects = stored.of(seed, contrast, "confirmation", asked.outcome)
    named = [name_of(run.scope.unit, layer, head) for layer, head in effects.heads]
    about = _recipients(stored.swap, seed, contrast)
    if stored.first_order is not None and len(about) < len(effects.label):
        about = _recipients(stored.first_order, seed, contrast)
    if asked.head not in named or len(about) != len(effects.label):
        return None
    frame = run.scope.samples.frame.loc[about["recipient"]]
    return pd.DataFrame(
        {
            "value": effects.difference[:, named.index(asked.head)],
            "is_group": effects.is_group,
            "label": about["label"].to_numpy(),
            "subject": frame["subject"].to_numpy(),
            "unit": about["unit"].to_numpy(),
        },
        index=pd.Index(frame["image"].to_numpy(), name="image"),
    )
