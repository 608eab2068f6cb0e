"""What first-order estimates save: exact patches, for intervals as narrow as those of all patches.

Design A of one model on both splits of a card, once with every patch and once with as many as are needed for every
head's interval, without stopping early for heads that are found or without hope.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

import vit_audit as va
from audit.evidence.bootstrap import draw_bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects
from audit.evidence.effects_store import StoredEffects
from audit.patching.sites import heads_of, sites_of
from audit.pipeline.context import RunContext
from audit.pipeline.prepare import Options, prepare
from audit.pipeline.run_sampled import PartlyPatched, Sampling
from audit.pipeline.run_sweeps import Plan, make_plans, measure_images, patch_part, swept_layers
from audit.pipeline.train_models import AuditedModels, train_audited
from audit.progress import silent
from audit.resources import DATA_VARIABLE, resource_dir

REAL, RENDERED = "expressions.yaml", "synthetic-expressions.yaml"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Swept:
    """One split patched both ways, and the seconds that either took."""

    plan: Plan
    every: pd.DataFrame
    every_seconds: float
    part: PartlyPatched
    part_seconds: float


def measure_saving(*, quick: bool) -> Figures:
    """Compare both ways on the real card, where its photographs are to be had, and on the rendered one for ``quick``.

    The photographs lie in the folder that ``VIT_AUDIT_DATA`` names.
    """
    folder = os.environ.get(DATA_VARIABLE)
    name = RENDERED if quick or folder is None else REAL
    with TemporaryDirectory() as place:
        card = resource_dir("datasets") / name
        root = None if name == RENDERED else Path(str(folder))
        plan = va.plan(card, data_root=root)
        context = prepare(plan.inputs, Options("benchmark", Path(place)), silent)
        training = context.training
        assert training is not None
        one = training.model_copy(update={"seeds": training.seeds[:1], "balanced_seeds": 0})
        context.card = context.card.model_copy(update={"training": one})
        models = train_audited(context)
        return {"card": name, **_compare(context, models)}


def _compare(context: RunContext, models: AuditedModels) -> Figures:
    unpatched, seed = measure_images(context, models), context.seeds[0]
    plans, _ = make_plans(context)
    outcomes = list(context.outcomes)
    sampling = Sampling(context, models.primary, seed, {p.contrast: outcomes for p in plans}, unpatched)
    swept = [_both_ways(context, models, sampling, plan) for plan in plans]
    parts = [s.part for s in swept]
    exhaustive = StoredEffects(pd.concat([s.every for s in swept]), None, unpatched, context.samples.frame)
    heads = [row for s in swept for o in outcomes for row in _heads(sampling, exhaustive, s, o)]
    made, every = (2 * sum(int(count(p.chosen)) for p in parts) for count in (np.sum, np.size))
    gradients = _gradients_in_patches(context, models, plans)
    ratio = np.array([row["half_width_ratio"] for row in heads])
    return {
        "images": {f"{p.contrast} {p.split}": len(p.rows) for p in plans},
        "patches": made,
        "patches_in_all": every,
        "gradients_cost_in_patches": round(gradients),
        "times_fewer_patches": every / made,
        "times_fewer_with_gradients": every / (made + gradients),
        "times_faster": sum(s.every_seconds for s in swept) / sum(s.part_seconds for s in swept),
        "half_width_ratio": {
            "median": float(np.median(ratio)),
            "largest": float(ratio.max()),
            "share_at_most_1": float((ratio <= 1).mean()),
            "share_at_most_1.05": float((ratio <= 1.05).mean()),
        },
        "correlation_median": float(np.median([row["correlation"] for row in heads])),
        "inside_exhaustive_interval": float(np.mean([row["inside"] for row in heads])),
        "heads": heads,
    }


def _both_ways(context: RunContext, models: AuditedModels, sampling: Sampling, plan: Plan) -> Swept:
    begun = time.perf_counter()
    every = pd.concat(patch_part(context, models.primary, sampling.seed, plan), ignore_index=True)
    between = time.perf_counter()
    part = sampling.begin(plan)
    heads = np.ones(part.chosen.shape[1], dtype=bool)
    sampling.patch(part, np.zeros(len(heads)), look=1)
    sampling.narrow(part, heads)
    return Swept(plan, every, between - begun, part, time.perf_counter() - between)


def _heads(sampling: Sampling, exhaustive: StoredEffects, swept: Swept, outcome: str) -> Sequence[Figures]:
    """Compare a split's heads: interval, estimate, how many recipients were patched, and how good first order was."""
    plan = swept.plan
    some = sampling.laid_out(swept.part, outcome)
    every = exhaustive.of(sampling.seed, plan.contrast, plan.split, outcome)
    (narrow, value), (wide, true) = (_intervals(effects) for effects in (some.combined(), every))
    return [
        {
            "part": f"{plan.contrast} {plan.split} {outcome}",
            "head": f"L{layer}H{head}",
            "patched_share": float(swept.part.chosen[:, k].mean()),
            "correlation": float(some.correlation[k]),
            "half_width_ratio": float(narrow[k] / wide[k]),
            "inside": bool(abs(value[k] - true[k]) <= wide[k]),
        }
        for k, (layer, head) in enumerate(every.heads)
    ]


def _intervals(effects: SwapEffects) -> tuple[np.ndarray, np.ndarray]:
    """Return half-width and value of each head's mediated gap."""
    bootstrap = draw_bootstrap(effects, resamples=5000, seed=0)
    found = weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)
    ends = np.array([(e.low, e.high, e.value) for e in found], dtype=np.float64)
    return (ends[:, 1] - ends[:, 0]) / 2, ends[:, 2]


def _gradients_in_patches(context: RunContext, models: AuditedModels, plans: Sequence[Plan]) -> float:
    """Return what the backward passes cost, counted in patches of average depth.

    A backward pass through blocks whose weights stand still costs as much as the forward pass through them.
    """
    model, layers = models.primary, swept_layers(context)
    depth = len(model.blocks)
    backward = len(context.outcomes) * (depth - layers.start)
    patch = sum(heads_of(model, i) * (depth - i - 0.5) for i in layers) / len(sites_of(model, layers))
    return sum(len(plan.rows) for plan in plans) * backward / patch


if __name__ == "__main__":
    import json
    import sys

    torch.manual_seed(0)
    print(json.dumps(measure_saving(quick="--quick" in sys.argv), indent=1))
