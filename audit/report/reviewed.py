"""What a report says of its reviewers' decisions: whom page one hears, what it leaves out, and what is to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from audit.evidence.outcome import question_of
from audit.records import Audit, ContrastRow, Decision, Finding, NextStep, Reason, ReasonCode, Section
from audit.report.reviews import Standing, by_subject, standing
from audit.report.text import Sentences

SECTIONS = frozenset(map(str, Section))
NAMED = 4  # rejected findings, and disputes, that page one names


@dataclass(frozen=True)
class Reviewed:
    """An audit with its reviewers' decisions; the audit's record stays what it is.

    Parameters
    ----------
    audit : Audit
    decisions : sequence of Decision
        In any order.
    """

    audit: Audit
    decisions: Sequence[Decision]

    @cached_property
    def said(self) -> Mapping[str, Sequence[Decision]]:
        """All that was said, comments too, by finding and section."""
        return by_subject(self.decisions)

    @cached_property
    def standing(self) -> Mapping[str, Standing]:
        """What stands, by finding and section."""
        return standing(self.decisions)

    @cached_property
    def _findings(self) -> Mapping[str, Finding]:
        return {} if self.audit.is_invalid else {f.id: f for f in self.audit.findings}

    def finding(self, subject: str) -> Finding | None:
        """Return the finding of an id; None where a section is named, or findings are withheld."""
        return self._findings.get(subject)

    @cached_property
    def rejected(self) -> Sequence[Finding]:
        """Findings that all who decided about them reject."""
        return [f for key, f in self._findings.items() if key in self.standing and self.standing[key].rejected]

    @cached_property
    def _rejected_questions(self) -> set[str]:
        return {_question(f) for f in self.rejected if f.kind == "disparity"}

    def counts(self, finding: Finding) -> bool:
        """Tell whether a finding may be on page one: neither it nor the gap that it is of was rejected."""
        return finding not in self.rejected and _question(finding) not in self._rejected_questions

    def counts_gap(self, row: ContrastRow) -> bool:
        """Tell whether a gap may be on page one: no finding of its question was rejected as a gap."""
        return question_of(row) not in self._rejected_questions

    @property
    def reasons(self) -> Sequence[Reason]:
        """The reasons of the outcome but for gaps that were rejected."""
        gone = {c.id for c in self.audit.contrasts if not self.counts_gap(c)}
        return [r for r in self.audit.reasons if r.code != ReasonCode.GAP_ABOVE_POLICY or r.contrast not in gone]

    @property
    def next_steps(self) -> Sequence[NextStep]:
        """What to do next; no training is changed for gaps that were all rejected."""
        return [s for s in self.audit.next_steps if not (self.rejects_all and s == NextStep.BALANCE_TRAINING)]

    def decisions_on(self, subject: str) -> Sequence[Decision]:
        """Return what stands of a finding or section, a decision for each reviewer."""
        return self.standing[subject].decisions if subject in self.standing else []

    @property
    def opinions(self) -> Sequence[Decision]:
        """What stands of the report as a whole."""
        return self.decisions_on(Section.REPORT)

    @property
    def rejects_all(self) -> bool:
        """Tell whether there were gaps above the policy, and every one of them was rejected."""
        return self._above(self.audit.reasons) and not self._above(self.reasons)

    @property
    def disputed(self) -> Sequence[Standing]:
        """Findings and sections about which reviewers differ."""
        return [s for s in self.standing.values() if s.disputed and self._is_shown(s.subject)]

    @property
    def actions(self) -> Sequence[Decision]:
        """What is to be done, the soonest first: decisions that stand and name a remedy, an owner or a day."""
        asked = [d for s in self.standing.values() for d in s.decisions if d.remedy or d.owner or d.due]
        return sorted(asked, key=lambda d: (not d.due, d.due, d.decided))

    @property
    def shown(self) -> Sequence[Decision]:
        """All decisions that may be shown: of an invalid audit none about findings, which are withheld."""
        return [d for made in self.said.values() for d in made if self._is_shown(d.subject)]

    def _is_shown(self, subject: str) -> bool:
        return subject in SECTIONS or subject in self._findings

    def headline(self, text: Sentences) -> list[str]:
        """Say what page one and the terminal have to say of the review; nothing where there was none."""
        lines = [text.review("opinion", d) for d in self.opinions]
        rejected = [text.review("rejected", f, self.standing[f.id]) for f in self.rejected]
        lines += _first(rejected, text)
        if self.rejects_all:
            lines.append(text.review("rejected_above"))
        lines += _first([text.review("disputed", s, self.finding(s.subject)) for s in self.disputed], text)
        decided = [key for key in self.standing if key in self._findings]
        if decided:
            lines.append(text.review("counted", len(decided), len(self._findings)))
        return lines

    @staticmethod
    def _above(reasons: Sequence[Reason]) -> bool:
        return any(r.code == ReasonCode.GAP_ABOVE_POLICY for r in reasons)


def _first(lines: Sequence[str], text: Sentences) -> list[str]:
    more = len(lines) - NAMED
    return [*lines[:NAMED], *([text.review("more", more)] if more > 0 else [])]


def _question(finding: Finding) -> str:
    return f"{finding.attribute}:{finding.group}-{finding.reference}:{finding.outcome}"
