"""Which trained weights put a gap there: rows that sum to the audited model's gap, from a reference to that model.

The gap is ``D = sum_y w_y (E[v | a, y] - E[v | b, y])``, weighted as the audited gap is; v is whether an image is
called the outcome (rate), its probability, or its log-odds. Along a path the players are exchanged one after the other
on the same images. A row is the gap of what the exchange changes image by image, so it is precise where gaps are not.
Rows sum to the audited model's gap whatever the order is, so that they do shows nothing; what shows something is the
null, rows between two models trained alike, and the accuracy of the hybrids on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import factorial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.covariates import NO_COVARIATES, Covariates
from audit.errors import InputError
from audit.evidence.adjusted_parts import at_equal_covariates
from audit.evidence.bootstrap import Bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import label_shares_of
from audit.evidence.stats import Array, Codes, as_difference, as_fraction, combine_cells
from audit.records import Contrast, Estimate, Metric

Scale = Literal["rate", "probability", "log_odds"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Mask = npt.NDArray[np.bool_]
BETWEEN_REFERENCES = "null"  # in place of a reference's name
IN_REFERENCE = "already in the reference"
BY_TRAINING = "put there by training"
TOTAL = "audited model"
NOTHING = Estimate(value=0.0, low=0.0, high=0.0)


# What is measured


@dataclass(frozen=True)
class Values:
    """What H models answer to N images, of one outcome."""

    called: Mask  # (N, H), whether the image is called the outcome
    probability: Array  # (N, H)
    log_odds: Array  # (N, H), nats
    right: Mask  # (N, H), whether the predicted class is the image's label

    def on(self, scale: Scale) -> Array:
        """Return the values on a scale, (N, H)."""
        if scale == "rate":
            return self.called.astype(np.float64)
        return self.probability if scale == "probability" else self.log_odds


@dataclass(frozen=True)
class Along:
    """Answers along a path: of the reference, then with one player after the other exchanged."""

    players: tuple[str, ...]
    same: tuple[bool, ...]  # of each player, whether both models have its weights
    values: Values  # of players + 1 models; the last is the audited one


@dataclass(frozen=True)
class OfSets:
    """Answers of models with sets of players exchanged."""

    players: tuple[str, ...]
    members: Mask  # (H, players), no row twice
    orders: Codes | None  # (orders, players), each followed by its reverse; None where all 2^players sets are there
    values: Values  # of H models


@dataclass(frozen=True)
class Compared:
    """The gap that is shared out: which images count how much, and which are one cluster."""

    effects: SwapEffects  # labels, sides, subjects and weights; no patches
    bootstrap: Bootstrap
    covariates: Array | None = None  # (N, C), for which gaps are adjusted besides

    @property
    def weights(self) -> Array:
        """Weights (N,) whose product with an image's values is the gap."""
        return self.effects.gap_weights()


def compare(
    images: pd.DataFrame,
    contrast: Contrast,
    outcome: str,
    *,
    audited: pd.DataFrame | None = None,
    metric: Metric = Metric.STANDARDISED_GAP,
    resamples: int = 2000,
    seed: int = 0,
    covariates: Covariates = NO_COVARIATES,
) -> Compared:
    """Return the gap of a contrast and outcome, weighted as the audit has it.

    Parameters
    ----------
    images : pandas.DataFrame
        ``label``, ``subject`` and the contrast's attribute of the N images, in the order of their answers. Images of
        other groups weigh nothing.
    contrast : Contrast
    outcome : str
    audited : pandas.DataFrame, optional
        All audited images, where ``images`` are some of them: labels weigh what they do there.
    metric : Metric
    resamples, seed : int
        Of the bootstrap over subjects.
    covariates : Covariates
        Gaps are adjusted for them besides.
    """
    shares = label_shares_of(images if audited is None else audited, contrast, outcome, metric)
    groups = images[contrast.attribute]
    is_group = (groups == contrast.group).to_numpy()
    known = is_group | (groups == contrast.reference).to_numpy()
    label, names = pd.factorize(images["label"], sort=True)
    none = np.empty((len(images), 0))
    effects = SwapEffects(
        cross=none,
        placebo=none,
        unpatched=np.zeros(len(images)),
        is_group=is_group,
        label=np.where(known, label, len(names) + len(shares["label_shares"])).astype(np.int64),  # of no weight
        subject=pd.factorize(images["subject"])[0].astype(np.int64),
        unit=np.arange(len(images)),
        heads=[],
        shares=by_code(shares["label_shares"], names),
        group_shares=by_code(shares["group_shares"], names),
    )
    adjusted_for = covariates.values(images) if covariates.terms else None
    return Compared(effects, Bootstrap(effects.subject, resamples, seed), adjusted_for)


