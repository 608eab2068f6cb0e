"""Two runs side by side: which findings are new, gone, still there, or can no longer be tested."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from audit.errors import AuditError
from audit.evidence.called import is_called
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import LabelShares, label_shares_of
from audit.evidence.run_change import Change, paired_change
from audit.evidence.stored_rows import Rows, distinct, some
from audit.pipeline.analyze import predictions
from audit.pipeline.load_run import OpenedRun, open_run
from audit.records import (
    Audit,
    ComparedFinding,
    ComparisonNote,
    Contrast,
    Estimate,
    Finding,
    FindingState,
    HeadRow,
    LocalisationStatus,
    Metric,
    NoteCode,
    RunComparison,
    RunName,
    State,
    Untested,
    Verdict,
    WhyUntested,
)
from audit.report.render import Source, read_run
from audit.report.shareable import refuse_copy
from audit.units import name_of

UNTESTED = {
    State.TOO_LITTLE_DATA: WhyUntested.TOO_LITTLE_DATA,
    State.NOT_ESTIMABLE: WhyUntested.NOT_ESTIMABLE,
}
UNSEARCHED = {
    LocalisationStatus.NO_GAP: WhyUntested.NO_GAP,
    LocalisationStatus.TOO_LITTLE_DATA: WhyUntested.TOO_LITTLE_DATA,
}
Pairing = Callable[[Finding], Change | None]


def compare_runs(before: Path, after: Path) -> RunComparison:
    """Pair the findings of two runs by their ids, which are the same for the same question of the same card and model.

    Where both runs measured the same images, every number that both have is compared image by image.

    Raises
    ------
    InputError
        If either has no readable record.
    """
    first, second = read_run(before), read_run(after)
    same = first.audit.data.fingerprint == second.audit.data.fingerprint
    notes: list[ComparisonNote] = []
    pairing: Pairing = _not_paired
    if same:
        try:
            for run in (before, after):
                refuse_copy(run, "name the runs themselves")
            pairing = partial(_paired, open_run(before), open_run(after))
        except (AuditError, OSError, ValueError) as error:
            notes.append(ComparisonNote(code=NoteCode.NOT_OPENED, error=_in_one_line(error)))
    else:
        notes.append(ComparisonNote(code=NoteCode.OTHER_IMAGES))
    known = {f.id: f for f in [*findings_of(second.audit), *findings_of(first.audit)]}
    in_both = {f.id for f in findings_of(first.audit)} & {f.id for f in findings_of(second.audit)}
    if known and not in_both and first.audit.name != second.audit.name:
        notes.append(ComparisonNote(code=NoteCode.OTHER_NAMES))
    try:
        findings = [_compared(f, first.audit, second.audit, pairing) for f in known.values()]
    except (AuditError, OSError, ValueError, LookupError) as error:  # whatever a damaged table makes its reader raise
        notes.append(ComparisonNote(code=NoteCode.EFFECTS_UNREADABLE, error=_in_one_line(error)))
        findings = [_compared(f, first.audit, second.audit, _not_paired) for f in known.values()]
    return RunComparison(
        before=_named(first),
        after=_named(second),
        unit=second.audit.model.unit,
        same_images=same,
        findings=findings,
        notes=notes,
    )


def findings_of(audit: Audit) -> list[Finding]:
    """Return what a run found; nothing where a control failed, whatever its record holds."""
    return [] if audit.is_invalid else audit.findings


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _not_paired(_finding: Finding) -> Change | None:
    return None


def _named(source: Source) -> RunName:
    audit = source.audit
    return RunName(
        audit_id=audit.audit_id,
        audit_sha256=source.digest,
        name=audit.name,
        outcome=audit.outcome,
        started=audit.provenance.started,
        weights_sha256=audit.model.weights_sha256,
        data_fingerprint=audit.data.fingerprint,
    )


def _compared(finding: Finding, first: Audit, second: Audit, pairing: Pairing) -> ComparedFinding:
    """Say what became of one finding."""
    was, is_found = (any(f.id == finding.id for f in findings_of(audit)) for audit in (first, second))
    before, after = number_of(first, finding), number_of(second, finding)
    state, confirmed_only = FindingState.PERSISTING, False
    untested = None if was and is_found else _untested(second if was else first, finding)
    if was and not is_found:
        confirmed_only = untested is None and _is_confirmed(second, finding)
        if untested is not None:
            state = FindingState.NO_LONGER_TESTABLE
        elif not confirmed_only:
            state = FindingState.GONE
    elif is_found and not was:
        state = FindingState.NEW
    row = ComparedFinding(
        id=finding.id,
        finding=finding,
        kind=finding.kind,
        state=state,
        before=before,
        after=after,
        untested=untested,
        confirmed_only=confirmed_only,
    )
    if state == FindingState.NO_LONGER_TESTABLE:
        return row
    change = pairing(finding) if before is not None and after is not None else None
    if change is None:
        return row
    return row.model_copy(update={"change": change.estimate, "p": change.p, "images": change.images})


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


def _is_confirmed(audit: Audit, finding: Finding) -> bool:
    """Tell whether a finding's head is confirmed, finding or not."""
    head = _head_of(audit, finding) if finding.kind == "head" else None
    return head is not None and head.verdict == Verdict.CONFIRMED


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


