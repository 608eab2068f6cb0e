"""The audit as a straight line: card, data, models, controls, patching, evidence, findings, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import timm
import torch

import audit.batching
import audit.data
import audit.evidence
import audit.models
import audit.patching
from audit import __version__
from audit.batching import keep_freed_memory
from audit.card.load import load_card, resolve
from audit.card.schema import Card, ModelSpec
from audit.controls.control_images import ControlSet
from audit.data.assemble import read_samples
from audit.data.pixels import load_pixels
from audit.data.samples import Samples
from audit.data.summary import audited_outcomes
from audit.errors import DataError, InputError, ModelError, UnfinishedError
from audit.evidence.joint_patching import sets_to_patch
from audit.models.adapters.registry import adapter
from audit.models.build import Backbone, check_model, with_class_names
from audit.models.checkpoint import hash_state
from audit.models.device import CPU, open_device, open_precision
from audit.models.rendered_base import rendered_base
from audit.pipeline.analyze import judge_effects, judge_rates, judge_sets
from audit.pipeline.attention_maps import look
from audit.pipeline.build_record import EMPTY, record_audit, register
from audit.pipeline.context import Setting, Step
from audit.pipeline.patch_heads import patch_heads
from audit.pipeline.run_controls import (
    add_numbers,
    check_known_effects,
    check_own_model,
    check_reference_models,
    check_round_trips,
    control_images,
    pairs_as_given,
)
from audit.pipeline.run_pairs import sweep_pairs
from audit.pipeline.run_sweeps import measure_images, sweep_sets
from audit.pipeline.train_models import ARCHITECTURE, AuditedModels, train_audited, training_jobs
from audit.records import Audit, ControlReport
from audit.report import answers, load_audit, render_run
from audit.report.manifest import check_kept, write_manifest
from audit.report.render import clear_pages
from audit.report.reviews import DECISIONS
from audit.report.shareable import refuse_copy
from audit.store import (
    SAMPLES,
    clear_unfinished,
    locked,
    now,
    open_cache,
    question_hash,
    run_folder,
    source_hash,
    write_bytes,
    write_table,
    write_text,
)
from audit.units import Unit

LOG = "log.jsonl"


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    card_path: Path
    data_root: Path | None
    out: Path
    command: str
    report: bool = True  # render HTML, PDF and tables
    device: str = CPU  # of the sweeps
    precision: str = "float32"  # of Design A on the discovery split
    again: Path | None = None  # a finished run whose models are measured again, whatever became of the card's weights


def run_audit(request: Request, step: Step) -> tuple[Audit, Path]:
    """Run a whole audit, from card to report.

    Parameters
    ----------
    request : Request
    step : callable
        Given the name of a step, returns a callback (done, total).

    Returns
    -------
    tuple of (Audit, pathlib.Path)
        The record and the run directory.
    """
    keep_freed_memory()
    setting = prepare(request, step)
    training_jobs(setting)  # what is wrong with the training sample or the control images shows
    with _still_there(setting.samples):
        images = control_images(setting)  # before anything is written
    with locked(setting.run):
        refuse_copy(setting.run, "name another --out")
        check_kept(setting.run, record=False)
        clear_unfinished(setting.run)
        setting.started = _begun(setting)
        register(setting)
        write_table(setting.run / SAMPLES, setting.samples.frame.drop(columns="predicted", errors="ignore"))
        audit = _measure(setting, images)
        standing = _standing(setting.run)
        if standing is not None and _without_times(standing) == _without_times(audit):
            audit = standing  # its hash is what reviews and signatures are bound to
        else:
            if (setting.run / DECISIONS).is_file():
                raise InputError(
                    str(setting.run), "was reviewed, and would now say something else", "name another --out"
                )
            _write_record(setting, audit)
            if not request.report:
                clear_pages(setting.run)
        if request.report:
            render_run(setting.run, progress=step("report: HTML and PDF"))
        write_manifest(setting.run)
    return audit, setting.run


def _write_record(setting: Setting, audit: Audit) -> None:
    """Write card, log and record; the record last, for what stands beside one is not written again."""
    write_bytes(setting.run / "card.yaml", setting.card_content)
    write_text(setting.run / LOG, _log(setting))
    write_text(setting.run / "audit.json", audit.model_dump_json(indent=1) + "\n")


def _standing(run: Path) -> Audit | None:
    """Return the record that stands in a run directory, if it can be read."""
    try:
        return load_audit(run / "audit.json")
    except InputError:
        return None


def _without_times(audit: Audit) -> dict[str, object]:
    """Return a record but for when it was made, and when the control models were measured."""
    plain = audit.model_dump()
    plain["provenance"].pop("started")
    plain["controls"].pop("setting")
    return plain


def _begun(setting: Setting) -> str:
    """Return when the run was first started: a run that goes on after an interruption keeps that time."""
    path = setting.run / LOG
    try:
        return str(json.loads(path.read_text(encoding="utf-8").splitlines()[0])["started"])
    except (OSError, ValueError, LookupError):
        write_text(path, json.dumps({"started": setting.started}) + "\n")
        return setting.started


def _measure(setting: Setting, images: ControlSet) -> Audit:
    """Run the stages in order; a failed known effect ends the audit before anything is said about groups."""
    legal = answers(setting.card.legal, setting.card.task)
    with setting.stage("known effects (colour and blur controls)"):
        controls = check_known_effects(setting, images)
    if not controls.valid:
        return record_audit(setting, legal, controls, None, None, EMPTY)
    with setting.stage("models"):
        models = train_audited(setting)
    with setting.stage("identities"):
        controls, design_c = _with_own(controls, setting, models)
    if not controls.valid:
        return record_audit(setting, legal, controls, models, None, EMPTY)
    with setting.stage("patching"), models.on(setting.device):
        rates = judge_rates(setting, measure_images(setting, models))
        swept = patch_heads(setting, models, rates, design_c=design_c)
        controls, pairs = _with_round_trips(controls, sweep_pairs(setting, models, swept), setting.unit)
    with setting.stage("evidence"):
        setting.step("evidence: permutations and intervals")(0, 1)
        judged = judge_effects(setting, rates, swept, pairs, {"data": setting.samples.fingerprint, **models.hashes()})
    with setting.stage("heads together"), models.on(setting.device):
        together = sweep_sets(setting, models, swept, sets_to_patch(judged.heads, judged.localisation))
        judged = judge_sets(setting, swept, together, judged)
        judged = replace(judged, attention=look(setting, models, judged.findings))
    return record_audit(setting, legal, controls, models, swept, judged)


def _with_own(controls: ControlReport, setting: Setting, models: AuditedModels) -> tuple[ControlReport, bool]:
    """Add the identities on the audit's own model, and tell whether Design C may run."""
    own = check_own_model(setting, models)
    reference = [c.model_copy(update={"gates": "Design C"}) for c in check_reference_models(setting, models)]
    add_numbers(setting, [*own, *reference])
    failed = [c for c in reference if not c.passed]
    not_run = [*controls.not_run]
    if not reference:
        not_run.append("Design C: it needs training by this audit and training.balanced_seeds of at least 1.")
    if failed:
        not_run.append(f"Design C: {len(failed)} of its {len(reference)} checks failed; its estimates are left out.")
    together = ControlReport(
        valid=controls.valid and all(c.passed for c in own),
        controls=[*own, *controls.controls, *reference],
        grids=controls.grids,
        setting=controls.setting,
        not_run=not_run,
    )
    return together, bool(reference) and not failed


