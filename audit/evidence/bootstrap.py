"""Intervals of weighted sums of cell means, by a multiplier bootstrap over clusters.

An estimate is ``weights @ values``, a weighted sum of the means of cells (label x side). Its *influence* by cluster is
what the cluster's deviations from the means of its cells add to it; a draw is the estimate plus the sum of all
influences, each times an independent standard normal number (multiplier or wild bootstrap: Wu 1986; by clusters:
Cameron, Gelbach & Miller 2008). Every draw has every image, so that no cell is empty in any, clusters may cross cells,
and a cell without weight counts for nothing. `benchmarks/bootstrap` compares multipliers and counts how often the
intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from audit.evidence.effects import SwapEffects
from audit.evidence.stats import Array, Codes, components, excludes_zero
from audit.records import Estimate

MULTIPLIERS = 2**20  # at once
KEPT = 2**25  # draws at once
INFLUENCES = 2**24  # of clusters on sums, held at once
WHOLE = 1 - 1e-9  # a share that is all of it
PSEUDO = 2.0  # changes of class, one either way, that are added to all cells together

Draws = npt.NDArray[np.float32]
Column = Callable[[], Array]  # makes (R,), so that not all columns of many need be held


@dataclass(frozen=True)
class Bootstrap:
    """Which recipients are one cluster (R,), numbered from 0; how many draws; and the seed of their multipliers."""

    clusters: Codes
    resamples: int
    seed: int

    def draw(self, influence: Array | Draws) -> Draws:
        """Return deviations (B, M) from M estimates.

        Parameters
        ----------
        influence : numpy.ndarray (G, M)
            All calls with as many rows meet the same multipliers.
        """
        rng = np.random.default_rng(self.seed)
        scale = influence.astype(np.float32, copy=False)
        draws = np.empty((self.resamples, scale.shape[1]), dtype=np.float32)
        step = max(1, MULTIPLIERS // len(scale))
        for start in range(0, self.resamples, step):
            n = min(step, self.resamples - start)
            draws[start : start + n] = rng.standard_normal((n, len(scale)), dtype=np.float32) @ scale
        return draws

    def blocks(self, columns: int) -> Iterator[slice]:
        """Cut the columns so that not too many draws are kept at once."""
        step = max(1, KEPT // self.resamples)
        return (slice(start, start + step) for start in range(0, columns, step))


def draw_bootstrap(effects: SwapEffects, *, resamples: int, seed: int) -> Bootstrap:
    """Take recipients with weight that are linked by a subject or by a donor pair as one cluster."""
    weighted = effects.weighted
    clusters = np.zeros(len(weighted), dtype=np.int64)
    if weighted.any():
        clusters[weighted] = components(effects.subject[weighted], effects.unit[weighted])
    return Bootstrap(clusters, resamples, seed)


def weighted_estimates(
    values: Array, weights: Array, effects: SwapEffects, bootstrap: Bootstrap, *, level: float = 0.95
) -> list[Estimate]:
    """Return ``weights @ values`` for each of the K columns with its percentile interval.

    Parameters
    ----------
    values : numpy.ndarray (R, K)
    weights : numpy.ndarray (R,)
        Equal within a label and side of ``effects``.
    effects : SwapEffects
    bootstrap : Bootstrap
    level : float

    Returns
    -------
    list of Estimate
        Without a value where nothing has weight, without an interval where there is nothing to tell a spread from.
    """
    found = influences(values, weights, effects, bootstrap.clusters)
    if found is None:
        known = bool(weights.any())
        return [Estimate(value=float(v) if known else None, level=level) for v in weights @ values]
    estimates: list[Estimate] = []
    for part in bootstrap.blocks(values.shape[1]):
        estimates += intervals(weights @ values[:, part], bootstrap.draw(found[:, part]), level)
    return estimates


def intervals(values: Array, deviations: Draws | Array, level: float = 0.95) -> list[Estimate]:
    """Return percentile intervals around K values from deviations (B, K)."""
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2], axis=0).astype(np.float64)
    return [
        Estimate(value=float(v), low=float(v + a), high=float(v + b), level=level)
        if np.isfinite([v, a, b]).all()
        else Estimate(value=None, level=level)
        for v, a, b in zip(values, low, high, strict=True)
    ]


def tost_p_values(effects: SwapEffects, bootstrap: Bootstrap, margin: float) -> list[float | None]:
    """Return for each head the p-value of two one-sided tests that its mediated gap lies within ``margin`` of 0.

    The larger share of draws on or beyond either end; at most alpha where the interval of level 1 - 2 alpha lies
    inside (Schuirmann 1987). Each head by itself: no adjustment over heads. None where no interval could be had.
    """
    weights, values = effects.mediated_weights(), effects.difference
    found = influences(values, weights, effects, bootstrap.clusters)
    if found is None:
        return [None] * values.shape[1]
    p_values: list[float | None] = []
    for part in bootstrap.blocks(values.shape[1]):
        draws = weights @ values[:, part] + bootstrap.draw(found[:, part])
        beyond = np.maximum((~(draws < margin)).sum(axis=0), (~(draws > -margin)).sum(axis=0))
        p_values += [float(p) for p in (1 + beyond) / (1 + bootstrap.resamples)]
    return p_values


def share_of_gap(effects: SwapEffects, bootstrap: Bootstrap) -> list[Estimate]:
    """Return each head's mediated gap as a share of the gap of the unpatched images, drawn jointly.

    Without a value where the gap's own interval holds 0: a share of nothing means nothing.
    """
    values, mediated, gap_weights = effects.difference, effects.mediated_weights(), effects.gap_weights()
    unpatched, everyone = effects.unpatched[:, None], replace(effects, measured=None)
    (gap,) = weighted_estimates(unpatched, gap_weights, everyone, bootstrap)
    above = influences(values, mediated, effects, bootstrap.clusters)
    below = influences(unpatched, gap_weights, everyone, bootstrap.clusters)
    if above is None or below is None or gap.value is None or not excludes_zero(gap):
        return [Estimate(value=None)] * values.shape[1]
    # What is not seen of the one and of the other is independent.
    above, below = np.insert(above, len(above), 0.0, axis=0), np.insert(below, len(below) - 1, 0.0, axis=0)
    estimates: list[Estimate] = []
    for part in bootstrap.blocks(values.shape[1]):
        effect = mediated @ values[:, part]
        draws = bootstrap.draw(np.hstack([above[:, part], below]))
        drawn = (effect + draws[:, :-1]) / (gap.value + draws[:, -1:])
        estimates += intervals(effect / gap.value, drawn - effect / gap.value, 0.95)
    return estimates


@dataclass(frozen=True)
class _Cells:
    """The C cells (label x side) of the N recipients that have weight, and the P parts that clusters have in them."""

    used: npt.NDArray[np.bool_]  # (R,), who has weight
    cell: Codes  # (N,)
    part: Codes  # (N,)
    size: Array  # (C,), recipients
    side: Codes  # (C,)
    weight: Array  # (C,), of the cell's mean in the estimate
    cell_of: Codes  # (P,)
    cluster_of: Codes  # (P,)

    def sum_by_part(self, values: Array) -> Array:
        """Sum (N, K) to (P, K)."""
        return _sums(self.part, values, len(self.cell_of))

    @property
    def share_of_side(self) -> Array:
        """Share of its side's weight that a cell has, (C,)."""
        total = np.bincount(self.side, weights=np.abs(self.weight), minlength=2)
        share: Array = np.abs(self.weight) / total[self.side]
        return share

    @property
    def show_a_spread(self) -> bool:
        """Whether somebody has weight, and no side is one cluster."""
        side = self.side[self.cell_of]
        return len(side) > 0 and all(len(np.unique(self.cluster_of[side == one])) > 1 for one in np.unique(side))


