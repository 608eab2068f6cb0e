"""Whether gaps changed between two runs: person by person where both measured the same images, else side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from audit.evidence.bootstrap import draw_bootstrap, weighted_estimates
from audit.evidence.called import is_called
from audit.evidence.effects import SwapEffects, permute_donor_labels
from audit.evidence.gap_cells import Question, gap_cells
from audit.evidence.run_change import PERMUTATIONS, RESAMPLES, SEED
from audit.evidence.stats import Array, holm, smallest_detectable
from audit.records import Estimate, Metric

WIDEST = 2.0  # a difference of two gaps lies within so much of 0


@dataclass(frozen=True)
class AskedGap:
    """A gap between two groups: an attribute with its groups, which of them, in which outcome and metric."""

    question: Question
    group: str
    outcome: str
    metric: Metric


@dataclass(frozen=True)
class GapChange:
    """The second run's gap minus the first's.

    ``p`` is of no change, ``p_adjusted`` for all gaps that were looked at; ``images`` were measured by both, None
    where they were not paired.
    """

    estimate: Estimate
    p: float
    p_adjusted: float
    images: int | None


def paired_changes(before: pd.DataFrame, after: pd.DataFrame, asked: Sequence[AskedGap]) -> list[GapChange | None]:
    """Compare two runs' gaps on the images that both measured; None where a label has no image in one group.

    Parameters
    ----------
    before, after : pandas.DataFrame
        By image: ``label``, ``subject``, columns of the attributes, and what each run's model calls it. Labels and
        groups are taken from ``after``.
    asked : sequence of AskedGap

    Returns
    -------
    list of GapChange or None
        Intervals resample whole people. p-values swap the two runs' answers within people, which changes nothing on
        average if they do not differ; the maximum of |T| over all gaps adjusts them (Westfall & Young 1993).
    """
    common = after.index.intersection(before.index)
    first, second = before.loc[common], after.loc[common]
    person = pd.factorize(second["subject"])[0].astype(np.int64)
    laid = [_laid_out(first, second, person, gap) for gap in asked]
    known = [part for part in laid if part is not None]
    if not known:
        return [None] * len(asked)
    sums = np.column_stack([np.bincount(person[rows], weights=w * d, minlength=len(common)) for rows, w, d, _ in known])
    changed = sums[(sums != 0).any(axis=1)]
    (tested,) = permute_donor_labels(
        [changed if len(changed) else np.zeros((1, len(known)))], permutations=PERMUTATIONS, seed=SEED
    )
    made = iter(
        GapChange(_estimate(effects, weights), float(raw), float(adjusted), len(rows))
        for (rows, weights, _, effects), raw, adjusted in zip(known, tested.raw, tested.adjusted, strict=True)
    )
    return [None if part is None else next(made) for part in laid]


_Laid = tuple[npt.NDArray[np.int64], Array, Array, SwapEffects]  # rows; weights, differences of each; to resample


def _laid_out(first: pd.DataFrame, second: pd.DataFrame, person: npt.NDArray[np.int64], gap: AskedGap) -> _Laid | None:
    laid = gap_cells(second, gap.question, gap.group, gap.outcome, gap.metric)
    if not laid.none_empty:
        return None
    before, after = (is_called(f.iloc[laid.rows], gap.outcome).to_numpy(dtype=np.float64) for f in (first, second))
    labels = len(laid.weights) // 2
    effects = SwapEffects(
        cross=after[:, None],
        placebo=before[:, None],
        unpatched=np.zeros(len(after)),
        is_group=laid.is_group,
        label=laid.cells % labels,
        subject=person[laid.rows],
        unit=np.arange(len(after)),
        heads=[(0, 0)],
        shares=dict(enumerate(laid.weights[:labels].tolist())),
        counts=True,
    )
    return laid.rows, effects.gap_weights(), after - before, effects


def _estimate(effects: SwapEffects, weights: Array) -> Estimate:
    bootstrap = draw_bootstrap(effects, resamples=RESAMPLES, seed=SEED)
    (estimate,) = weighted_estimates(effects.difference, weights, effects, bootstrap)
    return estimate


def unpaired_changes(pairs: Sequence[tuple[Estimate, Estimate]]) -> list[GapChange]:
    """Compare gaps of two runs that measured different images, from their estimates alone; Holm over all of them.

    Parameters
    ----------
    pairs : sequence of (Estimate, Estimate)
        Before and after, each with its interval.

    Returns
    -------
    list of GapChange
        Intervals from those of both (Zou & Donner 2008). Where the same people are in both runs, they are too wide.
    """
    found = [_set_side_by_side(before, after) for before, after in pairs]
    adjusted = holm([p for _, p in found])
    return [GapChange(e, p, q, None) for (e, p), q in zip(found, adjusted, strict=True)]


def _set_side_by_side(before: Estimate, after: Estimate) -> tuple[Estimate, float]:
    if before.value is None or after.value is None:
        return Estimate(value=None), 1.0
    value = after.value - before.value
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return Estimate(value=value), 1.0
    low = value - float(np.hypot(after.value - after.low, before.high - before.value))
    high = value + float(np.hypot(after.high - after.value, before.value - before.low))
    error = (high - low) / (2 * float(norm.ppf((1 + after.level) / 2)))
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else float(value == 0)
    within = {"low": max(-WIDEST, low), "high": min(WIDEST, high)}
    return Estimate(value=value, level=after.level).model_copy(update=within), p


def is_larger(before: Estimate, after: Estimate, change: GapChange, *, alpha: float, tolerance: float = 0.0) -> bool:
    """Tell whether a gap is shown to have grown.

    It is larger than before, whichever group it favours; the change is beyond noise, adjusted for all gaps that were
    looked at; and its interval, in the direction of the gap as it is now, lies beyond ``tolerance`` (a fraction).
    """
    if before.value is None or after.value is None or abs(after.value) <= abs(before.value):
        return False
    low, high = change.estimate.low, change.estimate.high
    if low is None or high is None or change.p_adjusted > alpha:
        return False
    return (low if after.value > 0 else -high) > tolerance


def detectable_change(change: GapChange, *, alpha: float, family: int) -> float | None:
    """Return the smallest change that would have been found with 80% power; None where that is not known."""
    low, high = change.estimate.low, change.estimate.high
    if low is None or high is None:
        return None
    error = (high - low) / (2 * float(norm.ppf((1 + change.estimate.level) / 2)))
    return smallest_detectable(error, alpha=alpha, family=family)
