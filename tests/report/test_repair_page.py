"""The page of a repair: every state, hostile labels, and what a reader must know first."""

from __future__ import annotations

import re

import pytest
from lxml import html as lxml_html

from audit.records import Estimate
from audit.records.repair_json import CertificateState, LineState
from audit.records.repair_methods import LOSS_AT_HALF, SMALLEST_CELL, Method
from audit.records.repair_run import Judgement, Reaudit, RepairState, best_of, state_of_repair
from audit.report.drawn.base import Picture
from audit.report.figures import Trade, trade_picture
from audit.report.html import render_repair
from audit.report.names import Names
from audit.report.text import certificate_line, method_line, repair_line, repair_notes, repair_sentence

from .example_repairs import HOSTILE, certificate, line, repair

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("state", RepairState)
@pytest.mark.parametrize("for_print", [False, True])
def test_every_state_is_said_and_no_label_becomes_markup(state: RepairState, *, for_print: bool) -> None:
    page = render_repair(repair(state), for_print=for_print)
    assert HOSTILE not in page
    text = " ".join(lxml_html.fromstring(page).text_content().split())
    assert f"{HOSTILE}: repair {state}" in text
    assert "456 images would do" in text
    assert "opened 2 times so far" in text
    assert ("not recommended" in text) == (state != RepairState.CERTIFIED)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_names_of_the_card_take_the_place_of_values() -> None:
    names = Names(
        {"tone": {HOSTILE: "darker faces", "b": "lighter faces"}}, {"smiling": "a smile", "neutral": "no smile"}
    )
    page = render_repair(repair(RepairState.NOT_SHOWN), names)
    (main,) = lxml_html.fromstring(page).xpath("//main")
    text = " ".join(main.text_content().split())
    assert "darker faces against lighter faces, called a smile" in text
    assert "darker faces, no smile" in text  # the cell that loses most
    assert HOSTILE not in text
    assert "because lighter faces got more errors" in text
    assert repair_sentence(repair(RepairState.FAILED), names).startswith(
        "Darker faces against lighter faces, called a smile:"
    )


def test_nothing_to_repair_has_a_page_without_tables() -> None:
    record = repair(
        RepairState.NOTHING_TO_REPAIR, plan=None, audited=None, rows=[], random=[], recommended=None, certificates=[]
    )
    page = render_repair(record)
    assert "The audit detected no gap" in page
    assert "<table" not in page


def test_what_a_reader_must_know_first_is_said() -> None:
    again = Reaudit(
        folder="audit", audit_sha256="c" * 64, outcome="DISPARITY FOUND", exit_code=1, controls_passed=5, controls=5,
        confirmed=["L0H3"],
    )  # fmt: skip
    notes = repair_notes(repair(RepairState.FAILED, reaudit=again))
    assert any("L0H3" in note for note in notes)
    assert any("levelling down" in note for note in notes)
    assert any("4,321 sealed images" in note for note in notes)
    assert any("the same edit at random heads" in note for note in notes)
    assert any("Sealed images were opened 2 times." in note for note in notes)
    assert not any("No images were held back" in note for note in notes)


def notes_with(**settings: object) -> str:
    """Return what is told of a repair whose first method has these settings."""
    record = repair(RepairState.NO_METHOD_HELPS)
    rows = [record.rows[0].model_copy(update={"settings": settings}), *record.rows[1:]]
    return "\n".join(repair_notes(record.model_copy(update={"rows": rows})))


def test_what_half_of_the_gap_costs_is_said_where_it_is_more_than_the_margin() -> None:
    told = "halved the gap cost one group and label 7.0 points of accuracy (last layer (DFR)); the margin is 2.0."
    assert told in notes_with(**{LOSS_AT_HALF: 0.07})
    for said in (notes_with(**{LOSS_AT_HALF: 0.01}), notes_with()):
        assert "halved the gap" not in said


def test_cells_of_which_no_image_may_be_lost_are_said() -> None:
    told = "has 30 images: one of them is 3.3 points of accuracy, more than the margin, so none may be lost."
    assert told in notes_with(**{SMALLEST_CELL: 30})
    for said in (notes_with(**{SMALLEST_CELL: 50}), notes_with()):
        assert "may be lost" not in said


def test_the_picture_draws_both_intervals_and_says_them() -> None:
    def drawn(gap: Estimate) -> Picture:
        picture = trade_picture((Trade("DFR", gap, Estimate(value=-0.01, low=-0.02, high=0.0), True),), 0.02, "Price")
        assert picture is not None
        return picture

    wide = drawn(Estimate(value=-0.08, low=-0.12, high=-0.04))
    assert "gap −8.0 points [−12.0, −4.0], largest loss −1.0 points [−2.0, 0.0]" in wide.alt
    assert wide.light != drawn(Estimate(value=-0.08, low=-0.12, high=0.02)).light  # drawn as far as 0
    assert wide.light != drawn(Estimate(value=-0.08, low=None, high=None)).light


