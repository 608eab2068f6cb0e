"""Records of repairs, as pages are printed from them: hostile labels, one line that is shown and one that is not."""

from __future__ import annotations

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
    Repair,
    RepairPlan,
    RepairRow,
    RepairState,
    SealedFrom,
)

HOSTILE = "<script>alert(1)</script>"
AIM = Aim(attribute="tone", group=HOSTILE, reference="b", outcome="smiling", metric=Metric.STANDARDISED_GAP)
IMAGES = {"train": 900, "fit": 608, "choose": 300, "sealed": 400}
MARGINS = Margins(gap=0.05, accuracy=0.02, error=0.02)


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def figures(gap: float) -> Figures:
    worst = CellChange(group=HOSTILE, label="neutral", change=estimate(-0.004))
    return Figures(images=300, gap=estimate(gap), accuracy=estimate(0.9), worst=worst)


def line(state: LineState) -> CertificateLine:
    return CertificateLine(
        kind=LineKind.CELL_ACCURACY, attribute="tone", group=HOSTILE, label="neutral", estimate=estimate(-0.004),
        before=0.9, after=0.896, margin=0.02, p=0.01 if state == LineState.SHOWN else 0.2, state=state, images=120,
        subjects=120, needed_images=None if state == LineState.SHOWN else 456,
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
        fitted_on=FittedOn.REPAIR, sealed_from=SealedFrom.SPLIT, images=IMAGES, reaudit=True, code="b" * 64,
        registered="2026-01-31T12:00:00+00:00",
    )  # fmt: skip
    told = {"group_at_training": True, "group_at_prediction": False}
    rows = [
        RepairRow(method=Method.DFR, ranked=figures(-0.03), seconds=1.5, weights="weights/dfr.safetensors", **told),
        RepairRow(method=Method.LEACE, not_offered=WhyNotOffered.EXTRA_MISSING, **told),
    ]
    random = RandomRow(method=Method.HEADS_SHIFTED, draws=19, gap=0.03, smallest=0.02, median=0.1, p=0.4)
    fields = {
        "plan": plan, "audited": figures(-0.2), "audited_sealed": figures(-0.18), "rows": rows,
        "random": [random], "recommended": Method.DFR,
        "certificates": [Judgement(method=Method.DFR, certificate=certificate(CertificateState.NOT_SHOWN))],
    }  # fmt: skip
    base = {
        "name": HOSTILE, "state": state, "exit_code": 0, "stages": {}, "versions": {}, "command": "vit-audit repair",
        "started": "2026-01-31T12:00:00+00:00",
    }  # fmt: skip
    return Repair.model_validate({**base, **fields, **changes})
