"""From stored patching effects to mediated gaps, their permutation p-values and intervals.

Notation: contrast of group a with reference b, outcome c, label-standardised gap
``D_c = sum_y w_y (E[p_c | a, y] - E[p_c | b, y])``. A recipient's difference ``d`` is p_c with the cross-group donor
minus p_c with the same-group placebo; its mean over recipients of a is IIE_{a->b}. The mediated gap of a head is
``(IIE_{b->a} - IIE_{a->b}) / 2``: how much the gap shrinks when donors come from both groups alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.stats import Array, Codes, components
from audit.records import Estimate

CHUNK = 500  # permutations at once
Scalar = Literal["p", "m", "called"]


_BY_RECIPIENT = ("cross", "placebo", "unpatched", "is_group", "label", "subject", "unit")


@dataclass(frozen=True)
class SwapEffects:
    """Design A of one contrast, split and outcome, laid out for arithmetic.

    Parameters
    ----------
    cross, placebo : numpy.ndarray (R, K)
        p_c of recipient r with head k patched from the cross-group donor, and from the same-group placebo.
    unpatched : numpy.ndarray (R,)
        p_c of the recipient as it is.
    is_group : numpy.ndarray of bool (R,)
        Whether the recipient is of the group (else of the reference).
    label, subject, unit : numpy.ndarray of int (R,)
        Codes of label, recipient's subject, and donor pair.
    heads : sequence of (layer, head)
        Of the K columns; empty where a column is a set of heads.
    shares : mapping of int to float, optional
        Common weight of each label's code, as the audited gap has them; shares among these recipients by default.
    tested : numpy.ndarray (R, K), optional
        What the permutation test sums over a donor pair, where that is not ``difference``: its sum over all recipients
        of a label and side is the same, and swapping the labels of the donor pair changes its sign.
    """

    cross: Array
    placebo: Array
    unpatched: Array
    is_group: npt.NDArray[np.bool_]
    label: Codes
    subject: Codes
    unit: Codes
    heads: Sequence[tuple[int, int]]
    shares: Mapping[int, float] | None = None
    tested: Array | None = None

    @property
    def difference(self) -> Array:
        """p_c with the cross-group donor minus p_c with the placebo, (R, K)."""
        return self.cross - self.placebo

    def take(self, rows: Codes) -> SwapEffects:
        """Return the effects of some of the recipients."""
        columns = {name: getattr(self, name)[rows] for name in _BY_RECIPIENT}
        return replace(self, tested=None if self.tested is None else self.tested[rows], **columns)

    def label_weights(self) -> dict[int, float]:
        """Return the common label weights: shares of the labels seen on both sides, summing to 1."""
        both = np.intersect1d(self.label[self.is_group], self.label[~self.is_group])
        shares = self.shares or {int(y): float((self.label == y).sum()) for y in both}
        total = sum(shares[int(y)] for y in both)
        return {int(y): shares[int(y)] / total for y in both}

    def side_weights(self, *, group: bool) -> Array:
        """Return weights (R,) whose product with d is the label-standardised mean over one side."""
        weights = np.zeros(len(self.label))
        for y, share in self.label_weights().items():
            cell = (self.label == y) & (self.is_group == group)
            weights[cell] = share / cell.sum()
        return weights

    def mediated_weights(self) -> Array:
        """Return weights (R,) whose product with d is the mediated gap."""
        return (self.side_weights(group=False) - self.side_weights(group=True)) / 2

    def gap_weights(self) -> Array:
        """Return weights (R,) whose product with p_c is the label-standardised gap."""
        return self.side_weights(group=True) - self.side_weights(group=False)


def lay_out(
    effects: pd.DataFrame,
    unpatched: pd.DataFrame,
    subjects: pd.Series,
    outcome: str,
    *,
    by: Sequence[str] = ("layer", "head"),
    scalar: Scalar = "p",
    label_shares: Mapping[str, float] | None = None,
    everyone: pd.DataFrame | None = None,
) -> SwapEffects:
    """Turn stored rows of Design A into arrays.

    Parameters
    ----------
    effects : pandas.DataFrame
        Rows of one contrast and split, with ``unit``, ``side`` and ``label`` beside the columns of a sweep.
    unpatched : pandas.DataFrame
        ``recipient`` and ``p:<outcome>`` of the images as they are.
    subjects : pandas.Series
        Subject by recipient row.
    outcome : str
        Audited label.
    by : sequence of str
        Columns that say what was patched; each combination becomes one of the K columns, in sorted order.
    scalar : "p", "m" or "called"
        What is laid out: the probability of the outcome, its log-odds (nats), or whether it is predicted (0 or 1).
    label_shares : mapping of str to float, optional
        Common weight of each label, by name.
    everyone : pandas.DataFrame, optional
        Rows of all recipients and all that might be patched, where ``effects`` has only some: the others are NaN.
    """
    value = f"{scalar}:{outcome}"
    if scalar == "called":
        effects, unpatched = (
            t.assign(**{value: (t["predicted"] == outcome).astype(np.float64)}) for t in (effects, unpatched)
        )
    every = effects if everyone is None else everyone
    rows = every.drop_duplicates("position").sort_values("position")
    shape = every[every["donor_kind"] == "cross"].pivot(index="position", columns=list(by), values="donor_kind")
    patched = shape.sort_index(axis=1).columns
    tables = {
        kind: part.pivot(index="position", columns=list(by), values=value).reindex(rows["position"], columns=patched)
        for kind, part in effects.groupby("donor_kind")
    }
    own = unpatched.set_index("recipient")[value]
    label, names = pd.factorize(rows["label"], sort=True)
    return SwapEffects(
        cross=tables["cross"].to_numpy(dtype=np.float64),
        placebo=tables["placebo"].to_numpy(dtype=np.float64),
        unpatched=own.loc[rows["recipient"]].to_numpy(dtype=np.float64),
        is_group=(rows["side"] == "group").to_numpy(),
        label=label.astype(np.int64),
        subject=pd.factorize(subjects.loc[rows["recipient"]])[0].astype(np.int64),
        unit=rows["unit"].to_numpy(dtype=np.int64),
        heads=[(int(c[0]), int(c[1])) for c in patched] if "head" in by else [],
        shares=by_code(label_shares, names),
    )


def by_code(label_shares: Mapping[str, float] | None, names: Iterable[str]) -> dict[int, float] | None:
    """Turn weights by label name into weights by the label's code, its place in ``names``."""
    return None if label_shares is None else {code: label_shares[name] for code, name in enumerate(names)}