def test_lines_of_the_terminal_have_the_numbers() -> None:
    record = repair(RepairState.NOT_SHOWN)
    assert repair_line(record).startswith("NOT SHOWN: There is too little data")
    first, second = (method_line(row, "tone") for row in record.rows)
    assert first.startswith("last layer (DFR): gap −3.0 points [−4.0, −2.0], accuracy 90.0%, largest loss −0.4 points")
    assert second == "group erased (LEACE): not offered, its package is not installed: pip install 'vit-audit[repair]'"
    said = certificate_line(line(LineState.NOT_SHOWN))
    assert "not shown: Accuracy, lowered by less than the margin" in said
    assert said.endswith("margin +2.0; 456 images would do")
    names = Names({"tone": {HOSTILE: "darker faces"}}, {"neutral": "no smile"})
    assert "(darker faces, no smile)" in method_line(record.rows[0], "tone", names)
    assert "(darker faces, no smile)" in certificate_line(line(LineState.NOT_SHOWN), names)


@pytest.mark.parametrize(
    ("shown", "outcome", "confirmed", "state"),
    [
        (CertificateState.CERTIFIED, "PASSED", [], RepairState.CERTIFIED),
        (CertificateState.CERTIFIED, "DISPARITY FOUND", ["L0H1"], RepairState.FAILED),
        (CertificateState.CERTIFIED, "INVALID", [], RepairState.FAILED),
        (CertificateState.CERTIFIED, None, [], RepairState.NOT_SHOWN),
        (CertificateState.NOT_SHOWN, None, [], RepairState.NOT_SHOWN),
        (CertificateState.FAILED, None, [], RepairState.FAILED),
    ],
)
def test_a_model_is_certified_by_its_lines_and_by_its_own_audit(
    shown: CertificateState, outcome: str | None, confirmed: list[str], state: RepairState
) -> None:
    again = None
    if outcome is not None:
        again = Reaudit(
            folder="audit", audit_sha256="c" * 64, outcome=outcome, exit_code=0, controls_passed=1, controls=1,
            confirmed=confirmed,
        )  # fmt: skip
    assert state_of_repair(certificate(shown), again) == state


def test_a_seed_whose_certificate_failed_fails_the_repair() -> None:
    found = certificate(CertificateState.CERTIFIED)
    torn = found.model_copy(update={"by_seed": [CertificateState.CERTIFIED, CertificateState.FAILED]})
    assert state_of_repair(torn, None) == RepairState.FAILED
    weak = found.model_copy(update={"by_seed": [CertificateState.CERTIFIED, CertificateState.NOT_SHOWN]})
    again = Reaudit(
        folder="audit",
        audit_sha256="c" * 64,
        outcome="PASSED",
        exit_code=0,
        controls_passed=1,
        controls=1,
        confirmed=[],
    )
    assert state_of_repair(weak, again) == RepairState.NOT_SHOWN
    assert state_of_repair(found, again) == RepairState.CERTIFIED
    judged = [Judgement(method=Method.DFR, certificate=one) for one in (torn, weak, found)]
    assert best_of(judged) is judged[2]
    for one, said in ((weak, True), (found, False)):
        kept = repair(RepairState.NOT_SHOWN, certificates=[Judgement(method=Method.DFR, certificate=one)])
        notes = repair_notes(kept)
        differs = "The certificate differs between the models of the training seeds: CERTIFIED, NOT SHOWN."
        assert (differs in notes) == said
        assert ("The repaired model was not audited again." in notes) != said
    assert best_of(judged[:2]) is judged[1]
    assert best_of(judged[:1]) is judged[0]


def test_a_chosen_edit_at_heads_that_was_not_compared_with_random_ones_is_not_said_to_be_of_the_place() -> None:
    record = repair(RepairState.NOT_SHOWN)
    edit = record.rows[0].model_copy(update={"method": Method.HEADS_FINETUNED, "heads": ["L1H2"]})
    told = record.model_copy(update={"rows": [edit], "recommended": Method.HEADS_FINETUNED})
    assert any("only the first edit was" in note for note in repair_notes(told))
    compared = told.model_copy(update={"random": [record.random[0].model_copy(update={"method": edit.method})]})
    assert not any("only the first edit was" in note for note in repair_notes(compared))
