"""The model with its card as a CycloneDX 1.6 bill of materials."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from audit.records import Audit, Estimate, Finding
from audit.report.formats import clean
from audit.report.text import Sentences, source_sentence
from audit.units import Unit

FAMILIES: dict[Unit, str] = {"head": "vision transformer", "slice": "convolutional network"}
TASKS = {"emotion": "image classification: facial expression", "action": "image classification: action"}


def model_card(audit: Audit, audit_sha256: str) -> str:
    """Return a CycloneDX 1.6 bill of materials whose one model carries its card."""
    model, data, versions = audit.model, audit.data, audit.provenance.versions
    text = Sentences(audit)
    names = text.names
    classes = clean(", ".join(model.classes))
    made = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, audit_sha256)}",
        "version": 1,
        "metadata": {
            "timestamp": audit.provenance.started,
            "tools": {
                "components": [
                    {"type": "application", "name": "vit-audit", "version": versions.get("vit-audit", "")}
                ]
            },
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": clean(text.core("model_called")),
                "description": text.of_method("origin", model),
                "hashes": [{"alg": "SHA-256", "content": model.weights_sha256}],
                "modelCard": {
                    "modelParameters": {
                        "approach": {"type": "supervised"},
                        "task": TASKS.get(audit.task, "image classification"),
                        "architectureFamily": FAMILIES[model.unit] if model.has_inside else "not given",
                        "modelArchitecture": clean(model.name),
                        "datasets": [{"ref": "data"}],
                        "inputs": [{"format": _format(model.image_size)}],
                        "outputs": [{"format": f"one of {len(model.classes)} classes: {classes}"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": _metrics(audit)},
                    "considerations": {
                        "useCases": [clean(audit.intended_use)] if audit.intended_use else [],
                        "technicalLimitations": [clean(sentence) for sentence in text.not_shown()],
                        "ethicalConsiderations": [
                            {"name": text.finding("title", f), "mitigationStrategy": text.finding("recommendation", f)}
                            for f in _findings(audit)
                        ],
                        "fairnessAssessments": [
                            {"groupAtRisk": f"{names.attribute(f.attribute)}: {names.group(f.attribute, f.group)}",
                             "harms": text.finding("effect", f),
                             "mitigationStrategy": text.finding("recommendation", f)}
                            for f in _findings(audit)
                            if f.kind == "disparity"
                        ],
                    },
                },
                "properties": [
                    {"name": "vit-audit:outcome", "value": audit.outcome},
                    {"name": "vit-audit:audit_id", "value": clean(audit.audit_id)},
                    {"name": "vit-audit:audit_sha256", "value": audit_sha256},
                ],
            },
            {
                "type": "data",
                "bom-ref": "data",
                "name": clean(source_sentence(data.source)),
                "hashes": [{"alg": "SHA-256", "content": data.fingerprint}],
                "data": [
                    {
                        "type": "dataset",
                        "name": clean(source_sentence(data.source)),
                        "classification": "rendered, no real people" if audit.synthetic else "images of people",
                        "description": f"{data.images} images of {data.subjects} subjects",
                    }
                ],
            },
        ],
    }  # fmt: skip
    return json.dumps(made, indent=1, ensure_ascii=True) + "\n"


def _format(side: int | None) -> str:
    return "image" if side is None else f"image, {side} x {side} pixels"


def _findings(audit: Audit) -> Sequence[Finding]:
    return [] if audit.is_invalid else audit.findings


def _metrics(audit: Audit) -> list[dict[str, object]]:
    """Return accuracy, the rates of every group, and unless the audit is invalid every comparison."""
    seeds: list[int | None] = [*audit.model.seeds] or [None]
    rows = [
        _metric(
            "accuracy" if seed is None else f"accuracy, training seed {seed}", Estimate(value=value), "held-out images"
        )
        for seed, value in zip(seeds, audit.model.accuracy_by_seed, strict=False)
    ]
    for rate in audit.rates:
        where = f"{rate.attribute}: {rate.group}; outcome: {rate.outcome}"
        rows.append(_metric("selection rate", rate.selection_rate, where))
        rows.append(_metric("true-positive rate", rate.true_positive_rate, where))
        rows.append(_metric("false-positive rate", rate.false_positive_rate, where))
    if not audit.is_invalid:
        for row in audit.contrasts:
            where = f"{row.attribute}: {row.group} against {row.reference}; outcome: {row.outcome}"
            rows.append(_metric(row.metric, row.estimate, where))
    return rows


def _metric(kind: str, estimate: Estimate, where: str) -> dict[str, object]:
    value = "not estimable" if estimate.value is None else repr(estimate.value)
    metric: dict[str, object] = {"type": kind, "value": value, "slice": clean(where)}
    if estimate.low is not None and estimate.high is not None:
        metric["confidenceInterval"] = {"lowerBound": repr(estimate.low), "upperBound": repr(estimate.high)}
    return metric
