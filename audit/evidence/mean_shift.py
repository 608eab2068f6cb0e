"""What the mean-shift patch takes of a gap, with the noise of the means in the intervals.

The effect depends on the means at first order, so that an interval over the moved images alone is far too narrow. Each
image enters twice, where it was moved and as a part of the means that others were moved by: its influence as a donor is
its pull (the gradient times its output), and both are resampled together, subject by subject (``bootstrap``).

Groups that are shuffled show what means of so few images do by themselves: their effect, drawn several times, is
the placebo. A part takes something where its effect, and its effect beyond the placebo, exclude 0 in the direction of
the gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from audit.evidence.bootstrap import Bootstrap, influences, intervals, shares_of
from audit.evidence.effects import SwapEffects
from audit.evidence.stats import Array, Codes, excludes_zero
from audit.patching.shifts import SCALES, Moved, Shifts
from audit.records import Estimate, MeanShiftRow, Metric

NORMAL = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Question:
    """A group against its reference, and which gap is asked about."""

    contrast: str
    metric: Metric


@dataclass(frozen=True)
class MovedMeans:
    """What moving each of K parts did, on one scale of one outcome.

    Parameters
    ----------
    images : SwapEffects
        Those that were moved: ``unpatched``, ``cross`` (R, K) with the groups as they are, ``placebo`` (R, K) the mean
        over groups shuffled at random; their labels, sides and label weights.
    shuffled : numpy.ndarray (R, K, D)
        With each of the groups shuffled at random.
    donors : numpy.ndarray of int (N, 4)
        Of every image whose output is part of a mean: code of the label as in ``images``, half, side (1: group),
        subject as in ``images``.
    pulls : numpy.ndarray (N, K)
        Of these: what one more image like it would add to the mean, times the slope of the effect.
    """

    images: SwapEffects
    shuffled: Array
    donors: Codes
    pulls: Array


@dataclass(frozen=True)
class MeanShift:
    """What one part takes of the gap, by what of it moves; fractions, or nats."""

    effect: Estimate  # gap as it is minus gap with the part moved
    placebo: Estimate  # likewise with groups shuffled at random
    beyond: Estimate  # effect minus placebo
    share: Estimate  # effect over gap, without a value where the gap's interval holds 0

    def takes(self, gap: float) -> bool:
        """Tell whether effect and what is beyond the placebo exclude 0, in the direction of the gap."""
        signed = (self.effect, self.beyond)
        return all(excludes_zero(e) and (e.value or 0.0) * gap > 0 for e in signed)


def judge_shifts(moved: MovedMeans, *, resamples: int, seed: int, of_means: bool = True) -> list[MeanShift]:
    """Estimate what each part takes of the gap.

    Parameters
    ----------
    moved : MovedMeans
    resamples, seed : int
        Of the bootstrap.
    of_means : bool
        Whether the noise of the means counts. Without it intervals are too narrow: for comparison alone.

    Returns
    -------
    list of MeanShift
        One for each part; without intervals where a side is one subject.
    """
    images, columns = moved.images, moved.images.cross.shape[1]
    weights = images.gap_weights()
    if not weights.any():
        nothing = Estimate(value=None)
        return [MeanShift(nothing, nothing, nothing, nothing)] * columns
    own = images.unpatched[:, None]
    effects, placebos = own - images.cross, own - images.placebo
    values = np.hstack([own, effects, placebos, effects - placebos])
    estimates = weights @ values
    found = _influences(moved, values, of_means=of_means)
    if found is None:
        known = [Estimate(value=float(v)) for v in estimates]
        return [_of_part(known, k, columns, Estimate(value=None)) for k in range(columns)]
    people = max(int(images.subject.max()), int(moved.donors[:, 3].max())) + 1
    draws = Bootstrap(np.arange(people), resamples, seed).draw(found)
    ends = intervals(estimates, draws)
    if excludes_zero(ends[0]):
        shares = shares_of(estimates[: 1 + columns], draws[:, : 1 + columns])[1:]
    else:
        shares = [Estimate(value=None)] * columns
    return [_of_part(ends, k, columns, shares[k]) for k in range(columns)]


def _of_part(found: Sequence[Estimate], part: int, parts: int, share: Estimate) -> MeanShift:
    """Return one part's estimates: after the gap come all effects, all placebos, all differences."""
    effect, placebo, beyond = found[1 + part :: parts][:3]
    return MeanShift(effect, placebo, beyond, share)


def _influences(moved: MovedMeans, values: Array, *, of_means: bool) -> Array | None:
    """Return what each subject adds to gap, effects, placebos and differences: (subjects + 2, 1 + 3 K)."""
    images, columns = moved.images, moved.images.cross.shape[1]
    people = max(int(images.subject.max()), int(moved.donors[:, 3].max())) + 1
    found = influences(values, images.gap_weights(), images, images.subject)
    if found is None:
        return None
    found = _padded(found, people)
    if of_means:
        label, half, side, subject = moved.donors.T
        layout = replace(
            images, cross=moved.pulls, placebo=moved.pulls, unpatched=np.zeros(len(label)), is_group=side == 1,
            label=2 * label + half, subject=subject, unit=subject, counts=False, tested=None, measured=None,
        )  # fmt: skip
        of_donors = influences(moved.pulls, _donor_weights(images, moved.donors), layout, subject)
        if of_donors is None:
            return None
        of_donors = _padded(of_donors, people)
        found[:, 1 : 1 + columns] += of_donors
        found[:, 1 + 2 * columns :] += of_donors
    return np.vstack([found, _of_shuffles(moved)])


