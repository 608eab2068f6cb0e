"""Stage: everything into one record, ``audit.json``."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score

from audit import __version__
from audit.card.schema import Card
from audit.data.summary import describe_data
from audit.evidence.heads import FIRST_LOOK
from audit.evidence.outcome import decide, not_shown
from audit.models.adapters.registry import adapter
from audit.models.blocks import unknown_blocks
from audit.models.build import unit_of
from audit.models.device import CPU, device_name, precision_name
from audit.pipeline.analyze import Judged
from audit.pipeline.context import Scope, Setting
from audit.pipeline.run_sweeps import Swept, search_precision, swept_layers
from audit.pipeline.train_models import AuditedModels
from audit.records import Audit, ControlReport, LegalAnswer, MethodReport, ModelInfo, Provenance
from audit.report.exports import PRINTERS
from audit.store import file_hash, write_text
from audit.units import Unit, said_of

PACKAGES = ("torch", "torchvision", "timm", "fairlearn", "pandas", "numpy", "scipy", "statsmodels", *PRINTERS)
EMPTY = Judged([], [], [], [], {}, [], [])
REGISTRATION = "preregistration.json"
UNKNOWN_BLOCKS = "are run whole, and by plain hooks where sets of heads are patched"
SAMPLED = "Where not all patches are made, the contrasts are those in which a gap was detected, and"
METRICS = ["label-standardised gap", "true-positive-rate gap", "false-positive-rate gap", "mediated gap"]
PRIMARY = (
    "Heads are asked about the label-standardised gap; where that is not detected, but a gap in the true or the false "
    "positives is, about the one of these with the smaller adjusted p-value."
)
GAP_WORDS = (
    "How much more often one group is called c than the reference, among images with the same label; the labels weigh "
    "the same in both groups."
)
IIE_WORDS = (
    "How the probability of c changes for images of group a when head h writes what it writes for an image of group b "
    "(x'), beyond what it does when it writes what it writes for another image of group a (x'')."
)
MEDIATED_WORDS = (
    "How much the detected gap shrinks when the head's donors come from both groups alike: in the rate of being "
    "called c, and, for the tests, in the mean probability of c."
)
DESIGN_C_WORDS = (
    "How much the gap shrinks when the head writes what it writes in a model trained on a balanced sample, beyond what "
    "another model of the same training does. The balanced sample is smaller, which may account for a part."
)
TRANSPLANT_WORDS = (
    "Likewise, but the head takes the balanced model's weights and reads this model's own layers. Where Design C shows "
    "an effect and this next to none, the head seems to pass on what earlier layers learned."
)
TOGETHER_WORDS = (
    "Below 0 beside a positive sum: the heads carry the same thing twice. Above 0: one makes up for another."
)
PAIRS_WORDS = (
    "Where the same picture x' exists in the other group: how much the probability changes in all, by way of the head "
    "alone, and past the head."
)
HYPOTHESES = [
    "At equal labels, every group is called each outcome as often as its reference.",
    "No output of an attention head carries a difference between groups to the prediction.",
]
DESIGNS = [
    "Design A: heads patched between images of two groups, with a same-group placebo.",
    "Design B: likewise on exact pairs, the same picture in both groups, where there are any.",
    "Design C: heads patched from a model trained on a balanced sample, with another seed as placebo.",
    "Weight transplant: the weights of the balanced model's head instead of what it writes there.",
    "Attribution patching: Design A to first order; where not all patches are made, those that are correct it.",
]
ESTIMANDS = [
    (
        "Audited gap",
        "D_c = sum_y w_y (P(called c | group a, label y) - P(called c | reference b, label y))",
        GAP_WORDS,
    ),
    (
        "Interventional indirect effect",
        "IIE_{a->b}(h, c) = E_x [ E_x' p_c(x; u_h <- u_h(x')) - E_x'' p_c(x; u_h <- u_h(x'')) ]",
        IIE_WORDS,
    ),
    (
        "Mediated gap of a head",
        "(IIE_{b->a} - IIE_{a->b}) / 2",
        MEDIATED_WORDS,
    ),
    (
        "Effects on exact pairs (Design B)",
        "TE = p(x') - p(x); NIE_h = p(x; u_h <- u_h(x')) - p(x); NDE_h = p(x'; u_h <- u_h(x)) - p(x)",
        PAIRS_WORDS,
    ),
    (
        "Heads together",
        "the mediated gap with a set of heads patched at once, less the sum of their single ones",
        TOGETHER_WORDS,
    ),
    (
        "Change with the balanced model's head (Design C)",
        "gap(M; u_h <- u_h of another seed) - gap(M; u_h <- u_h of the balanced model)",
        DESIGN_C_WORDS,
    ),
    (
        "Weight transplant",
        "gap(M; Q, K, V, O of head h from another seed) - gap(M; Q, K, V, O of head h from the balanced model)",
        TRANSPLANT_WORDS,
    ),
]


def registration(setting: Setting) -> dict[str, object]:
    """Return what is fixed before anything is measured: card, data, model, code version, measures and families."""
    return {
        "version": __version__,
        "card": setting.card.model_dump(),
        "data": setting.samples.fingerprint,
        "base weights": setting.backbone.body_hash(),
        "metrics": METRICS,
        "estimands": _said(setting.unit, ESTIMANDS),
        "family": family_of(setting),
        "gap of a question": PRIMARY,
        "precision of the search": precision_name(setting.precision),
        "questions": [f"{c}:{name}" for c in setting.contrasts for name in setting.outcomes],
    }


def family_of(setting: Setting) -> str:
    """Say over which tests is adjusted."""
    share = f"{FIRST_LOOK:g} of alpha is spent on a first look at discovery and the rest on a second"
    return said_of(
        setting.unit,
        "Rates: Holm over all groups, intersections, outcomes and the three gaps. Heads: max-|T| over "
        f"{len(swept_layers(setting))} layers' heads x outcomes x contrasts on the discovery split by swapping donor "
        "labels within matched pairs; Holm over the found heads on the confirmation split."
        + ("" if setting.card.audit.patches == "all" else f" {SAMPLED} {share}."),
    )


def register(setting: Setting) -> None:
    """Write down what is fixed, before anything is measured; a run that goes on keeps what it began with."""
    path = setting.run / REGISTRATION
    if not path.is_file():
        write_text(path, json.dumps(registration(setting), indent=1, sort_keys=True) + "\n")


def record_audit(
    setting: Setting,
    legal: Sequence[LegalAnswer],
    controls: ControlReport,
    models: AuditedModels | None,
    swept: Swept | None,
    judged: Judged,
) -> Audit:
    """Put the record together. Where a control failed, nothing about groups or heads is in it."""
    card = setting.card
    shown = judged if controls.valid else EMPTY
    verdict = decide(controls, shown.contrasts, gap_above=card.policy.gap_above)
    fixed = file_hash(setting.run / REGISTRATION)
    data = describe_data(setting.samples, card)
    if swept is not None:
        missed = [
            f"{n} images of {where} had no matching donor: they are in the rates, but were not patched"
            for where, n in swept.without_donor.items()
            if n
        ]
        data = data.model_copy(update={"warnings": [*data.warnings, *missed]})
    return Audit(
        audit_id=setting.run.name,
        name=card.name,
        task=card.task,
        outcome=verdict.outcome,
        exit_code=verdict.exit_code,
        reasons=verdict.reasons,
        not_shown=not_shown(setting.unit),
        next_steps=verdict.next_steps,
        intended_use=card.intended_use,
        out_of_scope=card.out_of_scope,
        model=_model_info(setting, models),
        legal=list(legal),
        controls=controls,
        data=data,
        rates=shown.rates,
        contrasts=shown.contrasts,
        ranges=shown.ranges,
        findings=shown.findings,
        heads=shown.heads,
        joint=shown.joint,
        pairs=shown.pairs,
        attention=shown.attention,
        grids=shown.grids,
        stability=shown.stability,
        agreement=shown.agreement,
        localisation=shown.localisation,
        method=_method(setting, fixed, controls, models, swept),
        provenance=_provenance(setting, models, fixed),
        synthetic=card.data.reader == "synthetic",
    )


def _model_info(setting: Setting, models: AuditedModels | None) -> ModelInfo:
    card, backbone = setting.card, setting.backbone
    model = models.primary if models is not None else backbone.build(len(setting.samples.labels))
    body = adapter(model)
    accuracy, balanced = accuracies(setting)
    own = setting.training is None
    return ModelInfo(
        name=card.model.name,
        origin="the user's own checkpoint"
        if own
        else f"trained by this audit from weights '{_shown(card.model.weights)}'",
        weights_sha256=next(iter(models.hashes().values())) if models is not None else backbone.body_hash(),
        parameters=sum(p.numel() for p in model.parameters()),
        layers=body.depth,
        unit=body.unit,
        heads=body.units(0),
        heads_by_layer=[body.units(i) for i in range(body.depth)],
        image_size=body.side,
        classes=list(setting.samples.labels),
        training=_training_words(setting),
        seeds=setting.seeds if not own else [],
        accuracy_by_seed=accuracy,
        balanced_accuracy_by_seed=balanced,
    )


def _shown(weights: str) -> str:
    """Return a weights file's name without its folders, which are nobody else's business."""
    return Path(weights).name


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
        labels = truth.loc[part["recipient"]].to_numpy()
        plain.append(float((labels == part["predicted"].to_numpy()).mean()))
        balanced.append(float(balanced_accuracy_score(labels, part["predicted"])))
    return plain, balanced


def _training_words(setting: Setting) -> str:
    training = setting.training
    if training is None:
        return "not trained by this audit"
    blocks = setting.card.model.train_blocks
    what = "all parts" if blocks is None else f"the last {blocks} blocks"
    n = int((setting.samples.frame["split"] == "train").sum())
    return (
        f"{what} fine-tuned on {n} images for {training.epochs} epochs, batches of {training.batch_size}, AdamW, "
        f"learning rate {training.learning_rate:g} with cosine schedule, weight decay {training.weight_decay:g}"
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
    unit = unit_of(card.model.name)
    return {
        "hypotheses": [said_of(unit, sentence) for sentence in HYPOTHESES],
        "metrics": METRICS,
        "thresholds": thresholds(card),
        "permutations": card.audit.permutations,
        "bootstrap": card.audit.bootstrap,
        "estimands": _said(unit, ESTIMANDS),
        "designs": [said_of(unit, sentence) for sentence in DESIGNS],
    }


def _said(unit: Unit, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return rows of sentences as they are said of a kind of part."""
    return [tuple(said_of(unit, sentence) for sentence in row) for row in rows]


