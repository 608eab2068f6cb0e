"""What the sweeps left behind, and the questions that are asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import pandas as pd

from audit.data.samples import UNKNOWN
from audit.evidence.effects import Scalar, SwapEffects, lay_out
from audit.evidence.sampled import FirstOrder, Sampled
from audit.evidence.stats import Array, components
from audit.evidence.stored_rows import Grid, Rows, count, distinct, some
from audit.records import Contrast, ContrastRow, Metric, Shortfall
from audit.units import Unit

MIN_UNITS = 30  # clusters of donor pairs; with fewer, the bootstrap interval of a mediated gap covers less than it says


@dataclass(frozen=True)
class Settings:
    """Strictness and sizes of the localisation."""

    alpha: float
    permutations: int
    bootstrap: int
    seed: int
    min_group_size: int
    margin: float = 0.005  # of probability; a head shown to carry less is equivalent to one that carries nothing
    unit: Unit = "head"  # what is patched


class LabelShares(TypedDict):
    """What labels weigh, by name; on the side of the group where that differs."""

    label_shares: dict[str, float]
    group_shares: dict[str, float] | None


@dataclass(frozen=True)
class StoredEffects:
    """What the sweeps left behind."""

    # Design A: columns of a sweep, and ``seed``, ``contrast``, ``split``, ``unit``, ``side``, ``label``; where not
    # every head of every recipient is patched, ``look`` (1 or 2) says when it was
    swap: Rows
    # Design C of the first seed: donor kinds "balanced-<k>" and "reseed", each image its own donor
    reference: Rows | None
    unpatched: pd.DataFrame  # ``seed``, ``recipient``, ``predicted``, ``p:<outcome>``
    frame: pd.DataFrame  # the samples
    balanced_on: str = ""  # the attribute on which the reference models' training sample was balanced
    transplant: Rows | None = None  # as ``reference``, with weights transplanted
    # Design A by attribution patching: ``seed``, ``contrast``, ``split``, ``position``, ``recipient``, ``unit``,
    # ``side``, ``label``, ``donor_kind``, ``layer``, ``head``, and ``own:``, ``pair:`` and ``both:<outcome>``,
    # estimated changes of p. The first seed's confirmation split at least; all that is patched in part.
    first_order: Rows | None = None
    # by question ("contrast:outcome") the gap that heads are asked about (``disparity.primary_gaps``): its metric
    # says which images count how much. Without one: the label-standardised gap.
    gaps: Mapping[str, ContrastRow] = field(default_factory=dict)

    def metric(self, contrast: Contrast, outcome: str) -> Metric:
        """Return the metric of a question."""
        gap = self.gaps.get(f"{contrast}:{outcome}")
        return Metric.STANDARDISED_GAP if gap is None else gap.metric

    def label_shares(self, contrast: Contrast, outcome: str) -> LabelShares:
        """Return what labels weigh in the audited gap of a question."""
        audited = self.frame[["label", contrast.attribute]].loc[self.unpatched["recipient"].unique()]
        return label_shares_of(audited, contrast, outcome, self.metric(contrast, outcome))

    def own(self, seed: int) -> pd.DataFrame:
        """Return what one seed's model answers to images as they are, without their names."""
        named = [name for name in self.unpatched.columns if name not in ("seed", "image")]
        return self.unpatched.loc[self.unpatched["seed"] == seed, named]

    def patched_in_both_splits(self, contrasts: Sequence[Contrast]) -> list[Contrast]:
        """Return those of ``contrasts`` that found recipients and donors in both splits."""
        splits = distinct(self.swap, ["contrast", "split"]).groupby("contrast")["split"].nunique()
        return [c for c in contrasts if splits.get(str(c), 0) == 2]

    def of(
        self, seed: int, contrast: Contrast, split: str, outcome: str, *, scalar: Scalar = "p", first_look: bool = False
    ) -> SwapEffects:
        """Lay out Design A of one seed, contrast, split and outcome; what was not patched is estimated.

        With ``first_look`` only what was patched by then is used.
        """
        part = self.sampled(seed, contrast, split, outcome, scalar=scalar, first_look=first_look)
        return part.combined() if isinstance(part, Sampled) else part

    def sampled(
        self, seed: int, contrast: Contrast, split: str, outcome: str, *, scalar: Scalar = "p", first_look: bool = False
    ) -> Sampled | SwapEffects:
        """Lay out the patches of one seed, contrast, split and outcome, with first-order estimates if some are left."""
        rows = _part(self.swap, seed, contrast, split)
        if first_look:
            rows = some(rows, look=1)
        own, subjects = self.own(seed), self.frame["subject"]
        shares = self.label_shares(contrast, outcome)
        estimates = None if self.first_order is None else _part(self.first_order, seed, contrast, split)
        if estimates is None or count(estimates) <= count(rows):
            return lay_out(rows, own, subjects, outcome, scalar=scalar, **shares)
        patched = lay_out(rows, own, subjects, outcome, scalar=scalar, everyone=estimates, **shares)
        return Sampled(patched, first_order_of(estimates, outcome))


