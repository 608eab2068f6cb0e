"""The candidates of a repair on sealed images, and the repaired model audited again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from audit.data.sealed import OPENINGS, count_openings, open_sealed
from audit.evidence.certificate import certify, with_seeds
from audit.pipeline.analyze import questions
from audit.pipeline.prepare import Options
from audit.pipeline.repair_images import Part, figures, sealed_table
from audit.pipeline.repair_methods import WEIGHTS, stored_state
from audit.pipeline.repair_setup import Setup
from audit.pipeline.run_audit import run_audit
from audit.records import Verdict
from audit.records.repair_json import Certificate
from audit.records.repair_methods import Method
from audit.records.repair_run import Judgement, Reaudit, RepairRow
from audit.repair.registry import repair
from audit.repair.seen import with_state
from audit.report import load_audit
from audit.report.manifest import write_manifest
from audit.store import file_hash, locked, write_text

CHOSEN, REAUDITED = "chosen.json", "audit"


def judge(setup: Setup, chosen: Sequence[Method], rows: Sequence[RepairRow]) -> tuple[list[Judgement], list[RepairRow]]:
    """Open the sealed images, once, and certify the candidates, each method on every seed's model.

    Which these are is written down before.
    """
    write_text(setup.options.out / CHOSEN, json.dumps([str(method) for method in chosen]) + "\n")
    sealed, openings = _open(setup)
    images = sealed.split(setup.gap.attribute).images
    found: dict[Method, list[Certificate]] = {method: [] for method in chosen}
    filled = {row.method: row for row in rows}
    for seed in setup.context.seeds:
        first = seed == setup.context.seeds[0]
        given = setup.given if first else setup.given_of(seed)
        seen = given.see(images)
        before = sealed.frame(seen.logits)
        for method in chosen:
            state = stored_state(setup, method) if first else repair(method, given).state
            assert state is not None  # candidates are methods that leave weights
            logits = seen.answer(state)
            found[method].append(_certified(setup, before, sealed.frame(logits), openings))
            if first:
                told = figures(sealed, logits, seen.logits, setup.gap)
                filled[method] = filled[method].model_copy(update={"sealed": told})
    judged = [Judgement(method=method, certificate=with_seeds(each[0], each)) for method, each in found.items()]
    return judged, list(filled.values())


def _open(setup: Setup) -> tuple[Part, int]:
    """Return the sealed images, and how often they were opened; the run keeps the count."""
    context, table = setup.context, setup.options.sealed
    if table is not None:
        samples = sealed_table(context, table)
        return Part(replace(context, samples=samples), np.arange(len(samples.frame), dtype=np.int64)), 1
    with locked(context.run):
        rows = open_sealed(context.samples, context.run, purpose=f"certificate of {setup.options.out.name}")
        write_manifest(context.run, only=[OPENINGS])
    return Part(context, rows.index.to_numpy(dtype=np.int64)), count_openings(context.run)


def _certified(setup: Setup, before: pd.DataFrame, after: pd.DataFrame, openings: int) -> Certificate:
    return certify(
        before,
        after,
        questions(setup.context),
        setup.plan.aim,
        setup.plan.margins,
        min_subjects=setup.context.card.audit.min_group_size,
        candidates=setup.plan.candidates,
        sealed_openings=openings,
    )


def audit_again(setup: Setup, method: Method) -> Reaudit:
    """Audit a repaired model as it is, on the images of the audit, and look for heads that carry the gap now."""
    card, given = setup.context.card, setup.options
    path = given.out / WEIGHTS / f"{method}.safetensors"
    model = card.model.model_copy(update={"weights": str(path.resolve())})
    asked = card.model_copy(update={"model": model, "training": "none", "repair": None})
    repaired = with_state(setup.given.model, stored_state(setup, method))
    inputs = replace(
        setup.inputs, card=asked, finished=None, backbone=replace(setup.context.backbone, module=repaired)
    )
    folder = given.out / REAUDITED
    options = Options(given.command, given.out, run=folder, report=given.report, device=given.device)
    run_audit(inputs, options, setup.step)
    again = load_audit(folder / "audit.json")
    contrast = f"{setup.gap.attribute}:{setup.gap.group}-{setup.gap.reference}"
    confirmed = [
        row.name
        for row in again.heads
        if (row.contrast, row.outcome, row.verdict) == (contrast, setup.gap.outcome, Verdict.CONFIRMED)
        and row.name not in setup.plan.heads
    ]
    controls = again.controls.controls
    return Reaudit(
        folder=REAUDITED,
        audit_sha256=file_hash(folder / "audit.json"),
        outcome=again.outcome,
        exit_code=again.exit_code,
        controls_passed=sum(control.passed for control in controls),
        controls=len(controls),
        confirmed=[] if again.is_invalid else confirmed,
    )
