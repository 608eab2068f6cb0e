"""A repair as a straight line: plan, methods, candidates, random heads, sealed images, certificate, audit again."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from audit.card.load import load_card
from audit.card.repair_spec import RepairSpec
from audit.data.pixels import select
from audit.data.samples import AUDIT_SPLITS, Samples
from audit.data.sealed import OPENINGS, count_openings, open_sealed
from audit.errors import InputError
from audit.evidence.certificate import certify, with_seeds
from audit.exit_codes import ExitCode
from audit.models.build import Backbone
from audit.models.checkpoint import hash_state, save_weights
from audit.models.device import CPU
from audit.models.predict import Floats
from audit.patching.sites import Site
from audit.pipeline.analyze import questions
from audit.pipeline.context import RunContext
from audit.pipeline.prepare import Inputs, Options, prepare
from audit.pipeline.reopen import audited_name, reopen, stored_model, weights_of
from audit.pipeline.repair_aim import aimed_gap, make_plan
from audit.pipeline.repair_images import Part, figures, sealed_table
from audit.pipeline.run_audit import run_audit
from audit.pipeline.train_models import recipe_of, weights_name
from audit.process_state import run_state
from audit.progress import Step
from audit.records import Audit, ContrastRow, Outcome, Verdict
from audit.records.repair_json import Certificate, CertificateState
from audit.records.repair_methods import AT_HEADS, Method
from audit.records.repair_run import (
    Figures,
    FittedOn,
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
from audit.repair.base import Aim, RepairData, Repaired, RepairInput
from audit.repair.random_heads import matched_sets
from audit.repair.registry import OFFERS, repair, repair_at_random, why_not
from audit.repair.seen import State
from audit.report import load_audit
from audit.report.manifest import write_manifest
from audit.report.repair_page import write_repair_pages
from audit.store import check_writable, file_hash, locked, now, write_text
from audit.units import parse_name

REGISTERED, RECORD, WEIGHTS, ROWS, REAUDITED = "preregistered.json", "repair.json", "weights", "methods", "audit"
ROUNDING = 1e-9
EXITS = {
    RepairState.CERTIFIED: ExitCode.DONE,
    RepairState.NOTHING_TO_REPAIR: ExitCode.DONE,
    RepairState.FAILED: ExitCode.REPAIR_FAILED,
    RepairState.NOT_SHOWN: ExitCode.TOO_LITTLE_DATA,
    RepairState.NOT_CERTIFIABLE: ExitCode.TOO_LITTLE_DATA,
    RepairState.NO_METHOD_HELPS: ExitCode.TOO_LITTLE_DATA,
}


@dataclass(frozen=True)
class RepairOptions:
    """How a repair is run, and what the card does not say of it."""

    out: Path
    command: str
    spec: RepairSpec | None = None  # in place of the card's
    data_root: Path | None = None
    sealed: Path | None = None  # a table of other people's images, for the certificate
    reaudit: bool = True
    device: str = CPU
    report: bool = True


def repair_run(
    run: Path,
    options: RepairOptions,
    step: Step,
    *,
    samples: Samples | None = None,
    backbone: Backbone | None = None,
) -> Path:
    """Repair the model of a finished run; an interrupted repair resumes.

    Parameters
    ----------
    run : Path
    options : RepairOptions
    step : callable
        Given the name of a step, returns a callback (done, total).
    samples, backbone : optional
        What was given in Python.

    Returns
    -------
    pathlib.Path
        The folder of the repair.

    Raises
    ------
    InputError
        If there is no valid audit of a model whose inside is given, its weights or data have changed since, or the
        folder holds another repair.
    """
    audit, card = load_audit(run / "audit.json"), load_card(run / "card.yaml")
    _refuse(run, audit, options)
    spec = options.spec or card.repair or RepairSpec()
    gap = aimed_gap(audit, spec, run)
    check_writable(options.out)
    if gap is None:
        with locked(options.out):
            record = Repair(
                name=audit.name,
                state=RepairState.NOTHING_TO_REPAIR,
                exit_code=ExitCode.DONE,
                plan=None,
                audited=None,
                stages={},
                versions=_versions(),
                command=options.command,
                started=audit.provenance.started,
            )
            return _written(record, options)
    inputs = reopen(
        run,
        audit,
        options.data_root,
        step=step,
        samples=samples,
        backbone=backbone,
        again="vit_audit.repair(..., net=...)",
    )
    with run_state(fail_in_time=options.device == CPU), tempfile.TemporaryDirectory() as work:
        opened = Options("vit-audit repair", run.parent, run=run, device=options.device, work=Path(work))
        context = prepare(inputs, opened, step)
        _check_weights(context, run, audit)
        with locked(options.out):
            return _written(_Line(audit, gap, spec, context, inputs, options, step).run(), options)


def _refuse(run: Path, audit: Audit, options: RepairOptions) -> None:
    if audit.is_invalid:
        raise InputError(str(run), "is INVALID, so nothing is known that could be repaired", "see its failed controls")
    if not audit.model.has_inside:
        raise InputError(str(run), "audits predictions, not a model", "repair a run whose model was given")
    if options.out.resolve() == run.resolve() or (options.out / "audit.json").is_file():
        raise InputError(str(options.out), "is a run", "name another folder with --out")
    if options.sealed is not None and not options.sealed.is_file():
        raise InputError(str(options.sealed), "no such table", "correct --sealed")


def _check_weights(context: RunContext, run: Path, audit: Audit) -> None:
    """Refuse weights that are not those that were audited."""
    for seed in context.seeds:
        path = weights_of(run, audited_name(context, seed))
        expected = audit.provenance.hashes.get(weights_name(seed))
        if expected is not None and hash_state(load_file(path)) != expected:
            raise InputError(str(path), "has changed since the run", "restore it, or audit again")


@dataclass
class _Line:
    """One repair: what is given, and what has been found so far."""

    audit: Audit
    gap: ContrastRow
    spec: RepairSpec
    context: RunContext
    inputs: Inputs
    options: RepairOptions
    step: Step
    stages: dict[str, float] = field(default_factory=dict)

    def run(self) -> Repair:
        """Do everything, in order."""
        plan = self._register()
        with self._stage("methods"):
            rows = [self._row(method) for method in plan.methods]
        before = self._figures(self.given.seen.logits)
        chosen = self._candidates(rows, abs(before.gap.value or 0.0))
        with self._stage("random heads"):
            random = self._at_random(rows)
        judged: list[Judgement] = []
        reaudit: Reaudit | None = None
        if chosen and plan.sealed_from != SealedFrom.NONE:
            with self._stage("certificates"):
                judged, rows = self._judge(chosen, rows)
            if plan.reaudit and judged[0].certificate.state == CertificateState.CERTIFIED:
                with self._stage("audit of the repaired model"):
                    reaudit = self._audit_again(chosen[0], plan)
        state = RepairState.NO_METHOD_HELPS if not chosen else RepairState.NOT_CERTIFIABLE
        if judged:
            state = state_of_repair(judged[0].certificate.state, reaudit)
        return Repair(
            name=self.audit.name,
            state=state,
            exit_code=EXITS[state],
            plan=plan,
            audited=before,
            rows=rows,
            random=random,
            recommended=chosen[0] if chosen else None,
            certificates=judged,
            reaudit=reaudit,
            started_from={
                weights_name(seed): self.audit.provenance.hashes[weights_name(seed)] for seed in self.context.seeds
            },
            stages=self.stages,
            versions=_versions(),
            command=self.options.command,
            started=plan.registered,
        )

    # What is fixed beforehand

    def _register(self) -> RepairPlan:
        """Write the plan down before anything is done; refuse a folder that holds another."""
        sealed_from = SealedFrom.SPLIT if len(self._of("sealed")) else SealedFrom.NONE
        if self.options.sealed is not None:
            sealed_from = SealedFrom.TABLE
        fitted_on = FittedOn.REPAIR if len(self._of("repair")) else FittedOn.AUDITED
        images = {"train": len(self._of("train")), "fitted": len(self.fitted), "sealed": len(self._of("sealed"))}
        plan = make_plan(
            self.audit,
            file_hash(self.context.run / "audit.json"),
            self.gap,
            self.spec,
            images,
            fitted_on=fitted_on,
            sealed_from=sealed_from,
            reaudit=self.options.reaudit,
        )
        path = self.options.out / REGISTERED
        if path.is_file():
            before = RepairPlan.model_validate_json(path.read_text(encoding="utf-8"))
            if before.model_copy(update={"registered": ""}) != plan:
                what = "holds a repair that was planned otherwise"
                raise InputError(str(self.options.out), what, "name another --out")
            return before
        plan = plan.model_copy(update={"registered": now().isoformat()})
        write_text(path, plan.model_dump_json(indent=1) + "\n")
        return plan

    def _of(self, *splits: str) -> Part:
        rows = np.flatnonzero(self.context.samples.frame["split"].isin(splits)).astype(np.int64)
        return Part(self.context, rows)

    @cached_property
    def fitted(self) -> Part:
        """The images that methods are fitted on: those held back for it, else those of the audit."""
        held_back = self._of("repair")
        return held_back if len(held_back) else self._of(*AUDIT_SPLITS)

    # Methods

    @cached_property
    def given(self) -> RepairInput:
        """What every method is given of the first seed's model."""
        return self._given(self.context.seeds[0])

    def _given(self, seed: int) -> RepairInput:
        context, training = self.context, self.context.training
        attribute = self.gap.attribute
        groups = list(context.samples.attributes[attribute].groups)
        train = self._of("train")
        balanced = context.run / "models" / "balanced-0.safetensors"
        return RepairInput(
            stored_model(context, context.run, audited_name(context, seed)),
            RepairData(
                self.fitted.split(attribute),
                None
                if training is None or not len(train)
                else replace(train.split(attribute), images=select(context.pixels, train.rows)),
            ),
            Aim(
                attribute,
                groups.index(self.gap.group),
                groups.index(self.gap.reference),
                context.samples.labels.index(self.gap.outcome),
                self.spec.harmful_error,
                self.gap.metric,
            ),
            self.spec.accuracy_margin,
            seed=self.spec.seed,
            recipe=None if training is None else recipe_of(training, seed, context.card.model),
            flip=training is not None and training.flip,
            reference=stored_model(context, context.run, "balanced-0") if balanced.is_file() else None,
            heads=tuple(Site(*parse_name(name)) for name in self._plan.heads),
            legal_basis=self.spec.legal_basis,
            compute=context.compute,
        )

    @property
    def _plan(self) -> RepairPlan:
        return RepairPlan.model_validate_json((self.options.out / REGISTERED).read_text(encoding="utf-8"))

    def _row(self, method: Method) -> RepairRow:
        """Run a method, or return what is stored of it."""
        path = self.options.out / ROWS / f"{method}.json"
        if path.is_file():
            return RepairRow.model_validate_json(path.read_text(encoding="utf-8"))
        supervision = OFFERS[method].supervision
        row = RepairRow(
            method=method,
            group_at_training=supervision.group_at_training,
            group_at_prediction=supervision.group_at_prediction,
            not_offered=why_not(method, self.given),
        )
        if row.not_offered is None:
            tick = self.step(f"repair: {method}")
            tick(0, 1)
            row = self._told(row, repair(method, self.given))
            tick(1, 1)
        write_text(path, row.model_dump_json(indent=1) + "\n")
        return row

    def _told(self, row: RepairRow, made: Repaired) -> RepairRow:
        """Save a repaired model's weights, and say how it does on the images it was chosen on."""
        file, digest = None, None
        if made.state is not None and made.method is not Method.UNTOUCHED:
            file = f"{WEIGHTS}/{made.method}.safetensors"
            carried = self.context.preprocessing.carried
            save_weights(
                made.state,
                self.options.out / file,
                started_from=self.audit.provenance.hashes[weights_name(self.context.seeds[0])],
                preprocessing=None if carried is None else carried.text,
            )
            digest = hash_state(made.state)
        logits = made.answer(self.given.seen, self.given.data.repair.groups)
        return row.model_copy(
            update={
                "settings": dict(made.settings),
                "seconds": round(made.seconds, 2),
                "heads": [f"L{site.layer}H{site.head}" for site in made.heads],
                "weights": file,
                "weights_sha256": digest,
                "fitted": self._figures(logits, self.given.seen.logits),
            }
        )

    def _figures(self, logits: Floats, before: Floats | None = None) -> Figures:
        return figures(self.fitted, logits, before, self.gap)

    def _candidates(self, rows: Sequence[RepairRow], had: float) -> list[Method]:
        """Return the methods that are judged on sealed images: those that leave the smallest gap and no cell behind."""
        able = [
            (gap, place, row.method)
            for place, row in enumerate(rows)
            if row.weights is not None
            and (gap := _left(row)) is not None
            and gap < had - ROUNDING
            and _paid(row) <= self.spec.accuracy_margin + ROUNDING
        ]
        return [method for _, _, method in sorted(able)[: self.spec.candidates]]

    def _at_random(self, rows: Sequence[RepairRow]) -> list[RandomRow]:
        """Make the best edit at the named heads at random ones of the same layers, too."""
        edits = [(gap, row.method) for row in rows if row.method in AT_HEADS and (gap := _left(row)) is not None]
        if not edits:
            return []
        left, best = min(edits)
        path = self.options.out / ROWS / f"{Method.RANDOM_HEADS}.json"
        if path.is_file():
            return [RandomRow.model_validate_json(path.read_text(encoding="utf-8"))]
        sets = matched_sets(self.given, self.spec.random_draws)
        tick, gaps = self.step("repair: random heads"), []
        for done, made in enumerate(repair_at_random(best, self.given, sets), start=1):
            found = self._figures(made.answer(self.given.seen))
            gaps.append(abs(found.gap.value or 0.0))
            tick(done, len(sets.sets))
        as_good = sum(gap <= left + ROUNDING for gap in gaps)
        row = RandomRow(
            method=best,
            draws=len(gaps),
            gap=left,
            smallest=min(gaps, default=None),
            median=float(np.median(gaps)) if gaps else None,
            p=(1 + as_good) / (1 + len(gaps)) if gaps else None,
        )
        write_text(path, row.model_dump_json(indent=1) + "\n")
        return [row]

    # Sealed images

    def _judge(self, chosen: Sequence[Method], rows: Sequence[RepairRow]) -> tuple[list[Judgement], list[RepairRow]]:
        """Open the sealed images, once, and certify the candidates on every seed's model."""
        sealed, openings = self._open_sealed()
        found: dict[Method, list[Certificate]] = {method: [] for method in chosen}
        filled = list(rows)
        for seed in self.context.seeds:
            given = self.given if seed == self.context.seeds[0] else self._given(seed)
            seen = given.see(sealed.split(self.gap.attribute).images)
            before = sealed.frame(seen.logits)
            for method in chosen:
                state: State | None = self._stored(method) if given is self.given else repair(method, given).state
                assert state is not None
                logits = seen.answer(state)
                found[method].append(self._certified(before, sealed.frame(logits), openings))
                if given is self.given:
                    place = next(i for i, row in enumerate(filled) if row.method == method)
                    told = figures(sealed, logits, seen.logits, self.gap)
                    filled[place] = filled[place].model_copy(update={"sealed": told})
        judged = [Judgement(method=m, certificate=with_seeds(each[0], each)) for m, each in found.items()]
        return judged, filled

    def _open_sealed(self) -> tuple[Part, int]:
        context, table = self.context, self.options.sealed
        if table is not None:
            samples = sealed_table(context, table)
            part = Part(replace(context, samples=samples), np.arange(len(samples.frame), dtype=np.int64))
            return part, 1
        with locked(context.run):
            rows = open_sealed(context.samples, context.run, purpose=f"certificate of {self.options.out.name}")
            write_manifest(context.run, only=[OPENINGS])
        return Part(context, rows.index.to_numpy(dtype=np.int64)), count_openings(context.run)

    def _stored(self, method: Method) -> dict[str, torch.Tensor]:
        return load_file(self.options.out / WEIGHTS / f"{method}.safetensors")

    def _certified(self, before: pd.DataFrame, after: pd.DataFrame, openings: int) -> Certificate:
        plan = self._plan
        return certify(
            before,
            after,
            questions(self.context),
            plan.aim,
            plan.margins,
            min_subjects=self.context.card.audit.min_group_size,
            candidates=plan.candidates,
            sealed_openings=openings,
        )

    def _audit_again(self, method: Method, plan: RepairPlan) -> Reaudit:
        """Audit the repaired model as it is, on the images of the audit, and look for heads that carry the gap now."""
        card = self.context.card
        path = self.options.out / WEIGHTS / f"{method}.safetensors"
        model = card.model.model_copy(update={"weights": str(path.resolve())})
        asked = card.model_copy(update={"model": model, "training": "none", "repair": None})
        inputs = replace(self.inputs, card=asked, finished=None, backbone=Backbone(model, path))
        folder = self.options.out / REAUDITED
        given = self.options
        options = Options(given.command, given.out, run=folder, report=given.report, device=given.device)
        run_audit(inputs, options, self.step)
        again = load_audit(folder / "audit.json")
        contrast = f"{self.gap.attribute}:{self.gap.group}-{self.gap.reference}"
        confirmed = [
            row.name
            for row in again.heads
            if (row.contrast, row.outcome, row.verdict) == (contrast, self.gap.outcome, Verdict.CONFIRMED)
            and row.name not in plan.heads
        ]
        controls = again.controls.controls
        return Reaudit(
            folder=REAUDITED,
            audit_sha256=file_hash(folder / "audit.json"),
            outcome=again.outcome,
            exit_code=again.exit_code,
            controls_passed=sum(control.passed for control in controls),
            controls=len(controls),
            confirmed=[] if again.outcome == Outcome.INVALID else confirmed,
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - begun, 1)


def _left(row: RepairRow) -> float | None:
    """Return what a method leaves of the gap, absolute; None where it is not known."""
    value = None if row.fitted is None else row.fitted.gap.value
    return None if value is None else abs(value)


def _paid(row: RepairRow) -> float:
    """Return the accuracy that the group and label lose that lose most."""
    worst = None if row.fitted is None else row.fitted.worst
    return 0.0 if worst is None else -(worst.change.value or 0.0)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("vit-audit", "torch", "timm", "scikit-learn")}


def _written(record: Repair, options: RepairOptions) -> Path:
    """Write the record, and the pages that are printed from it."""
    write_text(options.out / RECORD, json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    if options.report:
        write_repair_pages(options.out, record)
    return options.out
