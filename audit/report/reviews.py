"""Reviewers' decisions: read from ``review.json``, kept in ``decisions.jsonl``, never changed once they are there.

Every line of ``decisions.jsonl`` is one decision with the SHA-256 of the line before it; that of the first line is the
hash of ``audit.json``. So a line that was changed, dropped or moved breaks the chain, and so does a file that was put
beside another audit. What was last added no later line holds: that is for the manifest, and for its signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    return parsed_review(content, str(path))


def parsed_review(content: bytes, where: str) -> Review:
    """Return a review from JSON.

    Raises
    ------
    InputError
        If it is none; it names the first fault.
    """
    try:
        return Review.model_validate_json(content)
    except ValidationError as error:
        raise InputError(where, f"no review: {_first(error)}", "save it again from the report") from None


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
        If the review is of another audit, decides about a finding that this audit has not, or claims that a decision
        was made of another audit.
    """
    if review.audit_sha256 != audit_sha256:
        raise InputError(
            "review",
            f"is of another audit: audit.json has the hash {audit_sha256[:12]}, the review was made of one with "
            f"{review.audit_sha256[:12]}",
            "name the run whose report was read",
        )
    unknown = sorted({d.finding for d in review.decisions if d.finding} - {f.id for f in audit.findings})
    if unknown:
        raise InputError("review", f"no finding '{unknown[0]}' in this audit", "save it again from the report")
    if any(d.carried_from for d in review.decisions):
        fix = "take the decisions of an earlier run over with: vit-audit review RUN --from EARLIER"
        raise InputError("review", "a decision says that it was made of another audit", fix)
    late = max((datetime.fromisoformat(d.decided) for d in review.decisions), default=None)
    if late is not None and late > datetime.now(UTC) + AHEAD:
        what = f"a decision is dated {late.isoformat(timespec='minutes')}, which is yet to come"
        raise InputError("review", what, "set the clock of the reader's computer, and save it again from the report")
    return added(run, review.decisions, audit_sha256)


def added(run: Path, decisions: Iterable[Decision], audit_sha256: str) -> tuple[str, list[Decision]]:
    """Return the text of ``decisions.jsonl`` with some more, and those that were not there yet."""
    there = read_decisions(run, audit_sha256)
    new = [d for d in dict.fromkeys(decisions) if d not in there]
    path = run / DECISIONS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before = _digest(text.splitlines(keepends=True)[-1].encode()) if text else audit_sha256
    return text + "".join(chained(new, before)), new


def chained(decisions: Iterable[Decision], before: str) -> Iterable[str]:
    """Yield the lines of decisions, each with the hash of the one before; what was not stated is left out."""
    for decision in decisions:
        written = {**decision.model_dump(mode="json", exclude_defaults=True), "previous": before}
        line = json.dumps(written, ensure_ascii=True, sort_keys=True) + "\n"
        before = _digest(line.encode())
        yield line


def carried(earlier: Iterable[Decision], earlier_sha256: str, audit: Audit) -> tuple[list[Decision], list[Decision]]:
    """Return an earlier audit's decisions about findings that this one has, too, marked so; and all others as they are.

    A decision that was carried before keeps the hash of the audit that it was made of.
    """
    ids = {f.id for f in audit.findings}
    decisions = list(earlier)
    here = [
        d.model_copy(update={"carried_from": d.carried_from or earlier_sha256}) for d in decisions if d.finding in ids
    ]
    return here, [d for d in decisions if d.finding not in ids]


def in_order(decisions: Iterable[Decision]) -> list[Decision]:
    """Return decisions by when they were made, oldest first, whenever they were merged."""
    return sorted(decisions, key=lambda d: datetime.fromisoformat(d.decided))


def by_subject(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    """Return what was said of each finding, by its id, and of each section, by its name; oldest first."""
    found: dict[str, list[Decision]] = {}
    for decision in in_order(decisions):
        found.setdefault(decision.subject, []).append(decision)
    return found


@dataclass(frozen=True)
class Standing:
    """What stands of one finding or section: the last decision of each reviewer, oldest first."""

    subject: str
    decisions: Sequence[Decision]

    @property
    def disputed(self) -> bool:
        """Tell whether reviewers differ."""
        return len({d.decision for d in self.decisions}) > 1

    @property
    def rejected(self) -> bool:
        """Tell whether all who decided reject it."""
        return {d.decision for d in self.decisions} == {"reject"}


def standing(decisions: Iterable[Decision]) -> dict[str, Standing]:
    """Return what stands of each finding and section that was decided, by id and name; comments decide nothing.

    Of a reviewer's decisions the one made last counts. What was carried over from an earlier audit counts until
    somebody decides of this one.
    """
    found = {}
    for subject, made in by_subject(d for d in decisions if d.decision != "comment").items():
        own = [d for d in made if not d.carried_from] or made
        last = {_reviewer(d): d for d in own}
        found[subject] = Standing(subject, in_order(last.values()))
    return found


def _reviewer(decision: Decision) -> str:
    return " ".join(decision.name.casefold().split())