def _method(
    setting: Setting, fixed: str, controls: ControlReport, models: AuditedModels | None, swept: Swept | None
) -> MethodReport:
    engine = next((c for c in controls.controls if c.id == "engine"), None)
    agreement = "not measured, the audit ended before" if engine is None else f"{engine.estimate.value:.1e} in a logit"
    unknown = [] if models is None else unknown_blocks(models.primary)
    every = models is not None and len(unknown) == adapter(models.primary).depth
    named = "all layers" if every else f"layers {', '.join(map(str, unknown))}"
    slow = f"; {named} {said_of(setting.unit, UNKNOWN_BLOCKS)}" if unknown else ""
    return MethodReport(
        preregistration_sha256=fixed,
        family=family_of(setting),
        **method_of(setting.card),
        patches="" if swept is None else swept.choice,
        effort=[] if swept is None else swept.effort,
        precision=None
        if swept is None
        else search_precision(swept.effects.swap, list(setting.outcomes), precision_name(setting.precision)),
        engine=(
            f"exact patching, float32 where nothing else is said, {device_name(setting.device)}; largest difference "
            f"from plain hooks in this run: {agreement}{slow}"
        ),
    )


def _provenance(setting: Setting, models: AuditedModels | None, fixed: str) -> Provenance:
    hashes = {
        "card": hashlib.sha256(setting.card_content).hexdigest(),
        "data": setting.samples.fingerprint,
        "preregistration": fixed,
        "base weights": setting.backbone.body_hash(),
    }
    training = setting.training
    return Provenance(
        command=setting.command,
        started=setting.started,
        run_by=setting.card.report.run_by or "not stated",
        hardware=_hardware(setting),
        versions={"vit-audit": __version__, "python": sys.version.split()[0], **{p: version(p) for p in PACKAGES}},
        seeds=[] if training is None else training.seeds,
        hashes={**hashes, **(models.hashes() if models is not None else {})},
    )


def _hardware(setting: Setting) -> str:
    """Return the processor and how many cores torch uses; no host name."""
    device = setting.device
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text(encoding="utf-8").splitlines() if x.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    used = f"{said_of(setting.unit, 'heads')} patched on {device_name(device)}"
    accelerator = "no accelerator used" if device.type == CPU else used
    return f"{name}, {torch.get_num_threads()} threads, {accelerator}"
