"""Two runs side by side: findings, gaps against the policy, rates and heads; paired where the images are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from audit.errors import AuditError, one_line_of
from audit.evidence.run_change import Change
from audit.pipeline.load_run import open_run
from audit.pipeline.paired_runs import Asked, PairedRuns
from audit.records import (
    Audit,
    ComparedFinding,
    ComparedGap,
    ComparedHead,
    ComparedRate,
    ComparisonNote,
    Contrast,
    Display,
    Estimate,
    Finding,
    FindingState,
    HeadRow,
    LocalisationStatus,
    NoteCode,
    RateField,
    RateRow,
    RunComparison,
    State,
    Untested,
    Verdict,
    WhyBelow,
    WhyUntested,
)
from audit.report.render import read_run
from audit.report.shareable import refuse_copy

UNTESTED = {
    State.TOO_LITTLE_DATA: WhyUntested.TOO_LITTLE_DATA,
    State.NOT_ESTIMABLE: WhyUntested.NOT_ESTIMABLE,
}
UNSEARCHED = {
    LocalisationStatus.NO_GAP: WhyUntested.NO_GAP,
    LocalisationStatus.TOO_LITTLE_DATA: WhyUntested.TOO_LITTLE_DATA,
}
RATES: tuple[RateField, ...] = ("selection_rate", "true_positive_rate", "false_positive_rate")


def compare_runs(before: Path, after: Path) -> RunComparison:
    """Set two runs side by side; findings are paired by their ids, the same for the same question of card and model.

    Where both runs measured the same images, every number that both have is compared image by image.

    Raises
    ------
    InputError
        If either has no readable record.
    """
    first, second = read_run(before), read_run(after)
    same = first.audit.data.fingerprint == second.audit.data.fingerprint
    notes, paired = list(_notes(first.audit, second.audit, same=same)), None
    if same:
        try:
            for run in (before, after):
                refuse_copy(run, "name the runs themselves")
            paired = PairedRuns(open_run(before), open_run(after))
        except (AuditError, OSError, ValueError) as error:
            notes.append(ComparisonNote(code=NoteCode.NOT_OPENED, error=one_line_of(error)))
    try:
        rows = _rows(first.audit, second.audit, paired)
    except (AuditError, OSError, ValueError, LookupError) as error:  # whatever a damaged table makes its reader raise
        notes.append(ComparisonNote(code=NoteCode.EFFECTS_UNREADABLE, error=one_line_of(error)))
        rows = _rows(first.audit, second.audit, None)
    return RunComparison(
        before=first.run_name,
        after=second.run_name,
        unit=second.audit.model.unit,
        same_images=same,
        notes=notes,
        display=_display(first.audit, second.audit),
        **rows,
    )


def _display(first: Audit, second: Audit) -> Display:
    """Return what the cards call groups and labels, the later one where they differ."""
    groups: dict[str, dict[str, str]] = {}
    for info in (*first.data.attributes, *second.data.attributes):
        groups.setdefault(info.attribute, {}).update(info.display)
    return Display(groups=groups, labels=first.data.display | second.data.display)


def _notes(first: Audit, second: Audit, *, same: bool) -> Iterator[ComparisonNote]:
    """Yield what a reader must know before any number is compared."""
    if not same:
        yield ComparisonNote(code=NoteCode.OTHER_IMAGES)
    known, others = ({f.id for f in findings_of(audit)} for audit in (first, second))
    if known | others and not known & others and first.name != second.name:
        yield ComparisonNote(code=NoteCode.OTHER_NAMES)


def _rows(first: Audit, second: Audit, paired: PairedRuns | None) -> dict[str, Any]:
    """Compare all that either run says."""
    known = {f.id: f for f in [*findings_of(second), *findings_of(first)]}
    return {
        "findings": [_compared(f, first, second, paired) for f in known.values()],
        "gaps": list(_gaps(first, second, paired)),
        "rates": list(_rates(first, second, paired)),
        "heads": list(_heads(first, second, paired)),
    }


def findings_of(audit: Audit) -> list[Finding]:
    """Return what a run found; nothing where a control failed, whatever its record holds."""
    return [] if audit.is_invalid else audit.findings


Measure = Callable[[PairedRuns], Change | None]


def _changed(
    before: Estimate | None, after: Estimate | None, paired: PairedRuns | None, measure: Measure
) -> dict[str, Any]:
    """Return the fields of a number of both runs; its change where both have it and the images are the same."""
    found: dict[str, Any] = {"before": before, "after": after}
    change = measure(paired) if paired is not None and before is not None and after is not None else None
    return found if change is None else found | {"change": change.estimate, "p": change.p, "images": change.images}


def _gaps(first: Audit, second: Audit, paired: PairedRuns | None) -> Iterator[ComparedGap]:
    """Compare every gap with its state and with the policy."""
    before, after = ({} if a.is_invalid else {row.id: row for row in a.contrasts} for a in (first, second))
    for name, row in (before | after).items():
        was, now, asked = before.get(name), after.get(name), Asked.of(row)
        yield ComparedGap(
            id=name,
            attribute=row.attribute,
            group=row.group,
            reference=row.reference,
            outcome=row.outcome,
            metric=row.metric,
            before_state=was.state if was else None,
            after_state=now.state if now else None,
            before_above=was.above_policy if was else None,
            after_above=now.above_policy if now else None,
            **_changed(
                was.estimate if was else None,
                now.estimate if now else None,
                paired,
                partial(PairedRuns.change, asked=asked),
            ),
        )


def _rates(first: Audit, second: Audit, paired: PairedRuns | None) -> Iterator[ComparedRate]:
    """Compare every rate of every group."""
    before, after = ({(r.attribute, r.group, r.outcome): r for r in audit.rates} for audit in (first, second))
    for key in before | after:
        for rate in RATES:
            yield ComparedRate(
                attribute=key[0],
                group=key[1],
                outcome=key[2],
                rate=rate,
                **_changed(
                    _rate_of(before.get(key), rate),
                    _rate_of(after.get(key), rate),
                    paired,
                    partial(PairedRuns.rate_change, attribute=key[0], group=key[1], outcome=key[2], rate=rate),
                ),
            )


def _rate_of(row: RateRow | None, rate: RateField) -> Estimate | None:
    found: Estimate | None = None if row is None else getattr(row, rate)
    return found


def _heads(first: Audit, second: Audit, paired: PairedRuns | None) -> Iterator[ComparedHead]:
    """Compare every head that either run confirms."""
    before, after = (
        {} if a.is_invalid else {(h.contrast, h.outcome, h.name): h for h in a.heads} for a in (first, second)
    )
    contrasts = {str(c): c for audit in (first, second) for c in _contrasts(audit)}
    for key, row in (before | after).items():
        was, now = before.get(key), after.get(key)
        if not any(h is not None and h.verdict == Verdict.CONFIRMED for h in (was, now)):
            continue
        asked = Asked.of_head(row, contrasts[row.contrast])
        yield ComparedHead(
            contrast=row.contrast,
            outcome=row.outcome,
            name=row.name,
            before_verdict=was.verdict if was else None,
            after_verdict=now.verdict if now else None,
            **_changed(
                was.confirmation if was else None,
                now.confirmation if now else None,
                paired,
                partial(PairedRuns.change, asked=asked),
            ),
        )


def _contrasts(audit: Audit) -> Iterator[Contrast]:
    yield from (Contrast(row.attribute, row.group, row.reference) for row in audit.contrasts)


def _compared(finding: Finding, first: Audit, second: Audit, paired: PairedRuns | None) -> ComparedFinding:
    """Say what became of one finding."""
    was, is_found = (any(f.id == finding.id for f in findings_of(audit)) for audit in (first, second))
    untested = None if was and is_found else _untested(second if was else first, finding)
    state, below = FindingState.PERSISTING, None
    if was and not is_found:
        state = FindingState.NO_LONGER_TESTABLE if untested is not None else FindingState.BELOW_THRESHOLD
        below = _below(second, finding) if untested is None else None
    elif is_found and not was:
        state = FindingState.NEW
    pairing = None if state == FindingState.NO_LONGER_TESTABLE else paired
    return ComparedFinding(
        id=finding.id,
        finding=finding,
        kind=finding.kind,
        state=state,
        untested=untested,
        below=below,
        **_changed(
            number_of(first, finding),
            number_of(second, finding),
            pairing,
            partial(PairedRuns.change, asked=Asked.of(finding)),
        ),
    )


def number_of(audit: Audit, finding: Finding) -> Estimate | None:
    """Return what a run measured of a finding's question, finding or not; None where it did not ask."""
    if audit.is_invalid:
        return None
    contrast = f"{finding.attribute}:{finding.group}-{finding.reference}"
    if finding.kind == "head":
        head = _head_of(audit, finding)
        return None if head is None else head.confirmation
    asked = f"{contrast}:{finding.outcome}:{finding.metric}"
    return next((c.estimate for c in audit.contrasts if c.id == asked), None)


