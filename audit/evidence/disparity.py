"""Rates by group, and the four-state answer for every group against its reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from fairlearn.metrics import (
    MetricFrame,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)

from audit.data.groups import GroupPermutation
from audit.data.samples import UNKNOWN
from audit.evidence.called import is_called
from audit.evidence.gap_cells import Question as Question
from audit.evidence.gap_cells import gap_cells
from audit.evidence.gap_cells import label_shares as label_shares
from audit.evidence.stats import (
    Codes,
    Combination,
    as_difference,
    as_fraction,
    combine_cells,
    equivalence_p,
    holm,
    is_at_most,
    over_seeds,
    rate_interval,
    smallest_detectable,
)
from audit.records import ContrastRow, Estimate, Metric, RangeRow, RateRow, Shortfall, State

RESHUFFLES = 1000  # random permutations of group labels
RATES = {
    "selection_rate": selection_rate,
    "true_positive_rate": true_positive_rate,
    "false_positive_rate": false_positive_rate,
}


@dataclass(frozen=True)
class Thresholds:
    """Strictness and policy of the card."""

    alpha: float
    min_group_size: int
    impact_ratio_below: float
    gap_above: float


def rates_by_group(frame: pd.DataFrame, question: Question, outcomes: Sequence[str]) -> list[RateRow]:
    """Return a row for every group and outcome; images of unknown group have their own rows.

    Parameters
    ----------
    frame : pandas.DataFrame
        Audit images: ``label``, ``predicted``, ``subject``, ``p:<outcome>`` and the attribute's column;
        ``called:<outcome>`` where an image may be called several classes or none.
    question : Question
    outcomes : sequence of str
    """
    shares = label_shares(frame, question)
    groups = [*question.groups] + ([UNKNOWN] if (frame[question.attribute] == UNKNOWN).any() else [])
    rows: list[RateRow] = []
    for outcome in outcomes:
        metrics = _by_group(frame, question, outcome)
        selection = metrics["selection_rate"]
        known = selection[selection.index.isin(question.groups)]
        for group in groups:
            part = frame[frame[question.attribute] == group]
            row = _rate_row(part, group, question, outcome, shares)
            if group in selection.index:
                row = row.model_copy(
                    update={
                        **_fairlearn_values(row, {name: float(metrics[name].loc[group]) for name in RATES}),
                        "impact_ratio": _ratio(selection[group], selection.get(question.reference)),
                        "impact_ratio_highest": _ratio(selection[group], known.max() if len(known) else None),
                        **_raw_differences(frame, question, group, outcome),
                    }
                )
            rows.append(row)
    return rows


def _raw_differences(frame: pd.DataFrame, question: Question, group: str, outcome: str) -> dict[str, object]:
    """Return the raw difference to the reference, base rates and all, and the equalised-odds difference."""
    pair = frame[frame[question.attribute].isin([group, question.reference])]
    is_group = (pair[question.attribute] == group).to_numpy()
    if group in (question.reference, UNKNOWN) or is_group.all():
        return {}
    truth, chosen = (pair["label"] == outcome).astype(int), is_called(pair, outcome).astype(int)
    subjects = pd.factorize(pair["subject"])[0].astype(np.int64)
    found = combine_cells(chosen.to_numpy().astype(np.float64), (~is_group).astype(np.int64), [1.0, -1.0], subjects)
    odds = None
    if not (pd.crosstab(is_group, truth) == 0).any(axis=None) and truth.nunique() == 2:
        odds = float(equalized_odds_difference(truth, chosen, sensitive_features=is_group))
    return {"difference": as_difference(found.interval()), "equalised_odds": odds}


def _by_group(frame: pd.DataFrame, question: Question, outcome: str) -> pd.DataFrame:
    """Return fairlearn's rates by group, which is given numbers: a text of each image's own takes more memory."""
    codes, names = pd.factorize(frame[question.attribute], sort=True)
    by_code: pd.DataFrame = MetricFrame(
        metrics=RATES,
        y_true=(frame["label"] == outcome).astype(int),
        y_pred=is_called(frame, outcome).astype(int),
        sensitive_features=codes,
    ).by_group
    return by_code.set_axis(names[by_code.index.to_numpy(dtype=np.int64)], axis=0)


def _fairlearn_values(row: RateRow, rates: Mapping[str, float]) -> dict[str, Estimate]:
    """Return fairlearn's rates with our intervals; a rate over no image keeps no value (fairlearn gives 0)."""
    intervals: dict[str, Estimate] = {name: getattr(row, name) for name in RATES}
    return {
        name: interval.model_copy(update={"value": rates[name]})
        for name, interval in intervals.items()
        if interval.value is not None
    }