def draw_images(images: pd.DataFrame, attribute: str, most: int, seed: int) -> Codes:
    """Return the places of at most so many images, in order: as many of each group and label as all have, in shares."""
    cells = pd.factorize(pd.MultiIndex.from_frame(images[[attribute, "label"]]))[0]
    rng = np.random.default_rng([seed, len(images)])
    shuffled = rng.permutation(len(images))
    within = pd.Series(cells[shuffled]).groupby(cells[shuffled]).cumcount().to_numpy()
    share = (within + 0.5) / np.bincount(cells)[cells[shuffled]]
    drawn: Codes = np.sort(shuffled[np.argsort(share, kind="stable")[:most]])
    return drawn


# What is found


@dataclass(frozen=True)
class Amount:
    """What a row adds to the gap, on one scale."""

    estimate: Estimate  # mean over the references; the interval is over subjects
    by_reference: tuple[float, ...]
    between: float | None  # standard deviation between references; None of one
    null: float | None = None  # root mean square of this row between two models trained alike
    order_error: float | None = None  # standard error for having drawn some orders of many; 0 where none was drawn
    adjusted: Estimate | None = None  # of a rate, with both groups at equal covariates


@dataclass(frozen=True)
class Row:
    """A row of the ledger, on each scale: points of rate and of probability as fractions, log-odds in nats."""

    name: str
    same_weights: bool  # whether all references have the audited model's weights there: the row is 0, not measured
    rate: Amount
    probability: Amount
    log_odds: Amount

    def on(self, scale: Scale) -> Amount:
        """Return the amount on a scale."""
        return {"rate": self.rate, "probability": self.probability, "log_odds": self.log_odds}[scale]


@dataclass(frozen=True)
class HybridAccuracy:
    """How often the models along a path are right, over all images."""

    after: str  # the player that was exchanged last
    estimate: Estimate  # mean over the references
    by_reference: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """The ledger of what training put there."""

    rows: tuple[Row, ...]  # "already in the reference", then every player
    by_training: Row  # the sum of the players
    total: Row  # the audited model's gap
    closure: dict[Scale, float | None]  # by how much the rows miss the total; None where there is no gap to share out
    accuracy: tuple[HybridAccuracy, ...]  # of a path

    @property
    def players(self) -> tuple[Row, ...]:
        """The rows of the players."""
        return self.rows[1:]


def ledger_of_paths(paths: Sequence[Along], compared: Compared, *, nulls: Sequence[Along] = ()) -> Trained:
    """Share out the audited model's gap along a path, from one reference or several.

    Parameters
    ----------
    paths : sequence of Along
        One a reference, all in one order of players.
    compared : Compared
    nulls : sequence of Along
        Likewise, between two references of other seeds: what two models differ by that were trained alike.

    Raises
    ------
    InputError
        If there is no reference, or paths have different players.
    """
    _check_alike([*paths, *nulls] if paths else [])
    names, same = paths[0].players, tuple(all(flags) for flags in zip(*(p.same for p in paths), strict=True))
    found = _ledger([path.values for path in paths], names, same, compared, _steps)
    null = {scale: _null([n.values.on(scale) for n in nulls], compared, len(names)) for scale in SCALES}
    spreads = [{scale: null[scale][k] for scale in SCALES} for k in range(len(names) + 1)]
    rows = [found.rows[0], *map(_with_null, found.players, spreads[:-1])]
    by_training = _with_null(found.by_training, spreads[-1])
    return replace(found, rows=tuple(rows), by_training=by_training, accuracy=_accuracies(paths, compared))


