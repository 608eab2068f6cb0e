"""From stored patching effects to mediated gaps, their permutation p-values and intervals.

Notation: contrast of group a with reference b, outcome c, label-standardised gap
``D_c = sum_y w_y (E[p_c | a, y] - E[p_c | b, y])``. A recipient's difference ``d`` is p_c with the cross-group donor
minus p_c with the same-group placebo; its mean over recipients of a is IIE_{a->b}. The mediated gap of a head is
``(IIE_{b->a} - IIE_{a->b}) / 2``: how much the gap shrinks when donors come from both groups alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.called import is_called
from audit.evidence.stats import Array, Codes
from audit.evidence.stored_rows import Grid, Rows, columns_of, distinct

CHUNK = 500  # permutations at once; fewer of more than 8,388 donor pairs
SIGNS = 1 << 22  # of one family, drawn before those of the next
SIGNS_HELD = 1 << 19  # of them
Scalar = Literal["p", "m", "called"]


_BY_RECIPIENT = ("cross", "placebo", "unpatched", "is_group", "label", "subject", "unit", "tested", "measured")


@dataclass(frozen=True)
class SwapEffects:
    """Design A of one contrast, split and outcome, laid out for arithmetic."""

    # (R, K), p_c of recipient r with head k patched from the cross-group donor, and from the same-group placebo
    cross: Array
    placebo: Array
    unpatched: Array  # (R,), p_c of the recipient as it is
    is_group: npt.NDArray[np.bool_]  # (R,), whether the recipient is of the group (else of the reference)
    # (R,), codes of label, recipient's subject, and donor pair
    label: Codes
    subject: Codes
    unit: Codes
    heads: Sequence[tuple[int, int]]  # (layer, head) of the K columns; empty where a column is a set of heads
    # weight of each label's code, as the audited gap has them; shares among these recipients by default
    shares: Mapping[int, float] | None = None
    # weights on the side of the group, where they are others than ``shares``
    group_shares: Mapping[int, float] | None = None
    # (R, K), what the permutation test sums over a donor pair, where that is not ``difference``: its sum over all
    # recipients of a label and side is the same, and swapping the labels of the donor pair changes its sign
    tested: Array | None = None
    # whether values say if an image is called the outcome (0 or 1), so that differences count changes of class
    counts: bool = False
    measured: npt.NDArray[np.bool_] | None = None  # (R, K), where a value rests on a patch; everywhere by default

    @property
    def difference(self) -> Array:
        """p_c with the cross-group donor minus p_c with the placebo, (R, K)."""
        return self.cross - self.placebo

    def take(self, rows: Codes) -> SwapEffects:
        """Return the effects of some of the recipients."""
        known = (name for name in _BY_RECIPIENT if getattr(self, name) is not None)
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in known}
        return replace(self, **columns)

    def label_weights(self, *, group: bool = False) -> dict[int, float]:
        """Return the label weights of a side: those of the labels seen on both sides, summing to 1.

        Empty where no label with a weight is seen on both sides.
        """
        both = np.intersect1d(self.label[self.is_group], self.label[~self.is_group])
        given = self.shares if self.group_shares is None or not group else self.group_shares
        shares = {int(y): float((self.label == y).sum()) if given is None else given.get(int(y), 0.0) for y in both}
        total = sum(shares.values())
        return {y: share / total for y, share in shares.items()} if total > 0 else {}

    @property
    def lacks_a_cell(self) -> bool:
        """Tell whether some label has a weight on a side where nobody, or on the other side nobody, has it."""
        both = set(np.intersect1d(self.label[self.is_group], self.label[~self.is_group]).tolist())
        given = (shares or {} for shares in (self.shares, self.group_shares))
        return any(share > 0 and code not in both for shares in given for code, share in shares.items())

    def side_weights(self, *, group: bool) -> Array:
        """Return weights (R,) whose product with d is the label-standardised mean over one side."""
        weights = np.zeros(len(self.label))
        for y, share in self.label_weights(group=group).items():
            cell = (self.label == y) & (self.is_group == group)
            weights[cell] = share / cell.sum()
        return weights

    @property
    def weighted(self) -> npt.NDArray[np.bool_]:
        """Who counts: recipients (R,) whose label has a weight."""
        mask: npt.NDArray[np.bool_] = self.gap_weights() != 0
        return mask

    def mediated_weights(self) -> Array:
        """Return weights (R,) whose product with d is the mediated gap."""
        return (self.side_weights(group=False) - self.side_weights(group=True)) / 2

    def gap_weights(self) -> Array:
        """Return weights (R,) whose product with p_c is the label-standardised gap."""
        return self.side_weights(group=True) - self.side_weights(group=False)


def lay_out(
    effects: Rows,
    unpatched: pd.DataFrame,
    subjects: pd.Series,
    outcome: str,
    *,
    by: Sequence[str] = ("layer", "head"),
    scalar: Scalar = "p",
    label_shares: Mapping[str, float] | None = None,
    group_shares: Mapping[str, float] | None = None,
    everyone: Rows | None = None,
) -> SwapEffects:
    """Turn stored rows of Design A into arrays.

    Parameters
    ----------
    effects : Rows
        Those of one contrast and split, with ``unit``, ``side`` and ``label`` beside the columns of a sweep.
    unpatched : pandas.DataFrame
        ``recipient`` and ``p:<outcome>`` of the images as they are.
    subjects : pandas.Series
        Subject by recipient row.
    outcome : str
        Audited label.
    by : sequence of str
        Columns that say what was patched; each combination becomes one of the K columns, in sorted order.
    scalar : "p", "m" or "called"
        What is laid out: the probability of the outcome, its log-odds (nats), or whether it is called (0 or 1).
    label_shares : mapping of str to float, optional
        Weight of each label, by name; labels without one weigh nothing.
    group_shares : mapping of str to float, optional
        On the side of the group, where they are others than ``label_shares``.
    everyone : Rows, optional
        Those of all recipients and all that might be patched, where ``effects`` has only some: the others are NaN.
    """
    every = effects if everyone is None else everyone
    about = distinct(every, ["position", "recipient", "side", "label", "unit"], by=["position"])
    rows = about.sort_values("position")
    grid = Grid.of(every, "position", by, "cross")
    value = f"{scalar}:{outcome}"
    needed = [value] if scalar != "called" or value in columns_of(effects) else ["predicted"]

    def values(table: pd.DataFrame) -> pd.Series:
        return is_called(table, outcome) if scalar == "called" else table[value]

    patched = grid.fill(effects, needed, values)
    own = pd.Series(values(unpatched).to_numpy(dtype=np.float64), index=unpatched["recipient"])
    label, names = pd.factorize(rows["label"], sort=True)
    return SwapEffects(
        cross=patched["cross"],
        placebo=patched["placebo"],
        unpatched=own.loc[rows["recipient"]].to_numpy(),
        is_group=(rows["side"] == "group").to_numpy(),
        label=label.astype(np.int64),
        subject=pd.factorize(subjects.loc[rows["recipient"]])[0].astype(np.int64),
        unit=rows["unit"].to_numpy(dtype=np.int64),
        heads=[(int(c[0]), int(c[1])) for c in grid.patched] if "head" in by else [],
        shares=by_code(label_shares, names),
        group_shares=by_code(group_shares, names),
        counts=scalar == "called",
    )


def by_code(label_shares: Mapping[str, float] | None, names: Iterable[str]) -> dict[int, float] | None:
    """Turn weights by label name into weights by the label's code, its place in ``names``, then in ``label_shares``."""
    if label_shares is None:
        return None
    known = list(names)
    codes = {name: k for k, name in enumerate([*known, *(name for name in label_shares if name not in known)])}
    return {k: label_shares.get(name, 0.0) for name, k in codes.items()}