def _with_round_trips(
    controls: ControlReport, pairs: pd.DataFrame | None, unit: Unit
) -> tuple[ControlReport, pd.DataFrame | None]:
    """Add the check of the edited pictures, and return the exact pairs, or None where it failed."""
    trips = [c.model_copy(update={"gates": "Design B"}) for c in check_round_trips(pairs, unit)]
    failed = [c for c in trips if not c.passed]
    not_run = [f"Design B: {len(failed)} of its {len(trips)} checks failed; its estimates are left out."] * bool(failed)
    not_run += [f"An edit there and back, {c}: its pairs are pictures as given." for c in pairs_as_given(pairs)]
    update = {"controls": [*controls.controls, *trips], "not_run": [*controls.not_run, *not_run]}
    return controls.model_copy(update=update), None if failed else pairs


def prepare(request: Request, step: Step) -> Setting:
    """Open card, data and weights, and find the run directory; nothing is written yet."""
    as_written, content = load_card(request.card_path), request.card_path.read_bytes()
    kept = None if request.again is None else request.again / ARCHITECTURE
    card = with_class_names(as_written, card_path=request.card_path, data_root=request.data_root, folder=kept)
    torch.use_deterministic_algorithms(True)
    if request.again is None:
        check_model(card, card_path=request.card_path, data_root=request.data_root)
    samples = read_samples(card, card_path=request.card_path, data_root=request.data_root)
    audited_outcomes(card, samples.labels)  # a wrong name shows before anything is trained
    cache = open_cache()
    if request.again is None:
        backbone = find_backbone(card.model, card, request, cache, step)
    else:
        backbone = Backbone(card.model.model_copy(update={"weights": "none"}), kept)
    of_controls = card.model.model_copy(update={"weights": card.controls.weights or card.model.weights})
    own = card.training == "none" and request.again is None
    model = backbone.build_as_is(len(samples.labels)) if own else backbone.build(len(samples.labels))
    size = adapter(model).side
    tick = step("data: decoding images")
    keys = samples.keys
    with _still_there(samples):
        pixels = load_pixels(samples.source, keys, size, progress=lambda n: tick(n, len(keys)))
    key = question_hash(
        {
            "card": card.model_dump(),
            "data": samples.fingerprint,
            "weights": hash_state(model.state_dict()) if own else backbone.body_hash(),
            "version": [
                __version__,
                source_hash((audit.data, audit.models, audit.patching, audit.batching, audit.evidence, audit.pipeline)),
            ],
            "libraries": [torch.__version__, timm.__version__, torch.get_num_threads()],
            "computed": [request.device, request.precision],
        }
    )
    return Setting(
        card=card,
        card_path=request.card_path,
        card_content=content,
        data_root=request.data_root,
        run=run_folder(request.out, card.name, key),
        cache=cache,
        samples=samples,
        pixels=pixels,
        backbone=backbone,
        control_backbone=find_backbone(of_controls, card, request, cache, step)
        if card.controls.weights and request.again is None
        else backbone,
        step=step,
        command=request.command,
        started=now().isoformat(),
        device=open_device(request.device),
        precision=open_precision(request.precision),
    )