def ledger_of_sets(sets: Sequence[OfSets], compared: Compared) -> Trained:
    """Share out the audited model's gap by Shapley values, from one reference or several.

    A player's row is the mean over all orders of what exchanging it changes. Where orders were drawn, that of those,
    with its own standard error beside the interval over subjects.

    Raises
    ------
    InputError
        If there is no reference, or references have different players.
    """
    _check_alike(sets)
    first = sets[0]
    if any(not np.array_equal(first.members, other.members) for other in sets):
        raise InputError("references", "were measured with different sets", "measure all with one seed")
    number = len(first.players)
    drawn = None if first.orders is None else _pair_coefficients(first.members, first.orders)
    coefficients = _exact_coefficients(first.members) if drawn is None else drawn.mean(axis=0)
    ends = [int(np.flatnonzero(first.members.sum(axis=1) == size)[0]) for size in (0, number)]

    def columns(values: Array) -> Array:
        return np.column_stack([values[:, ends[0]], values @ coefficients.T, values[:, ends[1]]])

    found = _ledger([s.values for s in sets], first.players, (False,) * number, compared, columns)
    error = {scale: _order_errors([s.values.on(scale) for s in sets], drawn, number, compared) for scale in SCALES}
    errors = [{scale: error[scale][k] for scale in SCALES} for k in range(number)]
    rows = [found.rows[0], *map(_with_order, found.players, errors)]
    return replace(found, rows=tuple(rows))


def _check_alike(given: Sequence[Along | OfSets]) -> None:
    if not given:
        raise InputError("references", "there is none", "give at least one model trained on a balanced sample")
    if odd := next((other for other in given if other.players != given[0].players), None):
        names = [", ".join(one.players) for one in (odd, given[0])]
        raise InputError("references", f"have other players ({names[0]})", f"give all in one order: {names[1]}")


def _steps(values: Array) -> Array:
    """Return the first model's values, what each exchange changes, and the last model's: (N, players + 2)."""
    return np.column_stack([values[:, 0], np.diff(values, axis=1), values[:, -1]])


def _ledger(
    values: Sequence[Values],
    names: Sequence[str],
    same: Sequence[bool],
    compared: Compared,
    columns: Callable[[Array], Array],
) -> Trained:
    """Lay out the rows of what ``columns`` makes of values (N, H): first, every player, last (N, players + 2)."""
    amounts: dict[Scale, list[Amount]] = {}
    for scale in SCALES:
        parts = np.stack([columns(v.on(scale)) for v in values])
        trained = parts[..., -1:] - parts[..., :1]
        amounts[scale] = _amounts(np.concatenate([parts, trained], axis=-1), compared, scale)
    rows = [
        Row(name, is_same, *(_nothing(amounts[scale][k]) if is_same else amounts[scale][k] for scale in SCALES))
        for k, (name, is_same) in enumerate(
            [(IN_REFERENCE, False), *zip(names, same, strict=True), (TOTAL, False), (BY_TRAINING, all(same))]
        )
    ]
    *shared, total, by_training = rows
    closure = {scale: _missed(shared, total, scale) for scale in SCALES}
    return Trained(tuple(shared), by_training, total, closure, ())


def _amounts(columns: Array, compared: Compared, scale: Scale) -> list[Amount]:
    """Estimate the gap of each column (references, N, K), of the mean over references and of each."""
    effects, weights = replace(compared.effects, counts=scale == "rate"), compared.weights
    mean = columns.mean(axis=0)
    found = weighted_estimates(mean, weights, effects, compared.bootstrap)
    adjusted: list[Estimate | None] = [None] * len(found)
    if scale == "rate" and compared.covariates is not None:
        adjusted = list(at_equal_covariates(mean.T, effects, compared.covariates))
    by_reference = weights @ columns
    between = by_reference.std(axis=0, ddof=1) if len(columns) > 1 else None
    last = len(found) - 2  # the gap of the audited model; that of the reference is the first
    return [
        Amount(
            as_difference(estimate) if scale != "log_odds" and k in (0, last) else estimate,
            tuple(float(v) for v in by_reference[:, k]),
            None if between is None else float(between[k]),
            adjusted=adjusted[k],
        )
        for k, estimate in enumerate(found)
    ]


