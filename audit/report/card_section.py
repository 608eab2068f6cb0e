"""A section on an audit for a model card in Markdown, as Hugging Face shows README.md."""

from __future__ import annotations

from audit.errors import InputError
from audit.evidence.outcome import main_gaps
from audit.records import Audit, Metric
from audit.report.text import Sentences, environment

BEGIN, END = "<!-- vit-audit -->", "<!-- /vit-audit -->"
SHOWN = 12  # comparisons; audit.json has all


def card_section(audit: Audit, digest: str) -> str:
    """Return the section between its two marks, by which a later one replaces it."""
    text = Sentences(audit)
    detected = {row.id: row for row in main_gaps(audit.contrasts).values()}
    others = {row.id: row for row in audit.contrasts if row.metric == Metric.STANDARDISED_GAP}
    rows = [] if audit.is_invalid else list((detected | others).values())
    page = environment().get_template("card_section.md.j2").render(
        audit=audit,
        digest=digest,
        words=text.words,
        names=text.names,
        means=text.meaning(),
        reasons=text.reasons(),
        rows=rows[:SHOWN],
        more=max(0, len(rows) - SHOWN),
        not_shown=text.not_shown(),
    )  # fmt: skip
    return f"{BEGIN}\n{page.strip()}\n{END}\n"


def with_section(card: str, section: str, where: str) -> str:
    """Return a model card with the section in place of an earlier one, or at its end.

    Raises
    ------
    InputError
        If its marks are not one pair.
    """
    marks = card.count(BEGIN), card.count(END)
    if marks == (0, 0):
        return f"{card.rstrip()}\n\n{section}".lstrip()
    begin, end = card.find(BEGIN), card.find(END)
    if marks != (1, 1) or end < begin:
        what = f"holds {marks[0]} of '{BEGIN}' and {marks[1]} of '{END}'"
        raise InputError(where, what, "leave one of each, in this order, around the section, or remove both")
    return card[:begin] + section.rstrip("\n") + card[end + len(END) :]
