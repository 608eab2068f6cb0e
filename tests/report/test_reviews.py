"""Decisions: bound to one audit, added and never changed, and shown where they belong."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from lxml import html as lxml_html
from pydantic import ValidationError

from audit import terminal
from audit.errors import InputError
from audit.records import Decision, Review, Section
from audit.report import formats
from audit.report.html import render_html
from audit.report.reviews import (
    DECISIONS,
    by_subject,
    carried,
    chained,
    in_order,
    merge,
    read_decisions,
    read_review,
    standing,
)
from audit.report.text import Sentences

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
    found = by_subject(read_decisions(tmp_path, DIGEST))
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
    assert by_subject(there)[FIRST] == [older, newer]
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


OLD = {"finding": "F-1", "decision": "accept", "name": "R.", "role": "c.", "reason": "seen",
       "decided": "2026-03-02T10:00:00Z"}  # fmt: skip


def test_lines_and_reviews_of_older_versions_are_read_and_written_as_they_were() -> None:
    assert Review.model_validate({"review_version": "1.0", "audit_sha256": DIGEST, "decisions": [OLD]}).decisions
    (line,) = chained([Decision.model_validate(OLD)], DIGEST)
    assert line == json.dumps({**OLD, "previous": DIGEST}, sort_keys=True) + "\n"


def test_sections_and_the_whole_report_are_decided_with_owner_day_and_remedy(tmp_path: Path) -> None:
    asked = {"owner": "D. Data", "due": "2026-06-30", "remedy": "photograph more", "independence": "external"}
    made = [of_section(s, decision="needs more", **asked) for s in Section] + [decision(**asked)]
    assert added(tmp_path, *made) == made
    assert read_decisions(tmp_path, DIGEST) == made
    for wrong in ({"section": "data"}, {"finding": ""}, {"due": "2026-02-30"}, {"independence": "none"}):
        with pytest.raises(ValidationError):
            decision(**wrong)


def of_section(section: str, **update: Any) -> Decision:
    return decision("", section=section, **update)


def test_the_last_decision_of_each_reviewer_stands_and_a_comment_decides_nothing() -> None:
    first = decision(decision="reject")
    again = decision(name="r.  READER", decided="2026-03-03T10:00:00Z")
    other = decision(name="S. Second", decision="risk accepted", decided="2026-03-01T10:00:00Z")
    remark = decision(name="T. Third", decision="comment", decided="2026-03-09T10:00:00Z")
    assert standing([remark]) == {}
    (found,) = standing([again, first, remark]).values()
    assert (found.decisions, found.disputed, found.rejected) == ([again], False, False)
    (found,) = standing([again, other, first]).values()
    assert (found.decisions, found.disputed) == ([other, again], True)


def test_what_was_carried_counts_until_somebody_decides_anew() -> None:
    gone, whole = decision("F-gone"), of_section("report")
    here, left = carried([decision(decision="reject"), gone, whole], "a" * 64, AUDIT)
    assert left == [gone, whole]
    assert [d.carried_from for d in here] == ["a" * 64]
    assert carried(here, "b" * 64, AUDIT) == (here, [])  # the audit that it was made of stays
    assert standing(here)[FIRST].rejected
    anew = decision(name="S. Second", decided="2026-01-01T00:00:00Z")
    assert standing([*here, anew])[FIRST].decisions == [anew]


def test_a_review_cannot_say_that_it_was_carried(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made of another audit; take the decisions"):
        added(tmp_path, decision(carried_from="a" * 64))


def test_the_page_shows_decisions_as_text() -> None:
    hostile = decision(name=HOSTILE[0], role=HOSTILE[1], reason=HOSTILE[2], decision="risk accepted")
    page = render_html(AUDIT, DIGEST, [decision(), hostile])
    assert "1 of 13 findings decided" in page
    assert page.count("risk accepted") >= 3  # in the finding, in the table, among the choices
    assert HOSTILE[0] not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Decisions of reviewers" in page
    assert "Decisions of reviewers" not in render_html(AUDIT, DIGEST)


@pytest.mark.parametrize("for_print", [False, True])
def test_a_rejected_gap_leaves_page_one_and_the_outcome_says_who_rejected_it(for_print: bool) -> None:
    audit = examples()["disparity"]
    gap = next(f for f in audit.findings if f.kind == "disparity")
    title = Sentences(audit).finding("title", gap)

    def shown(*decisions: Decision) -> str:
        tree = lxml_html.document_fromstring(render_html(audit, DIGEST, decisions, for_print=for_print))
        return " ".join(tree.get_element_by_id("summary").text_content().split())

    claim = f"{formats.magnitude(audit.contrasts[0].estimate)} more often"
    assert claim in shown()
    assert "A reviewer rejected" not in shown()
    rejected = decision(gap.id, decision="reject", independence="external")
    said = shown(rejected)
    assert "▲ DISPARITY FOUND" in said  # the audit's own answer
    assert f"A reviewer rejected: {title} ({gap.id}), {formats.spread(gap.estimate)}." in said
    assert "R. Reader, compliance (outside the organisation), 2026-03-02" in said
    assert "Every difference above the policy was rejected." in said
    assert "Not met by what was measured; reviewers reject every gap above it" in said
    rest = said.replace(title, "")
    assert [word for word in ("more often", "unlikely to be chance") if word in rest] == []
    summary = terminal.summary(audit, Path("r"), [rejected])
    assert f"review: A reviewer rejected: {title}" in summary
    assert "largest gap: -" not in summary
    accepted = decision(gap.id, name="S. Second")
    said = shown(rejected, accepted)
    assert "Reviewers disagree about" in said
    assert "rejected by R. Reader" in said
    assert claim in said
    assert "review: Reviewers disagree" in terminal.summary(audit, Path("r"), [rejected, accepted])


@pytest.mark.parametrize("name", ["passed", "inconclusive", "invalid"])
def test_an_audit_without_findings_is_signed_off(name: str) -> None:
    signed = of_section("report", independence="organisation", reason="may be used until June")
    tree = lxml_html.document_fromstring(render_html(examples()[name], DIGEST, [signed]))
    said = " ".join(tree.get_element_by_id("summary").text_content().split())
    assert (
        "On the report as a whole: signed off. R. Reader, compliance (of the same organisation, outside the team), "
        "2026-03-02: “may be used until June”."
    ) in said
    assert "may be used until June" in tree.get_element_by_id("actions").text_content()
    assert "finding" not in said.split("signed off.", 1)[1][:90]


def test_what_is_to_be_done_is_listed_by_day() -> None:
    later, sooner = decision(due="2026-09-01", owner="O. One"), decision(SECOND, due="2026-05-01", remedy="retrain")
    tree = lxml_html.document_fromstring(render_html(AUDIT, DIGEST, [later, sooner, of_section("data")]))
    rows = tree.xpath("//table[@id='actions-table']/tbody/tr")
    assert [row.xpath("string(td[3])").strip() for row in rows] == ["2026-05-01", "2026-09-01"]
    assert [row.xpath("string(td[1])").strip() for row in rows] == ["retrain", "not stated"]


CORPUS = (
    *HOSTILE[:4], "</textarea></template><script>alert(2)</script>", "<svg/onload=alert(3)>", "javascript:alert(4)",
    "'-alert(5)-'", "</style><body onpageshow=alert(6)>", "<!--", "]]>", "${alert(7)}", "&lt;script&gt;alert(8)",
)  # fmt: skip


@pytest.mark.parametrize("served", [False, True])
def test_hostile_words_of_reviewers_stay_words_in_every_field(served: bool) -> None:
    audit = examples()["single_layer"]
    fields = ("name", "role", "reason", "remedy", "owner")
    hostile = [
        decision(audit.findings[0].id, **{**dict.fromkeys(fields, word[:200]), "decision": made})
        for word, made in zip(CORPUS, ["reject", "accept", "comment", "needs more", "risk accepted"] * 3, strict=False)
    ] + [of_section("report", **dict.fromkeys(fields, word[:200])) for word in CORPUS]
    tree = lxml_html.document_fromstring(render_html(audit, DIGEST, hostile, served=served))
    assert len(tree.xpath("//script[not(@type)]")) == len(tree.xpath("//style")) == 1
    assert [k for e in tree.iter() if isinstance(e.tag, str) for k in e.attrib if k.startswith("on")] == []
    assert tree.xpath("//svg|//img[not(starts-with(@src, 'data:'))]|//a[not(starts-with(@href, '#'))]/@href") == (
        ["report.pdf"] if served else []
    )
    said = tree.get_element_by_id("actions").text_content()
    assert all(word in said for word in CORPUS if "\u202e" not in word)
