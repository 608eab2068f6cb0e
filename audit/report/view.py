"""From the record of an audit to what the templates print. No arithmetic is left to a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from audit.records import Audit, Control, Decision, HeadGrid, Outcome
from audit.report import formats, view_data, view_findings, view_heads, view_instrument, view_method, wording
from audit.report.crosswalk import crosswalk_table
from audit.report.data_warnings import warning_sentence
from audit.report.legal import NOT_ANSWERED, clause_of
from audit.report.reviews import by_finding, in_order
from audit.report.svg import Badge, Cell, Column, Fact, Table, TableGroup, badge_cell, header_cell, places, spelled
from audit.report.view_findings import FindingCard
from audit.units import Unit, said_of

PAGE_ONE = ("/outcome", "/reasons", "/model", "/data", "/controls/controls", "/not_shown", "/next_steps")


@dataclass(frozen=True)
class Line:
    """One control in one line."""

    badge: Badge
    title: str


@dataclass(frozen=True)
class ReportView:
    """Everything that ``report.html.j2`` prints, as finished strings."""

    title: str
    audit_id: str
    short_hash: str
    audit_hash: str
    date: str
    run_by: str
    outcome: Badge
    outcome_sentence: str
    reasons: tuple[str, ...]
    audited: tuple[Fact, ...]
    purpose: tuple[Fact, ...]
    controls_summary: str
    control_lines: tuple[tuple[str, tuple[Line, ...]], ...]  # by where they ran
    top: tuple[FindingCard, ...]
    summary_source: str  # what page one is printed from
    no_findings: str
    not_shown: tuple[str, ...]
    next_steps: tuple[str, ...]
    withheld: tuple[tuple[str, str, str, str], ...]
    is_invalid: bool
    legal: Table
    controls: Table
    controls_setting: str
    controls_not_run: tuple[str, ...]
    control_grids: TableGroup | None
    data_facts: tuple[Fact, ...]
    data_tables: tuple[Table, ...]
    label_tables: tuple[Table, ...]
    count_tables: tuple[Table, ...]
    data_limits: tuple[str, ...]
    data_warnings: tuple[str, ...]
    rates: tuple[TableGroup, ...]
    cards: tuple[FindingCard, ...]
    heads: tuple[TableGroup, ...]
    other_grids: TableGroup | None
    stability: Table | None
    agreement: Table | None
    model_facts: tuple[Fact, ...]
    model_seeds: Table
    method_facts: tuple[Fact, ...]
    hypotheses: tuple[str, ...]
    metrics: tuple[str, ...]
    designs: tuple[str, ...]
    thresholds: Table
    estimands: Table
    effort: Table | None
    provenance_facts: tuple[Fact, ...]
    hashes: Table
    versions: Table
    glossary: tuple[tuple[str, str], ...]
    unit: Unit  # what is patched
    emotion_note: str
    fixed: dict[str, str]
    choices: tuple[str, ...]  # what a reviewer may decide
    reviewed: str  # how many findings are decided; "" where nobody has decided anything
    decisions: Table | None
    crosswalk: Table


def build_view(audit: Audit, audit_sha256: str, decisions: Sequence[Decision] = ()) -> ReportView:
    """Compute the view of a report.

    Parameters
    ----------
    audit : Audit
        The record; where it is invalid, findings, heads and comparisons are left out here.
    audit_sha256 : str
        Hash of the bytes of ``audit.json``, which binds the report to them.
    decisions : sequence of Decision
        Of reviewers, oldest first.

    Returns
    -------
    ReportView
        Finished strings, tables and pictures.
    """
    is_invalid = audit.is_invalid
    badge, sentence = wording.OUTCOMES[Outcome.INVALID if is_invalid else audit.outcome]
    decided = by_finding(decisions)
    cards = [
        view_findings.finding_card(
            audit, finding, decisions=decided.get(finding.id, ()), drawn=number < view_findings.DRAWN
        )
        for number, finding in enumerate([] if is_invalid else view_findings.ordered_findings(audit))
    ]
    top = [] if is_invalid else view_findings.top_findings(audit)
    place = places({"/findings": audit.findings})
    return ReportView(
        title=formats.label(audit.name, 120),
        audit_id=formats.label(audit.audit_id, 80),
        short_hash=formats.short_hash(audit_sha256),
        audit_hash=audit_sha256,
        date=audit.provenance.started[:10],
        run_by=audit.provenance.run_by or "not stated",
        outcome=badge,
        outcome_sentence=sentence,
        reasons=tuple(audit.reasons),
        audited=_audited(audit),
        purpose=_purpose(audit),
        controls_summary=_controls_summary(audit),
        control_lines=_control_lines(audit),
        top=tuple(view_findings.finding_card(audit, finding, compact=True) for finding in top),
        summary_source=spelled([*PAGE_ONE, *map(place, top)]),
        no_findings=_no_findings(audit, is_invalid),
        not_shown=_not_shown(audit),
        next_steps=tuple(audit.next_steps),
        withheld=tuple(view_instrument.failed_controls(audit)) if is_invalid else (),
        is_invalid=is_invalid,
        legal=_legal(audit),
        controls=view_instrument.controls_table(audit),
        controls_setting=audit.controls.setting,
        controls_not_run=tuple(audit.controls.not_run),
        control_grids=view_instrument.control_grids(audit),
        data_facts=_data_facts(audit),
        data_tables=tuple(view_data.data_tables(audit)),
        label_tables=tuple(view_data.label_tables(audit)),
        count_tables=tuple(view_data.count_tables(audit)),
        data_limits=tuple(audit.data.limits),
        data_warnings=tuple(map(warning_sentence, audit.data.warnings)),
        rates=tuple(view_data.rate_groups(audit, with_verdicts=not is_invalid)),
        cards=tuple(cards),
        heads=() if is_invalid else tuple(view_heads.head_groups(audit)),
        other_grids=None if is_invalid else _other_grids(audit),
        stability=view_heads.stability_table(audit) if audit.stability and not is_invalid else None,
        agreement=view_heads.agreement_table(audit) if audit.agreement and not is_invalid else None,
        model_facts=view_method.model_facts(audit),
        model_seeds=view_method.model_seeds(audit),
        method_facts=view_method.method_facts(audit),
        hypotheses=tuple(audit.method.hypotheses),
        metrics=tuple(audit.method.metrics),
        designs=tuple(audit.method.designs),
        thresholds=view_method.pairs(
            "thresholds",
            "Thresholds, fixed before the run",
            "Threshold",
            "Value",
            [(name, formats.quantity(value)) for name, value in audit.method.thresholds.items()],
            is_number=True,
            source="/method/thresholds",
        ),
        estimands=view_method.estimands(audit),
        effort=view_method.effort(audit),
        provenance_facts=view_method.provenance_facts(audit, audit_sha256),
        hashes=view_method.pairs(
            "hashes",
            "Hashes (SHA-256)",
            "Of",
            "Hash",
            list(audit.provenance.hashes.items()),
            mono=True,
            source="/provenance/hashes",
        ),
        versions=view_method.pairs(
            "versions",
            "Software versions",
            "Package",
            "Version",
            list(audit.provenance.versions.items()),
            source="/provenance/versions",
        ),
        glossary=wording.glossary(audit.model.unit),
        unit=audit.model.unit,
        emotion_note=wording.EMOTION_NOTE if audit.task == "emotion" else "",
        fixed={
            "no_certificate": wording.NO_CERTIFICATE,
            "perceptions": wording.PERCEPTIONS,
            "bounded_claim": said_of(audit.model.unit, wording.BOUNDED_CLAIM),
            **{word: said_of(audit.model.unit, word) for word in ("head", "heads", "Heads", "Attention heads")},
        },
        choices=tuple(wording.DECISIONS),
        reviewed=_reviewed(audit, decided),
        decisions=_decisions(decisions),
        crosswalk=crosswalk_table(audit),
    )


def _reviewed(audit: Audit, decided: Mapping[str, Sequence[Decision]]) -> str:
    """Say how many findings a reviewer has decided about."""
    if not decided:
        return ""
    return f"Reviewed: {len(decided)} of {formats.plural(len(audit.findings), 'finding')} decided; see the findings."


def _decisions(decisions: Sequence[Decision]) -> Table | None:
    """Return every decision; None where there is none."""
    if not decisions:
        return None
    return Table(
        id="decisions",
        caption="Decisions of reviewers",
        columns=(
            Column("Finding"),
            Column("Decision"),
            Column("Name"),
            Column("Role"),
            Column("Decided"),
            Column("Reason"),
        ),
        rows=tuple(
            (
                header_cell(formats.label(d.finding)),
                badge_cell(wording.DECISIONS[d.decision]),
                Cell(formats.label(d.name)),
                Cell(formats.label(d.role)),
                Cell(d.decided),
                Cell(d.reason),
            )
            for d in in_order(decisions)
        ),
        note="By when they were made, oldest first; of several decisions about one finding the last one stands. Kept "
        "in decisions.jsonl in the order in which they came in, each with the hash of the one before it.",
    )


def _audited(audit: Audit) -> tuple[Fact, ...]:
    model, data = audit.model, audit.data
    return (
        Fact(
            "Model",
            f"{model.name}, {view_method.model_size(audit)}",
        ),
        Fact("Weights", f"SHA-256 {formats.short_hash(model.weights_sha256)}…", mono=True),
        Fact(
            "Data",
            f"{data.source}: {formats.plural(data.images, 'image')} of {formats.plural(data.subjects, 'subject')}"
            + (" (rendered, no real people)" if audit.synthetic else ""),
        ),
        Fact("Data hash", f"SHA-256 {formats.short_hash(data.fingerprint)}…", mono=True),
        Fact(
            "Groups",
            "; ".join(
                f"{formats.label(a.attribute)} ({formats.plural(len(a.groups), 'group')})" for a in data.attributes
            ),
        ),
    )


def _purpose(audit: Audit) -> tuple[Fact, ...]:
    return (
        Fact("Intended use", audit.intended_use or "not stated in the card"),
        Fact("Out of scope", audit.out_of_scope or "not stated in the card"),
    )


def _controls_summary(audit: Audit) -> str:
    controls = audit.controls.controls
    passed = sum(control.passed for control in controls)
    if not controls:
        return "No control was recorded."
    return f"{passed} of {formats.plural(len(controls), 'check')} passed"


def _control_lines(audit: Audit) -> tuple[tuple[str, tuple[Line, ...]], ...]:
    """One line for each kind of check and setting; a failed check has a line of its own."""
    failed = [
        Line(wording.FAILED_CHECK, f"{c.title} ({c.setting}){_withheld(c)}")
        for c in audit.controls.controls
        if not c.passed
    ]
    kinds: dict[str, dict[str, list[bool]]] = {}
    for control in audit.controls.controls:
        where = next((w for w in ("colour", "blur") if control.setting.startswith(w)), control.setting)
        if control.kind in ("identity", "initialisation"):
            where = wording.CONTROL_KINDS[control.kind]
        kinds.setdefault(control.kind, {}).setdefault(where, []).append(control.passed)
    whole = [
        Line(wording.PASSED_CHECK, said_of(audit.model.unit, wording.control_line(kind, where, len(passed))))
        for kind, settings in kinds.items()
        for where, passed in settings.items()
        if all(passed)
    ]
    return (("Failed", tuple(failed)),) * bool(failed) + (("Passed", tuple(whole)),) * bool(whole)


def _withheld(control: Control) -> str:
    return "" if control.gates == "audit" else f": {control.gates} is left out"


def _no_findings(audit: Audit, is_invalid: bool) -> str:
    if is_invalid:
        return "Findings are withheld, because a check of the instrument failed."
    if audit.findings:
        return ""
    return (
        "No finding. Every comparison that was made, with the smallest gap it could have detected, is listed "
        "under “Rates by group”."
    )


def _not_shown(audit: Audit) -> tuple[str, ...]:
    fixed = [wording.NO_CERTIFICATE, wording.PERCEPTIONS]
    if audit.task == "emotion":
        fixed.append(wording.EMOTION_NOTE)
    return (*audit.not_shown, *(sentence for sentence in fixed if sentence not in audit.not_shown))


def _legal(audit: Audit) -> Table:
    rows = []
    for number, answer in enumerate(audit.legal):
        clause = clause_of(answer.clause)
        title = clause.title if clause else answer.clause
        note = f"{clause.summary} Applies: {clause.applies}." if clause else ""
        tone = "unanswered" if answer.answer == NOT_ANSWERED else ""
        rows.append(
            (header_cell(title, note, source=f"/legal/{number}"), Cell(answer.question), Cell(answer.answer, tone=tone))
        )
    return Table(
        id="legal-table",
        caption="Legal screen: answers given in the card",
        columns=(Column("Clause"), Column("Question"), Column("Answer in the card")),
        rows=tuple(rows),
        note="Summaries are in the tool’s own words; where they differ, the official text prevails. Answers are "
        "recorded as given and are not checked.",
    )


def _data_facts(audit: Audit) -> tuple[Fact, ...]:
    data = audit.data
    splits = ", ".join(f"{name} {formats.count(images)}" for name, images in data.splits.items())
    return (
        Fact("Source", data.source),
        Fact("Images and subjects", f"{formats.count(data.images)} and {formats.count(data.subjects)}"),
        Fact("Images in each split", splits),
        Fact("Labels", ", ".join(formats.label(name) for name in data.labels)),
        Fact("SHA-256 of table and images", data.fingerprint, mono=True),
        Fact("Licence", data.licence or "not stated"),
        Fact("Citation", data.citation or "not stated"),
    )


def _other_grids(audit: Audit) -> TableGroup | None:
    blocks = {(row.contrast, row.outcome) for row in audit.heads}
    taken = {f"bias:{contrast}" for contrast, _ in blocks} | {f"bias:{c}:{outcome}" for c, outcome in blocks}
    grids: Sequence[HeadGrid] = [grid for grid in audit.grids if grid.id not in taken]
    every, place = view_instrument.every_grid(audit), places({"/grids": audit.grids})
    if not grids:
        return None
    return TableGroup(
        id="other-grids",
        title=said_of(audit.model.unit, "Further head grids"),
        tables=tuple(view_instrument.grid_table(audit, grid, place(grid)) for grid in grids),
        scale=view_instrument.scale(grids, every),
    )
