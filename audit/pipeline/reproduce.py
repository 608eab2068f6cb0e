"""One finding again, from images and stored weights, and the number that the report gives."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.samples import Samples
from audit.errors import InputError
from audit.evidence.disparity import Thresholds, contrasts, primary_gaps
from audit.evidence.effects import mediated_gaps
from audit.evidence.effects_store import StoredEffects
from audit.evidence.power import plan_contrast
from audit.models.adapters.registry import Model
from audit.models.black_box import BlackBox
from audit.models.build import Backbone
from audit.models.device import CPU, resolve_device
from audit.patching.sites import Site, sites_of
from audit.patching.sweep import measure_unpatched
from audit.pipeline.analyze import predictions, questions
from audit.pipeline.context import RunContext, Scope
from audit.pipeline.prepare import Options, prepare, prepare_black_box, still_there
from audit.pipeline.reopen import audited_name, reopen, stored_model
from audit.pipeline.run_black_box import ask_black_box
from audit.pipeline.run_sweeps import (
    Plan,
    audit_rows,
    estimate_part,
    patch_part,
    swept_layers,
    with_class_names,
)
from audit.process_state import run_state
from audit.progress import silent
from audit.records import Contrast, ContrastRow, Finding
from audit.report import load_audit
from audit.units import Unit, parse_name


@dataclass(frozen=True)
class Reproduction:
    """Expected and obtained value of one finding."""

    finding: Finding
    unit: Unit
    expected: float
    obtained: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Tell whether the two agree within the stated tolerance."""
        return abs(self.obtained - self.expected) <= self.tolerance


def reproduce_finding(
    run: Path,
    finding_id: str,
    data_root: Path | None = None,
    *,
    samples: Samples | None = None,
    backbone: Backbone | None = None,
    box: BlackBox | None = None,
    device: str = CPU,
) -> Reproduction:
    """Measure one finding again, as ``vit_audit.Result.reproduce`` describes it.

    ``samples``, ``backbone`` and ``box`` are what was given in Python.
    """
    audit = load_audit(run / "audit.json")
    finding = next((f for f in audit.findings if f.id == finding_id), None)
    if finding is None:
        known = ", ".join(f.id for f in audit.findings) or "none"
        raise InputError(str(run), f"no finding '{finding_id}'", f"it has: {known}")
    inputs = reopen(
        run,
        audit,
        data_root,
        step=silent,
        samples=samples,
        backbone=backbone,
        box=box,
        again="vit_audit.open_run(...).reproduce(..., net=...)",
    )
    options = Options("vit-audit reproduce", run.parent, run=run, device=resolve_device(device), decode_all=False)
    if inputs.box is not None:
        if inputs.box.sha256 != audit.model.weights_sha256:
            raise InputError(audit.model.weights, "has changed since the run", "restore it, or audit again")
        asked = prepare_black_box(inputs, inputs.box, options, silent)
        obtained = _gap(asked, ask_black_box(asked), finding)
        return Reproduction(finding, audit.model.unit, finding.expected, obtained, finding.tolerance)
    with run_state(fail_in_time=options.device == CPU), tempfile.TemporaryDirectory() as work:
        context = prepare(inputs, replace(options, work=Path(work)), silent)
        with still_there(context.samples):
            obtained = (
                _measure_rates(context, run, finding)
                if finding.kind == "disparity"
                else _measure_head(context, run, finding, primary_gaps(audit.contrasts))
            )
    return Reproduction(finding, audit.model.unit, finding.expected, obtained, finding.tolerance)


def _model(context: RunContext, run: Path) -> Model:
    """Load the primary model of a run."""
    return stored_model(context, run, audited_name(context, context.seeds[0]))


def _unpatched(context: RunContext, run: Path) -> pd.DataFrame:
    table = measure_unpatched(_model(context, run), context.pixels, audit_rows(context), context.outcomes)
    return with_class_names(table, context.samples.labels).assign(seed=context.seeds[0])


def _measure_rates(context: RunContext, run: Path, finding: Finding) -> float:
    """Predict all audit images again and take the finding's gap."""
    return _gap(context, _unpatched(context, run), finding)


def _gap(context: Scope, unpatched: pd.DataFrame, finding: Finding) -> float:
    """Return a finding's gap in predictions."""
    spec, policy = context.card.audit, context.card.policy
    limits = Thresholds(spec.alpha, spec.min_group_size, policy.impact_ratio_below, policy.gap_above)
    frame = predictions(context, unpatched, context.seeds[0])
    asked = [q for q in questions(context) if q.attribute == finding.attribute]
    rows = contrasts(frame, asked, [finding.outcome], limits)
    match = [r for r in rows if (r.group, r.metric) == (finding.group, finding.metric)]
    return float(match[0].estimate.value or 0.0)


def _measure_head(context: RunContext, run: Path, finding: Finding, gaps: Mapping[str, ContrastRow]) -> float:
    """Patch the finding's head again on the confirmation split: for all recipients, or those that the run drew.

    Nothing else is measured. What images answer as they are drops out of the difference between two donors.
    """
    contrast = Contrast(finding.attribute, finding.group, finding.reference)
    site, seed = Site(*parse_name(finding.heads[0])), context.seeds[0]
    model = _model(context, run)
    sites, plan = sites_of(model, swept_layers(context)), _plan(context, contrast)
    patched = _patched(run, seed, plan, site)
    chosen = np.zeros((len(plan.rows), len(sites)), dtype=bool)
    chosen[patched, sites.index(site)] = True
    table = pd.concat(patch_part(context, model, seed, plan, chosen), ignore_index=True)
    estimates = None
    if len(patched) < len(plan.rows):
        layer, outcomes = range(site.layer, site.layer + 1), {finding.outcome: context.outcomes[finding.outcome]}
        estimates = pd.concat(estimate_part(context, model, seed, plan, layer, outcomes), ignore_index=True)
        estimates = estimates[estimates["head"] == site.head]
    as_they_are = pd.DataFrame({"seed": seed, "recipient": audit_rows(context), f"p:{finding.outcome}": 0.0})
    stored = StoredEffects(table, None, as_they_are, context.samples.frame, first_order=estimates, gaps=gaps)
    return float(mediated_gaps(stored.of(seed, contrast, "confirmation", finding.outcome))[0])


def _plan(context: RunContext, contrast: Contrast) -> Plan:
    """Match recipients and donors of a contrast's confirmation split, as the run did."""
    samples = context.samples
    both = plan_contrast(samples.frame, contrast, samples.nuisance, context.card.audit, samples.calipers)
    return Plan(contrast, "confirmation", both["confirmation"].rows)


def _patched(run: Path, seed: int, plan: Plan, site: Site) -> npt.NDArray[np.int64]:
    """Return the positions of the recipients for which the run patched a head; all where nothing is stored."""
    path = run / "effects" / f"swap-seed-{seed}.parquet"
    if not path.is_file():
        return np.arange(len(plan.rows), dtype=np.int64)
    stored = pd.read_parquet(
        path,
        columns=["contrast", "split", "layer", "head", "position"],
        filters=[
            ("contrast", "==", str(plan.contrast)),
            ("split", "==", plan.split),
            ("layer", "==", site.layer),
            ("head", "==", site.head),
        ],
    )
    return np.unique(stored["position"].to_numpy(dtype=np.int64))
