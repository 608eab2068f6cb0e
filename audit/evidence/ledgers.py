"""Where a gap runs: parts that sum to the label-standardised gap of the log-odds, each with its interval.

The gap of part k is ``sum_y w_y (mean of v_k in group and label y - mean in reference and label y)`` with the common
label weights of the audited gap, v_k what the part wrote into the log-odds of an image. Means are linear, so the gaps
of the parts sum to the gap of the log-odds. Coarser rows are sums of columns, image by image, with intervals of their
own. Label means that writes are counted from are taken as known: what they add to the spread is smaller than the parts'
own by the share in which the held norms differ between the groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.bootstrap import Bootstrap, draw_bootstrap, gaps_and_shares
from audit.evidence.disparity import Question, label_shares
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.stats import Array, excludes_zero
from audit.patching.contributions import Component, Contributions, Kind
from audit.records import Estimate, Shortfall

CLIP = 4.0  # nats, beyond which no decision hangs on an image: a probability of 1.8% or 98.2%


class Family(StrEnum):
    """What parts are together, over layers or within one."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    MLP = "MLP"
    SLICES = "slices"
    BEHIND = "behind the last layer"
    BIASES = "biases on the way"
    HELD = "what is held"
    CLIPPED = "beyond the clip"


Key = tuple[Family | None, int | None, Component | None]
FAMILIES = {
    Kind.TOKENS: Family.EMBEDDING,
    Kind.PATCHES: Family.EMBEDDING,
    Kind.HEAD: Family.ATTENTION,
    Kind.ATTENTION_BIAS: Family.ATTENTION,
    Kind.MLP: Family.MLP,
    Kind.SLICE: Family.SLICES,
    Kind.BIASES: Family.BIASES,
    Kind.POOL: Family.BEHIND,
    Kind.POOL_MLP: Family.BEHIND,
    Kind.CONSTANT: Family.BEHIND,
    Kind.ENTROPY: Family.BEHIND,
    Kind.HELD: Family.HELD,
}


@dataclass(frozen=True)
class Row:
    """A part of a gap: its own gap, and its share of the whole where that may be said."""

    family: Family | None  # None where it is a whole layer
    layer: int | None  # None where it is in none, or in all
    component: Component | None  # None where it is a sum of several
    gap: Estimate  # nats
    share: Estimate  # without a value where the whole's interval holds 0, or the whole has not the rate gap's sign


@dataclass(frozen=True)
class Ledger:
    """Parts that sum to a gap, from fine to coarse; rows of one level sum to it."""

    total: Estimate  # nats
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
    whole: Ledger | None
    near: Ledger | None  # of log-odds clipped at +-``clip``
    clip: float
    kept: float  # share of the weight that images near the decision have
    shortfall: Shortfall | None  # why there is no ledger


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
) -> WrittenLedger:
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

    Returns
    -------
    WrittenLedger
        Without a ledger where a label with weight is missing in the group or the reference.
    """
    pair = frame[question.attribute].isin([group, question.reference]).to_numpy()
    effects = _laid_out(frame[pair], question, group, label_shares(frame, question))
    place = contributions.outcomes.index(outcome)
    values = np.asarray(contributions.values[pair, :, place], dtype=np.float64)
    log_odds = np.asarray(contributions.log_odds[pair, place], dtype=np.float64)
    if effects.lacks_a_cell or not effects.weighted.any():
        return WrittenLedger(outcome, group, question.reference, None, None, clip, 0.0, Shortfall.LABELS)
    bootstrap = draw_bootstrap(effects, resamples=resamples, seed=seed)

    def ledger(parts: Array, total: Array, clipped: Array | None) -> Ledger:
        return _ledger(contributions.components, parts, total, clipped, effects, bootstrap, rate_gap)

    near = np.abs(log_odds) <= clip
    weights = np.abs(effects.gap_weights())
    inside, outside = _near(values, log_odds, near, effects.label, clip)
    return WrittenLedger(
        outcome=outcome,
        group=group,
        reference=question.reference,
        whole=ledger(values, log_odds, None),
        near=ledger(inside, np.clip(log_odds, -clip, clip), outside),
        clip=clip,
        kept=float(weights[near].sum() / weights.sum()),
        shortfall=None,
    )


def _laid_out(pair: pd.DataFrame, question: Question, group: str, shares: dict[str, float]) -> SwapEffects:
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


def _near(
    values: Array, log_odds: Array, near: npt.NDArray[np.bool_], label: npt.NDArray[np.int64], clip: float
) -> tuple[Array, Array]:
    """Return what the parts add to the clipped log-odds of images near the decision, and what belongs to no part.

    Parts are counted from their means over the images of the same label near the decision, so that a part has no gap
    for the number of images there alone. The rest is these means, and the clipped log-odds of all other images: what
    differs between groups in how many are beyond, and on which side.
    """
    inside, outside = np.zeros_like(values), np.clip(log_odds, -clip, clip)
    for code in np.unique(label[near]):
        rows = near & (label == code)
        inside[rows] = values[rows] - values[rows].mean(axis=0)
        outside[rows] = log_odds[rows].mean()
    return inside, outside


def _ledger(
    components: Sequence[Component],
    values: Array,
    total: Array,
    clipped: Array | None,
    effects: SwapEffects,
    bootstrap: Bootstrap,
    rate_gap: float | None,
) -> Ledger:
    """Estimate all rows of a ledger with the same draws."""
    levels = [
        _grouped([(FAMILIES[c.kind], c.layer, c) for c in components]),
        _grouped([(FAMILIES[c.kind], c.layer, None) for c in components]),
        _grouped([(FAMILIES[c.kind], None, None) for c in components]),
        _grouped([None if c.layer is None else (None, c.layer, None) for c in components]),
    ]
    columns = [total, *(values[:, places].sum(axis=1) for level in levels for places in level.values())]
    columns += [] if clipped is None else [clipped]
    gaps, shares = gaps_and_shares(np.stack(columns, axis=1), effects, bootstrap)
    whole = gaps[0]
    if rate_gap is None or whole.value is None or not excludes_zero(whole) or whole.value * rate_gap <= 0:
        shares = [Estimate(value=None)] * len(gaps)
    found = iter(zip(gaps[1:], shares[1:], strict=True))
    rows = [tuple(Row(*key, *next(found)) for key in level) for level in levels]
    beyond = None if clipped is None else Row(Family.CLIPPED, None, None, *next(found))
    parts = [row.gap.value or 0.0 for row in (*rows[0], *([] if beyond is None else [beyond]))]
    closure = abs(math.fsum(parts) - (whole.value or 0.0))
    components_of, in_layers, families, layers = rows
    return Ledger(whole, components_of, in_layers, families, layers, beyond, closure)


def _grouped(keys: Sequence[Key | None]) -> dict[Key, list[int]]:
    """Return which columns have the same key, in order; None is left out."""
    groups: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(place)
    return groups
