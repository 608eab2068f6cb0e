"""Rates and gaps as metadata of a Hugging Face model card: the YAML block at the head of a model's README.md.

Source: the model card metadata of the Hub (``model-index``), as ``huggingface_hub.ModelCardData`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from audit.records import Audit, ContrastRow, Estimate, RateRow
from audit.report.formats import clean
from audit.report.text import Sentences, source_sentence
from audit.store import folder_name

RATES = ("selection_rate", "true_positive_rate", "false_positive_rate")
TASK = "image-classification"
METRICS = ["accuracy", *RATES]


def metadata(audit: Audit) -> str:
    """Return the YAML between the two lines of dashes, without these.

    Of an invalid audit there are accuracy and rates, and no gaps. A number that could not be estimated is left out: the
    format has no word for it.
    """
    name = clean(Sentences(audit).core("model_called")) or "model"
    return yaml.safe_dump(
        {
            "pipeline_tag": TASK,
            "library_name": "timm" if audit.model.has_inside else "other",
            "tags": ["vit-audit", "fairness", "bias"],
            "metrics": METRICS,
            "model-index": [{"name": name, "results": list(_results(audit))}],
        },
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )


def _results(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield a result for all images, for every group, and for every comparison."""
    seeds: list[int | None] = [*audit.model.seeds] or [None]
    accuracy = [
        _metric("accuracy", "accuracy" if seed is None else f"accuracy, training seed {seed}", Estimate(value=value))
        for seed, value in zip(seeds, audit.model.accuracy_by_seed, strict=False)
    ]
    if accuracy:
        yield _result(audit, "all images", {}, accuracy)
    for row in audit.rates:
        metrics = [
            _metric(name, f"{name.replace('_', ' ')} of {row.outcome}", getattr(row, name))
            for name in RATES
            if getattr(row, name).value is not None
        ]
        if metrics:
            yield _result(audit, f"{row.attribute}: {row.group}; outcome: {row.outcome}", _sizes_of(row), metrics)
    for gap in [] if audit.is_invalid else audit.contrasts:
        if gap.estimate.value is not None:
            where = f"{gap.attribute}: {gap.group} against {gap.reference}; outcome: {gap.outcome}; {gap.metric}"
            name = f"{gap.metric.replace('_', ' ')} of {gap.outcome}, {gap.group} minus {gap.reference}"
            yield _result(audit, where, _sizes_of_gap(gap), [_metric(str(gap.metric), name, gap.estimate)])


def _result(audit: Audit, where: str, sizes: dict[str, int], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    name = clean(source_sentence(audit.data.source))
    args = {"fingerprint_sha256": audit.data.fingerprint, **sizes}
    dataset = {"name": name, "type": folder_name(name), "config": clean(where), "split": "test", "args": args}
    return {"task": {"type": TASK, "name": "Image classification"}, "dataset": dataset, "metrics": metrics}


def _sizes_of(row: RateRow) -> dict[str, int]:
    return {"images": row.images, "subjects": row.subjects}


def _sizes_of_gap(gap: ContrastRow) -> dict[str, int]:
    return {"images_group": gap.n_group, "images_reference": gap.n_reference}


def _metric(kind: str, name: str, estimate: Estimate) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": kind, "value": estimate.value, "name": clean(name)}
    if estimate.low is not None and estimate.high is not None:
        metric["args"] = {"low": estimate.low, "high": estimate.high, "level": estimate.level}
    return metric