def _nothing(amount: Amount) -> Amount:
    """Return what is known of a row without measuring it."""
    known = amount.estimate.value is not None
    adjusted = None if amount.adjusted is None or amount.adjusted.value is None else NOTHING
    return replace(amount, estimate=NOTHING if known else amount.estimate, adjusted=adjusted)


def _missed(rows: Iterable[Row], total: Row, scale: Scale) -> float | None:
    parts = [row.on(scale).estimate.value for row in rows]
    whole = total.on(scale).estimate.value
    known = [part for part in parts if part is not None]
    return None if whole is None or len(known) < len(parts) else abs(sum(known) - whole)


def _changed(row: Row, change: Callable[[Amount, Scale], Amount]) -> Row:
    rate, probability, log_odds = (change(row.on(scale), scale) for scale in SCALES)
    return replace(row, rate=rate, probability=probability, log_odds=log_odds)


def _with_null(row: Row, spread: Mapping[Scale, float | None]) -> Row:
    return _changed(row, lambda amount, scale: replace(amount, null=spread[scale]))


def _with_order(row: Row, errors: Mapping[Scale, float | None]) -> Row:
    return _changed(row, lambda amount, scale: replace(amount, order_error=errors[scale]))


def _null(values: Sequence[Array], compared: Compared, players: int) -> list[float | None]:
    """Return the root mean square of every player's row between models trained alike, and last of their sum.

    Which of the two is the first is arbitrary, so the mean that is expected is 0.
    """
    if not values:
        return [None] * (players + 1)
    gaps = np.stack([compared.weights @ v for v in values])
    rows = np.column_stack([np.diff(gaps, axis=1), gaps[:, -1] - gaps[:, 0]])
    return [float(v) for v in np.sqrt((rows**2).mean(axis=0))]


def _accuracies(paths: Sequence[Along], compared: Compared) -> tuple[HybridAccuracy, ...]:
    right = np.stack([path.values.right for path in paths]).astype(np.float64)
    one = np.zeros(right.shape[1], dtype=np.int64)
    return tuple(
        HybridAccuracy(
            name,
            as_fraction(combine_cells(right[..., k].mean(axis=0), one, [1.0], compared.effects.subject).interval()),
            tuple(float(v) for v in right[..., k].mean(axis=1)),
        )
        for k, name in enumerate(("", *paths[0].players))
    )


# Shapley values


def _exact_coefficients(members: Mask) -> Array:
    """Return (players, H): a player's mean marginal over all orders, as a sum over all sets (Shapley 1953)."""
    n = members.shape[1]
    size = members.sum(axis=1)
    share = np.array([factorial(s) * factorial(n - s - 1) / factorial(n) if s < n else 0.0 for s in range(n + 1)])
    coefficients: Array = np.where(members.T, share[size - 1], -share[size])
    return coefficients


def _pair_coefficients(members: Mask, orders: Codes) -> Array:
    """Return (pairs, players, H): the marginals of the players in an order and its reverse, averaged."""
    place = {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(members))}
    found = np.zeros((len(orders), members.shape[1], len(members)))
    for number, order in enumerate(orders):
        taken = np.zeros(members.shape[1], dtype=np.bool_)
        for player in order:
            found[number, player, place[taken.tobytes()]] -= 1
            taken[player] = True
            found[number, player, place[taken.tobytes()]] += 1
    pairs: Array = (found[::2] + found[1::2]) / 2
    return pairs


def _order_errors(values: Sequence[Array], drawn: Array | None, players: int, compared: Compared) -> list[float | None]:
    """Return the standard error of each player's row over pairs of orders; 0 of all orders, None of one pair."""
    if drawn is None:
        return [0.0] * players
    if len(drawn) < 2:
        return [None] * players
    gaps = compared.weights @ np.mean(values, axis=0)
    return [float(v) for v in (drawn @ gaps).std(axis=0, ddof=1) / np.sqrt(len(drawn))]