def _sums(codes: Codes, values: Array, count: int) -> Array:
    """Sum rows (N, K) by code to (count, K)."""
    table = sparse.csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(count, len(codes)))
    total: Array = np.asarray(table @ values)
    return total


def _cells(weights: Array, effects: SwapEffects, clusters: Codes) -> _Cells:
    used = weights != 0
    names, cell, size = np.unique(
        effects.label[used] * 2 + effects.is_group[used], return_inverse=True, return_counts=True
    )
    parts, part = np.unique(clusters[used] * len(names) + cell, return_inverse=True)
    return _Cells(
        used=used,
        cell=cell,
        part=part,
        size=size.astype(np.float64),
        side=names % 2,
        weight=np.bincount(cell, weights=weights[used], minlength=len(names)).astype(np.float64),
        cell_of=parts % len(names),
        cluster_of=parts // len(names),
    )


def influences(values: Array, weights: Array, effects: SwapEffects, clusters: Codes) -> Array | None:
    """Return what each cluster adds to the spread of the estimates ``weights @ values``.

    Parameters
    ----------
    values : numpy.ndarray (R, K)
    weights : numpy.ndarray (R,)
        Equal within a cell.
    effects : SwapEffects
        Its labels and sides are the cells.
    clusters : numpy.ndarray of int (R,)
        0..G-1.

    Returns
    -------
    numpy.ndarray (G + 1, K), or None
        Rows of clusters, and one of what the data do not show, see :func:`_unseen`. A cluster's deviation is divided by
        ``sqrt(1 - h)``, h its share of the cell's recipients, or few clusters would look too certain (CR2, Bell &
        McCaffrey 2002). A cluster that is alone in its cell deviates from the mean of its side, as lonely sampling
        units do ("adjust", Lumley 2004). None where a side is one cluster, or nothing has weight: there is nothing to
        tell a spread from.
    """
    cells = _cells(weights, effects, clusters)
    return _influences(values, cells, effects, int(clusters.max()) + 1) if cells.show_a_spread else None


