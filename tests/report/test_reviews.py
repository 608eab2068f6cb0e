"""Decisions: bound to one audit, added and never changed, and shown where they belong."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from audit.errors import InputError
from audit.records import Decision, Review
from audit.report.html import render_html
from audit.report.reviews import DECISIONS, by_finding, in_order, merge, read_decisions, read_review

from .examples import HOSTILE, examples

pytestmark = pytest.mark.unit
AUDIT = examples()["many"]
DIGEST = sha256(AUDIT.model_dump_json().encode()).hexdigest()
FIRST, SECOND = (f.id for f in AUDIT.findings[:2])


def decision(finding: str = FIRST, **update: Any) -> Decision:
    made = {
        "finding": finding, "decision": "accept", "name": "R. Reader", "role": "compliance",
        "reason": "seen and agreed", "decided": "2026-03-02T10:00:00.123Z",
    }  # fmt: skip
    return Decision.model_validate(made | update)


def added(run: Path, *decisions: Decision) -> list[Decision]:
    text, new = merge(run, Review(audit_sha256=DIGEST, decisions=list(decisions)), AUDIT, DIGEST)
    (run / DECISIONS).write_text(text, encoding="utf-8")
    return new


def test_decisions_are_added_once_and_the_last_one_stands(tmp_path: Path) -> None:
    assert read_decisions(tmp_path, DIGEST) == []
    assert added(tmp_path, decision(), decision(SECOND)) == [decision(), decision(SECOND)]
    before = (tmp_path / DECISIONS).read_bytes()
    assert added(tmp_path, decision()) == []
    assert (tmp_path / DECISIONS).read_bytes() == before
    assert added(tmp_path, decision(decision="reject", reason="not ours")) != []
    assert (tmp_path / DECISIONS).read_bytes().startswith(before)
    found = by_finding(read_decisions(tmp_path, DIGEST))
    assert [d.decision for d in found[FIRST]] == ["accept", "reject"]


def test_a_decision_from_the_future_is_refused(tmp_path: Path) -> None:
    for when in ("2099-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"):
        with pytest.raises(InputError, match="which is yet to come"):
            added(tmp_path, decision(decided=when))
    assert not (tmp_path / DECISIONS).exists()


def test_a_decision_made_earlier_and_merged_later_does_not_stand(tmp_path: Path) -> None:
    newer, older = decision(), decision(decision="reject", decided="2026-03-02T11:59:59+02:00")
    added(tmp_path, newer)
    assert added(tmp_path, older) == [older]
    there = read_decisions(tmp_path, DIGEST)
    assert there == [newer, older]
    assert by_finding(there)[FIRST] == [older, newer]
    assert [d.decision for d in in_order(there)] == ["reject", "accept"]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda lines: lines[1:], "line 1: is of another audit"),
        (lambda lines: [lines[0], lines[2]], "line 2: does not follow"),
        (lambda lines: [lines[0].replace(b"accept", b"reject"), *lines[1:]], "line 2: does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1]], "line 2: does not follow"),
        (lambda lines: [*lines, b"{}\n"], "line 4: no decision"),
        (lambda lines: [b"[1]\n", *lines], "line 1: no decision"),
    ],
)
def test_a_line_that_was_changed_dropped_or_moved_is_named(tmp_path: Path, damage: Any, what: str) -> None:
    added(tmp_path, decision(), decision(SECOND), decision(decision="needs more"))
    path = tmp_path / DECISIONS
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(InputError, match=what):
        read_decisions(tmp_path, DIGEST)


def test_decisions_of_another_audit_are_refused(tmp_path: Path) -> None:
    added(tmp_path, decision())
    with pytest.raises(InputError, match="line 1: is of another audit"):
        read_decisions(tmp_path, "0" * 64)
    with pytest.raises(InputError, match="review: is of another audit"):
        merge(tmp_path, Review(audit_sha256="0" * 64, decisions=[decision()]), AUDIT, DIGEST)
    with pytest.raises(InputError, match="no finding 'F-nothing'"):
        merge(tmp_path, Review(audit_sha256=DIGEST, decisions=[decision("F-nothing")]), AUDIT, DIGEST)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no review"),
        (b"[]", "no review"),
        (b'{"audit_sha256": "short", "decisions": []}', "audit_sha256"),
        (json.dumps({"audit_sha256": DIGEST, "decisions": [{**decision().model_dump(), "decision": "fine"}]}).encode(),
         "decisions.0.decision"),
        (json.dumps({"audit_sha256": DIGEST, "decisions": [{**decision().model_dump(), "reason": ""}]}).encode(),
         "decisions.0.reason"),
        (json.dumps({"audit_sha256": DIGEST, "decisions": [{**decision().model_dump(), "decided": "today"}]}).encode(),
         "decisions.0.decided"),
        (json.dumps({"audit_sha256": DIGEST, "decisions": [
            {**decision().model_dump(), "decided": "2026-13-02T10:00:00Z"}]}).encode(), "decisions.0.decided"),
        (json.dumps({"audit_sha256": DIGEST, "decisions": [{**decision().model_dump(), "name": "  "}]}).encode(),
         "decisions.0.name"),
        (json.dumps({"audit_sha256": DIGEST, "decisions": [{**decision().model_dump(), "role": "\u200b"}]}).encode(),
         "decisions.0.role"),
        (b" " * 5_000_001, "larger than 5,000,000 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_review_is_refused_in_a_line(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "review.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_review(path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_review(tmp_path / "none.json")


def test_the_page_shows_decisions_as_text() -> None:
    hostile = decision(name=HOSTILE[0], role=HOSTILE[1], reason=HOSTILE[2], decision="risk accepted")
    page = render_html(AUDIT, DIGEST, [decision(), hostile])
    assert "Reviewed: 1 of 13 findings decided" in page
    assert page.count("risk accepted") >= 3  # in the finding, in the table, among the choices
    assert HOSTILE[0] not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Decisions of reviewers" in page
    assert "Decisions of reviewers" not in render_html(AUDIT, DIGEST)