def _rate_row(part: pd.DataFrame, group: str, question: Question, outcome: str, shares: dict[str, float]) -> RateRow:
    truth = (part["label"] == outcome).to_numpy()
    chosen = is_called(part, outcome).to_numpy()
    subjects = pd.factorize(part["subject"])[0].astype(np.int64)
    return RateRow(
        attribute=question.attribute,
        group=group,
        outcome=outcome,
        is_reference=group == question.reference,
        images=len(part),
        subjects=int(part["subject"].nunique()),
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        true_positives=int((chosen & truth).sum()),
        false_positives=int((chosen & ~truth).sum()),
        false_negatives=int((~chosen & truth).sum()),
        selection_rate=rate_interval(chosen, subjects),
        true_positive_rate=rate_interval(chosen[truth], subjects[truth]),
        false_positive_rate=rate_interval(chosen[~truth], subjects[~truth]),
        false_negative_rate=rate_interval(~chosen[truth], subjects[truth]),
        mean_probability=_mean_probability(part, shares, outcome),
        standardised_rate=_standardised(part, shares, chosen.astype(np.float64)),
        accuracy=rate_interval((part["label"] == part["predicted"]).to_numpy(), subjects),
        impact_ratio=None,
        impact_ratio_highest=None,
    )


def _mean_probability(part: pd.DataFrame, shares: dict[str, float], outcome: str) -> Estimate:
    """Return the mean probability of an outcome, without a value where only answers are known."""
    column = f"p:{outcome}"
    return _standardised(part, shares, part[column].to_numpy(), raw=True) if column in part else Estimate(value=None)


def _standardised(
    part: pd.DataFrame, shares: dict[str, float], y: npt.NDArray[np.float64], *, raw: bool = False
) -> Estimate:
    """Return the mean of y, label by label at common shares (or plain, ``raw``), with its interval in [0, 1]."""
    if not len(part):
        return Estimate(value=None)
    names = ["all"] if raw else [k for k, v in shares.items() if v > 0]
    labels = np.repeat("all", len(part)) if raw else part["label"].to_numpy()
    if not names or not set(names) <= set(labels):
        return Estimate(value=None)
    cells = pd.Index(names).get_indexer(pd.Index(labels)).astype(np.int64)
    weights = [1.0] if raw else [shares[k] for k in names]
    subjects = pd.factorize(part["subject"])[0].astype(np.int64)
    weighted = cells >= 0  # a label seen only where the group is unknown has no share
    return as_fraction(combine_cells(y[weighted], cells[weighted], weights, subjects[weighted]).interval())


def _ratio(value: float, base: float | None) -> float | None:
    return None if base is None or base == 0 or np.isnan(base) else float(value / base)


def contrasts(
    frame: pd.DataFrame, questions: Iterable[Question], outcomes: Sequence[str], limits: Thresholds
) -> list[ContrastRow]:
    """Compare every group with its reference in the three gaps; Holm over all that can be tested.

    Returns
    -------
    list of ContrastRow
        Every comparison, those that cannot be tested with the reason.
    """
    drafts = [
        _draft(frame, q, group, outcome, metric, limits)
        for q in questions
        for group in q.groups
        if group != q.reference
        for outcome in outcomes
        for metric in Metric
    ]
    tested = [d for d in drafts if d.combination is not None]
    adjusted = iter(holm([d.combination.p for d in tested if d.combination is not None]))
    return [d.row if d.combination is None else _decide(d, next(adjusted), len(tested), limits) for d in drafts]


@dataclass(frozen=True)
class _Draft:
    row: ContrastRow
    combination: Combination | None


