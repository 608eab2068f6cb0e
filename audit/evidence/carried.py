"""What sets of heads, or of other parts, carry of a gap: each alone, jointly, and the smallest set that suffices.

Effects of single heads do not add up: on real photographs they sum to several times what all carry together. So a set
is patched jointly, and what its members do alone beyond that is its *redundancy*. The smallest set is built up on the
discovery split and measured on the confirmation split.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod
from typing import Generic, TypeVar

import numpy as np
from scipy import stats

from audit.evidence.bootstrap import Bootstrap, draw_bootstrap, influences, share_of_gap, weighted_estimates
from audit.evidence.effects import SwapEffects, mediated_gaps
from audit.evidence.stats import Array, Codes
from audit.records import Estimate, WhyStopped

STRONGEST = 12  # candidates that are tried at each step
RANDOM_SETS = 20
TRIES = 100  # for each random set that differs from those before it
C = TypeVar("C", bound=Hashable)
# What sets carry: a column for each set, in order; the same recipients and donors in every call.
Measure = Callable[[Sequence[tuple[C, ...]]], SwapEffects]


@dataclass(frozen=True)
class Carried:
    """What a set carries of a gap, beyond the placebo, in the metric of the question."""

    joint: Estimate
    sum_of_singles: Estimate
    redundancy: Estimate  # sum of singles minus joint: what is counted more than once; below 0, self-repair
    share_of_gap: Estimate  # of the joint effect; without a value where the gap's own interval holds 0


def carried_jointly(
    joint: SwapEffects, singles: SwapEffects, members: Sequence[Sequence[int]], bootstrap: Bootstrap
) -> list[Carried]:
    """Estimate what sets carry jointly, and how much of what their members carry alone that repeats.

    Parameters
    ----------
    joint : SwapEffects
        A column for each set.
    singles : SwapEffects
        Members patched one by one, for the same recipients and donors.
    members : sequence of sequences of int
        Columns of ``singles`` that are in each set.
    bootstrap : Bootstrap
        All three estimates are of the same resamples.
    """
    membership: Array = np.zeros((singles.cross.shape[1], len(members)))
    for column, of_set in enumerate(members):
        membership[list(of_set), column] = 1.0
    together, summed = joint.difference, singles.difference @ membership
    columns = np.hstack([together, summed, summed - together])
    measured = replace(joint, measured=None)
    estimates = weighted_estimates(columns, joint.mediated_weights(), measured, bootstrap)
    shares, n = share_of_gap(joint, bootstrap), len(members)
    return [Carried(estimates[k], estimates[n + k], estimates[2 * n + k], shares[k]) for k in range(n)]


def noising(recipients: SwapEffects, donors: tuple[Array, Array], noised: tuple[Array, Array]) -> SwapEffects:
    """Lay out effects of the recipient's parts in the donor so that they compare with those of the donor's in it.

    Parameters
    ----------
    recipients : SwapEffects
        Of the same recipients and donors, whatever was patched.
    donors : tuple of numpy.ndarray (R,)
        p_c of the cross-group donor of each recipient, and of its placebo, as they are.
    noised : tuple of numpy.ndarray (R, K)
        p_c of these with the recipient's parts.

    Returns
    -------
    SwapEffects
        What is lost is counted as gained: where all paths add up, effects are those of denoising.
    """
    own = recipients.unpatched[:, None]
    cross, placebo = (own + as_is[:, None] - after for as_is, after in zip(donors, noised, strict=True))
    return replace(recipients, cross=cross, placebo=placebo, measured=None, tested=None)


@dataclass(frozen=True)
class Added(Generic[C]):
    """One step: what was added, its gain with standard error, and what the set then carried, in the gap's direction."""

    member: C
    gain: float
    error: float
    joint: float


@dataclass(frozen=True)
class SmallestSet(Generic[C]):
    """A set built up step by step on the discovery split. Its numbers there are biased upward by the choice."""

    steps: Sequence[Added[C]]
    stopped: WhyStopped
    limit: float  # standard errors that a gain must exceed
    tried: Sequence[C]  # the strongest candidates alone
    patched: int  # sets that were patched jointly to choose it

    @property
    def members(self) -> tuple[C, ...]:
        """Return the members, in the order in which they were added."""
        return tuple(step.member for step in self.steps)


