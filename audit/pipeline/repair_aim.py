"""What of a finished audit is repaired: which gap, at which heads, on which images; fixed before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from audit.card.repair_spec import RepairSpec
from audit.errors import InputError
from audit.evidence.outcome import main_gaps
from audit.records import Audit, ContrastRow, Verdict
from audit.records.repair_json import Aim, HarmfulError, Margins
from audit.records.repair_methods import Method
from audit.records.repair_run import FittedOn, HeadsFrom, RepairPlan, SealedFrom


def aimed_gap(audit: Audit, spec: RepairSpec, where: Path) -> ContrastRow | None:
    """Return the largest detected gap of a single attribute among those asked for; None where none was detected.

    Raises
    ------
    InputError
        If the attribute or the outcome that is asked for was not audited.
    """
    single = {info.attribute for info in audit.data.attributes}
    audited = {"attribute": single, "outcome": {row.outcome for row in audit.contrasts}}
    for field, known in audited.items():
        named = getattr(spec, field)
        if named is not None and named not in known:
            raise InputError(str(where), f"repair.{field} is '{named}'", f"choose from {', '.join(sorted(known))}")
    gaps = [
        row
        for row in main_gaps(audit.contrasts).values()
        if row.attribute in single and spec.attribute in (None, row.attribute) and spec.outcome in (None, row.outcome)
    ]
    return max(gaps, key=lambda row: abs(row.estimate.value or 0.0), default=None)


def named_heads(audit: Audit, gap: ContrastRow) -> tuple[list[str], HeadsFrom]:
    """Return the heads that are confirmed to carry a gap: the smallest set, else those confirmed one by one."""
    contrast = f"{gap.attribute}:{gap.group}-{gap.reference}"
    for answer in audit.answers:
        if (answer.contrast, answer.outcome) == (contrast, gap.outcome) and answer.jointly and answer.heads:
            return list(answer.heads), HeadsFrom.SMALLEST_SET
    alone = [
        row.name
        for row in audit.heads
        if (row.contrast, row.outcome, row.verdict) == (contrast, gap.outcome, Verdict.CONFIRMED)
    ]
    return alone, HeadsFrom.ONE_BY_ONE if alone else HeadsFrom.NONE


def make_plan(
    audit: Audit,
    digest: str,
    gap: ContrastRow,
    spec: RepairSpec,
    images: Mapping[str, int],
    *,
    fitted_on: FittedOn,
    sealed_from: SealedFrom,
    reaudit: bool,
    code: str,
) -> RepairPlan:
    """Return what is fixed before any method is run.

    Parameters
    ----------
    audit : Audit
    digest : str
        SHA-256 of its ``audit.json``.
    gap : ContrastRow
        The one that is aimed at.
    spec : RepairSpec
    images : mapping of str to int
        How many images each split has that is read.
    fitted_on, sealed_from, reaudit, code
        As :class:`RepairPlan` has them.
    """
    heads, origin = named_heads(audit, gap)
    aim = Aim(
        attribute=gap.attribute,
        group=gap.group,
        reference=gap.reference,
        outcome=gap.outcome,
        metric=gap.metric,
        harm=HarmfulError(spec.harmful_error),
    )
    margins = Margins(gap=spec.gap_margin, accuracy=spec.accuracy_margin, error=spec.error_margin, alpha=spec.alpha)
    return RepairPlan(
        audit_sha256=digest,
        aim=aim,
        methods=[Method(name) for name in spec.competing],
        margins=margins,
        candidates=spec.candidates,
        heads=heads,
        heads_from=origin,
        random_draws=spec.random_draws,
        seed=spec.seed,
        legal_basis=spec.legal_basis,
        fitted_on=fitted_on,
        sealed_from=sealed_from,
        images=dict(images),
        reaudit=reaudit,
        code=code,
    )
