"""Decisions in a finished run: written whole, carried from an earlier one, and held by the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.errors import InputError
from audit.records import Review
from audit.report import render_run
from audit.report.manifest import MANIFEST, SIGNED_PDF, hash_files, manifest_rows
from audit.report.reviewing import add_review, carry_over
from audit.report.reviews import DECISIONS, read_decisions
from tests.small_world import Invoke

from .examples import changed, examples
from .run_folder import decision, digest_of, write_run

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pdf")]
AUDIT = examples()["single_layer"]
FIRST, SECOND = (f.id for f in AUDIT.findings[:2])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", AUDIT)


def test_decisions_are_carried_to_the_next_audit_and_survive_a_new_render(run: Path, tmp_path: Path) -> None:
    made = [decision(FIRST, decision="reject"), decision(SECOND), decision("", section="report")]
    add_review(run, Review(audit_sha256=digest_of(run), decisions=made))
    later = write_run(tmp_path / "later", changed(AUDIT, findings=AUDIT.findings[:1], audit_id="later"))
    taken = carry_over(later, run)
    assert list(taken.left) == made[1:]
    (here,) = taken.added
    assert here == made[0].model_copy(update={"carried_from": digest_of(run)})
    assert read_decisions(later, digest_of(later)) == [here]
    page = (later / "report.html").read_bytes()
    assert f"of an earlier audit (hash {digest_of(run)[:12]})" in page.decode()
    assert manifest_rows((later / MANIFEST).read_bytes()) == hash_files(later)
    assert carry_over(later, run).added == []
    for _ in range(2):
        render_run(later)
        assert (later / "report.html").read_bytes() == page


def test_the_command_says_what_was_taken_over_and_what_not(run: Path, tmp_path: Path, invoke: Invoke) -> None:
    saved, made = tmp_path / "review.json", [decision(FIRST, decision="reject"), decision("", section="data")]
    saved.write_text(Review(audit_sha256=digest_of(run), decisions=made).model_dump_json(), encoding="utf-8")
    done = invoke("review", run, saved)
    assert (done.exit_code, done.stdout.startswith("2 decisions added, 2 in all")) == (0, True)
    assert "A reviewer rejected: " in done.stdout
    later = write_run(tmp_path / "later", changed(AUDIT, audit_id="later"))
    taken = invoke("review", later, "--from", run)
    assert taken.exit_code == 0, taken.output
    assert taken.stdout.startswith("1 decisions added, 1 in all")
    assert "not taken over: accept by R. Reader of the data, which is about that audit alone" in taken.stdout
    assert f"of an earlier audit (hash {digest_of(run)[:12]})" in taken.stdout
    refused = invoke("review", later)
    assert (refused.exit_code, "name a review.json, or --from EARLIER" in refused.stderr) == (2, True)
    refused = invoke("sign", later, "--key", saved, "--certificate", saved)
    assert (refused.exit_code, "are of a PDF; give --pdf" in refused.stderr) == (2, True)


def test_only_an_earlier_run_as_it_was_written_is_carried_from(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the same record as this run"):
        carry_over(run, run)
    later = write_run(tmp_path / "later", changed(AUDIT, audit_id="later"))
    add_review(run, Review(audit_sha256=digest_of(run), decisions=[decision(FIRST)]))
    whole = (run / DECISIONS).read_bytes()
    (run / DECISIONS).write_bytes(whole.replace(b"accept", b"reject"))
    with pytest.raises(InputError, match="decisions were changed or dropped"):
        carry_over(later, run)
    assert not (later / DECISIONS).exists()


def test_a_record_that_was_edited_takes_no_decision(run: Path) -> None:
    (run / "audit.json").write_text(changed(AUDIT, name="another").model_dump_json(), encoding="utf-8")
    before = hash_files(run)
    with pytest.raises(InputError, match=r"audit\.json: was changed after manifest\.json was written"):
        add_review(run, Review(audit_sha256=digest_of(run), decisions=[decision(FIRST)]))
    assert hash_files(run) == before


def test_a_pdf_that_was_signed_before_the_decision_goes(run: Path) -> None:
    (run / SIGNED_PDF).write_bytes(b"%PDF of an earlier report")
    add_review(run, Review(audit_sha256=digest_of(run), decisions=[decision(FIRST)]))
    assert not (run / SIGNED_PDF).exists()
    assert SIGNED_PDF not in manifest_rows((run / MANIFEST).read_bytes())