def _of_shuffles(moved: MovedMeans) -> Array:
    """Return the standard error (1, 1 + 3 K) that placebos have for so many shuffles of the groups."""
    shuffles, columns = moved.shuffled.shape[2], moved.shuffled.shape[1]
    each = np.einsum("r,rkd->kd", moved.images.gap_weights(), moved.shuffled)
    error = each.std(axis=1, ddof=1) / np.sqrt(shuffles) if shuffles > 1 else np.zeros(columns)
    row = np.zeros((1, 1 + 3 * columns))
    row[0, 1 + columns : 1 + 2 * columns], row[0, 1 + 2 * columns :] = error, -error
    return row


def _padded(found: Array, people: int) -> Array:
    """Give everybody a row; the last row stays the last."""
    return np.insert(found, [len(found) - 1] * (people + 1 - len(found)), 0.0, axis=0)


def _donor_weights(images: SwapEffects, donors: Codes) -> Array:
    """Return weights (N,) whose product with the pulls is the effect, to first order in the means."""
    label, half, side, _ = donors.T
    weighted = set(np.unique(images.label[images.weighted]).tolist())
    weights = np.zeros(len(label))
    for code in weighted:
        for of_half in (0, 1):
            cell = (label == code) & (half == of_half)
            for of_side, sign in ((1, 1.0), (0, -1.0)):
                rows = cell & (side == of_side)
                weights[rows] = sign / max(int(rows.sum()), 1)
    return weights


def judge_moved(
    moved: Moved,
    shifts: Shifts,
    images: SwapEffects,
    parts: Sequence[str],
    question: Question,
    outcomes: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[MeanShiftRow]:
    """Estimate what each part takes of the gaps of some outcomes.

    Parameters
    ----------
    moved, shifts
        What was measured, over all images that donate or are moved.
    images : SwapEffects
        Layout of these (N,), with the label weights of the gap.
    parts : sequence of str
        Names of those that were moved.
    question : Question
    outcomes : sequence of str
        Those that were measured.
    resamples, seed : int
        Of the bootstrap.
    """
    rows: list[MeanShiftRow] = []
    for place, outcome in enumerate(outcomes):
        scales = [means_of(moved, shifts, images, place, scale) for scale in range(len(SCALES))]
        log_odds, probability, rate = (judge_shifts(s, resamples=resamples, seed=seed) for s in scales)
        gap = float(scales[1].images.gap_weights() @ scales[1].images.unpatched)
        errors = _off_first_order(moved, shifts, scales[1], place, probability)
        rows += [
            MeanShiftRow(
                contrast=question.contrast,
                outcome=outcome,
                metric=question.metric,
                part=part,
                moved=len(moved.rows),
                donors=int((shifts.coefficients[:, 0] != 0).sum()),
                probability=probability[k].effect,
                rate=rate[k].effect,
                log_odds=log_odds[k].effect,
                placebo=probability[k].placebo,
                beyond=probability[k].beyond,
                share_of_gap=rate[k].share,
                off_first_order=errors[k],
                takes=probability[k].takes(gap),
            )
            for k, part in enumerate(parts)
        ]
    return rows


def means_of(moved: Moved, shifts: Shifts, images: SwapEffects, outcome: int, scale: int) -> MovedMeans:
    """Lay out one scale of one outcome, by their places."""
    patched = moved.patched[:, :, :, outcome, scale]
    shuffled = patched[:, :, 1 : 1 + shifts.shuffles]
    at_rest = replace(images, unpatched=moved.unpatched[:, outcome, scale], counts=SCALES[scale] == "rate")
    layout = replace(
        at_rest.take(moved.rows),
        cross=patched[:, :, 0],
        placebo=shuffled.mean(axis=2) if shifts.shuffles else np.full(patched.shape[:2], np.nan),
    )
    who = np.stack([shifts.label, shifts.half, shifts.is_group, images.subject], axis=1)
    donates = shifts.coefficients[:, 0] != 0
    return MovedMeans(layout, shuffled, who[donates], moved.pulls[donates, :, outcome, scale])


def _off_first_order(
    moved: Moved, shifts: Shifts, means: MovedMeans, outcome: int, found: Sequence[MeanShift]
) -> list[float | None]:
    """Return how far exact effects of means drawn again are from first order: root mean square, in standard errors."""
    exact, weights = moved.patched[:, :, :, outcome, 1], means.images.gap_weights()
    first, again = shifts.coefficients[:, :1], shifts.coefficients[:, 1 + shifts.shuffles :]
    if not again.shape[1]:
        return [None] * len(found)
    by_patching = -np.einsum("r,rkd->dk", weights, exact[:, :, 1 + shifts.shuffles :] - exact[:, :, :1])
    by_pull = -2 * (again - first).T @ moved.pulls[:, :, outcome, 1]
    off = np.sqrt(((by_patching - by_pull) ** 2).mean(axis=0))
    errors: list[float | None] = []
    for away, shift in zip(off, found, strict=True):
        low, high = shift.effect.low, shift.effect.high
        wide = None if low is None or high is None or high <= low else (high - low) / (2 * NORMAL)
        errors.append(None if wide is None else float(away / wide))
    return errors
