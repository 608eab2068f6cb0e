"""Whether a run passes: its controls, its policy, and its gaps beside those of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from audit.errors import AuditError, InputError, one_line_of
from audit.evidence.gap_change import (
    GapChange,
    detectable_change,
    is_larger,
    unpaired_changes,
)
from audit.exit_codes import ExitCode
from audit.records import (
    Audit,
    ComparisonNote,
    ContrastRow,
    Estimate,
    GapCheck,
    GapState,
    Gate,
    GateVerdict,
    NoteCode,
    Outcome,
    State,
)
from audit.report.render import read_run

EXIT_CODES = {
    GateVerdict.INVALID: ExitCode.INVALID,
    GateVerdict.WORSE: ExitCode.WORSE_THAN_BASELINE,
    GateVerdict.ABOVE_POLICY: ExitCode.DISPARITY,
    GateVerdict.TOO_LITTLE_DATA: ExitCode.TOO_LITTLE_DATA,
    GateVerdict.PASSED: ExitCode.DONE,
}
UNMEASURED = (State.TOO_LITTLE_DATA, State.NOT_ESTIMABLE)


def gate_run(run: Path, baseline: Path | None, *, with_policy: bool = True, tolerance: float = 0.0) -> Gate:
    """Decide whether a run passes.

    Parameters
    ----------
    run : pathlib.Path
    baseline : pathlib.Path, optional
        An earlier run of the same questions. Where both measured the same images they are compared image by image.
    with_policy : bool
        Whether gaps above the card's policy stop the run.
    tolerance : float
        A fraction: by so much gaps may be larger than before.

    Raises
    ------
    InputError
        If either has no readable record, or a control of the baseline failed, or it asks nothing that the run asks.
    """
    source = read_run(run)
    audit, alpha = source.audit, source.audit.method.thresholds.get("alpha", 0.05)
    earlier = None if baseline is None else read_run(baseline)
    gaps: list[GapCheck] = []
    notes: list[ComparisonNote] = []
    if baseline is not None and earlier is not None:
        _refuse_baseline(audit, earlier.audit, baseline)
        if not audit.is_invalid:
            gaps, notes = _compared(run, baseline, audit, earlier.audit, alpha, tolerance)
    failed = [c.id for c in audit.controls.controls if not c.passed and c.gates == "audit"]
    above = [] if audit.is_invalid else [c.id for c in audit.contrasts if c.above_policy]
    verdict = _verdict(audit, gaps, with_policy=with_policy)
    return Gate(
        run=source.run_name,
        baseline=None if earlier is None else earlier.run_name,
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        with_policy=with_policy,
        tolerance=tolerance,
        alpha=alpha,
        controls_failed=failed,
        above_policy=above,
        paired=any(g.images is not None for g in gaps),
        gaps=gaps,
        notes=notes,
    )


def _refuse_baseline(audit: Audit, earlier: Audit, baseline: Path) -> None:
    if earlier.is_invalid:
        fix = "name an earlier run that is valid, or leave the baseline out"
        raise InputError(str(baseline), "is INVALID: a control failed, so it has no gaps to compare with", fix)
    asked, had = ({c.id for c in a.contrasts} for a in (audit, earlier))
    if asked and not asked & had:
        shown = f"'{min(had)}'" if had else "nothing"
        what = f"asks nothing that the run asks: it compares {shown}, the run '{min(asked)}'"
        raise InputError(str(baseline), what, "name an earlier run with the same groups and outcomes")


def _verdict(audit: Audit, gaps: Sequence[GapCheck], *, with_policy: bool) -> GateVerdict:
    """Return what stops a run, the gravest first."""
    states = {gap.state for gap in gaps}
    stops = {
        GateVerdict.INVALID: audit.is_invalid,
        GateVerdict.WORSE: GapState.LARGER in states,
        GateVerdict.ABOVE_POLICY: with_policy and audit.outcome == Outcome.DISPARITY_FOUND,
        GateVerdict.TOO_LITTLE_DATA: audit.outcome == Outcome.INCONCLUSIVE or GapState.TOO_LITTLE_DATA in states,
        GateVerdict.PASSED: True,
    }
    return next(verdict for verdict, stopped in stops.items() if stopped)


def _compared(
    run: Path, baseline: Path, audit: Audit, earlier: Audit, alpha: float, tolerance: float
) -> tuple[list[GapCheck], list[ComparisonNote]]:
    """Compare every gap that both runs tested."""
    known = {row.id: row for row in earlier.contrasts}
    tested = [row for row in audit.contrasts if _is_tested(row) and _is_tested(known.get(row.id))]
    changes, notes = _changes(run, baseline, tested, known, same=_same_images(audit, earlier))
    found = {row.id: change for row, change in zip(tested, changes, strict=True)}
    judged = partial(_judged, known=known, changes=found, alpha=alpha, tolerance=tolerance)
    return [judged(row) for row in audit.contrasts], notes


def _same_images(audit: Audit, earlier: Audit) -> bool:
    return audit.data.fingerprint == earlier.data.fingerprint


def _is_tested(row: ContrastRow | None) -> bool:
    return row is not None and row.state not in UNMEASURED


def _judged(
    row: ContrastRow, known: dict[str, ContrastRow], changes: dict[str, GapChange], alpha: float, tolerance: float
) -> GapCheck:
    before, change = known.get(row.id), changes.get(row.id)
    state = GapState.NOT_IN_BASELINE
    if change is not None and before is not None:
        larger = is_larger(before.estimate, row.estimate, change, alpha=alpha, tolerance=tolerance)
        state = GapState.LARGER if larger else GapState.NOT_LARGER
    elif _is_tested(before):
        state = GapState.TOO_LITTLE_DATA
    check = GapCheck(
        id=row.id,
        attribute=row.attribute,
        group=row.group,
        reference=row.reference,
        outcome=row.outcome,
        metric=row.metric,
        state=state,
        before=Estimate(value=None) if before is None else before.estimate,
        after=row.estimate,
    )
    if change is None:
        return check
    return check.model_copy(
        update={
            "change": change.estimate,
            "p": change.p,
            "p_adjusted": change.p_adjusted,
            "images": change.images,
            "smallest_detectable": detectable_change(change, alpha=alpha, family=len(changes)),
        }
    )


def _changes(
    run: Path, baseline: Path, tested: Sequence[ContrastRow], known: dict[str, ContrastRow], *, same: bool
) -> tuple[list[GapChange], list[ComparisonNote]]:
    """Compare gaps image by image where that can be done, else by their estimates."""
    notes = [] if same else [ComparisonNote(code=NoteCode.OTHER_IMAGES)]
    if same:
        try:
            from audit.pipeline.gate_pairs import paired_gaps  # imports torch, which nothing else here needs

            paired = paired_gaps(run, baseline, tested)
            if all(change is not None for change in paired):
                return [change for change in paired if change is not None], notes
            notes.append(ComparisonNote(code=NoteCode.OTHER_IMAGES))
        except (
            AuditError,
            OSError,
            ValueError,
            LookupError,
        ) as error:  # whatever a damaged table makes its reader raise
            notes.append(ComparisonNote(code=NoteCode.NOT_OPENED, error=one_line_of(error)))
    return unpaired_changes([(known[row.id].estimate, row.estimate) for row in tested]), notes