def mediated_gaps(effects: SwapEffects) -> Array:
    """Return the mediated gap of every head."""
    result: Array = effects.mediated_weights() @ effects.difference
    return result


def unit_sums(effects: SwapEffects) -> Array:
    """Return each donor pair's contribution (U, K) to the mediated gaps; their sum is the estimate."""
    differences = effects.difference if effects.tested is None else effects.tested
    contributions = effects.mediated_weights()[:, None] * differences
    codes = np.unique(effects.unit, return_inverse=True)[1]
    sums = np.zeros((codes.max() + 1, contributions.shape[1]))
    np.add.at(sums, codes, contributions)
    return sums


@dataclass(frozen=True)
class PermutationResult:
    """Two-sided p-values: ``raw`` of each test by itself, ``adjusted`` over the family by max-|T|.

    ``critical``: the value of |T| that the family's maximum stays under in all but ``alpha`` of the permutations.
    """

    statistic: Array
    raw: Array
    adjusted: Array
    critical: float


def permute_donor_labels(
    families: Sequence[Array], *, permutations: int, seed: int, alpha: float = 0.05
) -> list[PermutationResult]:
    """Test every head of every contrast and outcome by swapping the group labels inside donor pairs.

    Swapping a pair's labels turns its cross-group donor into the placebo and back, so its contribution changes
    sign; outcomes of one contrast share the swaps. The maximum of ``|T|`` over all tests (Westfall & Young 1993)
    adjusts for having looked at all of them.

    Parameters
    ----------
    families : sequence of numpy.ndarray (U_i, K_i)
        Contributions of the donor pairs, an array for each contrast, all its outcomes and heads side by side.
    permutations : int
        Random swaps, beside the observed one.
    seed : int
    alpha : float
        Of the critical value.

    Returns
    -------
    list of PermutationResult
        One for each array, p at least ``1 / (permutations + 1)``.
    """
    rng = np.random.default_rng(seed)
    scales = [np.sqrt((f**2).sum(axis=0)) for f in families]
    observed = [_divide(f.sum(axis=0), s) for f, s in zip(families, scales, strict=True)]
    beyond = [np.zeros(f.shape[1]) for f in families]
    beyond_max = [np.zeros(f.shape[1]) for f in families]
    maxima: list[Array] = []
    for start in range(0, permutations, CHUNK):
        n = min(CHUNK, permutations - start)
        drawn = [
            np.abs(_divide(rng.choice((-1.0, 1.0), size=(n, len(f))) @ f, s))
            for f, s in zip(families, scales, strict=True)
        ]
        highest = np.max([d.max(axis=1) for d in drawn], axis=0)
        maxima.append(highest)
        for i, d in enumerate(drawn):
            reached = np.abs(observed[i]) - 1e-12
            beyond[i] += (d >= reached).sum(axis=0)
            beyond_max[i] += (highest[:, None] >= reached).sum(axis=0)
    critical = float(np.quantile(np.concatenate(maxima), 1 - alpha)) if maxima else 0.0
    return [
        PermutationResult(t, (1 + b) / (permutations + 1), (1 + m) / (permutations + 1), critical)
        for t, b, m in zip(observed, beyond, beyond_max, strict=True)
    ]


