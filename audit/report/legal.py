"""The legal screen: questions that the card answers and the report records, without judging them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from audit.records import LegalAnswer
from audit.report.text import data_file

NOT_ANSWERED = "not answered"


@dataclass(frozen=True)
class Clause:
    """One clause of the screen; ``tasks`` is empty where it is asked of every audit."""

    id: str
    title: str
    question: str
    summary: str
    applies: str  # from when, in words
    source: str
    checked_on: str  # ISO 8601
    former: str = ""  # the id under which cards of older versions answer
    tasks: tuple[str, ...] = ()


@cache
def _read() -> tuple[Clause, ...]:
    return tuple(_clause(entry) for entry in data_file("legal.yaml")["clauses"])


def _clause(entry: dict[str, Any]) -> Clause:
    words = {key: " ".join(str(value).split()) for key, value in entry.items() if key != "tasks"}
    return Clause(**words, tasks=tuple(entry.get("tasks", ())))


def checked_on() -> str:
    """Return the day on which the tables of law were last compared with their sources: the older of the two."""
    return min(str(data_file(name)["checked_on"]) for name in ("legal.yaml", "crosswalk.yaml"))


LEGAL_SCREEN: tuple[Clause, ...] = _read()


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
        clause that does not apply, or that is not in the file, is kept at the end: nothing is dropped.
    """
    asked = [clause for clause in LEGAL_SCREEN if not clause.tasks or task in clause.tasks]
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
    return next((clause for clause in LEGAL_SCREEN if clause.id == clause_id), None)
