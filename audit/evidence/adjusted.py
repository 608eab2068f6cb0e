"""Gaps before and after groups are made alike in covariates: an equal label is not an equal truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import KDTree
from scipy.stats import norm

from audit.data.covariates import JUST_WITHIN, Covariates
from audit.evidence.called import is_called
from audit.evidence.curves import Difference, Flags, has_room, plain_difference, standardised_difference
from audit.evidence.disparity import Question, label_shares
from audit.evidence.stats import NO_SPREAD, Array, Codes, as_difference, combine_cells
from audit.records import AdjustedRow, Estimate, Shortfall

LEVEL = 0.95


def adjusted_gaps(
    frame: pd.DataFrame,
    questions: Sequence[Question],
    outcomes: Sequence[str],
    covariates: Covariates,
    *,
    min_group_size: int,
) -> list[AdjustedRow]:
    """Compare every group with its reference before and after both have the same covariates.

    Parameters
    ----------
    frame : pandas.DataFrame
        Audit images: ``label``, ``predicted``, ``subject``, the attributes' columns and the covariates'.
    questions : sequence of Question
    outcomes : sequence of str
    covariates : Covariates
    min_group_size : int
        Subjects that a group needs.

    Returns
    -------
    list of AdjustedRow
        For each group and outcome one of all labels at their common shares, then one of each label by itself; none
        where there is no covariate.
    """
    if not covariates.terms:
        return []
    given = covariates.values(frame)
    return [
        row
        for question in questions
        for group in question.groups
        if group != question.reference
        for row in _Pair.of(frame, given, question, group, covariates).rows(outcomes, min_group_size)
    ]


@dataclass(frozen=True)
class _OneLabel:
    """The images of one label in two groups that have every covariate."""

    rows: Flags  # (N,), which of the pair's images
    is_group: Flags  # (n,)
    covariates: Array  # (n, C), in calipers
    subjects: Codes  # (n,)

    @property
    def sides(self) -> tuple[Flags, Flags]:
        return self.is_group, ~self.is_group

    def has_both(self) -> bool:
        """Tell whether either group has an image."""
        return bool(self.is_group.any() and not self.is_group.all())

    def without_counterpart(self) -> int:
        """Count the images that are like none of the other group."""
        if not self.has_both():
            return len(self.is_group)
        found = 0
        for own in self.sides:
            others = KDTree(np.unique(self.covariates[~own], axis=0))
            nearest = others.query(self.covariates[own], p=np.inf)[0]
            found += int(np.count_nonzero(nearest > JUST_WITHIN))
        return found


@dataclass(frozen=True)
class _Pair:
    """A group and its reference: their images that have every covariate."""

    question: Question
    group: str
    asked: Covariates
    frame: pd.DataFrame  # (N,)
    is_group: Flags
    subjects: Codes
    shares: Mapping[str, float]  # common weights of the labels
    labels: Mapping[str, _OneLabel]
    left_out: Mapping[str, int]  # images without a covariate, by label

    @classmethod
    def of(cls, frame: pd.DataFrame, given: Array, question: Question, group: str, covariates: Covariates) -> _Pair:
        in_pair = frame[question.attribute].isin([group, question.reference]).to_numpy(dtype=bool)
        known = ~np.isnan(given).any(axis=1)
        shares = label_shares(frame, question)
        own = frame[in_pair & known]
        is_group = (own[question.attribute] == group).to_numpy(dtype=bool)
        scaled = given[in_pair & known]
        subjects = pd.factorize(own["subject"])[0].astype(np.int64)
        labels = {}
        for label in shares:
            rows = (own["label"] == label).to_numpy(dtype=bool)
            labels[label] = _OneLabel(rows, is_group[rows], scaled[rows], subjects[rows])
        left_out = {str(k): int(n) for k, n in frame.loc[in_pair & ~known, "label"].value_counts().items()}
        return cls(question, group, covariates, own, is_group, subjects, shares, labels, left_out)

    def rows(self, outcomes: Sequence[str], min_group_size: int) -> Iterator[AdjustedRow]:
        """Yield the rows of each outcome: all labels together, then each."""
        asked = {"": self.shares, **{label: {label: 1.0} for label in self.shares}}
        about = {label: self._about(label, weights, min_group_size) for label, weights in asked.items()}
        for outcome in outcomes:
            called = is_called(self.frame, outcome).to_numpy(dtype=np.float64)
            after = {
                label: standardised_difference(called[one.rows], one.is_group, one.covariates, one.subjects)
                for label, one in self.labels.items()
                if one.has_both()
            }
            for label, weights in asked.items():
                row = about[label].model_copy(update={"outcome": outcome})
                yield row if row.shortfall else row.model_copy(update=self._estimates(called, after, weights))

    def _about(self, label: str, weights: Mapping[str, float], min_group_size: int) -> AdjustedRow:
        """Return a row without estimates."""
        ones = [self.labels[name] for name in weights]
        sizes, subjects, means = [], [], []
        for side in (0, 1):
            sizes.append(sum(int(one.sides[side].sum()) for one in ones))
            subjects.append(len(np.unique(np.concatenate([one.subjects[one.sides[side]] for one in ones]))))
            means.append(self._means(weights, side))
        short: dict[str, object] = {}
        if not all(one.has_both() for one in ones):
            short = {"shortfall": Shortfall.LABELS}
        elif min(subjects) < min_group_size:
            numbers_of = {"fewest_subjects": min(subjects), "subjects_needed": min_group_size}
            short = {"shortfall": Shortfall.SUBJECTS, **numbers_of}
        return AdjustedRow(
            attribute=self.question.attribute,
            group=self.group,
            reference=self.question.reference,
            outcome="",
            label=label,
            covariates=self.asked.columns,
            no_room=self._no_room(weights),
            n_group=sizes[0],
            n_reference=sizes[1],
            without_covariate=sum(self.left_out.get(name, 0) for name in weights),
            without_counterpart=sum(one.without_counterpart() for one in ones),
            mean_group=means[0],
            mean_reference=means[1],
            before=Estimate(value=None),
            after=Estimate(value=None),
            part=Estimate(value=None),
        ).model_copy(update=short)

    def _no_room(self, weights: Mapping[str, float]) -> list[str]:
        """Return the columns of which some label's curves lack a term."""
        ones = [one for one in map(self.labels.__getitem__, weights) if one.has_both()]
        found = {
            term.column
            for one in ones
            for term, fits in zip(self.asked.terms, has_room(one.covariates, one.is_group, one.subjects), strict=True)
            if not fits
        }
        return [column for column in self.asked.columns if column in found]

    def _means(self, weights: Mapping[str, float], side: int) -> dict[str, float]:
        """Return one group's mean of each number, labels weighted; none where it lacks a label."""
        if not all(self.labels[name].sides[side].any() for name in weights):
            return {}
        means = np.sum(
            [
                weight * self.labels[name].covariates[self.labels[name].sides[side]].mean(axis=0)
                for name, weight in weights.items()
            ],
            axis=0,
        )
        terms = zip(self.asked.terms, means, strict=True)
        return {term.column: float(mean * term.caliper) for term, mean in terms if term.value is None}

    def _estimates(
        self, called: Array, after: Mapping[str, Difference], weights: Mapping[str, float]
    ) -> dict[str, Estimate]:
        """Return the gaps before and after, and their difference."""
        names = list(weights)
        cells = np.full(len(called), -1, dtype=np.int64)
        apart, unseen = np.zeros((2, len(called))), 0.0
        values = np.zeros(2)
        for place, (name, weight) in enumerate(weights.items()):
            one = self.labels[name]
            cells[one.rows] = np.where(one.is_group, place, place + len(names))
            plain = plain_difference(called[one.rows], one.is_group)
            for way, found in enumerate((plain, after[name])):
                apart[way, one.rows] = weight * found.influence
                values[way] += weight * found.value
            unseen += weight**2 * after[name].unseen
        used = cells >= 0
        signed = [*weights.values(), *(-weight for weight in weights.values())]
        before = combine_cells(called[used], cells[used], signed, self.subjects[used]).interval(LEVEL)
        return {
            "before": as_difference(before),
            "after": as_difference(self._estimate(values[1], apart[1], unseen)),
            "part": self._estimate(values[0] - values[1], apart[0] - apart[1], 0.0),
        }

    def _estimate(self, value: float, influence: Array, unseen: float) -> Estimate:
        """Return an estimate with its interval, robust to what images of one subject have in common."""
        by_subject = np.bincount(self.subjects, weights=influence)
        clusters = len(by_subject)
        variance = float((by_subject**2).sum()) * clusters / max(1, clusters - 1) + unseen
        if variance < NO_SPREAD:
            return Estimate(value=float(value))
        half = float(norm.ppf(0.5 + LEVEL / 2)) * float(np.sqrt(variance))
        return Estimate(value=float(value), low=float(value) - half, high=float(value) + half, level=LEVEL)
