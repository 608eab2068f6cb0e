"""``review.json`` and ``decisions.jsonl``: what reviewers made of findings."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from audit.records.base import Record


def _a_time(text: str) -> str:
    """Refuse a 13th month."""
    datetime.fromisoformat(text)
    return text


def _some_text(text: str) -> str:
    """Refuse what shows nothing."""
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise ValueError("nothing is written there")
    return text


class Decision(Record):
    """What a reviewer made of one finding."""

    finding: str  # its id
    decision: Literal["accept", "reject", "needs more", "risk accepted"]
    name: Annotated[str, Field(max_length=200), AfterValidator(_some_text)]
    role: Annotated[str, Field(max_length=200), AfterValidator(_some_text)]
    reason: Annotated[str, Field(max_length=5000), AfterValidator(_some_text)]
    decided: Annotated[
        str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"), AfterValidator(_a_time)
    ]  # ISO 8601


class Review(Record):
    """The whole of ``review.json``: what the page of a report saves, bound to the audit that was read."""

    review_version: Literal["1.0"] = "1.0"
    audit_sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of audit.json
    decisions: list[Decision]
