"""Other ways to rank heads, on the same model and the same photographs as the audit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.models.adapters.registry import adapter
from audit.models.device import in_double
from audit.models.readout import readout_of
from audit.models.transforms import as_input
from audit.patching.attribution import attribute_pairs, linearise
from audit.patching.engine import Donor
from audit.patching.first_order import sweep_first_order
from audit.patching.plans import draw_evenly
from audit.patching.sites import record, sites_of
from audit.pipeline.run_sweeps import SWAP_KINDS, Plan, described
from benchmarks.planted.models import Head
from benchmarks.planted.rivals import Ranking, gap_weights, rank_by_attribution, rank_rivals
from benchmarks.real_planted.photographs import OUTCOME, OUTCOMES, World

POINTS = (1 / 6, 3 / 6, 5 / 6)  # between recipient and donor, at which EAP-IG takes slopes
BATCH = 32


def rank(model: VisionTransformer, world: World, plan: Plan, *, at_points: int, seed: int) -> dict[str, Ranking]:
    """Rank the heads by each rival, on the recipients of the confirmation split.

    Parameters
    ----------
    model : VisionTransformer
    world : World
    plan : Plan
        Who donates to whom.
    at_points : int
        Recipients for whom EAP-IG is computed, evenly over label and group.
    seed : int
    """
    layers = range(adapter(model).depth)
    is_group, is_outcome = (plan.rows["side"] == "group").to_numpy(), (plan.rows["label"] == OUTCOME).to_numpy()
    found = rank_rivals(model, world.features[plan.column("recipient")], is_group, is_outcome, seed=seed, layers=layers)
    subjects = pd.factorize(world.frame["subject"])[0].astype(np.int64)
    estimates = sweep_first_order(
        model, world.features, plan.rows, subjects, SWAP_KINDS, layers=layers, outcomes=OUTCOMES
    )
    found["attribution patching"] = rank_by_attribution(described(estimates, plan, 0), OUTCOME)
    few = draw_evenly(plan.rows, ["label", "side"], at_points, np.random.default_rng(seed))
    found["EAP-IG"] = Ranking(rank_by_integrated_gradients(model, world, few))
    return found


def rank_by_integrated_gradients(model: VisionTransformer, world: World, rows: pd.DataFrame) -> dict[Head, float]:
    """Rank by EAP-IG (Hanna et al. 2024): attribution patching, with the mean slope on the way to the donor's input.

    The way leads from what enters the first trained block for the recipient to what does for the donor. The score is,
    as in the audit, of the cross-group donor minus that of the placebo.
    """
    estimates = {kind: _estimates(model, world, rows, kind) for kind in SWAP_KINDS}
    weights = gap_weights((rows["side"] == "group").to_numpy(), (rows["label"] == OUTCOME).to_numpy())
    scores = np.abs(weights @ (estimates["cross"] - estimates["placebo"])) / 2
    return {(site.layer, site.head): float(s) for site, s in zip(sites_of(model), scores, strict=True)}


def _estimates(model: VisionTransformer, world: World, rows: pd.DataFrame, kind: str) -> np.ndarray:
    """Return the estimated changes of the log-odds (R, K)."""
    layers, readout = range(adapter(model).depth), readout_of(model)
    scalars = {OUTCOME: lambda logits: readout.log_odds(logits)[..., OUTCOMES[OUTCOME]]}
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows.iloc[start : start + BATCH]
        own, given = (as_input(model, world.features[part[c].to_numpy(dtype=np.int64)]) for c in ("recipient", kind))
        slopes = [linearise(model, own + at * (given - own), scalars, layers).slopes[OUTCOME] for at in POINTS]
        mean = {layer: torch.stack([s[layer] for s in slopes]).mean(0) for layer in layers}
        moved = attribute_pairs(model, record(model, own), Donor(model, record(model, given)), mean)
        found.append(in_double(moved).numpy())
    return np.concatenate(found)
