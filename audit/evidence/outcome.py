"""The outcome of an audit with its reasons, and where each gap was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from audit.evidence.disparity import primary_gaps
from audit.evidence.stats import is_at_most, is_more
from audit.exit_codes import ExitCode
from audit.records import (
    ContrastRow,
    ControlReport,
    HeadRow,
    Localisation,
    LocalisationStatus,
    Metric,
    NextStep,
    Outcome,
    Reason,
    ReasonCode,
    State,
    Verdict,
)

EXIT_CODES: dict[Outcome, int] = {
    Outcome.PASSED: ExitCode.DONE,
    Outcome.DISPARITY_FOUND: ExitCode.DISPARITY,
    Outcome.INVALID: ExitCode.INVALID,
    Outcome.INCONCLUSIVE: ExitCode.TOO_LITTLE_DATA,
}


NO_GAP = 1e-12  # a policy below this allows none
KNOWS_LABELS = "knows_labels"  # the control of a model that may ignore the labels


@dataclass(frozen=True)
class AuditVerdict:
    """Outcome, exit code, reasons and what to do next, as data."""

    outcome: Outcome
    exit_code: int
    reasons: list[Reason]
    next_steps: list[NextStep]


def decide(controls: ControlReport, contrasts: Sequence[ContrastRow], *, gap_above: float) -> AuditVerdict:
    """Grade the whole audit.

    INVALID if a control of the audit failed; DISPARITY FOUND if a detected gap is above policy; INCONCLUSIVE if the
    model is not shown to know the labels better than chance, or if for some group of an attribute a label-standardised
    gap of the policy's size could not have been detected, or nothing was compared; PASSED otherwise.
    """
    failed = [c for c in controls.controls if not c.passed and c.gates == "audit"]
    if failed or not controls.valid:
        why = [Reason(code=ReasonCode.CONTROL_FAILED, control=c.id) for c in failed]
        return _verdict(Outcome.INVALID, why or [Reason(code=ReasonCode.CONTROLS_NOT_RUN)], NextStep.FIX_CONTROLS)
    above = [c for c in contrasts if c.above_policy]
    guesses = [c for c in controls.controls if c.check == KNOWS_LABELS and not is_more(c.estimate.low, c.threshold)]
    unsure = [Reason(code=ReasonCode.NOT_ABOVE_CHANCE, control=c.id) for c in guesses]
    if above:
        return _verdict(
            Outcome.DISPARITY_FOUND,
            [*(Reason(code=ReasonCode.GAP_ABOVE_POLICY, contrast=c.id) for c in _widest(above)), *unsure],
            NextStep.REVIEW_FINDINGS,
            NextStep.BALANCE_TRAINING,
        )
    if unsure:
        return _verdict(Outcome.INCONCLUSIVE, unsure, NextStep.CHECK_MODEL)
    blind = [_not_excluded(c, gap_above) for c in contrasts if _is_blind(c, gap_above)]
    if blind or not contrasts:
        return _verdict(Outcome.INCONCLUSIVE, blind or [Reason(code=ReasonCode.NOTHING_COMPARED)], NextStep.ADD_IMAGES)
    return _verdict(Outcome.PASSED, _passed(contrasts), NextStep.REPEAT)


def _verdict(outcome: Outcome, reasons: list[Reason], *steps: NextStep) -> AuditVerdict:
    return AuditVerdict(outcome, EXIT_CODES[outcome], reasons, list(steps))


def _passed(contrasts: Sequence[ContrastRow]) -> list[Reason]:
    """Say what was tested and what could have been seen."""
    detectable = [_detectable(c) for c in contrasts]
    least = max(gap or 0.0 for gap in detectable)
    small = sum(c.state == State.DISPARITY for c in contrasts)
    untested = detectable.count(None)
    reasons = [
        Reason(code=ReasonCode.NO_GAP_ABOVE_POLICY),
        Reason(code=ReasonCode.SMALLER_GAPS, count=small),
        Reason(code=ReasonCode.SMALLEST_DETECTABLE, smallest_detectable=least),
        Reason(code=ReasonCode.UNTESTED, count=untested),
    ]
    return [r for r in reasons if r.count != 0]


def _widest(rows: Sequence[ContrastRow]) -> list[ContrastRow]:
    """Keep one gap for each question, in its main metric; attributes before intersections, wide before narrow."""
    return sorted(main_gaps(rows).values(), key=lambda c: (" x " in c.attribute, -abs(c.estimate.value or 0.0)))


def _is_blind(row: ContrastRow, gap_above: float) -> bool:
    """Tell whether a group's standardised gap (not an intersection's) could have been missed at the policy's size."""
    if " x " in row.attribute or row.metric != Metric.STANDARDISED_GAP:
        return False
    return not is_at_most(row.smallest_detectable, max(gap_above, NO_GAP))


