"""Law as dated data, and the legal screen: questions that the card answers and the report records, without judging."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import cache
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from audit.records import LegalAnswer
from audit.records.base import Record
from audit.report.formats import clean, day
from audit.report.text import data_file, environment, one_line

NOT_ANSWERED = "not answered"
STALE_DAYS = 180  # a table that was last checked longer ago than this is said to be old
Text = Field(min_length=1)
Section = Literal["summary", "legal", "instrument", "data", "rates", "findings", "method", "provenance"]


class Start(Record):
    """A day from which a clause applies, and to what, where it has several."""

    since: date = Field(alias="from")
    to: str = ""


class Clause(Record):
    """A row of ``templates/law.yaml``, which says what its fields are."""

    id: str = Text
    clause: str = Text
    jurisdiction: str = Text
    applies_from: tuple[Start, ...] = ()
    voluntary: bool = False
    summary: str = Text
    question: str = Field(pattern=r"\?\s*$")
    source: str = Text
    checked_on: date
    screen: Literal["all"] | tuple[Literal["emotion", "action", "other"], ...] = ()
    former: str = ""
    evidence: tuple[Section, ...] | None = None
    missing: str = ""

    @model_validator(mode="after")
    def _has_a_day_and_a_place(self) -> Self:
        if bool(self.applies_from) == self.voluntary:
            raise ValueError(f"{self.id}: give the day from which it applies, or voluntary: true")
        if not self.screen and self.evidence is None:
            raise ValueError(f"{self.id}: is neither asked (screen) nor shown (evidence)")
        return self

    def is_asked(self, task: str) -> bool:
        """Tell whether the card of a task is asked the question."""
        return self.screen == "all" or task in self.screen


class _Table(Record):
    """The whole file."""

    rows: tuple[Clause, ...]

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        names = [name for row in self.rows for name in (row.id, row.former) if name]
        if len(set(names)) < len(names):
            raise ValueError("an id occurs twice")
        return self


@cache
def law() -> tuple[Clause, ...]:
    """Return every clause in the order of the file.

    Raises
    ------
    pydantic.ValidationError
        If a row lacks a field, such as its source or the day on which it was checked.
    """
    return _Table.model_validate(_in_one_line(dict(data_file("law.yaml")))).rows


def _in_one_line(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _in_one_line(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return tuple(map(_in_one_line, tree))
    return one_line(tree) if isinstance(tree, str) else tree


def checked_on() -> date:
    """Return the day on which the oldest row of the table was last compared with its source."""
    return min(row.checked_on for row in law())


def checked_sentence(started: str) -> str:
    """Say how old the table was on the day of an audit, so that a page says the same whenever it is printed again.

    Parameters
    ----------
    started : str
        ISO 8601 start of the audit; of what is none, the day of the check alone is said.
    """
    return one_line(str(_templates().checked(checked_on(), _date_of(started), STALE_DAYS)))


def is_stale(today: date) -> bool:
    """Tell whether the table is older than it should be."""
    return (today - checked_on()).days > STALE_DAYS


def age_sentence(today: date) -> str:
    """Say how old the table is today. For the terminal: no page speaks of today."""
    return one_line(str(_templates().today(checked_on(), (today - checked_on()).days, STALE_DAYS)))


def applies_sentence(row: Clause, started: str) -> str:
    """Say from when a clause applies, as of the day of an audit."""
    return one_line(str(_templates().applies(row, _date_of(started))))


def day_of(started: str) -> str:
    """Write the day of an audit: "2 August 2026"; as it is recorded where it is none."""
    found = _date_of(started)
    return clean(started) if found is None else day(found)


def _date_of(started: str) -> date | None:
    try:
        return date.fromisoformat(started[:10])
    except ValueError:
        return None  # a foreign date must not keep a report from being printed


@cache
def _templates() -> Any:
    return environment().get_template("text/law.j2").module


def answers(card_legal: Mapping[str, str], task: str) -> list[LegalAnswer]:
    """Record what a card answers to the clauses that apply to its task.

    Parameters
    ----------
    card_legal : mapping of str to str
        The card's ``legal`` block: answers by clause id.
    task : str
        The card's task: "emotion", "action" or "other".

    Returns
    -------
    list of LegalAnswer
        One a clause in the order of the data file, "not answered" where the card is silent. An answer to a
        clause that is not asked, or that is not in the file, is kept at the end: nothing is dropped.
    """
    asked = [clause for clause in law() if clause.is_asked(task)]
    rows = [
        LegalAnswer(
            clause=clause.id,
            question=clause.question,
            answer=(card_legal.get(clause.id) or card_legal.get(clause.former, "")).strip() or NOT_ANSWERED,
        )
        for clause in asked
    ]
    asked_ids = {name for clause in asked for name in (clause.id, clause.former)}
    return rows + [
        LegalAnswer(clause=key, question="(answered in the card, not asked for this task)", answer=value)
        for key, value in card_legal.items()
        if key not in asked_ids
    ]


def clause_of(clause_id: str) -> Clause | None:
    """Return the clause of an id, or None where a stored audit names one that the file no longer holds."""
    return next((clause for clause in law() if clause.id == clause_id), None)


def crosswalk() -> list[Clause]:
    """Return the clauses for which the report says where evidence is, or that there is none."""
    return [clause for clause in law() if clause.evidence is not None]