def _influences(values: Array, cells: _Cells, effects: SwapEffects, clusters: int) -> Array:
    held = np.bincount(cells.part) / cells.size[cells.cell_of]
    alone = held > WHOLE
    lonely, of_side = cells.cell_of[alone], cells.share_of_side
    apart_from_mean = values[cells.used]
    means = _sums(cells.cell, apart_from_mean, len(cells.size)) / cells.size[:, None]
    for column in range(values.shape[1]):  # one at a time: of many images each further array (N, K) would be felt
        apart_from_mean[:, column] -= means[cells.cell, column]
    deviations = cells.sum_by_part(apart_from_mean)
    deviations *= (cells.weight / cells.size)[cells.cell_of, None]
    deviations /= np.sqrt(np.where(alone, 1.0, 1 - held))[:, None]
    side_means = _sums(cells.side, of_side[:, None] * means, 2)
    apart = means[lonely] - side_means[cells.side[lonely]]
    deviations[alone] = (cells.weight[lonely] / np.sqrt(1 - of_side[lonely]))[:, None] * apart
    del apart_from_mean
    by_cluster = _sums(cells.cluster_of, deviations, clusters + 1)
    by_cluster[-1:] = _unseen(cells, effects, values.shape[1])
    return by_cluster


def _unseen(cells: _Cells, effects: SwapEffects, columns: int) -> Array:
    """Return the standard deviation (1, K) that changes of class have beyond what is seen of them.

    That no image of few changed its class does not show that none can. ``PSEUDO`` pseudo-clusters, half of them changed
    one way and half the other, are spread over the cells (Price & Bonett 2004; for pairs Bonett & Price 2012): a cell
    with n clusters that were measured adds the variance ``a / (n + a)^2``, ``a`` its part of them. Means of
    probabilities have no such events, and nothing is added.
    """
    if not effects.counts:
        return np.zeros((1, columns))
    measured = np.ones((len(cells.cell), columns)) if effects.measured is None else effects.measured[cells.used]
    seen = cells.sum_by_part(measured.astype(np.float64)) > 0
    clusters = _sums(cells.cell_of, seen.astype(np.float64), len(cells.size))
    pseudo = PSEUDO * (cells.weight**2).sum() / np.abs(cells.weight).sum() ** 2
    variance = (cells.weight[:, None] ** 2 * pseudo / (clusters + pseudo) ** 2).sum(axis=0, keepdims=True)
    unseen: Array = np.sqrt(variance)
    return unseen


def gaps_and_shares(
    columns: Sequence[Column], effects: SwapEffects, bootstrap: Bootstrap, *, level: float = 0.95
) -> tuple[list[Estimate], list[Estimate]]:
    """Return the label-standardised gap of each of K columns, and its share of the first column's, drawn jointly.

    Parameters
    ----------
    columns : sequence of callable
        Each makes a column (R,) when it is asked for; one is held at a time. The first is the whole.
    effects : SwapEffects
        Its labels, sides and label weights.
    bootstrap : Bootstrap
    level : float

    Returns
    -------
    tuple of list of Estimate
        Gaps, exactly 0 where both sides have the same values in the same order; shares, without a value where the
        interval of the whole holds 0.
    """
    cells = _cells(effects.gap_weights(), effects, bootstrap.clusters)
    at_once = max(1, INFLUENCES // len(bootstrap.clusters))
    gaps, shares = _gaps_and_shares(columns[: 1 + at_once], cells, effects, bootstrap, level)
    for start in range(1 + at_once, len(columns), at_once):
        some = [columns[0], *columns[start : start + at_once]]
        more_gaps, more_shares = _gaps_and_shares(some, cells, effects, bootstrap, level)
        gaps, shares = gaps + more_gaps[1:], shares + more_shares[1:]
    return gaps, shares


def _gaps_and_shares(
    columns: Sequence[Column], cells: _Cells, effects: SwapEffects, bootstrap: Bootstrap, level: float
) -> tuple[list[Estimate], list[Estimate]]:
    """Do so of as many columns as may be drawn at once."""
    nothing = [Estimate(value=None, level=level)] * len(columns)
    if not len(cells.cell):
        return nothing, nothing
    gaps, clusters, is_known = np.zeros(len(columns)), int(bootstrap.clusters.max()) + 1, cells.show_a_spread
    found = np.empty((clusters + 1, len(columns) if is_known else 0), dtype=np.float32, order="F")
    sides = [
        (share, *((effects.label == label) & (effects.is_group == side) for side in (True, False)))
        for label, share in effects.label_weights().items()
    ]
    for k, column in enumerate(columns):
        values = column()
        gaps[k] = sum(share * (values[group].mean() - values[reference].mean()) for share, group, reference in sides)
        if is_known:
            found[:, k] = _influences(values[:, None], cells, effects, clusters)[:, 0]
    if not is_known:
        return [Estimate(value=float(v), level=level) for v in gaps], nothing
    draws = bootstrap.draw(found)
    estimates = intervals(gaps, draws, level)
    if not excludes_zero(estimates[0]):
        return estimates, nothing
    return estimates, shares_of(gaps, draws, level)


def shares_of(values: Array, deviations: Draws, level: float = 0.95) -> list[Estimate]:
    """Return each of K values as a share of the first, of the same draws (B, K)."""
    shares = values / values[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (values + deviations) / (values[0] + deviations[:, :1]) - shares
    return intervals(shares, apart, level)