def _detectable(row: ContrastRow) -> float | None:
    """Return the smallest gap that could have been seen; None where that is missing or not finite."""
    found = row.smallest_detectable
    return found if is_at_most(found, math.inf) else None


def _not_excluded(row: ContrastRow, gap_above: float) -> Reason:
    """Say what was measured, what could have been seen, and about how many more images would show the policy's gap.

    The detectable gap falls with the square root of the number of images, both groups growing alike.
    """
    missing: dict[str, int] = {}
    detectable = _detectable(row)
    if detectable is not None and gap_above > NO_GAP:
        factor = (detectable / gap_above) ** 2 - 1
        sizes = ((row.group, row.n_group), (row.reference, row.n_reference))
        missing = {group: math.ceil(factor * n) for group, n in sizes}
    return Reason(
        code=ReasonCode.GAP_NOT_EXCLUDED,
        contrast=row.id,
        smallest_detectable=detectable,
        missing=missing,
    )


def has_gap(row: ContrastRow) -> bool:
    """Tell whether a gap was detected in a comparison."""
    return row.state == State.DISPARITY


def question_of(row: ContrastRow) -> str:
    """Return the question of a comparison: "attribute:group-reference:outcome"."""
    return f"{row.attribute}:{row.group}-{row.reference}:{row.outcome}"


def main_gaps(contrasts: Sequence[ContrastRow]) -> dict[str, ContrastRow]:
    """Return the detected gap that each question is about, by question, where one was detected.

    Estimate, sentence, localisation and heads of the question are all of its metric.
    """
    return {key: row for key, row in primary_gaps(contrasts).items() if has_gap(row)}


def without_gap(heads: Sequence[HeadRow], localisation: Mapping[str, Localisation]) -> list[HeadRow]:
    """Say of confirmed heads whose question has no gap that there is none: their effects cancel, or are small."""
    return [
        row.model_copy(update={"verdict": Verdict.CONFIRMED_NO_GAP})
        if row.verdict == Verdict.CONFIRMED and not localisation[f"{row.contrast}:{row.outcome}"].was_asked
        else row
        for row in heads
    ]


def localisation(
    heads: Sequence[HeadRow], contrasts: Sequence[ContrastRow], unpatched: Mapping[str, bool] | None = None
) -> dict[str, Localisation]:
    """Return for each contrast and outcome where the gap was found, or why it was not looked for.

    Where no gap was detected there is nothing to localise, whatever single heads do: their effects may cancel.
    ``unpatched`` names the questions for which nothing was patched, and says of each whether there were subjects
    enough to patch.
    """
    gaps = main_gaps(contrasts)
    status = {
        key: LocalisationStatus.NO_GAP if enough else LocalisationStatus.TOO_LITTLE_DATA
        for key, enough in (unpatched or {}).items()
    }
    confirmed: dict[str, list[str]] = {}
    for row in heads:
        key = f"{row.contrast}:{row.outcome}"
        if row.verdict == Verdict.TOO_LITTLE_DATA:
            status[key] = LocalisationStatus.TOO_LITTLE_DATA
        elif key not in gaps:
            status[key] = LocalisationStatus.NO_GAP
        else:
            status.setdefault(key, LocalisationStatus.NOT_LOCALISABLE)
            if row.verdict == Verdict.CONFIRMED:
                status[key] = LocalisationStatus.LOCALISED
                confirmed.setdefault(key, []).append(row.name)
    return {
        key: Localisation(status=found, metric=gaps[key].metric if key in gaps else None, heads=confirmed.get(key, []))
        for key, found in status.items()
    }
