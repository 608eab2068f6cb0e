"""What the first eleven sections of a report choose from a record: the questions, who is harmed, what is undecided."""

from __future__ import annotations

from collections.abc import Sequence

from audit.evidence.disparity import primary_gaps
from audit.records import (
    Audit,
    ContrastRow,
    Finding,
    HarmfulError,
    HybridOrder,
    Metric,
    RateRow,
    State,
    TrainedRow,
    TrainedTotal,
)
from audit.report.reviewed import Reviewed

Question = tuple[str, str]  # attribute and outcome
Told = tuple[list[RateRow], int]  # rates, the worst first, and how many groups lie between those that are told
MOST_TOLD = 4  # groups in a sentence; of more, the worst two, the best and the reference
ERROR_OF = {HarmfulError.MISSED: Metric.TPR_GAP, HarmfulError.FALSE_ALARM: Metric.FPR_GAP}


class Core:
    """What a reader decides by; where an audit is invalid, nothing that compares groups.

    Gaps that reviewers reject (``reviewed``) are not told on page 1; sections further on have them.
    """

    def __init__(self, audit: Audit, findings: Sequence[Finding], reviewed: Reviewed | None = None) -> None:
        self.audit, self._findings = audit, findings
        self._reviewed = Reviewed(audit, ()) if reviewed is None else reviewed
        self._attributes = {a.attribute: a for a in audit.data.attributes}
        self._contrasts = [] if audit.is_invalid else audit.contrasts
        self._counted = [c for c in self._contrasts if self._reviewed.counts_gap(c)]

    def questions(self) -> list[Question]:
        """Return attributes (no intersections) with outcomes: gaps above policy first, the largest of these first."""
        asked = list(
            dict.fromkeys((r.attribute, r.outcome) for r in self.audit.rates if r.attribute in self._attributes)
        )
        return sorted(asked, key=self._rank)

    def _rank(self, question: Question) -> tuple[bool, bool, float]:
        gaps = [c for c in self._counted if (c.attribute, c.outcome) == question]
        above, found = any(c.above_policy for c in gaps), any(c.state == State.DISPARITY for c in gaps)
        return not above, not found, -max((round(abs(c.estimate.value or 0.0), 6) for c in gaps), default=0.0)

    def above_policy(self) -> list[Question]:
        """Return the questions with a gap above policy."""
        return [q for q in self.questions() if not self._rank(q)[0]]

    def errors(self, question: Question) -> list[HarmfulError]:
        """Return both errors, the one first that the card says does harm; else the one in which groups differ most."""
        both, harm = [HarmfulError.MISSED, HarmfulError.FALSE_ALARM], self.audit.method.harmful_error
        if harm != HarmfulError.BOTH:
            return sorted(both, key=lambda error: error != harm)
        gaps = {error: self.gap_in(question, error) for error in both}
        rows = [gap for gap in gaps.values() if gap is not None]
        return sorted(both, key=lambda error: gaps[error] is None or gaps[error] is not _first(rows))

    def told(self, question: Question, error: HarmfulError) -> Told:
        """Return the groups of a question by how often they meet an error, the worst first, of many groups some."""
        field = "false_negative_rate" if error == HarmfulError.MISSED else "false_positive_rate"
        rows = [r for r in self.audit.rates if (r.attribute, r.outcome) == question]
        known = [r for r in rows if r.group in self._attributes[question[0]].groups and r.images]
        measured = [r for r in known if getattr(r, field).value is not None]
        order = sorted(measured, key=lambda r: -getattr(r, field).value)
        if len(order) <= MOST_TOLD:
            return order, 0
        shown = [r for i, r in enumerate(order) if i < 2 or i == len(order) - 1 or r.is_reference]
        return shown, len(order) - len(shown)

    def gap_in(self, question: Question, error: HarmfulError) -> ContrastRow | None:
        """Return the comparison in one error that says most: a disparity before others, the largest first."""
        asked = (*question, ERROR_OF[error])
        return _first([c for c in self._counted if (c.attribute, c.outcome, c.metric) == asked])

    def primary(self, question: Question) -> list[ContrastRow]:
        """Return each group's gap in the metric of its question, by the rule that is fixed before the run."""
        rows = [c for c in self._contrasts if (c.attribute, c.outcome) == question]
        return list(primary_gaps(rows).values())

    def largest(self, question: Question) -> ContrastRow | None:
        """Return the largest of these, detected ones before others."""
        return _first(self.primary(question))

    def headline(self, question: Question) -> ContrastRow | None:
        """Return the largest of these that no reviewer rejects."""
        return _first([c for c in self.primary(question) if self._reviewed.counts_gap(c)])

    def shown(self, question: Question) -> list[RateRow | ContrastRow]:
        """Return what page 1 quotes of a question."""
        rates = [row for error in self.errors(question) for row in self.told(question, error)[0]]
        gaps = [*(self.gap_in(question, error) for error in self.errors(question)), self.headline(question)]
        found: dict[int, RateRow | ContrastRow] = {id(row): row for row in (*rates, *gaps) if row is not None}
        return list(found.values())

    def undecided(self) -> list[ContrastRow]:
        """Return what stays open in any metric, and the gaps of all combinations of groups."""
        limit = self.audit.method.thresholds.get("policy.gap_above", 0.1)
        combined = [c for c in self._contrasts if c.attribute not in self._attributes]
        shown = {c.id for c in primary_gaps(combined).values()}
        return [c for c in self._contrasts if c.id in shown or is_open(c, limit)]

    def training(self, question: Question) -> list[tuple[str, int, int]]:
        """Return of each group how many training images have the label, of how many."""
        attribute, outcome = question
        rows = [r for r in self.audit.data.counts if (r.attribute, r.split) == (attribute, "train")]
        totals = {g: sum(r.images for r in rows if r.group == g) for g in self._attributes[attribute].groups}
        cells = {g: sum(r.images for r in rows if (r.group, r.label) == (g, outcome)) for g in totals}
        return [(g, cells[g], totals[g]) for g in totals] if any(totals.values()) else []

    def balanced(self, question: Question) -> tuple[TrainedTotal, TrainedRow] | None:
        """Return what a model that was trained on a balanced sample has of the largest gap of a question."""
        gap = self.largest(question)
        if gap is None:
            return None
        contrast = f"{gap.attribute}:{gap.group}-{gap.reference}"
        totals = [t for t in self.audit.trained if (t.contrast, t.outcome) == (contrast, gap.outcome)]
        for total in totals:
            before = [r for r in self.audit.trained_of(total) if r.player == ""]
            if total.order == HybridOrder.INPUT_FIRST and before:
                return total, before[0]
        return None

    def heads_of(self, finding: Finding) -> list[Finding]:
        """Return the findings about single heads that belong to the gap of a finding."""
        own = [f for f in self._findings if _gap_of(f) == _gap_of(finding)]
        gaps = [f for f in own if f.kind == "disparity"]
        return [f for f in own if f.kind == "head"] if gaps[:1] == [finding] else []

    def decisions(self) -> list[Finding]:
        """Return what is decided one by one: gaps, and heads that belong to none of them."""
        gaps = [f for f in self._findings if f.kind == "disparity"]
        nested = {f.id for gap in gaps for f in self.heads_of(gap)}
        return [f for f in self._findings if f.id not in nested]


def _first(rows: Sequence[ContrastRow]) -> ContrastRow | None:
    """Return what says most: what was detected, then what could be tested, the largest first."""
    untested = (State.TOO_LITTLE_DATA, State.NOT_ESTIMABLE)
    order = {State.DISPARITY: 0} | dict.fromkeys(untested, 2)
    return min(rows, key=lambda c: (order.get(c.state, 1), -abs(c.estimate.value or 0.0)), default=None)


def is_open(row: ContrastRow, limit: float) -> bool:
    """Tell whether a comparison says neither yes nor no."""
    if row.state == State.DISPARITY:
        return False
    return row.state != State.NOT_DETECTED or row.smallest_detectable is None or row.smallest_detectable > limit


def _gap_of(finding: Finding) -> tuple[str, str, str, str]:
    return finding.attribute, finding.group, finding.reference, finding.outcome