def smallest_set(
    measure: Measure[C],
    singles: SwapEffects,
    candidates: Sequence[C],
    *,
    strongest: int = STRONGEST,
    alpha: float = 0.05,
    whole: float | None = None,
) -> SmallestSet[C]:
    """Build up the smallest set that carries a gap, on the discovery split.

    At each step that candidate is added whose joint patch with the set raises the mediated gap most, among those whose
    gain exceeds its noise. The noise of a gain is the standard error of the difference of the two joint patches on the
    same recipients and donors, robust to clusters, times Student's quantile for ``alpha`` two-sided, shared evenly
    over all candidates (Bonferroni), for the largest of many gains is large by chance.

    Parameters
    ----------
    measure : callable
        Patches sets of candidates jointly on the discovery split: for k chosen, up to the sum over s = 1..k of
        (``strongest`` - s) sets in all, each a pass from its first layer on for two donors of each recipient.
    singles : SwapEffects
        Each candidate alone, in the metric of the question (rate or probability).
    candidates : sequence
        What the columns of ``singles`` are.
    strongest : int
        So many candidates, which carry most alone in the direction of the gap, are tried.
    alpha : float
    whole : float, optional
        What carrying all of it means, as a size; by default the gap of the same images as they are.
    """
    gap = float(singles.gap_weights() @ singles.unpatched)
    direction = -1.0 if gap < 0 else 1.0
    weights, clusters = direction * singles.mediated_weights(), draw_bootstrap(singles, resamples=0, seed=0).clusters
    errors = _errors(singles.difference, weights, singles, clusters)
    alone = weights @ singles.difference
    if errors is None or not np.isfinite(alone).any():
        return SmallestSet((), WhyStopped.TOO_LITTLE, np.inf, (), 0)
    order = [int(k) for k in np.argsort(-np.nan_to_num(alone, nan=-np.inf), kind="stable")[:strongest]]
    left = [candidates[k] for k in order]
    tried, steps, patched = tuple(left), list[Added[C]](), 0
    limit = _limit(alpha, len(candidates), singles, clusters)
    values, carried = singles.difference[:, order], np.zeros(len(weights))
    while True:
        found = _errors(values - carried[:, None], weights, singles, clusters)
        gains = weights @ (values - carried[:, None])
        assert found is not None  # as of singles
        beyond = np.flatnonzero(gains > limit * found)
        if not len(beyond):
            return SmallestSet(steps, WhyStopped.NOISE, limit, tried, patched)
        best = int(beyond[np.argmax(gains[beyond])])
        carried = values[:, best]
        joint = float(weights @ carried)
        steps.append(Added(left.pop(best), float(gains[best]), float(found[best]), joint))
        if joint >= (abs(gap) if whole is None else whole):
            return SmallestSet(steps, WhyStopped.WHOLE, limit, tried, patched)
        if not left:
            return SmallestSet(steps, WhyStopped.NONE_LEFT, limit, tried, patched)
        values = measure([(*(step.member for step in steps), one) for one in left]).difference
        patched += len(left)


def beyond_noise(effects: SwapEffects, bootstrap: Bootstrap, alpha: float) -> list[bool]:
    """Tell of each column whether it carries in the direction of the gap, tested with all columns (Bonferroni).

    Parameters
    ----------
    effects : SwapEffects
        A column for each part.
    bootstrap : Bootstrap
        Its clusters.
    alpha : float
        Of all columns together, two-sided.
    """
    direction = -1.0 if float(effects.gap_weights() @ effects.unpatched) < 0 else 1.0
    weights, columns = direction * effects.mediated_weights(), effects.difference.shape[1]
    errors = _errors(effects.difference, weights, effects, bootstrap.clusters)
    if errors is None:
        return [False] * columns
    limit = _limit(alpha, columns, effects, bootstrap.clusters)
    return [bool(found) for found in weights @ effects.difference > limit * errors]


def pairs_needed(effects: SwapEffects, bootstrap: Bootstrap, alpha: float, share: float) -> int | None:
    """Return with how many donor pairs a column that carries a share of the gap would be beyond noise.

    The noise of a column is the median over columns, and falls with the square root of the number of pairs. None where
    no noise could be told, or there is no gap.
    """
    gap, columns = float(effects.gap_weights() @ effects.unpatched), effects.difference.shape[1]
    errors = _errors(effects.difference, effects.mediated_weights(), effects, bootstrap.clusters)
    if errors is None or gap == 0 or not columns:
        return None
    limit = _limit(alpha, columns, effects, bootstrap.clusters)
    pairs = len(np.unique(effects.unit[effects.weighted]))
    return int(np.ceil(pairs * (limit * float(np.median(errors)) / (share * gap)) ** 2))


def _errors(values: Array, weights: Array, effects: SwapEffects, clusters: Codes) -> Array | None:
    """Return the standard errors (K,) of ``weights @ values``, robust to clusters; None where none can be told."""
    found = influences(np.nan_to_num(values), weights, replace(effects, measured=None), clusters)
    return None if found is None else np.sqrt((found**2).sum(axis=0))


