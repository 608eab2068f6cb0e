"""Where a gap runs: parts that sum to the label-standardised gap of the log-odds, each with its interval.

The gap of part k is ``sum_y w_y (mean of v_k in group and label y - mean in reference and label y)`` with the common
label weights of the audited gap, v_k what the part wrote into the log-odds of an image. Means are linear, so the gaps
of the parts sum to the gap of the log-odds. Coarser rows are sums of columns, image by image, with intervals of their
own. Label means that writes are counted from are taken as known: what they add to the spread is smaller than the parts'
own by the share in which the held norms differ between the groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.covariates import NO_COVARIATES, Covariates
from audit.evidence.adjusted_parts import at_equal_covariates
from audit.evidence.bootstrap import Bootstrap, Column, draw_bootstrap, gaps_and_shares
from audit.evidence.disparity import Question, label_shares
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.stats import Array, Codes, excludes_zero
from audit.evidence.stored_rows import Rows, by_image
from audit.patching.contributions import Component, Contributions
from audit.records import (
    Contrast,
    ContrastRow,
    Estimate,
    LedgerImages,
    LedgerLevel,
    LedgerRow,
    LedgerTotal,
    Metric,
    PartFamily,
    PartKind,
    WhyNoLedger,
)

CLOSES = 1e-4  # of a sum in float32: |sum - log-odds| as a share of the largest log-odds of all images, or of 1 nat
CLIP = 4.0  # nats, beyond which no decision hangs on an image: a probability of 1.8% or 98.2%


Part = Callable[[int], Array]  # from a part's number to what it adds to each image
Key = tuple[PartFamily | None, int | None, Component | None]
FAMILIES = {
    PartKind.TOKENS: PartFamily.EMBEDDING,
    PartKind.PATCHES: PartFamily.EMBEDDING,
    PartKind.HEAD: PartFamily.ATTENTION,
    PartKind.ATTENTION_BIAS: PartFamily.ATTENTION,
    PartKind.MLP: PartFamily.MLP,
    PartKind.SLICE: PartFamily.SLICES,
    PartKind.BIASES: PartFamily.BIASES,
    PartKind.POOL: PartFamily.BEHIND,
    PartKind.POOL_MLP: PartFamily.BEHIND,
    PartKind.CONSTANT: PartFamily.BEHIND,
    PartKind.ENTROPY: PartFamily.BEHIND,
    PartKind.HELD: PartFamily.HELD,
}


@dataclass(frozen=True)
class Row:
    """A part of a gap: its own gap, and its share of the whole where that may be said."""

    family: PartFamily | None  # None where it is a whole layer
    layer: int | None  # None where it is in none, or in all
    component: Component | None  # None where it is a sum of several
    gap: Estimate  # nats
    share: Estimate  # without a value where the whole's interval holds 0, or the whole has not the rate gap's sign
    adjusted: Estimate | None = None  # the gap with both groups at equal covariates; None where there are none


@dataclass(frozen=True)
class Ledger:
    """Parts that sum to a gap, from fine to coarse; rows of one level sum to it."""

    total: Estimate  # nats
    adjusted: Estimate | None  # likewise, with both groups at equal covariates; None where there are none
    components: tuple[Row, ...]
    in_layers: tuple[Row, ...]  # families within layers
    families: tuple[Row, ...]
    layers: tuple[Row, ...]  # of the parts that are in a layer; these alone do not sum to the gap
    clipped: Row | None  # what a ledger of images near the decision has beside the rows of each level
    closure: float  # |sum of the components' gaps - total|, nats


@dataclass(frozen=True)
class WrittenLedger:
    """Who writes a gap of log-odds, over all images and near the decision."""

    outcome: str
    group: str
    reference: str
    whole: Ledger
    near: Ledger  # of log-odds clipped at +-``clip`` from where the decision lies
    clip: float
    decision: float  # log-odds from which on an image is called the outcome
    kept: float  # share of the weight that images near the decision have


def written_ledger(
    contributions: Contributions,
    outcome: str,
    frame: pd.DataFrame,
    question: Question,
    group: str,
    *,
    rate_gap: float | None,
    resamples: int,
    seed: int,
    clip: float = CLIP,
    covariates: Covariates = NO_COVARIATES,
) -> WrittenLedger | None:
    """Part a gap of log-odds into what was written by every part of the network.

    Parameters
    ----------
    contributions : Contributions
        Of N images, centred on the means of their labels.
    outcome : str
        One of its outcomes.
    frame : pandas.DataFrame
        The same N images: ``label``, ``subject``, and the column of the question's attribute.
    question : Question
        Its known groups give the common label weights.
    group : str
        Compared with the question's reference.
    rate_gap : float or None
        The gap in rates; shares are given only where the gap of log-odds has its sign.
    resamples, seed : int
        Of the bootstrap.
    clip : float
        Nats.
    covariates : Covariates
        Gaps are adjusted for them besides.

    Returns
    -------
    WrittenLedger or None
        None where a label with weight is missing in the group or the reference.
    """
    pair = frame[question.attribute].isin([group, question.reference]).to_numpy()
    effects = laid_out(frame[pair], question, group, label_shares(frame, question))
    place = contributions.outcomes.index(outcome)
    rows = np.flatnonzero(pair)
    log_odds = np.asarray(contributions.log_odds[pair, place], dtype=np.float64)
    if effects.lacks_a_cell or not effects.weighted.any():
        return None
    bootstrap = draw_bootstrap(effects, resamples=resamples, seed=seed)
    known = covariates.values(frame[pair]) if covariates.terms else None

    def part(number: int) -> Array:
        return np.asarray(contributions.values[rows, number, place], dtype=np.float64)

    def inside(number: int) -> Array:
        return near_the_decision(part(number), beyond, near, effects.label, clip)[0]

    def ledger(parts: Part, total: Array, clipped: Array | None) -> Ledger:
        return _ledger(contributions.components, parts, total, clipped, effects, bootstrap, rate_gap, known)

    beyond = contributions.from_decision(outcome)[pair]
    near = np.abs(beyond) <= clip
    weights = np.abs(effects.gap_weights())
    _, outside = near_the_decision(beyond, beyond, near, effects.label, clip)
    return WrittenLedger(
        outcome=outcome,
        group=group,
        reference=question.reference,
        whole=ledger(part, log_odds, None),
        near=ledger(inside, np.clip(beyond, -clip, clip), outside),
        clip=clip,
        decision=contributions.decision[place] if contributions.decision else 0.0,
        kept=float(weights[near].sum() / weights.sum()),
    )


def laid_out(pair: pd.DataFrame, question: Question, group: str, shares: dict[str, float]) -> SwapEffects:
    """Lay images out as the label-standardised gap has them; the subject is the cluster."""
    label, names = pd.factorize(pair["label"], sort=True)
    subject = pd.factorize(pair["subject"])[0].astype(np.int64)
    nothing = np.zeros((len(pair), 0))
    return SwapEffects(
        cross=nothing,
        placebo=nothing,
        unpatched=np.zeros(len(pair)),
        is_group=(pair[question.attribute] == group).to_numpy(),
        label=label.astype(np.int64),
        subject=subject,
        unit=subject,
        heads=[],
        shares=by_code(shares, names),
    )


def near_the_decision(
    values: Array, beyond: Array, near: npt.NDArray[np.bool_], label: npt.NDArray[np.int64], clip: float
) -> tuple[Array, Array]:
    """Return what the parts add to the clipped log-odds of images near the decision, and what belongs to no part.

    Parts are counted from their means over the images of the same label near the decision, so that a part has no gap
    for the number of images there alone. The rest is these means, and the clipped log-odds of all other images: what
    differs between groups in how many are beyond, and on which side. ``beyond`` are log-odds from the decision.
    """
    inside, outside = np.zeros_like(values), np.clip(beyond, -clip, clip)
    for code in np.unique(label[near]):
        rows = near & (label == code)
        inside[rows] = values[rows] - values[rows].mean(axis=0)
        outside[rows] = beyond[rows].mean()
    return inside, outside


def _ledger(
    components: Sequence[Component],
    parts: Part,
    total: Array,
    clipped: Array | None,
    effects: SwapEffects,
    bootstrap: Bootstrap,
    rate_gap: float | None,
    covariates: Array | None,
) -> Ledger:
    """Estimate all rows of a ledger with the same draws; a column is made when it is asked for."""
    levels = [
        _grouped([(FAMILIES[c.kind], c.layer, c) for c in components]),
        _grouped([(FAMILIES[c.kind], c.layer, None) for c in components]),
        _grouped([(FAMILIES[c.kind], None, None) for c in components]),
        _grouped([None if c.layer is None else (None, c.layer, None) for c in components]),
    ]
    columns: list[Column] = [lambda: total, *(partial(_sum, parts, k) for level in levels for k in level.values())]
    columns += [] if clipped is None else [lambda: clipped]
    gaps, shares = gaps_and_shares(columns, effects, bootstrap)
    adjusted: list[Estimate | None] = [None] * len(gaps)
    if covariates is not None:
        adjusted = list(at_equal_covariates((column() for column in columns), effects, covariates))
    whole = gaps[0]
    if rate_gap is None or whole.value is None or not excludes_zero(whole) or whole.value * rate_gap <= 0:
        shares = [Estimate(value=None)] * len(gaps)
    found = iter(zip(gaps[1:], shares[1:], adjusted[1:], strict=True))
    rows = [tuple(Row(*key, *next(found)) for key in level) for level in levels]
    beyond = None if clipped is None else Row(PartFamily.CLIPPED, None, None, *next(found))
    summed = [row.gap.value or 0.0 for row in (*rows[0], *([] if beyond is None else [beyond]))]
    closure = abs(math.fsum(summed) - (whole.value or 0.0))
    components_of, in_layers, families, layers = rows
    return Ledger(whole, adjusted[0], components_of, in_layers, families, layers, beyond, closure)


def _sum(parts: Part, numbers: Sequence[int]) -> Array:
    return reduce(np.add, map(parts, numbers))


def _grouped(keys: Sequence[Key | None]) -> dict[Key, list[int]]:
    """Return which columns have the same key, in order; None is left out."""
    groups: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(place)
    return groups


def judge_written(
    contributions: Contributions | WhyNoLedger,
    frame: pd.DataFrame,
    asked: Sequence[tuple[Question, Contrast, ContrastRow]],
    *,
    resamples: int,
    seed: int,
    covariates: Covariates = NO_COVARIATES,
) -> tuple[list[LedgerTotal], list[LedgerRow]]:
    """Give each detected gap, as log-odds, as a sum of what was written.

    Parameters
    ----------
    contributions : Contributions or WhyNoLedger
        Of N images, centred on the means of their labels; or why there are none.
    frame : pandas.DataFrame
        The same N images: ``label``, ``subject``, and the columns of the attributes.
    asked : sequence of (Question, Contrast, ContrastRow)
        What is compared, and the gap in rates that was detected: its metric says which images count.
    resamples, seed : int
        Of the bootstrap.
    covariates : Covariates
        Gaps are adjusted for them besides.

    Returns
    -------
    tuple of list
        Gaps, and their rows; a gap without rows says why. Where the sum of some image is further than ``CLOSES`` from
        its log-odds, there are none.
    """
    totals: list[LedgerTotal] = []
    rows: list[LedgerRow] = []
    closure = None if isinstance(contributions, WhyNoLedger) else contributions.closure
    for question, contrast, gap in asked:
        named = {"contrast": str(contrast), "outcome": gap.outcome}
        found = _judged(
            contributions,
            frame,
            question,
            contrast.group,
            gap,
            resamples=resamples,
            seed=seed,
            covariates=covariates,
        )
        if isinstance(found, WhyNoLedger):
            nothing = Estimate(value=None)
            totals.append(LedgerTotal(**named, metric=gap.metric, among="all", gap=nothing, why_not=found))
            continue
        each: list[tuple[LedgerImages, Ledger, dict[str, float]]] = [
            ("all", found.whole, {}),
            ("near the decision", found.near, {"clip": found.clip, "kept": found.kept, "decision": found.decision}),
        ]
        for images, part, near in each:
            totals.append(
                LedgerTotal(
                    **named,
                    metric=gap.metric,
                    among=images,
                    gap=part.total,
                    adjusted=part.adjusted,
                    closure=part.closure,
                    closure_of_images=closure,
                    cut=_cut(contributions),
                    **near,
                )
            )
            rows += _flat(part, named, images)
    return totals, rows


def _cut(contributions: Contributions | WhyNoLedger) -> int | None:
    """Return the one stage whose slices are the parts; None of residual networks, whose layers all add to the whole."""
    if isinstance(contributions, WhyNoLedger):
        return None
    layers = {part.layer for part in contributions.components if part.kind is PartKind.SLICE}
    return next(iter(layers)) if len(layers) == 1 else None


def _judged(
    contributions: Contributions | WhyNoLedger,
    frame: pd.DataFrame,
    question: Question,
    group: str,
    gap: ContrastRow,
    *,
    resamples: int,
    seed: int,
    covariates: Covariates,
) -> WrittenLedger | WhyNoLedger:
    """Let the images count that count in the gap: all, each label at its common share, or those of one truth alone."""
    if isinstance(contributions, WhyNoLedger):
        return contributions
    if not contributions.closure <= CLOSES:
        return WhyNoLedger.NOT_CLOSED
    counted, frame = counted_images(frame, gap)
    some = contributions
    if not counted.all():
        some = replace(some, values=some.values[counted], log_odds=some.log_odds[counted])
    rate = gap.estimate.value
    found = written_ledger(
        some,
        gap.outcome,
        frame,
        question,
        group,
        rate_gap=rate,
        resamples=resamples,
        seed=seed,
        covariates=covariates,
    )
    return WhyNoLedger.LABELS if found is None else found


def counted_images(frame: pd.DataFrame, gap: ContrastRow) -> tuple[npt.NDArray[np.bool_], pd.DataFrame]:
    """Return which images count in a gap, and these; those of one truth alone have one label."""
    truth = (frame["label"] == gap.outcome).to_numpy()
    if gap.metric == Metric.STANDARDISED_GAP:
        return np.ones(len(frame), dtype=bool), frame
    counted = truth if gap.metric == Metric.TPR_GAP else ~truth
    return counted, frame[counted].assign(label="")


def _flat(part: Ledger, named: dict[str, str], images: LedgerImages) -> list[LedgerRow]:
    """Return the rows of all levels, one after the other."""
    levels: list[tuple[LedgerLevel, Sequence[Row]]] = [
        ("part", part.components),
        ("family in layer", part.in_layers),
        ("family", [*part.families, *([] if part.clipped is None else [part.clipped])]),
        ("layer", part.layers),
    ]
    return [
        LedgerRow(
            **named,
            among=images,
            level=level,
            family=row.family,
            part=None if row.component is None else row.component.kind,
            layer=row.layer,
            head=None if row.component is None else row.component.index,
            gap=row.gap,
            share=row.share,
            adjusted=row.adjusted,
        )
        for level, rows in levels
        for row in rows
    ]


def gather(table: Rows, outcomes: Sequence[str], log_odds: Callable[[Codes], Array]) -> tuple[Codes, Contributions]:
    """Put together what was stored of the parts.

    Parameters
    ----------
    table : Rows
        A row for each image and part, image by image: ``recipient``, ``part``, ``layer``, ``head`` (-1: none) and
        ``m:<outcome>``.
    outcomes : sequence of str
    log_odds : callable
        From recipients to their log-odds (N, outcomes), as the model answered.

    Returns
    -------
    tuple of numpy.ndarray (N,) and Contributions
        Recipients, and what was written into each.
    """
    every, named, values = by_image(table, ["part", "layer", "head"], [f"m:{name}" for name in outcomes])
    components = tuple(
        Component(PartKind(kind), *(None if at < 0 else int(at) for at in places))
        for kind, *places in named.itertuples(index=False)
    )
    return every, Contributions(components, tuple(outcomes), values, log_odds(every))