def mediated_gaps(effects: SwapEffects) -> Array:
    """Return the mediated gap of every head."""
    result: Array = effects.mediated_weights() @ effects.difference
    return result


def unit_sums(effects: SwapEffects) -> Array:
    """Return each donor pair's contribution (U, K) to the mediated gaps; their sum is the estimate."""
    contributions = effects.difference if effects.tested is None else effects.tested.copy()
    contributions *= effects.mediated_weights()[:, None]
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
        Random swaps, in addition to the observed one.
    seed : int
    alpha : float
        Of the critical value.

    Returns
    -------
    list of PermutationResult
        One for each array, p at least ``1 / (permutations + 1)``; p is 1 of a head that changes nothing, or of which
        some contribution is not a number.
    """
    families = [np.where(np.isfinite(f).all(axis=0), f, 0.0) for f in families]
    rng = np.random.default_rng(seed)
    scales = [np.sqrt((f**2).sum(axis=0)) for f in families]
    observed = [_divide(f.sum(axis=0), s) for f, s in zip(families, scales, strict=True)]
    beyond = [np.zeros(f.shape[1]) for f in families]
    beyond_max = [np.zeros(f.shape[1]) for f in families]
    maxima: list[Array] = []
    step = max(1, min(CHUNK, SIGNS // max(len(f) for f in families))) if families else CHUNK
    for start in range(0, permutations, step):
        n = min(step, permutations - start)
        drawn = [np.abs(_divide(_swapped(f, n, rng), s)) for f, s in zip(families, scales, strict=True)]
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


def _swapped(family: Array, permutations: int, rng: np.random.Generator) -> Array:
    """Return sums (permutations, K) of contributions with signs drawn at random, of which a part is held at a time."""
    step = max(1, SIGNS_HELD // len(family))
    parts = (min(step, permutations - start) for start in range(0, permutations, step))
    return np.concatenate([rng.choice((-1.0, 1.0), size=(n, len(family))) @ family for n in parts])


def _divide(sums: Array, scale: Array) -> Array:
    """Divide, a head that changes nothing at all having T = 0."""
    return np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)
