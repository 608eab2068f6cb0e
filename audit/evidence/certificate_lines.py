"""The lines of a repair's certificate: each a margin, a test on sealed images, and what it would take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, ndtri

from audit.evidence.called import is_called, is_called_its_label
from audit.evidence.gap_cells import Question, gap_cells
from audit.evidence.gap_score import GapChange, GapScore, solve
from audit.evidence.paired import PairedCounts, power_above
from audit.evidence.stats import POWER, Codes, as_difference, is_at_most
from audit.records import (
    Aim,
    CertificateLine,
    Estimate,
    HarmfulError,
    LineKind,
    LineState,
    Margins,
    Shortfall,
)

Mask = npt.NDArray[np.bool_]
Power = Callable[[float], float]  # of a line, with so many times the images; it never falls
MOST_TIMES = 1e6  # as many images as there are: more are not asked for


@dataclass(frozen=True)
class Sealed:
    """Sealed images and what both models call them, laid out as the lines need them."""

    frame: pd.DataFrame  # of the repaired model
    labelled: dict[str, Mask]  # by label, in order
    subjects: Codes
    right: tuple[Mask, Mask]  # before and after the repair: whether an image is called its label
    called: tuple[Mask, Mask]  # ... and whether it is called the outcome

    @classmethod
    def of(cls, before: pd.DataFrame, after: pd.DataFrame, outcome: str) -> Sealed:
        """Lay out two frames of the same images."""
        label = after["label"].to_numpy(dtype=object)
        return cls(
            after,
            {str(name): label == name for name in sorted(pd.unique(label))},
            pd.factorize(after["subject"])[0].astype(np.int64),
            (is_called_its_label(before), is_called_its_label(after)),
            (is_called(before, outcome).to_numpy(), is_called(after, outcome).to_numpy()),
        )


@dataclass(frozen=True)
class Draft:
    """A line, and its power; None where no number of such images would do."""

    line: CertificateLine
    power: Power | None


@dataclass(frozen=True)
class Rules:
    """What all lines have in common."""

    aim: Aim
    margins: Margins
    alpha: float  # of each line
    min_subjects: int

    @property
    def level(self) -> float:
        """Of the intervals that decide: both ends one-sided at alpha."""
        return 1 - 2 * self.alpha


@dataclass(frozen=True)
class _Test:
    """What a test says of a number and its margin."""

    estimate: Estimate
    before: float
    after: float
    p: float  # small: within the margin
    p_beyond: float  # small: beyond it
    power: Power


def draft_lines(sealed: Sealed, questions: Sequence[Question], rules: Rules) -> list[Draft]:
    """Draft every line: the aimed gap, cells and errors of every group, every other gap.

    Parameters
    ----------
    sealed : Sealed
    questions : sequence of Question
        Every attribute and intersection, the aimed one among them.
    rules : Rules
    """
    aim = rules.aim
    aimed = replace(next(q for q in questions if q.attribute == aim.attribute), reference=aim.reference)
    drafts = [_gap_line(sealed, aimed, aim.group, rules, aimed=True)]
    for question in questions:
        column = sealed.frame[question.attribute].to_numpy(dtype=object)
        for group in question.groups:
            drafts += _cell_lines(sealed, question.attribute, group, column == group, rules)
            drafts += _error_lines(sealed, question.attribute, group, column == group, rules)
    for question in (aimed if q.attribute == aim.attribute else q for q in questions):
        others = (g for g in question.groups if g != question.reference and (question, g) != (aimed, aim.group))
        drafts += [_gap_line(sealed, question, group, rules, aimed=False) for group in others]
    return drafts


def harmful(aim: Aim) -> list[HarmfulError]:
    """Return the errors that are judged one by one."""
    return [e for e in (HarmfulError.MISSED, HarmfulError.FALSE_ALARM) if aim.harm in (e, HarmfulError.BOTH)]


def _cell_lines(sealed: Sealed, attribute: str, group: str, of_group: Mask, rules: Rules) -> Iterator[Draft]:
    """Draft the accuracy of each label in a group."""
    for label, labelled in sealed.labelled.items():
        named = {"kind": LineKind.CELL_ACCURACY, "attribute": attribute, "group": group, "label": label}
        yield _paired_line(sealed, of_group & labelled, sealed.right, rules.margins.accuracy, named, rules)


def _error_lines(sealed: Sealed, attribute: str, group: str, of_group: Mask, rules: Rules) -> Iterator[Draft]:
    """Draft the harmful errors of a group."""
    outcome = rules.aim.outcome
    is_outcome = sealed.labelled.get(outcome, np.zeros(len(of_group), dtype=bool))
    for error in harmful(rules.aim):
        missed = error == HarmfulError.MISSED
        before, after = (~called if missed else called for called in sealed.called)
        among = of_group & (is_outcome if missed else ~is_outcome)
        named = {"kind": LineKind.GROUP_ERROR, "attribute": attribute, "group": group}
        about = named | {"outcome": outcome, "error": error}
        yield _paired_line(sealed, among, (before, after), rules.margins.error, about, rules)


def _paired_line(
    sealed: Sealed, among: Mask, rates: tuple[Mask, Mask], margin: float, named: Mapping[str, object], rules: Rules
) -> Draft:
    """Draft a line about a rate of one cell: an accuracy that may not fall, or an error that may not rise."""
    before, after = (rate[among].astype(np.int64) for rate in rates)
    subjects, n = sealed.subjects[among], len(before)
    sizes = (n, len(pd.unique(subjects)))
    if n == 0:
        return _finish(named, None, margin, sizes, rules)
    bad_if_high = named["kind"] == LineKind.GROUP_ERROR
    change = after - before
    counts = PairedCounts.of(-change if bad_if_high else change, subjects)
    estimate = (counts.reversed() if bad_if_high else counts).interval(rules.level)
    changed = (counts.gained + counts.lost + 1) / (counts.size + 2)  # as Agresti & Min (2005) count
    test = _Test(
        estimate,
        float(before.mean()),
        float(after.mean()),
        counts.p_above(-margin),
        counts.reversed().p_above(margin),
        lambda times: power_above(times * counts.size, changed, margin, rules.alpha),
    )
    return _finish(named, test, margin, sizes, rules)


def _gap_line(sealed: Sealed, question: Question, group: str, rules: Rules, *, aimed: bool) -> Draft:
    """Draft a line about a gap: the aimed one's size, or how far another widened."""
    aim, margin = rules.aim, rules.margins.gap
    named: dict[str, object] = {
        "kind": LineKind.GAP if aimed else LineKind.OTHER_GAP,
        "attribute": question.attribute,
        "group": group,
        "reference": question.reference,
        "outcome": aim.outcome,
        "metric": aim.metric,
    }
    laid = gap_cells(sealed.frame, question, group, aim.outcome, aim.metric)
    subjects = sealed.subjects[laid.rows]
    of_side = [len(pd.unique(subjects[side])) for side in (laid.is_group, ~laid.is_group)]
    sizes = (len(laid.rows), min(of_side))
    if not laid.none_empty:
        return _finish(named, None, margin, sizes, rules)
    before, after = (called[laid.rows].astype(np.float64) for called in sealed.called)
    if aimed:
        gap = GapScore.of(after, laid.cells, laid.weights, subjects)
        earlier = GapScore.of(before, laid.cells, laid.weights, subjects)
        test = _within(gap, earlier.value, margin, rules)
    else:
        change = GapChange.of((after - before).astype(np.int64), laid.cells, laid.weights, subjects)
        mean = GapScore.of((before + after) / 2, laid.cells, laid.weights, subjects)
        test = _widened(change, mean, margin, rules)
    return _finish(named, test, margin, sizes, rules)


