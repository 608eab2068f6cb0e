"""What of a finished audit is repaired: which gap, at which heads, on which images; fixed before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from audit.card.repair_spec import RepairSpec
from audit.data.samples import AUDIT_SPLITS
from audit.errors import InputError
from audit.evidence.outcome import main_gaps
from audit.evidence.reachable import reachable
from audit.pipeline.analyze import questions, with_intersections
from audit.pipeline.context import Scope
from audit.records import Audit, ContrastRow, Metric, Verdict
from audit.records.base import HarmfulError
from audit.records.repair_json import Aim, Expected, Margins, Reach
from audit.records.repair_methods import Method
from audit.records.repair_run import FittedOn, HeadsFrom, RepairPlan, SealedFrom

EXPECTED = Expected(changed=0.05, error=0.2)  # what is assumed of a repair before one is made


def aimed_gap(audit: Audit, spec: RepairSpec, where: Path) -> ContrastRow | None:
    """Return the largest detected gap of a single attribute among those asked for; None where none was detected.

    Raises
    ------
    InputError
        If the attribute or the outcome that is asked for was not audited, or gaps were detected of others alone.
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
    elsewhere = {f"{row.attribute} ({row.outcome})" for row in main_gaps(audit.contrasts).values()}
    if elsewhere and not gaps:
        fix = "name another repair.attribute or repair.outcome; of an intersection, audit one column that has both"
        raise InputError(str(where), f"has a gap, but of {', '.join(sorted(elsewhere))}, not of what is asked for", fix)
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


def heads_with_effect(audit: Audit, gap: ContrastRow) -> set[str]:
    """Return the heads of a question that are confirmed to tell its groups apart, one by one or in a set.

    Those whose question has no gap are among them: effects of two heads may cancel.
    """
    contrast = f"{gap.attribute}:{gap.group}-{gap.reference}"
    found = {Verdict.CONFIRMED, Verdict.CONFIRMED_NO_GAP}
    alone = {h.name for h in audit.heads if (h.contrast, h.outcome) == (contrast, gap.outcome) and h.verdict in found}
    answers = [a for a in audit.answers if (a.contrast, a.outcome) == (contrast, gap.outcome) and a.jointly]
    return alone | {head for answer in answers for head in answer.heads}


def margins_of(spec: RepairSpec) -> Margins:
    """Return the margins that a card asks for."""
    return Margins(gap=spec.gap_margin, accuracy=spec.accuracy_margin, error=spec.error_margin, alpha=spec.alpha)


def make_plan(
    audit: Audit,
    digest: str,
    gap: ContrastRow,
    spec: RepairSpec,
    images: Mapping[str, int],
    *,
    fitted_on: FittedOn,
    sealed_from: SealedFrom,
    sealed_table: str,
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
    fitted_on, sealed_from, sealed_table, reaudit, code
        As :class:`RepairPlan` has them.
    """
    heads, origin = named_heads(audit, gap)
    aim = Aim(
        attribute=gap.attribute,
        group=gap.group,
        reference=gap.reference,
        outcome=gap.outcome,
        metric=gap.metric,
        harm=HarmfulError(spec.harmful_error or HarmfulError.BOTH),
    )
    return RepairPlan(
        audit_sha256=digest,
        aim=aim,
        methods=[Method(name) for name in spec.competing],
        margins=margins_of(spec),
        candidates=spec.candidates,
        heads=heads,
        heads_from=origin,
        random_draws=spec.random_draws,
        seed=spec.seed,
        legal_basis=spec.legal_basis,
        fitted_on=fitted_on,
        sealed_from=sealed_from,
        images=dict(images),
        sealed_table=sealed_table,
        reaudit=reaudit,
        code=code,
    )


def planned_reach(scope: Scope) -> Reach | None:
    """Return whether a certificate can be had with the sealed images there are, and with how many it could.

    Of a card that asks for a repair and seals none it is how many would do in the mix of the audited images; None of a
    card that does neither.

    Of the groups that may be aimed at it is the one that takes most images. Only labels, groups and subjects are looked
    at; what a repair changes is not known yet, so ``EXPECTED`` is assumed of it.
    """
    frame, spec = scope.samples.frame, scope.card.to_repair
    sealed = frame[frame["split"] == "sealed"]
    is_sealed = len(sealed) > 0
    if not is_sealed and scope.card.repair is not None:
        sealed = frame[frame["split"].isin(AUDIT_SPLITS)]
    attribute = spec.attribute or next(iter(scope.samples.attributes))
    info = scope.samples.attributes.get(attribute)
    groups = [] if info is None else [group for group in info.groups if group != info.reference]
    if not len(sealed) or info is None or not groups:
        return None
    found = [
        reachable(
            with_intersections(scope, sealed),
            questions(scope),
            Aim(
                attribute=attribute,
                group=group,
                reference=info.reference,
                outcome=spec.outcome or next(iter(scope.outcomes)),
                metric=Metric.STANDARDISED_GAP,
                harm=HarmfulError(spec.harmful_error or HarmfulError.BOTH),
            ),
            margins_of(spec),
            EXPECTED,
            min_subjects=scope.card.audit.min_group_size,
            candidates=spec.candidates,
        )
        for group in groups
    ]
    most = max(found, key=lambda reach: (reach.needed_images is None, reach.needed_images or 0))
    return most.model_copy(update={"sealed": is_sealed})