def _draft(
    frame: pd.DataFrame, question: Question, group: str, outcome: str, metric: Metric, limits: Thresholds
) -> _Draft:
    """Estimate one gap, or say why not."""
    laid = gap_cells(frame, question, group, outcome, metric)
    part, is_group = frame.iloc[laid.rows], laid.is_group
    sizes = [int(part.loc[side, "subject"].nunique()) for side in (is_group, ~is_group)]
    row = ContrastRow(
        id=f"{question.attribute}:{group}-{question.reference}:{outcome}:{metric}",
        attribute=question.attribute,
        group=group,
        reference=question.reference,
        outcome=outcome,
        metric=metric,
        estimate=Estimate(value=None),
        ratio=None,
        p_raw=None,
        p_adjusted=None,
        family_size=0,
        smallest_detectable=None,
        state=State.NOT_ESTIMABLE,
        above_policy=False,
        by_seed=[],
        n_group=int(is_group.sum()),
        n_reference=int((~is_group).sum()),
    )
    if not laid.none_empty:
        return _Draft(row.model_copy(update={"shortfall": Shortfall.LABELS}), None)
    chosen = is_called(part, outcome).to_numpy().astype(np.float64)
    subjects = pd.factorize(part["subject"])[0].astype(np.int64)
    found = combine_cells(chosen, laid.cells, list(laid.weights), subjects)
    ratio = None
    if metric == Metric.STANDARDISED_GAP:
        means = np.bincount(laid.cells, weights=chosen) / np.bincount(laid.cells)
        weights, (of_group, of_reference) = laid.weights[: len(means) // 2], np.split(means, 2)
        ratio = _ratio(float(weights @ of_group), float(weights @ of_reference))
    if not np.isfinite([found.value, found.error, found.p]).all():
        return _Draft(row.model_copy(update={"shortfall": Shortfall.SPREAD}), None)
    row = row.model_copy(update={"estimate": as_difference(found.interval()), "ratio": ratio})
    if min(sizes) < limits.min_group_size:
        short = {"fewest_subjects": min(sizes), "subjects_needed": limits.min_group_size}
        update = {"state": State.TOO_LITTLE_DATA, "shortfall": Shortfall.SUBJECTS, **short}
        return _Draft(row.model_copy(update=update), None)
    return _Draft(row, found)


def _decide(draft: _Draft, p_adjusted: float, family: int, limits: Thresholds) -> ContrastRow:
    """Grade a tested gap."""
    assert draft.combination is not None
    found = draft.combination
    state: State = State.DISPARITY if is_at_most(p_adjusted, limits.alpha) else State.NOT_DETECTED
    ratio = draft.row.ratio
    equivalent = equivalence_p(found.value, found.error, limits.gap_above)
    if draft.row.metric != Metric.STANDARDISED_GAP:
        unequal = False
    elif ratio is None:  # nobody of the reference is called so
        unequal = found.value > 0
    else:
        unequal = min(ratio, 1 / ratio if ratio > 0 else 0.0) < limits.impact_ratio_below
    return draft.row.model_copy(
        update={
            "p_raw": found.p,
            "p_adjusted": p_adjusted,
            "family_size": family,
            "smallest_detectable": smallest_detectable(found.error, alpha=limits.alpha, family=family),
            "equivalence_margin": limits.gap_above,
            "equivalence_p": equivalent,
            "within_margin": is_at_most(equivalent, limits.alpha),
            "state": state,
            "above_policy": state == State.DISPARITY and (abs(found.value) > limits.gap_above or unequal),
        }
    )


def primary_gaps(rows: Iterable[ContrastRow]) -> dict[str, ContrastRow]:
    """Return for each question, "contrast:outcome", the gap that its heads are asked about.

    The rule is fixed before the run: the label-standardised gap; where that is not detected, but a gap in the true or
    the false positives is, the one of these with the smaller adjusted p-value.
    """
    chosen: dict[str, ContrastRow] = {}
    for row in sorted(rows, key=_rank):
        chosen.setdefault(f"{row.attribute}:{row.group}-{row.reference}:{row.outcome}", row)
    return chosen


def _rank(row: ContrastRow) -> tuple[bool, bool, float]:
    """Order detected before others, the standardised gap before others, small p-values before large."""
    p = 1.0 if row.p_adjusted is None else row.p_adjusted
    return row.state != State.DISPARITY, row.metric != Metric.STANDARDISED_GAP, p


def with_seeds(rows: Sequence[ContrastRow], by_seed: Sequence[Sequence[ContrastRow]]) -> list[ContrastRow]:
    """Add to each comparison its estimate under every training seed, and what six or more of them say together."""
    found = []
    for i, row in enumerate(rows):
        values = [v for s in by_seed if (v := s[i].estimate.value) is not None]
        together = over_seeds(values)
        update = {"over_seeds": together.estimate, "p_over_seeds": together.p} if together else {}
        found.append(row.model_copy(update={"by_seed": values, **update}))
    return found


def ranges(
    frame: pd.DataFrame, questions: Iterable[Question], outcomes: Sequence[str], limits: Thresholds, *, seed: int
) -> list[RangeRow]:
    """Measure the widest difference between groups, less what chance makes of it (Lum, Zhang & Bower 2022).

    The largest of several rates lies above the smallest even where all groups are alike, the more so the smaller they
    are. So group labels are assigned at random among subjects that are seen with the same labels (within a subject
    that is seen in several groups), and the mean of the widest difference over such permutations is subtracted.

    Returns
    -------
    list of RangeRow
        One for each attribute and outcome with at least two groups of enough subjects, each seen with every label.
    """
    rows = []
    for question in questions:
        known = frame[frame[question.attribute].isin(question.groups)]
        sizes = known.groupby(question.attribute)["subject"].nunique()
        groups = [g for g in question.groups if sizes.get(g, 0) >= limits.min_group_size]
        part = known[known[question.attribute].isin(groups)]
        if len(groups) < 2 or (pd.crosstab(part[question.attribute], part["label"]) == 0).any(axis=None):
            continue
        codes = pd.Index(groups).get_indexer(pd.Index(part[question.attribute])).astype(np.int64)
        labels = pd.factorize(part["label"], sort=True)[0].astype(np.int64)
        subjects = pd.factorize(part["subject"])[0].astype(np.int64)
        strata = _label_profiles(labels, subjects)
        called = {outcome: is_called(part, outcome).to_numpy().astype(np.float64) for outcome in outcomes}
        widest_drawn: dict[str, list[float]] = {outcome: [] for outcome in outcomes}
        for drawn_codes in _permute_within(strata, codes, subjects, np.random.default_rng(seed).spawn(RESHUFFLES)):
            for outcome, chosen in called.items():
                rates = _rates_at_common_shares(chosen, drawn_codes, labels, len(groups))
                widest_drawn[outcome].append(float(np.ptp(rates)))
        for outcome, chosen in called.items():
            rates, drawn = _rates_at_common_shares(chosen, codes, labels, len(groups)), np.array(widest_drawn[outcome])
            widest, by_chance = float(np.ptp(rates)), float(np.nanmean(drawn))
            rows.append(
                RangeRow(
                    attribute=question.attribute,
                    outcome=outcome,
                    highest=groups[int(rates.argmax())],
                    lowest=groups[int(rates.argmin())],
                    groups=len(groups),
                    widest=widest,
                    by_chance=by_chance,
                    corrected=max(0.0, widest - by_chance),
                    p=float((1 + (drawn >= widest - 1e-12).sum()) / (1 + len(drawn))),
                )
            )
    return rows


def _label_profiles(labels: Codes, subjects: Codes) -> Codes:
    """Return for each image a code of which labels its subject is seen with."""
    seen = np.zeros((int(subjects.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    seen[subjects, labels] = 1
    profile = np.unique(seen, axis=0, return_inverse=True)[1]
    of_image: Codes = profile.reshape(-1)[subjects].astype(np.int64)
    return of_image


def _permute_within(
    strata: Codes, groups: Codes, subjects: Codes, rngs: Sequence[np.random.Generator]
) -> Iterator[Codes]:
    """Yield the groups permuted within each stratum, for one generator after the other; no subject is in two strata.

    All permutations together would take kilobytes of each image.
    """
    parts = [(rows := strata == k, GroupPermutation.of(groups[rows], subjects[rows])) for k in np.unique(strata)]
    for rng in rngs:
        assigned = groups.copy()
        for rows, permutation in parts:
            assigned[rows] = permutation.draw(rng)
        yield assigned


def _rates_at_common_shares(
    chosen: npt.NDArray[np.float64], groups: Codes, labels: Codes, n_groups: int
) -> npt.NDArray[np.float64]:
    """Return each group's rate with all labels at their common shares; not a number where a group lacks a label."""
    n_labels = int(labels.max()) + 1
    cells = groups * n_labels + labels
    counts = np.bincount(cells, minlength=n_groups * n_labels).reshape(n_groups, n_labels)
    hits = np.bincount(cells, weights=chosen, minlength=n_groups * n_labels).reshape(n_groups, n_labels)
    shares = np.bincount(labels, minlength=n_labels) / len(labels)
    means = np.divide(hits, counts, out=np.full(hits.shape, np.nan), where=counts > 0)
    rates: npt.NDArray[np.float64] = means @ shares
    return rates