def _paired(first: OpenedRun, second: OpenedRun, finding: Finding) -> Change | None:
    """Compare the two runs on the images that both measured; None where there are none."""
    measure = _of_head if finding.kind == "head" else _of_rates
    before, after = (measure(run, finding) for run in (first, second))
    if before is None or after is None:
        return None
    rows = before.merge(after, left_index=True, right_index=True, suffixes=("", ":after"))
    if rows["is_group"].nunique() < 2:
        return None
    label, names = pd.factorize(rows["label"], sort=True)
    shares = _shares(second, finding)
    effects = SwapEffects(
        cross=rows[["value:after"]].to_numpy(dtype=np.float64),
        placebo=rows[["value"]].to_numpy(dtype=np.float64),
        unpatched=np.zeros(len(rows)),
        is_group=rows["is_group"].to_numpy(dtype=bool),
        label=label.astype(np.int64),
        subject=pd.factorize(rows["subject"])[0].astype(np.int64),
        unit=pd.factorize(rows["unit"])[0].astype(np.int64),
        heads=[(0, 0)],
        shares=by_code(shares["label_shares"], names),
        group_shares=by_code(shares["group_shares"], names),
        counts=finding.kind != "head",
    )
    weights = effects.mediated_weights() if finding.kind == "head" else effects.gap_weights()
    return paired_change(effects, weights)


def _shares(run: OpenedRun, finding: Finding) -> LabelShares:
    """Return the weights of the labels, as the finding's measure has them."""
    contrast = Contrast(finding.attribute, finding.group, finding.reference)
    if finding.kind == "head":
        return run.effects.label_shares(contrast, finding.outcome)
    if finding.metric != Metric.STANDARDISED_GAP:
        return {"label_shares": {finding.metric: 1.0}, "group_shares": None}  # all images are laid out as of one label
    frame = predictions(run.scope, run.effects.unpatched, run.scope.seeds[0])
    return label_shares_of(frame, contrast, finding.outcome, Metric.STANDARDISED_GAP)


def _of_rates(run: OpenedRun, finding: Finding) -> pd.DataFrame | None:
    """Return by image whether the first seed's model calls it the outcome, of the images that the measure is about."""
    unpatched = run.table("unpatched")
    if unpatched is None:
        return None
    frame = predictions(run.scope, unpatched, run.scope.seeds[0])
    if finding.attribute not in frame:
        return None
    frame = frame[frame[finding.attribute].isin([finding.group, finding.reference])]
    if finding.metric != Metric.STANDARDISED_GAP:
        frame = frame[(frame["label"] == finding.outcome) == (finding.metric == Metric.TPR_GAP)]
    # Rates of images with another label than the outcome are not standardised over these labels.
    label = frame["label"] if finding.metric == Metric.STANDARDISED_GAP else finding.metric
    called = is_called(frame, finding.outcome).astype(np.float64)
    is_group = frame[finding.attribute] == finding.group
    return pd.DataFrame(
        {"value": called, "is_group": is_group, "label": label, "subject": frame["subject"], "unit": frame["image"]}
    ).set_index(frame["image"])


def _recipients(rows: Rows, seed: int, contrast: Contrast) -> pd.DataFrame:
    """Return who receives on the confirmation split."""
    part = some(rows, seed=seed, contrast=str(contrast), split="confirmation")
    return distinct(part, ["position", "recipient", "label", "unit"], by=["position"]).sort_values("position")


def _of_head(run: OpenedRun, finding: Finding) -> pd.DataFrame | None:
    """Return by recipient what its cross-group donor does through the head beyond the placebo, first seed."""
    contrast = Contrast(finding.attribute, finding.group, finding.reference)
    stored, seed = run.effects, run.scope.seeds[0]
    if contrast not in stored.patched_in_both_splits([contrast]):
        return None
    effects = stored.of(seed, contrast, "confirmation", finding.outcome)
    named = [name_of(run.scope.unit, layer, head) for layer, head in effects.heads]
    about = _recipients(stored.swap, seed, contrast)
    if stored.first_order is not None and len(about) < len(effects.label):
        about = _recipients(stored.first_order, seed, contrast)
    if finding.heads[0] not in named or len(about) != len(effects.label):
        return None
    frame = run.scope.samples.frame.loc[about["recipient"]]
    return pd.DataFrame(
        {
            "value": effects.difference[:, named.index(finding.heads[0])],
            "is_group": effects.is_group,
            "label": about["label"].to_numpy(),
            "subject": frame["subject"].to_numpy(),
            "unit": about["unit"].to_numpy(),
        },
        index=pd.Index(frame["image"].to_numpy(), name="image"),
    )