def _within(gap: GapScore, before: float, margin: float, rules: Rules) -> _Test:
    """Test that a gap is within its margin of 0 (two one-sided tests, Schuirmann 1987)."""
    power = gap.power(margin, rules.alpha)
    return _Test(gap.interval(rules.level), before, gap.value, gap.p_within(margin), gap.p_beyond(margin), power)


def _widened(change: GapChange, mean: GapScore, margin: float, rules: Rules) -> _Test:
    """Test that the absolute value of a gap grew by less than a margin.

    The gap before may be of either sign, and so may the gap after. A gap after of 0 or more has grown too much only if
    it exceeds both the gap before and its opposite by the margin; so it is enough to show that it does not exceed one
    of them, at half the level since there are two to choose from. The same holds of a gap after under 0.
    """
    scores = (change.z, lambda total: mean.z(total / 2))
    after, before = mean.value + change.value / 2, mean.value - change.value / 2
    p = max(2 * min(float(ndtr(side * z(side * margin))) for z in scores) for side in (1, -1))
    beyond = min(max(float(ndtr(-side * z(side * margin))) for z in scores) for side in (1, -1))
    at, at_half = (-float(ndtri(alpha)) for alpha in (rules.alpha, rules.alpha / 2))
    estimate = Estimate(
        value=abs(after) - abs(before),
        low=max(min(side * solve(z, side * at) for z in scores) for side in (1, -1)),
        high=max(min(side * solve(z, -side * at_half) for z in scores) for side in (1, -1)),
        level=rules.level,
    )
    power = change.power(margin, rules.alpha / 2)
    return _Test(as_difference(estimate), before, after, min(p, 1.0), beyond, power)