def _limit(alpha: float, looks: int, effects: SwapEffects, clusters: Codes) -> float:
    """Return how many standard errors the largest of so many estimates stays under in all but ``alpha`` of cases."""
    used = effects.weighted
    freedom = max(1, len(np.unique(clusters[used])) - len(np.unique(effects.label[used])))
    return float(stats.t.ppf(1 - alpha / (2 * looks), freedom))


@dataclass(frozen=True)
class ConfirmedSet(Generic[C]):
    """What a set carries on images that had no part in its choice, beside random sets."""

    members: tuple[C, ...]
    carried: Carried
    # of each random set of as many heads of each layer, its mediated gap
    random: Sequence[float]
    beyond_random: Estimate  # the set's mediated gap minus their mean, of the same resamples
    reached: int  # random sets that carry as much in the direction of the gap

    @property
    def p(self) -> float:
        """Return the share of sets of these layers, this one among them, that carry as much."""
        return (1 + self.reached) / (1 + len(self.random))


def confirm_set(
    measure: Measure[C],
    members: Sequence[C],
    singles: SwapEffects,
    candidates: Sequence[C],
    bootstrap: Bootstrap,
    *,
    layer_of: Callable[[C], int],
    random_sets: int = RANDOM_SETS,
    seed: int = 0,
) -> ConfirmedSet[C]:
    """Measure a set on the confirmation split, beside random sets of equal size and layers.

    Parameters
    ----------
    measure : callable
        Patches sets jointly on the confirmation split: 1 + ``random_sets`` of them.
    members : sequence
        The set, one at least.
    singles : SwapEffects
        Each candidate alone, there.
    candidates : sequence
        What the columns of ``singles`` are: all heads, of which random sets are drawn.
    bootstrap : Bootstrap
    layer_of : callable
        Returns the layer of a candidate.
    random_sets : int
        Fewer where these layers have fewer others.
    seed : int
        Of the random sets.
    """
    column = {candidate: k for k, candidate in enumerate(candidates)}
    others = random_sets_like(members, candidates, layer_of=layer_of, number=random_sets, seed=seed)
    joint = measure([tuple(members), *others])
    own = replace(joint, cross=joint.cross[:, :1], placebo=joint.placebo[:, :1], tested=None, measured=None)
    (carried,) = carried_jointly(own, singles, [[column[m] for m in members]], bootstrap)
    gaps, gap = mediated_gaps(joint), float(joint.gap_weights() @ joint.unpatched)
    direction = -1.0 if gap < 0 else 1.0
    beyond = Estimate(value=None)
    if others:
        difference = joint.difference[:, :1] - joint.difference[:, 1:].mean(axis=1, keepdims=True)
        (beyond,) = weighted_estimates(difference, joint.mediated_weights(), own, bootstrap)
    reached = int((direction * gaps[1:] >= direction * gaps[0]).sum())
    return ConfirmedSet(tuple(members), carried, [float(g) for g in gaps[1:]], beyond, reached)


def random_sets_like(
    members: Sequence[C], candidates: Sequence[C], *, layer_of: Callable[[C], int], number: int, seed: int
) -> list[tuple[C, ...]]:
    """Draw different sets with as many candidates of each layer as ``members`` has, but not ``members`` itself.

    Members may be in them: any set of these layers is as likely. All there are, where that is not more than ``number``.
    """
    own = frozenset(members)
    layers = sorted({layer_of(m) for m in members})
    held = [[c for c in candidates if layer_of(c) == layer] for layer in layers]
    sizes = [sum(layer_of(m) == layer for m in members) for layer in layers]
    others = prod(comb(len(of_layer), k) for of_layer, k in zip(held, sizes, strict=True)) - 1
    if others <= number:
        choices = product(*(combinations(of_layer, k) for of_layer, k in zip(held, sizes, strict=True)))
        every = (tuple(c for part in choice for c in part) for choice in choices)
        return [chosen for chosen in every if frozenset(chosen) != own]
    rng = np.random.default_rng(seed)
    found: dict[frozenset[C], tuple[C, ...]] = {}

    def drawn() -> tuple[C, ...]:
        parts = (
            (of_layer, rng.choice(len(of_layer), k, replace=False)) for of_layer, k in zip(held, sizes, strict=True)
        )
        return tuple(of_layer[i] for of_layer, places in parts for i in sorted(places))

    for chosen in (drawn() for _ in range(TRIES * number)):
        if frozenset(chosen) != own:
            found.setdefault(frozenset(chosen), chosen)
        if len(found) == number:
            break
    return list(found.values())