@contextmanager
def _still_there(samples: Samples) -> Iterator[None]:
    """Tell of an image that could be opened a moment ago what it is: nothing is wrong with the input as it was."""
    try:
        yield
    except DataError as error:
        if error.where not in set(samples.frame["image"]):
            raise
        what = f"could no longer be read ({error.what})"
        raise UnfinishedError(error.where, what, "restore it, and run again") from error


def find_backbone(spec: ModelSpec, card: Card, request: Request, cache: Path, step: Step) -> Backbone:
    """Find the weights of a card's model, or of what its controls start from; ``rendered`` ones are made here."""
    weights = spec.weights
    if spec is card.model and card.training == "none" and weights in ("pretrained", "none", "rendered"):
        raise ModelError("model.weights", f"'{weights}' with training: none", "name the weights file to audit")
    if weights == "rendered":
        return Backbone(spec, rendered_base(spec, cache=cache, progress=step("base: rendered faces")))
    if weights in ("pretrained", "none"):
        return Backbone(spec, None)
    return Backbone(spec, resolve(weights, card_path=request.card_path, data_root=request.data_root))


def _log(setting: Setting) -> str:
    """Return the start, then the stages and their seconds, one JSON object per line."""
    begun = json.dumps({"started": setting.started}) + "\n"
    return begun + "".join(json.dumps({"stage": name, "seconds": seconds}) + "\n" for name, seconds in setting.stages)