def label_shares_of(audited: pd.DataFrame, contrast: Contrast, outcome: str, metric: Metric) -> LabelShares:
    """Return what labels weigh in a gap, as `disparity.contrasts` has it.

    Parameters
    ----------
    audited : pandas.DataFrame
        All audited images: ``label`` and the contrast's attribute.
    contrast : Contrast
    outcome : str
    metric : Metric
        Label-standardised: shares among images of known group, for both sides. Of the outcome's own images: that label
        alone. Of the others: each side's own mix of the other labels.
    """
    groups, labels = audited[contrast.attribute], audited["label"]
    if metric == Metric.STANDARDISED_GAP:
        return {"label_shares": _mix(labels[groups != UNKNOWN]), "group_shares": None}
    if metric == Metric.TPR_GAP:
        return {"label_shares": {outcome: 1.0}, "group_shares": None}
    others = labels != outcome
    reference, group = (_mix(labels[others & (groups == side)]) for side in (contrast.reference, contrast.group))
    return {"label_shares": reference, "group_shares": group}


def _mix(labels: pd.Series) -> dict[str, float]:
    return {str(k): float(v) for k, v in labels.value_counts(normalize=True).items() if v > 0}


def _part(table: Rows, seed: int, contrast: Contrast, split: str) -> Rows:
    return some(table, seed=seed, contrast=str(contrast), split=split)


def first_order_of(estimates: Rows, outcome: str) -> FirstOrder:
    """Lay out the first-order estimates of one contrast, split and outcome."""
    grid = Grid.of(estimates, "position", ["layer", "head"], "cross")

    def laid_out(average: str) -> Array:
        value = f"{average}:{outcome}"
        by_kind = grid.fill(estimates, [value], lambda rows: rows[value])
        return np.stack([by_kind[kind] for kind in ("cross", "placebo")])

    return FirstOrder(*map(laid_out, ("own", "pair", "both")))


@dataclass(frozen=True)
class Part:
    """One contrast and outcome on both splits, primary seed."""

    contrast: Contrast
    outcome: str
    discovery: SwapEffects
    confirmation: SwapEffects
    first_look: SwapEffects | None = None  # at the discovery split, where it is looked at twice

    @property
    def key(self) -> str:
        """Name of the question in ``Audit.localisation``."""
        return f"{self.contrast}:{self.outcome}"

    def enough(self, least: int) -> bool:
        """Tell whether both splits have every label that has a weight, enough subjects and enough clusters."""
        return all(shortfall(e, least) is None for e in (self.discovery, self.confirmation))


def shortfall(effects: SwapEffects, least: int) -> Shortfall | None:
    """Return of what there is too little to say what heads do on one split; None where there is enough.

    Parameters
    ----------
    effects : SwapEffects
    least : int
        Subjects on either side, at least two.
    """
    used = effects.weighted
    if effects.lacks_a_cell or not used.any():
        return Shortfall.LABELS
    some = effects.take(np.flatnonzero(used))
    clusters = components(some.subject, some.unit)
    sides = (some.is_group, ~some.is_group)
    if min(len(np.unique(some.subject[side])) for side in sides) < max(least, 2):
        return Shortfall.SUBJECTS
    if len(np.unique(clusters)) < MIN_UNITS or min(len(np.unique(clusters[side])) for side in sides) < 2:
        return Shortfall.CLUSTERS
    return None