def _head_of(audit: Audit, finding: Finding) -> HeadRow | None:
    """Return the row of a finding's head; None where the run has none."""
    asked = (f"{finding.attribute}:{finding.group}-{finding.reference}", finding.outcome, finding.heads)
    return next((h for h in audit.heads if (h.contrast, h.outcome, [h.name]) == asked), None)


def _below(audit: Audit, finding: Finding) -> WhyBelow:
    """Say what a run that asked a finding's question lacks for a finding."""
    if finding.kind == "disparity":
        return WhyBelow.NOT_DETECTED
    head = _head_of(audit, finding)
    confirmed = head is not None and head.verdict == Verdict.CONFIRMED
    return WhyBelow.SMALL_SHARE if confirmed else WhyBelow.NOT_CONFIRMED


def _untested(audit: Audit, finding: Finding) -> Untested | None:
    """Say why a run cannot answer a finding's question; None where it can."""
    if audit.is_invalid:
        return Untested(why=WhyUntested.CONTROL_FAILED)
    contrast = f"{finding.attribute}:{finding.group}-{finding.reference}"
    if finding.kind == "head":
        head, where = _head_of(audit, finding), audit.localisation.get(f"{contrast}:{finding.outcome}")
        if head is not None:
            few = head.verdict == Verdict.TOO_LITTLE_DATA
            return Untested(why=WhyUntested.TOO_LITTLE_DATA) if few else None
        if where is None:
            return Untested(why=WhyUntested.NOT_ASKED)
        return Untested(why=UNSEARCHED.get(where.status, WhyUntested.NOT_PATCHED))
    asked = f"{contrast}:{finding.outcome}:{finding.metric}"
    row = next((c for c in audit.contrasts if c.id == asked), None)
    if row is None:
        return Untested(why=WhyUntested.NOT_ASKED)
    if row.state not in UNTESTED:
        return None
    return Untested(
        why=UNTESTED[row.state],
        shortfall=row.shortfall,
        fewest_subjects=row.fewest_subjects,
        subjects_needed=row.subjects_needed,
    )