def _finish(
    named: Mapping[str, object], test: _Test | None, margin: float, sizes: tuple[int, int], rules: Rules
) -> Draft:
    """Grade a line, and say with how many images it would be shown."""
    images, subjects = sizes
    short = Shortfall.LABELS if test is None else Shortfall.SUBJECTS if subjects < rules.min_subjects else None
    state = LineState.NOT_SHOWN
    if test is not None and short is None:
        if is_at_most(test.p, rules.alpha):
            state = LineState.SHOWN
        elif is_at_most(test.p_beyond, rules.alpha):
            state = LineState.FAILED
    power = None if test is None else with_enough(test.power, subjects, rules.min_subjects)
    times = None if power is None or state != LineState.NOT_SHOWN else times_needed([power])
    line = CertificateLine.model_validate(
        {
            **named,
            "estimate": Estimate(value=None, level=rules.level) if test is None else test.estimate,
            "before": None if test is None else test.before,
            "after": None if test is None else test.after,
            "margin": margin,
            "p": None if test is None or short else test.p,
            "state": state,
            "shortfall": short,
            "images": images,
            "subjects": subjects,
            "needed_images": scaled(images, times),
            "needed_subjects": scaled(subjects, times),
        }
    )
    return Draft(line, power)


def with_enough(power: Power, subjects: int, least: int) -> Power:
    """Return a power that is 0 where there are fewer subjects than are tested."""
    return lambda times: power(times) if times * subjects >= least else 0.0


def times_needed(powers: Sequence[Power]) -> float | None:
    """Return how many times the images make all lines together reach 80% power, at least.

    A certificate misses what any line misses: the sum of what they miss bounds it (Bonferroni).

    Parameters
    ----------
    powers : sequence of callable

    Returns
    -------
    float or None
        None where a million times as many would not do.
    """

    def enough(times: float) -> bool:
        return sum(1 - power(times) for power in powers) <= 1 - POWER

    low, high = 1 / MOST_TIMES, MOST_TIMES
    if not enough(high):
        return None
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def scaled(number: int, times: float | None) -> int | None:
    """Return a number of images or subjects times a factor, as a whole number not under it."""
    return None if times is None else math.ceil(number * times)
