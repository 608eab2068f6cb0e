"""The outcome of an audit, and the sentences that say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from audit.exit_codes import ExitCode
from audit.records import ContrastRow, ControlReport, HeadRow, Metric, Outcome, State, Verdict
from audit.units import Unit, said_of

EXIT_CODES: dict[Outcome, int] = {
    Outcome.PASSED: ExitCode.DONE,
    Outcome.DISPARITY_FOUND: ExitCode.DISPARITY,
    Outcome.INVALID: ExitCode.INVALID,
    Outcome.INCONCLUSIVE: ExitCode.TOO_LITTLE_DATA,
}
_NOT_SHOWN = [
    "This report does not certify legal compliance.",
    "Group labels are annotators' perceptions.",
    "A head that carries part of a gap need not be where the gap came from, nor its only route.",
    "Other data, other groups and other versions of the model were not tested.",
]


def not_shown(unit: Unit) -> list[str]:
    """Return what no audit shows, of a model whose heads or slices are patched."""
    return [said_of(unit, sentence) for sentence in _NOT_SHOWN]


@dataclass(frozen=True)
class AuditVerdict:
    """Outcome, exit code, and the reasons as sentences."""

    outcome: Outcome
    exit_code: int
    reasons: list[str]
    next_steps: list[str]


def decide(controls: ControlReport, contrasts: Sequence[ContrastRow], *, gap_above: float) -> AuditVerdict:
    """Grade the whole audit.

    INVALID if a control of the audit failed; DISPARITY FOUND if a detected gap is above policy; INCONCLUSIVE if for
    some group of an attribute a label-standardised gap of the policy's size could not have been detected, or nothing
    was compared; PASSED otherwise.
    """
    failed = [c for c in controls.controls if not c.passed and c.gates == "audit"]
    if failed or not controls.valid:
        return _verdict(
            Outcome.INVALID,
            [f"Control failed: {c.title} ({c.setting})." for c in failed] or ["The controls could not be run."],
            sorted({f"{c.fix[:1].upper()}{c.fix[1:]}." for c in failed}),
        )
    above = [c for c in contrasts if c.above_policy]
    if above:
        return _verdict(Outcome.DISPARITY_FOUND, [_sentence(c) for c in _widest(above)], [
            "Read the findings, and record for each whether it is accepted, rejected or needs more.",
            "Look at the balance of labels over groups in the training data, retrain, and audit again.",
        ])  # fmt: skip
    blind = _blind_groups(contrasts, gap_above)
    if blind or not contrasts:
        unseen = [f"For {b} there is too little data to detect a gap of {100 * gap_above:.0f} points." for b in blind]
        return _verdict(
            Outcome.INCONCLUSIVE,
            unseen or ["No two groups could be compared."],
            ["Add images of the smaller groups, or state a larger gap in the card's policy, and audit again."],
        )
    least = max((c.smallest_detectable or 0.0 for c in contrasts if c.smallest_detectable), default=0.0)
    small = [c for c in contrasts if c.state == State.DISPARITY]
    reasons = ["No gap above the policy of this audit was detected."]
    if small:
        reasons.append(f"{len(small)} smaller gap(s) were detected; they are listed as findings.")
    reasons.append(f"In its least certain comparison this audit could detect gaps of {100 * least:.1f} points or more.")
    untested = sum(c.smallest_detectable is None for c in contrasts)
    if untested:
        reasons.append(
            f"{untested} comparison(s), of intersections or of rates by label, had too little data; see Rates."
        )
    return _verdict(
        Outcome.PASSED, reasons, ["Repeat the audit when the model, its use or the people it meets change."]
    )


def _verdict(outcome: Outcome, reasons: list[str], next_steps: list[str]) -> AuditVerdict:
    return AuditVerdict(outcome, EXIT_CODES[outcome], reasons, next_steps)


def _widest(rows: Sequence[ContrastRow]) -> list[ContrastRow]:
    """Keep, for each group and outcome, the widest gap; attributes before intersections, wide before narrow."""
    ordered = sorted(rows, key=lambda c: (" x " in c.attribute, -abs(c.estimate.value or 0.0)))
    return list({(c.attribute, c.group, c.outcome): c for c in reversed(ordered)}.values())[::-1]


def _sentence(row: ContrastRow) -> str:
    words = {"standardised_gap": "at equal labels", "tpr_gap": "among images labelled so",
             "fpr_gap": "among images labelled otherwise"}[row.metric]  # fmt: skip
    value = 100 * (row.estimate.value or 0.0)
    return (
        f"'{row.group}' is called '{row.outcome}' {abs(value):.1f} points {'more' if value > 0 else 'less'} often than "
        f"'{row.reference}' ({row.attribute}), {words}."
    )


def _blind_groups(contrasts: Sequence[ContrastRow], gap_above: float) -> list[str]:
    """Name the groups (not of intersections) whose standardised gap could not have been seen at the policy's size."""
    blind: dict[str, None] = {}
    for row in contrasts:
        if " x " in row.attribute or row.metric != Metric.STANDARDISED_GAP:
            continue
        if row.smallest_detectable is None or row.smallest_detectable > max(gap_above, 1e-12):
            blind[f"'{row.group}' against '{row.reference}' ({row.attribute})"] = None
    return list(blind)


def has_gap(row: ContrastRow) -> bool:
    """Tell whether a gap was detected in a comparison."""
    return row.state == State.DISPARITY


def detected_gaps(contrasts: Sequence[ContrastRow]) -> set[str]:
    """Return the questions ("attribute:group-reference:outcome") in which some gap was detected."""
    return {f"{c.attribute}:{c.group}-{c.reference}:{c.outcome}" for c in contrasts if has_gap(c)}


NOT_LOCALISABLE = "not localisable"
NO_GAP = "no gap detected, nothing to localise"
TOO_LITTLE = "too little data"


def was_asked(answer: str) -> bool:
    """Tell from the answer of :func:`localisation` whether there was a gap, and data enough to ask for heads."""
    return answer.startswith(("localised", NOT_LOCALISABLE))


def without_gap(heads: Sequence[HeadRow], localisation: Mapping[str, str]) -> list[HeadRow]:
    """Say of confirmed heads whose question has no gap that there is none: their effects cancel, or are small."""
    return [
        row.model_copy(update={"verdict": Verdict.CONFIRMED_NO_GAP})
        if row.verdict == Verdict.CONFIRMED and not was_asked(localisation[f"{row.contrast}:{row.outcome}"])
        else row
        for row in heads
    ]


def localisation(
    heads: Sequence[HeadRow], contrasts: Sequence[ContrastRow], unpatched: Mapping[str, bool] | None = None
) -> dict[str, str]:
    """Return for each contrast and outcome where the gap was found: heads, "not localisable", or why it was not asked.

    Where no gap was detected there is nothing to localise, whatever single heads do: their effects may cancel.
    ``unpatched`` names the questions for which nothing was patched, and tells of each whether there were subjects
    enough to patch.
    """
    detected = detected_gaps(contrasts)
    answer = {key: NO_GAP if enough else TOO_LITTLE for key, enough in (unpatched or {}).items()}
    for row in heads:
        key = f"{row.contrast}:{row.outcome}"
        if row.verdict == Verdict.TOO_LITTLE_DATA:
            answer[key] = TOO_LITTLE
        elif key not in detected:
            answer[key] = NO_GAP
        else:
            before = answer.setdefault(key, NOT_LOCALISABLE)
            if row.verdict == Verdict.CONFIRMED:
                answer[key] = f"{before}, {row.name}" if before.startswith("localised") else f"localised: {row.name}"
    return answer
