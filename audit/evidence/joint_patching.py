"""Heads patched together: redundancy and self-repair, which single heads cannot show.

Effects of single heads do not add up. Two heads that carry the same are *redundant*: each alone seems to do little or
much, together they do less than the sum. Where another head makes up for a patched one (self-repair), they do more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from audit.evidence.bootstrap import Bootstrap, draw_bootstrap, share_of_gap, weighted_estimates
from audit.evidence.effects import Scalar, SwapEffects, lay_out
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.sampled import Sampled
from audit.evidence.stats import Array
from audit.evidence.stored_rows import Rows, distinct, some
from audit.records import Contrast, Estimate, HeadRow, JointRow, Localisation, Verdict
from audit.units import name_of, parse_name

IN_PAIRS = 4  # so many heads of a question, the largest on the discovery split, are patched two by two
NAMES_JOINED = "+"
SCALES: tuple[Scalar, Scalar] = ("p", "called")


@dataclass(frozen=True, order=True)
class HeadSet:
    """Heads (layer, head) that are patched at once; as text, what a table of effects calls them, whatever they are."""

    heads: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return NAMES_JOINED.join(name_of("head", layer, head) for layer, head in self.heads)


def sets_of_question(rows: Sequence[HeadRow]) -> list[HeadSet]:
    """Return what to patch together, from all head rows of one contrast and outcome.

    All swept heads; all confirmed ones, if there are several; two by two those that were largest on the discovery
    split, whether confirmed or not. Sets are measured on the confirmation split, which has no part in their choice, but
    for that of the confirmed.
    """
    confirmed = [r for r in rows if r.verdict == Verdict.CONFIRMED]
    largest = sorted(rows, key=lambda r: -abs(r.discovery.value or 0.0))[:IN_PAIRS]
    chosen: list[Sequence[HeadRow]] = [rows, *([confirmed] if len(confirmed) > 1 else []), *combinations(largest, 2)]
    sets = (HeadSet(tuple(sorted((r.layer, r.head) for r in part))) for part in chosen)
    return list(dict.fromkeys(sets))


def sets_to_patch(heads: Sequence[HeadRow], localisation: Mapping[str, Localisation]) -> dict[str, list[HeadSet]]:
    """Return for each contrast what to patch together, over all its outcomes in which a gap was detected."""
    wanted: dict[str, list[HeadSet]] = {}
    for contrast, outcome in dict.fromkeys((r.contrast, r.outcome) for r in heads):
        where = localisation.get(f"{contrast}:{outcome}")
        if where is not None and where.was_asked:
            sets = sets_of_question([r for r in heads if (r.contrast, r.outcome) == (contrast, outcome)])
            wanted[contrast] = list(dict.fromkeys([*wanted.get(contrast, []), *sets]))
    return wanted


def judge_together(
    stored: StoredEffects,
    table: Rows,
    contrasts: Sequence[Contrast],
    outcomes: Sequence[str],
    seed: int,
    settings: Settings,
) -> list[JointRow]:
    """Estimate what sets of heads mediate, compared with the sum of their single effects, on the confirmation split.

    Parameters
    ----------
    stored : StoredEffects
        Single heads.
    table : Rows
        Rows of the joint sweep: columns of Design A with ``set`` in place of layer and head.
    contrasts, outcomes
        The questions.
    seed : int
        Of the audited model.
    settings : Settings
    """
    rows: list[JointRow] = []
    own = stored.unpatched[stored.unpatched["seed"] == seed]
    for contrast in contrasts:
        part = some(table, contrast=str(contrast))
        names = sorted(distinct(part, ["set"])["set"])
        for outcome in outcomes if names else ():
            sets = [parse_set(name) for name in names]
            scales = (_scale(stored, part, own, sets, contrast, outcome, seed, scalar) for scalar in SCALES)
            rows += _rows(scales, sets, stored, contrast, outcome, settings)
    return rows


@dataclass(frozen=True)
class _Scale:
    """What sets of heads do, and the sum (R, sets) of what their heads do one by one, of the same recipients."""

    sets: SwapEffects
    summed: Array
    heads: int  # that there are


def _scale(
    stored: StoredEffects,
    part: Rows,
    own: pd.DataFrame,
    sets: Sequence[HeadSet],
    contrast: Contrast,
    outcome: str,
    seed: int,
    scalar: Scalar,
) -> _Scale:
    """Lay out what was patched together, and add up single heads for the same recipients."""
    shares = stored.label_shares(contrast, outcome)
    singles = stored.sampled(seed, contrast, "confirmation", outcome, scalar=scalar)
    singles = singles.take(np.sort(distinct(part, ["position"])["position"].to_numpy(dtype=np.int64)))
    one_by_one = singles.combined() if isinstance(singles, Sampled) else singles
    summed, heads = _summed(one_by_one, sets), len(one_by_one.heads)
    del singles, one_by_one
    return _Scale(
        lay_out(part, own, stored.frame["subject"], outcome, by=["set"], scalar=scalar, **shares), summed, heads
    )


def parse_set(name: str) -> HeadSet:
    """Read ``L1H0+L2H3``."""
    return HeadSet(tuple(parse_name(part) for part in name.split(NAMES_JOINED)))


def _rows(
    scales: Iterator[_Scale],
    sets: Sequence[HeadSet],
    stored: StoredEffects,
    contrast: Contrast,
    outcome: str,
    settings: Settings,
) -> list[JointRow]:
    """Estimate in mean probability, and what is a share of the gap in the rate of being called so.

    The effects of the second scale are laid out when those of the first are done with.
    """
    probability = next(scales)
    bootstrap = draw_bootstrap(probability.sets, resamples=settings.bootstrap, seed=settings.seed + 1)
    weights, heads_swept = probability.sets.mediated_weights(), probability.heads
    joint, sums, beyond = _in_probability(probability, weights, bootstrap)
    del probability
    rate = next(scales)
    called = weighted_estimates(rate.sets.difference, weights, rate.sets, bootstrap)
    shares = share_of_gap(rate.sets, bootstrap)
    sum_shares = share_of_gap(replace(rate.sets, cross=rate.sets.placebo + rate.summed), bootstrap)
    return [
        JointRow(
            contrast=str(contrast),
            outcome=outcome,
            heads=[name_of(settings.unit, layer, head) for layer, head in heads.heads],
            all_heads=len(heads.heads) == heads_swept,
            metric=stored.metric(contrast, outcome),
            together=joint[s],
            together_rate=called[s],
            sum_of_singles=sums[s],
            beyond_sum=beyond[s],
            share_of_gap=shares[s],
            sum_share_of_gap=sum_shares[s],
        )
        for s, heads in enumerate(sets)
    ]


def _in_probability(scale: _Scale, weights: Array, bootstrap: Bootstrap) -> Iterator[list[Estimate]]:
    """Yield what sets of heads do together, the sums of what their heads do one by one, and the differences."""
    together = scale.sets.difference
    for values in (together, scale.summed, together - scale.summed):
        yield weighted_estimates(values, weights, scale.sets, bootstrap)


def _summed(singles: SwapEffects, sets: Sequence[HeadSet]) -> Array:
    """Return the sum of what the heads of each set do one by one, (R, sets)."""
    column = {head: k for k, head in enumerate(singles.heads)}
    membership: Array = np.zeros((len(singles.heads), len(sets)))
    for s, heads in enumerate(sets):
        membership[[column[h] for h in heads.heads], s] = 1.0
    total: Array = singles.difference @ membership
    return total
