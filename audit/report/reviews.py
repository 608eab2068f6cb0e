"""Reviewers' decisions: read from ``review.json``, kept in ``decisions.jsonl``, never changed once they are there.

Every line of ``decisions.jsonl`` is one decision with the SHA-256 of the line before it; that of the first line is the
hash of ``audit.json``. So a line that was changed, dropped or moved breaks the chain, and so does a file that was put
beside another audit. What was last added no later line holds: that is for the manifest, and for its signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from audit.errors import InputError
from audit.given import said_of
from audit.records import Audit, Decision, Review

DECISIONS = "decisions.jsonl"
AHEAD = timedelta(days=1)  # a clock may be so wrong
LARGEST = 5_000_000  # bytes of a review; five hundred decisions take a tenth of it


def read_review(path: Path) -> Review:
    """Read what a reviewer saved from the page of a report.

    Raises
    ------
    InputError
        If the file is missing, too large, or no review; it names the first fault.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(str(path), f"larger than {LARGEST:,} bytes", "save it again from the report")
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(str(path), "no such file", "save one from report.html with 'Save decisions'") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from None
    try:
        return Review.model_validate_json(content)
    except ValidationError as error:
        raise InputError(str(path), f"no review: {_first(error)}", "save it again from the report") from None


def _first(error: ValidationError) -> str:
    """Say what the first fault is, and where."""
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return " ".join(f"{place}: {said_of(fault)}".removeprefix(": ").split())


def read_decisions(run: Path, audit_sha256: str) -> list[Decision]:
    """Read the decisions of a run, oldest first; none where there is no file.

    Raises
    ------
    InputError
        If a line was changed, dropped or moved, or belongs to another audit; it names the line.
    """
    path = run / DECISIONS
    if not path.is_file():
        return []
    decisions, before = [], audit_sha256
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
            previous = entry.pop("previous")
            decision = Decision.model_validate(entry)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OverflowError):
            raise InputError(place, "no decision", "restore the file from a copy") from None
        if previous != before:
            what = "is of another audit" if number == 1 else "does not follow the line before it"
            raise InputError(place, what, "restore the file from a copy")
        decisions.append(decision)
        before = _digest(line)
    return decisions


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def merge(run: Path, review: Review, audit: Audit, audit_sha256: str) -> tuple[str, list[Decision]]:
    """Add a review's decisions to those that a run has.

    Parameters
    ----------
    run : pathlib.Path
        A run directory.
    review : Review
    audit : Audit
        The run's record.
    audit_sha256 : str
        Of the bytes of ``audit.json``.

    Returns
    -------
    tuple of (str, list of Decision)
        The new text of ``decisions.jsonl``, and what is new in it: a decision that is there already is not added again.

    Raises
    ------
    InputError
        If the review is of another audit, or decides about a finding that this audit has not.
    """
    if review.audit_sha256 != audit_sha256:
        raise InputError(
            "review",
            f"is of another audit: audit.json has the hash {audit_sha256[:12]}, the review was made of one with "
            f"{review.audit_sha256[:12]}",
            "name the run whose report was read",
        )
    unknown = sorted({d.finding for d in review.decisions} - {f.id for f in audit.findings})
    if unknown:
        raise InputError("review", f"no finding '{unknown[0]}' in this audit", "save it again from the report")
    late = max((datetime.fromisoformat(d.decided) for d in review.decisions), default=None)
    if late is not None and late > datetime.now(UTC) + AHEAD:
        what = f"a decision is dated {late.isoformat(timespec='minutes')}, which is yet to come"
        raise InputError("review", what, "set the clock of the reader's computer, and save it again from the report")
    there = read_decisions(run, audit_sha256)
    new = [d for d in dict.fromkeys(review.decisions) if d not in there]
    path = run / DECISIONS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before = _digest(text.splitlines(keepends=True)[-1].encode()) if text else audit_sha256
    for line in chained(new, before):
        text += line
    return text, new


def chained(decisions: Iterable[Decision], before: str) -> Iterable[str]:
    """Yield the lines of decisions, each with the hash of the one before."""
    for decision in decisions:
        line = json.dumps({**decision.model_dump(), "previous": before}, ensure_ascii=True, sort_keys=True) + "\n"
        before = _digest(line.encode())
        yield line


def in_order(decisions: Sequence[Decision]) -> list[Decision]:
    """Return decisions by when they were made, oldest first, whenever they were merged."""
    return sorted(decisions, key=lambda d: datetime.fromisoformat(d.decided))


def by_finding(decisions: Sequence[Decision]) -> dict[str, list[Decision]]:
    """Return each finding's decisions in their order; the last one counts."""
    found: dict[str, list[Decision]] = {}
    for decision in in_order(decisions):
        found.setdefault(decision.finding, []).append(decision)
    return found