def _divide(sums: Array, scale: Array) -> Array:
    """Divide, a head that changes nothing at all having T = 0."""
    return np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)


@dataclass(frozen=True)
class Bootstrap:
    """Resampled clusters as weights (B, R) for recipients; each row one resample."""

    weights: Array

    def mean(self, values: Array, base: Array, cell: npt.NDArray[np.int64]) -> Array:
        """Return resampled weighted sums (B, K) of ``values`` (R, K), weights renormalised within each cell.

        ``base`` (R,) are the estimate's own weights; ``cell`` (R,) says within which images a weight was shared
        out, so that each resample is again a sum of cell means; not a number where a resample has nothing of a cell.
        """
        result = np.zeros((len(self.weights), values.shape[1]))
        for code in np.unique(cell):
            rows = cell == code
            w = self.weights[:, rows]
            total = w.sum(axis=1, keepdims=True)
            means = np.divide(w @ values[rows], total, out=np.full((len(w), values.shape[1]), np.nan), where=total > 0)
            result += base[rows].sum() * means
        return result


def draw_bootstrap(effects: SwapEffects, *, resamples: int, seed: int) -> Bootstrap:
    """Resample whole clusters: recipients linked by a subject or by a donor pair stay together."""
    return resample_clusters(components(effects.subject, effects.unit), resamples=resamples, seed=seed)


def resample_clusters(clusters: Codes, *, resamples: int, seed: int) -> Bootstrap:
    """Draw as many clusters as there are, with replacement, ``resamples`` times."""
    rng = np.random.default_rng(seed)
    n = int(clusters.max()) + 1
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    return Bootstrap(counts[:, clusters])


def percentile_interval(value: float, draws: Array, *, level: float = 0.95) -> Estimate:
    """Return an estimate with the percentile interval of its resamples, of those that give a number."""
    low, high = np.quantile(draws[np.isfinite(draws)], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=float(value), low=float(low), high=float(high), level=level)


def weighted_estimates(
    values: Array, weights: Array, effects: SwapEffects, bootstrap: Bootstrap, *, level: float = 0.95
) -> list[Estimate]:
    """Return ``weights @ values`` for each of the K columns with its bootstrap interval."""
    cell = effects.label * 2 + effects.is_group
    draws = bootstrap.mean(values, weights, cell)
    return [percentile_interval(v, draws[:, k], level=level) for k, v in enumerate(weights @ values)]


def tost_p_values(effects: SwapEffects, bootstrap: Bootstrap, margin: float) -> list[float]:
    """Return for each head the p-value of two one-sided tests that its mediated gap lies within ``margin`` of 0.

    The larger share of resamples on or beyond either end; at most alpha where the interval of level 1 - 2 alpha lies
    inside (Schuirmann 1987). Each head by itself: no adjustment over heads.
    """
    cell = effects.label * 2 + effects.is_group
    draws = bootstrap.mean(effects.difference, effects.mediated_weights(), cell)
    usable = np.isfinite(draws)
    beyond = np.maximum((usable & (draws >= margin)).sum(axis=0), (usable & (draws <= -margin)).sum(axis=0))
    return [float(p) for p in (1 + beyond) / (1 + usable.sum(axis=0))]


def share_of_gap(effects: SwapEffects, bootstrap: Bootstrap) -> list[Estimate]:
    """Return each head's mediated gap as a share of the audited gap, resampled jointly.

    Without a value where the gap's own interval holds 0: a share of nothing means nothing.
    """
    cell = effects.label * 2 + effects.is_group
    weights = effects.gap_weights()
    gap = float(weights @ effects.unpatched)
    gap_draws = bootstrap.mean(effects.unpatched[:, None], weights, cell)[:, 0]
    held = percentile_interval(gap, gap_draws)
    if held.low is None or held.high is None or held.low <= 0 <= held.high:
        return [Estimate(value=None)] * effects.cross.shape[1]
    mediated = effects.mediated_weights()
    draws = bootstrap.mean(effects.difference, mediated, cell) / gap_draws[:, None]
    return [percentile_interval(v / gap, draws[:, k]) for k, v in enumerate(mediated @ effects.difference)]
