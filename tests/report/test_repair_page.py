"""The page of a repair: every state, hostile labels, and what a reader must know first."""

from __future__ import annotations

import re

import pytest
from lxml import html as lxml_html

from audit.records import Estimate, Metric
from audit.records.repair_json import (
    Aim,
    Certificate,
    CertificateLine,
    CertificateState,
    Changed,
    LineKind,
    LineState,
    Margins,
)
from audit.records.repair_methods import Method, WhyNotOffered
from audit.records.repair_run import (
    CellChange,
    Figures,
    FittedOn,
    HeadsFrom,
    Judgement,
    RandomRow,
    Reaudit,
    Repair,
    RepairPlan,
    RepairRow,
    RepairState,
    SealedFrom,
    state_of_repair,
)
from audit.report.html import render_repair
from audit.report.text import certificate_line, method_line, repair_line, repair_notes

pytestmark = pytest.mark.unit
HOSTILE = "<script>alert(1)</script>"
AIM = Aim(attribute="tone", group=HOSTILE, reference="b", outcome="smiling", metric=Metric.STANDARDISED_GAP)
MARGINS = Margins(gap=0.05, accuracy=0.02, error=0.02)


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def figures(gap: float) -> Figures:
    worst = CellChange(group=HOSTILE, label="neutral", change=estimate(-0.004))
    return Figures(images=300, gap=estimate(gap), accuracy=estimate(0.9), worst=worst)


def line(state: LineState) -> CertificateLine:
    return CertificateLine(
        kind=LineKind.CELL_ACCURACY, attribute="tone", group=HOSTILE, label="neutral", estimate=estimate(-0.004),
        before=0.9, after=0.896, margin=0.02, p=0.2, state=state, images=120, subjects=120, needed_images=456,
    )  # fmt: skip


def certificate(state: CertificateState) -> Certificate:
    changed = Changed(
        attribute="tone", group=HOSTILE, images=120, subjects=120, images_newly_wrong=3, images_newly_right=17,
        subjects_newly_wrong=3, subjects_newly_right=17,
    )  # fmt: skip
    return Certificate(
        state=state, aim=AIM, margins=MARGINS, alpha=0.05, candidates=1, min_subjects=30, images=400, subjects=400,
        lines=[line(LineState.NOT_SHOWN), line(LineState.SHOWN)], levelled_down=["b"], changed=[changed],
        needed_images=4321, by_seed=[state, state], sealed_openings=2,
    )  # fmt: skip


def repair(state: RepairState, **changes: object) -> Repair:
    plan = RepairPlan(
        audit_sha256="a" * 64, aim=AIM, methods=[Method.UNTOUCHED, Method.DFR, Method.LEACE], margins=MARGINS,
        candidates=1, heads=["L1H2"], heads_from=HeadsFrom.SMALLEST_SET, random_draws=20, seed=0, legal_basis="",
        fitted_on=FittedOn.REPAIR, sealed_from=SealedFrom.SPLIT, images={"sealed": 400}, reaudit=True, code="b" * 64,
        registered="2026-01-31T12:00:00+00:00",
    )  # fmt: skip
    told = {"group_at_training": True, "group_at_prediction": False}
    rows = [
        RepairRow(method=Method.DFR, fitted=figures(-0.03), seconds=1.5, weights="weights/dfr.safetensors", **told),
        RepairRow(method=Method.LEACE, not_offered=WhyNotOffered.EXTRA_MISSING, **told),
    ]
    random = RandomRow(method=Method.HEADS_SHIFTED, draws=19, gap=0.03, smallest=0.02, median=0.1, p=0.4)
    fields = {
        "plan": plan, "audited": figures(-0.2), "rows": rows, "random": [random], "recommended": Method.DFR,
        "certificates": [Judgement(method=Method.DFR, certificate=certificate(CertificateState.NOT_SHOWN))],
    }  # fmt: skip
    base = {
        "name": HOSTILE, "state": state, "exit_code": 0, "stages": {}, "versions": {}, "command": "vit-audit repair",
        "started": "2026-01-31T12:00:00+00:00",
    }  # fmt: skip
    return Repair.model_validate({**base, **fields, **changes})


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


def test_lines_of_the_terminal_have_the_numbers() -> None:
    record = repair(RepairState.NOT_SHOWN)
    assert repair_line(record).startswith("NOT SHOWN: There is too little data")
    first, second = map(method_line, record.rows)
    assert first.startswith("last layer (DFR): gap −3.0 points [−4.0, −2.0], accuracy 90.0%, largest loss −0.4 points")
    assert second == "group erased (LEACE): not offered, its package is not installed: pip install 'vit-audit[repair]'"
    said = certificate_line(line(LineState.NOT_SHOWN))
    assert "not shown: Accuracy, lowered by less than the margin" in said
    assert said.endswith("margin +2.0; 456 images would do")


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
    assert state_of_repair(weak, None) == RepairState.NOT_SHOWN  # it was not audited again
