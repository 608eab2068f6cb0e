"""Two runs side by side, as what ``diff.html.j2`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit.records import ComparedFinding, RunComparison, RunName
from audit.report import formats, wording
from audit.report.svg import Badge, Column, Fact, Table, badge_cell, header_cell, number_cell
from audit.report.view_heads import stacked

STATES: dict[str, Badge] = {
    "new": Badge("▲", "new", "bad"),
    "persisting": Badge("◆", "persisting", "warm"),
    "no longer testable": Badge("?", "no longer testable", "unsure"),
    "gone": Badge("○", "gone", "calm"),
}


@dataclass(frozen=True)
class DiffView:
    """Everything that ``diff.html.j2`` prints, as finished strings."""

    title: str
    sentence: str
    before: tuple[Fact, ...]
    after: tuple[Fact, ...]
    notes: tuple[str, ...]
    findings: Table | None


def counted(comparison: RunComparison) -> str:
    """Say in one line what became of the findings: "1 new, 2 persisting, 0 no longer testable, 3 gone"."""
    return ", ".join(f"{sum(f.state == s for f in comparison.findings)} {s}" for s in STATES)


def diff_view(comparison: RunComparison) -> DiffView:
    """Compute the view of a comparison."""
    before, after = comparison.before, comparison.after
    return DiffView(
        title=f"{formats.label(before.name)}: {before.outcome} → {after.outcome}",
        sentence=f"Findings: {counted(comparison)}.",
        before=_facts(before),
        after=_facts(after),
        notes=tuple(comparison.notes),
        findings=_table(comparison.findings) if comparison.findings else None,
    )


def _facts(run: RunName) -> tuple[Fact, ...]:
    return (
        Fact("Outcome", run.outcome),
        Fact("Card", formats.label(run.name)),
        Fact("Audit id", run.audit_id),
        Fact("Started", run.started),
        Fact("SHA-256 of audit.json", run.audit_sha256, mono=True),
        Fact("SHA-256 of the weights", run.weights_sha256, mono=True),
        Fact("SHA-256 of the data", run.data_fingerprint, mono=True),
    )


def _table(findings: Sequence[ComparedFinding]) -> Table:
    order = list(STATES)
    rows = sorted(findings, key=lambda f: (order.index(f.state), f.kind, f.id))
    return Table(
        id="compared",
        caption="What became of each finding",
        columns=(
            Column("State"),
            Column("Finding"),
            Column("Before", "points", True),
            Column("After", "points", True),
            Column("Change", "points, on the same images", True),
            Column("p", "of no change", True),
            Column("Images", "in both", True),
        ),
        rows=tuple(
            (
                badge_cell(STATES[row.state], row.reason),
                header_cell(row.title, row.id),
                stacked(row.before),
                stacked(row.after),
                stacked(row.change),
                number_cell(formats.p_value(row.p)),
                number_cell(formats.NOT_AVAILABLE if row.images is None else formats.count(row.images)),
            )
            for row in rows
        ),
        note=wording.DIFF,
    )
