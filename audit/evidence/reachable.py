"""How many sealed images a certificate takes, from their groups and labels alone, before anything is repaired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.called import is_called_its_label
from audit.evidence.certificate_lines import Power, harmful, scaled, times_needed, with_enough
from audit.evidence.gap_cells import Question, gap_cells
from audit.evidence.gap_score import GapChange, GapScore
from audit.evidence.paired import PairedCounts, power_above
from audit.evidence.stats import POWER
from audit.records import Aim, Expected, HarmfulError, LineKind, Margins, Reach, ReachLine

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Plan:
    """A line that will be tested, and its power with so many times the images; None where it has none."""

    line: ReachLine
    power: Power | None


@dataclass(frozen=True)
class _Scope:
    """What all plans have in common."""

    frame: pd.DataFrame
    expected: Expected
    aim: Aim
    margins: Margins
    alpha: float
    min_subjects: int

    def effect(self, subjects: pd.Series) -> float:
        """Return the design effect of images in subjects (Kish 1965, of sizes that differ)."""
        sizes = subjects.value_counts().to_numpy()
        typical = float((sizes**2).sum()) / max(1, int(sizes.sum()))
        return 1 + max(0.0, typical - 1) * self.expected.within_subject


def reachable(
    sealed: pd.DataFrame,
    questions: Sequence[Question],
    aim: Aim,
    margins: Margins,
    expected: Expected,
    *,
    min_subjects: int,
    candidates: int = 1,
) -> Reach:
    """Tell whether a certificate can be had with 80% probability, if the repair leaves no gap and costs nothing.

    Parameters
    ----------
    sealed : pandas.DataFrame
        ``label``, ``subject`` and a column for each question's attribute; no prediction is needed.
    questions : sequence of Question
    aim : Aim
    margins : Margins
    expected : Expected
        What is assumed of the repair; :func:`expect` measures it on a split where one was tried.
    min_subjects : int
    candidates : int

    Returns
    -------
    Reach
        With the number of sealed images, of the same mix of groups and labels, that would do: a bound, since what each
        line may miss is added up.
    """
    scope = _Scope(sealed, expected, aim, margins, margins.alpha / max(1, candidates), min_subjects)
    plans = list(_plans(scope, questions))
    powers = [plan.power for plan in plans if plan.power is not None]
    whole = max(0.0, 1 - sum(1 - plan.line.power for plan in plans))
    times = times_needed(powers) if len(powers) == len(plans) else None
    subjects = int(sealed["subject"].nunique())
    return Reach(
        expected=expected,
        margins=margins,
        candidates=max(1, candidates),
        images=len(sealed),
        subjects=subjects,
        power=whole,
        reachable=whole >= POWER,
        needed_images=scaled(len(sealed), times),
        needed_subjects=scaled(subjects, times),
        lines=[plan.line for plan in plans],
    )


def expect(before: pd.DataFrame, after: pd.DataFrame) -> Expected:
    """Measure what ``reachable`` assumes, on images where a repair was tried: the repair split.

    Parameters
    ----------
    before, after : pandas.DataFrame
        As :func:`audit.evidence.certificate.certify` takes them.

    Returns
    -------
    Expected
        Shares with one image added that changes and one that does not, one that is wrong and one that is right, so
        that neither is taken for impossible; the correlation is that of changes.
    """
    was_right, is_right = is_called_its_label(before), is_called_its_label(after)
    change = is_right.astype(np.int64) - was_right.astype(np.int64)
    subjects = pd.factorize(after["subject"])[0].astype(np.int64)
    n = len(change)
    typical = float((np.bincount(subjects) ** 2).sum()) / n if n else 1.0
    effect = n / PairedCounts.of(change, subjects).size if n else 1.0
    return Expected(
        changed=(int((change != 0).sum()) + 1) / (n + 2),
        error=(int((~is_right).sum()) + 1) / (n + 2),
        within_subject=min(1.0, (effect - 1) / (typical - 1)) if typical > 1 else 0.0,
    )


def _plans(scope: _Scope, questions: Sequence[Question]) -> Iterator[_Plan]:
    """Plan every line, as ``certificate_lines.draft_lines`` will test it."""
    aim = scope.aim
    for asked in questions:
        question = replace(asked, reference=aim.reference) if asked.attribute == aim.attribute else asked
        for group in question.groups:
            if group != question.reference:
                is_aimed = (question.attribute, group) == (aim.attribute, aim.group)
                yield _plan_gap(scope, question, group, LineKind.GAP if is_aimed else LineKind.OTHER_GAP)
            yield from _plan_cells(scope, question, group)


def _plan_cells(scope: _Scope, question: Question, group: str) -> Iterator[_Plan]:
    """Plan the accuracy of each label in a group, and its harmful errors."""
    of_group = (scope.frame[question.attribute] == group).to_numpy()
    labels = scope.frame["label"]
    named = {"attribute": question.attribute, "group": group}
    for label in sorted(labels.unique()):
        kind = {"kind": LineKind.CELL_ACCURACY, "label": label}
        yield _plan_paired(scope, of_group & (labels == label).to_numpy(), scope.margins.accuracy, named | kind)
    is_outcome = (labels == scope.aim.outcome).to_numpy()
    for error in harmful(scope.aim):
        among = of_group & (is_outcome if error == HarmfulError.MISSED else ~is_outcome)
        yield _plan_paired(scope, among, scope.margins.error, named | {"kind": LineKind.GROUP_ERROR, "error": error})


def _plan_paired(scope: _Scope, among: Mask, margin: float, named: Mapping[str, object]) -> _Plan:
    part = scope.frame["subject"][among]
    size = len(part) / scope.effect(part)

    def power(times: float) -> float:
        return power_above(times * size, scope.expected.changed, margin, scope.alpha)

    return _planned(named, len(part), int(part.nunique()), power if len(part) else None, scope)


def _plan_gap(scope: _Scope, question: Question, group: str, kind: LineKind) -> _Plan:
    laid = gap_cells(scope.frame, question, group, scope.aim.outcome, scope.aim.metric)
    part = scope.frame.iloc[laid.rows]
    subjects = min(int(part["subject"][side].nunique()) for side in (laid.is_group, ~laid.is_group))
    named: dict[str, object] = {"kind": kind, "attribute": question.attribute, "group": group}
    if not laid.none_empty:
        return _planned(named, len(part), subjects, None, scope)
    images = np.bincount(laid.cells) / scope.effect(part["subject"])
    if kind == LineKind.GAP:
        wrong = np.full(len(images), scope.expected.error)
        is_outcome = [label == scope.aim.outcome for label in laid.labels]
        rates = np.where(np.tile(is_outcome, 2), 1 - wrong, wrong)
        power = GapScore(rates, images, laid.weights).power(scope.margins.gap, scope.alpha)
        return _planned(named, len(part), subjects, power, scope)
    half = images * scope.expected.changed / 2
    power = GapChange(half, half, images, laid.weights).power(scope.margins.gap, scope.alpha / 2)
    return _planned(named, len(part), subjects, power, scope)


def _planned(named: Mapping[str, object], images: int, subjects: int, power: Power | None, scope: _Scope) -> _Plan:
    enough = None if power is None else with_enough(power, subjects, scope.min_subjects)
    line = ReachLine.model_validate(
        {
            **named,
            "images": images,
            "subjects": subjects,
            "power": 0.0 if enough is None else enough(1.0),
            "needed_images": None if enough is None else scaled(images, times_needed([enough])),
        }
    )
    return _Plan(line, enough)
