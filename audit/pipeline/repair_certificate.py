"""The candidates of a repair on sealed images, and the repaired model audited again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from audit.data.sealed import OPENINGS, count_openings, note_opening, open_sealed
from audit.evidence.certificate import certify, with_seeds
from audit.pipeline.analyze import questions
from audit.pipeline.prepare import Options
from audit.pipeline.repair_aim import heads_with_effect
from audit.pipeline.repair_images import Part, figures
from audit.pipeline.repair_methods import state_of_seed, stored_state
from audit.pipeline.repair_setup import Setup
from audit.pipeline.run_audit import run_audit
from audit.records.repair_json import Certificate
from audit.records.repair_methods import Method
from audit.records.repair_run import Figures, Judged, Judgement, Reaudit, RepairRow
from audit.repair.seen import with_state
from audit.report import load_audit
from audit.report.manifest import write_manifest
from audit.store import file_hash, locked, write_text

CHOSEN, CERTIFICATES, REAUDITED = "chosen.json", "certificates.json", "audit"


def judge(setup: Setup, chosen: Sequence[Method], rows: Sequence[RepairRow]) -> Judged:
    """Open the sealed images, once, and certify the candidates, each method on every seed's model.

    Which these are, and all their weights, are on the disk before; what came out is kept, and not looked at again.
    """
    path = setup.options.out / CERTIFICATES
    if not path.is_file():
        write_text(path, _judged(setup, chosen, {row.method: row for row in rows}).model_dump_json(indent=1) + "\n")
    return Judged.model_validate_json(path.read_text(encoding="utf-8"))


def _judged(setup: Setup, chosen: Sequence[Method], rows: Mapping[Method, RepairRow]) -> Judged:
    write_text(setup.options.out / CHOSEN, json.dumps([str(method) for method in chosen]) + "\n")
    seeds = setup.context.seeds
    states = {(seeds[0], method): stored_state(setup, rows[method]) for method in chosen}
    states |= {(seed, method): state_of_seed(setup, method, seed) for seed in seeds[1:] for method in chosen}
    sealed, openings = _open(setup)
    images = sealed.split(setup.gap.attribute).images
    found: dict[Method, list[Certificate]] = {method: [] for method in chosen}
    told: dict[Method, Figures] = {}
    audited: Figures | None = None
    for seed in seeds:
        given = setup.given if seed == seeds[0] else setup.given_of(seed)
        seen = given.see(images)
        before = sealed.frame(seen.logits)
        if seed == seeds[0]:
            audited = figures(sealed, seen.logits, None, setup.gap)
        for method in chosen:
            logits = seen.answer(states[seed, method])
            found[method].append(_certified(setup, before, sealed.frame(logits), openings))
            if seed == seeds[0]:
                told[method] = figures(sealed, logits, seen.logits, setup.gap)
    every = [Judgement(method=method, certificate=with_seeds(each[0], each)) for method, each in found.items()]
    return Judged(audited=audited, certificates=every, sealed=told)


def _open(setup: Setup) -> tuple[Part, int]:
    """Return the sealed images, and how often they were opened; the run keeps the count."""
    context, others, purpose = setup.context, setup.others, f"certificate of {setup.options.out.name}"
    with locked(context.run):
        if others is None:
            rows = open_sealed(context.samples, context.run, purpose=purpose).index.to_numpy(dtype=np.int64)
        else:
            note_opening(context.run, purpose=purpose, table=setup.plan.sealed_table)
            context, rows = replace(context, samples=others), np.arange(len(others.frame), dtype=np.int64)
        write_manifest(context.run, only=[OPENINGS])
        openings = count_openings(context.run, table=setup.plan.sealed_table)
    return Part(context, rows), openings


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


def audit_again(setup: Setup, row: RepairRow) -> Reaudit:
    """Audit a method's model as it is, on the images of the audit, and look for heads that tell groups apart now.

    Raises
    ------
    InputError
        If its weights are not those that were certified.
    """
    card, given, state = setup.context.card, setup.options, stored_state(setup, row)
    path = given.out / str(row.weights)
    # what production answered is another model's
    model = card.model.model_copy(update={"weights": str(path.resolve()), "served": None})
    # control models start from what the audited model was trained from, as in the first audit, not from its repair
    start = card.controls.weights or (None if setup.context.training is None else card.model.weights)
    instrument = card.controls.model_copy(update={"weights": start})
    asked = card.model_copy(update={"model": model, "training": "none", "controls": instrument, "repair": None})
    repaired = with_state(setup.given.model, state)
    inputs = replace(setup.inputs, card=asked, finished=None, backbone=replace(setup.context.backbone, module=repaired))
    folder = given.out / REAUDITED
    options = Options(given.command, given.out, run=folder, report=given.report, device=given.device)
    run_audit(inputs, options, setup.step)
    again = load_audit(folder / "audit.json")
    before, after = (heads_with_effect(audit, setup.gap) for audit in (setup.audit, again))
    confirmed = sorted(after - before - set(setup.plan.heads))
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
