"""One finding again, from images and stored weights, beside the number that the report gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from audit.errors import InputError
from audit.evidence.disparity import Thresholds, contrasts
from audit.evidence.stored import StoredEffects
from audit.patching.plans import plan_group_swap
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, measure_unpatched, sweep
from audit.pipeline import Request, prepare
from audit.pipeline.judging import predictions, questions
from audit.pipeline.setting import Setting
from audit.pipeline.sweeping import SWAP_KINDS, audit_rows, choose, with_class_names
from audit.records import Contrast, Finding
from audit.report import load_audit


@dataclass(frozen=True)
class Reproduction:
    """Expected and obtained value of one finding."""

    title: str
    expected: float
    obtained: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Tell whether the two agree within the stated tolerance."""
        return abs(self.obtained - self.expected) <= self.tolerance


def reproduce_finding(run: Path, finding_id: str, data_root: Path | None) -> Reproduction:
    """Measure one finding again.

    Parameters
    ----------
    run : pathlib.Path
        A run directory with its models.
    finding_id : str
        Such as ``F-3fa9c1d2``.
    data_root : pathlib.Path or None
        Where the images lie.

    Raises
    ------
    InputError
        If the run has no such finding, or its data have changed.
    """
    audit = load_audit(run / "audit.json")
    finding = next((f for f in audit.findings if f.id == finding_id), None)
    if finding is None:
        known = ", ".join(f.id for f in audit.findings) or "none"
        raise InputError(str(run), f"no finding '{finding_id}'", f"it has: {known}")
    request = Request(run / "card.yaml", data_root, run.parent, "vit-audit reproduce")
    setting = prepare(request, lambda _name: lambda _done, _total: None)
    if setting.samples.fingerprint != audit.data.fingerprint:
        raise InputError(audit.data.source, "the data have changed since the run", "restore them, or audit again")
    obtained = (
        _measure_rates(setting, run, finding) if finding.kind == "disparity" else _measure_head(setting, run, finding)
    )
    return Reproduction(finding.title, finding.expected, obtained, finding.tolerance)


def _model(setting: Setting, run: Path) -> VisionTransformer:
    """Load the primary model of a run."""
    name = "audited" if setting.training is None else f"seed-{setting.seeds[0]}"
    model = setting.backbone.build(len(setting.samples.labels))
    model.load_state_dict(load_file(run / "models" / f"{name}.safetensors"))
    return model.eval()


def _unpatched(setting: Setting, run: Path) -> pd.DataFrame:
    table = measure_unpatched(_model(setting, run), setting.pixels, audit_rows(setting), setting.outcomes)
    return with_class_names(table, setting.samples.labels).assign(seed=setting.seeds[0])


def _measure_rates(setting: Setting, run: Path, finding: Finding) -> float:
    """Predict all audit images again and take the finding's gap."""
    spec, policy = setting.card.audit, setting.card.policy
    limits = Thresholds(spec.alpha, spec.min_group_size, policy.impact_ratio_below, policy.gap_above)
    frame = predictions(setting, _unpatched(setting, run), setting.seeds[0])
    asked = [q for q in questions(setting) if q.attribute == finding.attribute]
    rows = contrasts(frame, asked, [finding.outcome], limits)
    match = [r for r in rows if (r.group, r.metric) == (finding.group, finding.metric)]
    return float(match[0].estimate.value or 0.0)


def _measure_head(setting: Setting, run: Path, finding: Finding) -> float:
    """Patch the finding's head again on the confirmation split."""
    contrast = Contrast(finding.attribute, finding.group, finding.reference)
    layer, head = (int(n) for n in finding.heads[0].removeprefix("L").split("H"))
    spec, model = setting.card.audit, _model(setting, run)
    rows = plan_group_swap(
        setting.samples.of_split("confirmation"),
        contrast,
        setting.samples.nuisance,
        seed=spec.seed + 1,
        max_images=spec.max_images,
    ).rows
    table = sweep(
        model,
        setting.pixels,
        rows["recipient"].to_numpy(dtype=np.int64),
        [DonorKind(k, model, rows[k].to_numpy(dtype=np.int64)) for k in SWAP_KINDS],
        layers=range(layer, layer + 1),
        outcomes=setting.outcomes,
        chosen=choose(model, range(layer, layer + 1), len(rows), [Site(layer, head)]),
        units=rows["unit"].to_numpy(dtype=np.int64),
    )
    table = table.join(rows[["unit", "side", "label"]], on="position")
    table = table.assign(contrast=str(contrast), split="confirmation", seed=setting.seeds[0])
    stored = StoredEffects(table, None, _unpatched(setting, run), setting.samples.frame)
    effects = stored.of(setting.seeds[0], contrast, "confirmation", finding.outcome)
    return float((effects.mediated_weights() @ effects.difference)[0])
