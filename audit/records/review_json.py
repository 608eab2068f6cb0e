"""``review.json`` and ``decisions.jsonl``: what reviewers made of findings, of sections, and of the whole report."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from audit.records.base import Record

HASH = "^[0-9a-f]{64}$"  # SHA-256
DECIDED = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"  # ISO 8601


class Section(StrEnum):
    """What a reviewer can say something of besides a finding."""

    REPORT = "report"  # the whole of it: the overall opinion, and the sign-off
    SYSTEM = "system"  # what was audited, for which use, who answers for it
    CONTROLS = "controls"
    DATA = "data"
    RATES = "rates"
    HEADS = "heads"  # where in the network
    METHOD = "method"
    LAW = "law"
    LIMITS = "limits"
    PROVENANCE = "provenance"


class Independence(StrEnum):
    """How far a reviewer is from those whose model was audited."""

    TEAM = "team"
    ORGANISATION = "organisation"  # the same, and another team
    EXTERNAL = "external"


def _a_time(text: str) -> str:
    """Refuse a 13th month."""
    datetime.fromisoformat(text)
    return text


def _a_day(text: str) -> str:
    """Refuse a 32nd day; nothing may be written."""
    if text:
        date.fromisoformat(text)
    return text


def _some_text(text: str) -> str:
    """Refuse what shows nothing."""
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise ValueError("nothing is written there")
    return text


class Decision(Record):
    """What a reviewer made of one finding, or of one section."""

    finding: str = ""  # its id; empty where a section is named
    section: Section | None = None
    decision: Literal["comment", "accept", "reject", "needs more", "risk accepted"]  # a comment decides nothing
    name: Annotated[str, Field(max_length=200), AfterValidator(_some_text)]
    role: Annotated[str, Field(max_length=200), AfterValidator(_some_text)]
    reason: Annotated[str, Field(max_length=5000), AfterValidator(_some_text)]
    decided: Annotated[str, Field(pattern=DECIDED), AfterValidator(_a_time)]
    independence: Independence | None = None  # None: not stated
    owner: str = Field(default="", max_length=200)  # who does what is to be done
    due: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$"), AfterValidator(_a_day)] = ""
    remedy: str = Field(default="", max_length=5000)  # what is to be done
    # SHA-256 of the earlier audit.json that it was made of; in a shareable copy another name of that
    carried_from: str = Field(default="", pattern=r"^([0-9a-f]{20}|[0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _of_one_thing(self) -> Decision:
        if bool(self.finding) == (self.section is not None):
            raise ValueError("name either a finding or a section")
        return self

    @property
    def subject(self) -> str:
        """What it is about: the id of a finding, or the name of a section."""
        return self.finding or str(self.section)


class Review(Record):
    """The whole of ``review.json``: what the page of a report saves, bound to the audit that was read."""

    review_version: Literal["1.0", "1.1"] = "1.1"  # 1.0 knew findings alone
    audit_sha256: str = Field(pattern=HASH)  # of audit.json
    decisions: list[Decision]
