"""Stage: everything into one record, ``audit.json``."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import recall_score

from audit import __version__
from audit.batching import freed_memory_returned
from audit.card.schema import Card
from audit.data.sealed import count_openings
from audit.data.summary import describe_data
from audit.evidence.detection import with_detection
from audit.evidence.heads import FIRST_LOOK
from audit.evidence.outcome import decide
from audit.models.adapters.registry import adapter
from audit.models.blocks import unknown_blocks
from audit.models.build import LoadReport
from audit.models.device import CPU, device_name, precision_name
from audit.pipeline.analyze import EMPTY, Judged
from audit.pipeline.context import BlackBoxRun, Run, RunContext, Scope
from audit.pipeline.run_sweeps import Swept, search_precision, swept_layers
from audit.pipeline.train_models import AuditedModels
from audit.records import (
    Audit,
    ControlReport,
    DataWarning,
    DataWarningCode,
    EngineReport,
    HarmfulError,
    LegalAnswer,
    LoadedWeights,
    MethodReport,
    ModelInfo,
    Provenance,
    TrainingRun,
)
from audit.report.exports import PRINTERS
from audit.report.text import method_hash
from audit.store import file_hash, write_text

PACKAGES = ("torch", "torchvision", "timm", "fairlearn", "pandas", "numpy", "scipy", "statsmodels", *PRINTERS)
REGISTRATION = "preregistration.json"


PRECISION = "precision of the search"  # and of training; in the registration


def registration(context: Run) -> dict[str, object]:
    """Return what is fixed before anything is measured: card, data, model, code version, measures and families."""
    return {
        "question": context.question,
        "version": __version__,
        "card": context.card.asked(),
        "data": context.samples.fingerprint,
        "base weights": context.weights,
        "method": method_hash(),
        "layers": _searched(context),
        "first look": first_look(context.card),
        PRECISION: precision_name(context.compute.precision),
        "questions": [f"{c}:{name}" for c in context.contrasts for name in context.outcomes],
    }


def _searched(context: Run) -> int:
    """Return how many layers are searched."""
    return len(swept_layers(context)) if isinstance(context, RunContext) else 0


def first_look(card: Card) -> float | None:
    """Return the share of alpha that is spent on the first of two looks; None where there is one look."""
    return None if card.audit.patches == "all" else FIRST_LOOK


def register(context: Run) -> None:
    """Write down what is fixed, before anything is measured; a run that resumes keeps what it began with."""
    path = context.run / REGISTRATION
    if not path.is_file():
        write_text(path, json.dumps(registration(context), indent=1, sort_keys=True) + "\n")


@freed_memory_returned()
def record_audit(
    context: Run,
    legal: Sequence[LegalAnswer],
    controls: ControlReport,
    models: AuditedModels | None,
    swept: Swept | None,
    judged: Judged,
) -> Audit:
    """Put the record together. Where a control failed, nothing about groups or heads is in it."""
    card = context.card
    shown = judged if controls.valid else EMPTY
    verdict = decide(controls, shown.contrasts, gap_above=card.policy.gap_above)
    fixed = file_hash(context.run / REGISTRATION)
    data = with_detection(describe_data(context.samples, card), context.samples, card)
    data = data.model_copy(update={"sealed_opened": count_openings(context.run)})
    if swept is not None:
        missed = [
            DataWarning(code=DataWarningCode.WITHOUT_DONOR, of=where, images=n)
            for where, n in swept.without_donor.items()
            if n
        ]
        data = data.model_copy(update={"warnings": [*data.warnings, *missed]})
    return Audit(
        audit_id=context.run.name,
        name=card.name,
        task=card.task,
        outcome=verdict.outcome,
        exit_code=verdict.exit_code,
        reasons=verdict.reasons,
        next_steps=verdict.next_steps,
        intended_use=card.intended_use,
        out_of_scope=card.out_of_scope,
        owner=card.report.owner,
        decide_by=card.report.decide_by,
        model=describe_model(context, models),
        legal=list(legal),
        controls=controls,
        data=data,
        **vars(replace(shown, accuracy=judged.accuracy)),
        method=_method(context, fixed, controls, models, swept),
        provenance=_provenance(context, models, fixed),
        synthetic=card.data.reader == "synthetic",
    )


def describe_model(context: Run, models: AuditedModels | None) -> ModelInfo:
    """Describe the audited model."""
    if isinstance(context, BlackBoxRun):
        return _black_box_info(context)
    assert isinstance(context, RunContext)
    card, backbone = context.card, context.backbone
    model = models.primary if models is not None else backbone.build(len(context.samples.labels))
    body = adapter(model)
    accuracy, balanced = accuracies(context)
    own = context.training is None
    report = backbone.read_report(len(context.samples.labels), as_is=own)
    return ModelInfo(
        name=card.model.name,
        display=card.model.display,
        weights=model_file_name(card),
        state=None if report is None else report.state,
        loaded=None if report is None else as_record(report),
        weights_sha256=next(iter(models.hashes().values())) if models is not None else backbone.body_hash(),
        parameters=sum(p.numel() for p in model.parameters()),
        layers=body.depth,
        unit=body.unit,
        heads=body.units(0),
        heads_by_layer=[body.units(i) for i in range(body.depth)],
        image_size=body.side,
        preprocessing=context.preprocessing.info,
        classes=list(context.samples.labels),
        **asdict(context.readout),
        output_key=card.model.output_key,
        prompts=card.model.prompts,
        training=training_run(context, precision_name(context.compute.precision)),
        seeds=context.seeds if not own else [],
        accuracy_by_seed=accuracy,
        balanced_accuracy_by_seed=balanced,
    )


def as_record(report: LoadReport) -> LoadedWeights:
    """Return how weights were read, for the record: without the folder they lie in."""
    return LoadedWeights(
        kind=report.kind,
        place=report.set_name,
        stripped=report.stripped,
        classifier=report.classifier,
        left_over=list(report.left_over),
        stored=dict(report.stored),
    )


def _black_box_info(context: BlackBoxRun) -> ModelInfo:
    accuracy, balanced = accuracies(context)
    return ModelInfo(
        name=context.card.model.name,
        display=context.card.model.display,
        access=context.box.access,
        weights=model_file_name(context.card),
        weights_sha256=context.box.sha256,
        parameters=None,
        layers=0,
        heads=0,
        image_size=context.box.side,
        preprocessing=None if context.box.preprocessing is None else context.box.preprocessing.info,
        classes=list(context.samples.labels),
        **asdict(context.readout),
        training=None,
        seeds=[],
        accuracy_by_seed=accuracy,
        balanced_accuracy_by_seed=balanced,
    )


def model_file_name(card: Card) -> str:
    """Return the name of the file that the model is read from, or what its training starts from."""
    return file_name(card.model.path or card.model.weights)


def file_name(path: str) -> str:
    """Return a file's name without its folders, which are nobody else's business."""
    return PureWindowsPath(path).name  # parts folders at either slash


def accuracies(scope: Scope) -> tuple[list[float], list[float]]:
    """Return accuracy and balanced accuracy on the images kept out of training, by seed."""
    path = scope.run / "effects" / "unpatched.parquet"
    if not path.is_file():
        return [], []
    own = pd.read_parquet(path, columns=["seed", "recipient", "predicted"])
    truth = scope.samples.frame["label"]
    plain, balanced = [], []
    for seed in scope.seeds:
        part = own[own["seed"] == seed]
        labels, seen = pd.factorize(truth.loc[part["recipient"]], sort=True)
        predicted = _places(part["predicted"], seen)  # a class may be predicted that no image has
        plain.append(float((labels == predicted).mean()))
        known = range(len(seen))
        balanced.append(float(recall_score(labels, predicted, labels=known, average="macro", zero_division=0)))
    return plain, balanced


def _places(values: pd.Series, names: pd.Index) -> npt.NDArray[np.int64]:
    """Return the place of each value among some names, -1 where it is none of them; no text is made of each value."""
    codes, found = pd.factorize(values)
    places: npt.NDArray[np.int64] = names.get_indexer(pd.Index(found))[codes].astype(np.int64)
    return places


def training_run(scope: Scope, precision: str) -> TrainingRun | None:
    """Return how this audit trained, in what precision; None where it did not."""
    training = scope.training
    if training is None:
        return None
    return TrainingRun(
        blocks=scope.card.model.train_blocks,
        images=int((scope.samples.frame["split"] == "train").sum()),
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        precision=precision,
    )


def thresholds(card: Card) -> dict[str, float]:
    """Return what the card fixes before anything is measured."""
    return {
        "alpha": card.audit.alpha,
        "policy.gap_above": card.policy.gap_above,
        "policy.impact_ratio_below": card.policy.impact_ratio_below,
        "policy.head_share_above": card.policy.head_share_above,
        "min_group_size": float(card.audit.min_group_size),
    }


def method_of(card: Card) -> dict[str, Any]:
    """Return what the record says of the method that depends on nothing but the card."""
    return {
        "words_sha256": method_hash(),
        "thresholds": thresholds(card),
        "harmful_error": HarmfulError(card.policy.harmful_error),
        "first_look": first_look(card),
        "permutations": card.audit.permutations,
        "bootstrap": card.audit.bootstrap,
    }


def _method(
    context: Run, fixed: str, controls: ControlReport, models: AuditedModels | None, swept: Swept | None
) -> MethodReport:
    engine = next((c for c in controls.controls if c.id == "engine"), None)
    return MethodReport(
        preregistration_sha256=fixed,
        layers=_searched(context),
        **method_of(context.card),
        patches=None if swept is None else swept.choice,
        effort=[] if swept is None else swept.effort,
        precision=None
        if swept is None
        else search_precision(swept.effects.swap, list(context.outcomes), precision_name(context.compute.precision)),
        engine=EngineReport(
            device=device_name(context.compute.device),
            largest_difference=None if engine is None else engine.estimate.value,
            whole_blocks=[] if models is None else unknown_blocks(models.primary),
        ),
    )


def _provenance(context: Run, models: AuditedModels | None, fixed: str) -> Provenance:
    hashes = {
        "card": hashlib.sha256(context.card_content).hexdigest(),
        "data": context.samples.fingerprint,
        "preregistration": fixed,
        "base weights": context.weights,
    }
    hashes |= {"model": context.weights} if isinstance(context, BlackBoxRun) else {}
    training = context.training
    return Provenance(
        command=context.command,
        started=context.started,
        run_by=context.card.report.run_by or None,
        hardware=_hardware(context),
        versions={"vit-audit": __version__, "python": sys.version.split()[0], **{p: version(p) for p in PACKAGES}},
        seeds=[] if training is None else training.seeds,
        hashes={**hashes, **(models.hashes() if models is not None else {})},
    )


def _hardware(context: Run) -> str:
    """Return the processor and how many cores torch uses; no host name."""
    device = context.compute.device
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text(encoding="utf-8").splitlines() if x.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    accelerator = "no accelerator used" if device.type == CPU else f"computed on {device_name(device)}"
    return f"{name}, {torch.get_num_threads()} threads, {accelerator}"
