"""Stage: the sweeps, with all patches or with as many as are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from audit.evidence.disparity import primary_gaps
from audit.evidence.effects_store import StoredEffects
from audit.evidence.sampled import LEAST
from audit.evidence.stored_rows import Rows
from audit.models.adapters.registry import adapter
from audit.models.transforms import as_input
from audit.patching.plans import draw_evenly
from audit.patching.sites import Site, heads_of
from audit.pipeline.analyze import Rates
from audit.pipeline.context import RunContext
from audit.pipeline.run_sampled import sweep_sampled
from audit.pipeline.run_sweeps import (
    OTHER_DESIGNS,
    SWAP_KINDS,
    Plan,
    Swept,
    audit_rows,
    estimate_confirmation,
    localisable,
    make_plans,
    sweep_every,
    sweep_reference,
    swept_layers,
)
from audit.pipeline.train_models import AuditedModels
from audit.records import Effort, PatchChoice

AFFORDABLE = 5e13  # floating-point operations for Design A: about ten minutes on two cores
LIKELY_SHARE = 0.2  # of the recipients that is patched where not all are: about as many on photographs


@dataclass(frozen=True)
class Cost:
    """What Design A costs, in forward passes of one image."""

    every: float
    sampled: float
    forward: float  # floating-point operations of one


def patch_heads(context: RunContext, models: AuditedModels, rates: Rates, *, design_c: bool) -> Swept:
    """Run Design A for every seed, and Design C for the first, with all patches or with some as the card says."""
    plans, without_donor = make_plans(context)
    cost = estimate_cost(context, models, plans)
    choice = choose_patches(context, cost)
    gaps = primary_gaps(rates.contrasts)
    heads: list[Site] | None = None
    first_order: Rows | None
    swap: Rows
    effort: list[Effort] = []
    if choice.sampled:
        able = localisable(context, gaps)
        asked = {c: [o for o in found if f"{c}:{o}" in able] for c, found in rates.asked(context.contrasts).items()}
        asked = {c: found for c, found in asked.items() if found}
        done = sweep_sampled(context, models, plans, asked, rates.unpatched, gaps)
        swap, first_order, effort = done.swap, done.first_order, done.effort
        heads = done.heads
    else:
        swap, first_order = sweep_every(context, models, plans), estimate_confirmation(context, models, plans)
    images = np.unique(np.concatenate([plan.column("recipient") for plan in plans])) if plans else audit_rows(context)
    if heads is not None:
        rng = np.random.default_rng(context.card.audit.seed)
        cells = ["label", models.balanced_on] if models.balanced_on else ["label"]
        images = draw_evenly(context.samples.frame.loc[images], cells, OTHER_DESIGNS, rng).index.to_numpy(
            dtype=np.int64
        )
    of_c = [
        sweep_reference(context, models, images, heads, weights_only=weights_only) if design_c else None
        for weights_only in (False, True)
    ]
    effects = StoredEffects(
        swap=swap,
        reference=of_c[0],
        unpatched=rates.unpatched,
        frame=context.samples.frame,
        balanced_on=models.balanced_on,
        transplant=of_c[1],
        first_order=first_order,
        gaps=gaps,
    )
    return Swept(effects, plans, without_donor, heads, choice, effort)


def estimate_cost(context: RunContext, models: AuditedModels, plans: Sequence[Plan]) -> Cost:
    """Count what Design A takes, every head of every recipient patched or a share of them."""
    model, layers, depth = models.primary, swept_layers(context), adapter(models.primary).depth
    tail = sum(heads_of(model, i) * (depth - i - 0.5) for i in layers) / depth  # forward passes a recipient and donor
    sweeps = [p for p in plans for seed in context.seeds if p.split == "confirmation" or seed == context.seeds[0]]
    recipients, images = sum(len(p.rows) for p in sweeps), sum(_images(p) for p in sweeps)
    backward = len(context.outcomes) * (depth - layers.start) / depth
    confirmation = [p for p in plans if p.split == "confirmation"]  # estimated to first order where all is patched, too
    estimated = sum(_images(p) + backward * len(p.rows) for p in confirmation)
    share = sum(max(LIKELY_SHARE * len(p.rows), min(LEAST, len(p.rows))) for p in sweeps)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(as_input(model, context.pixels[:1]))
    return Cost(
        every=images + len(SWAP_KINDS) * tail * recipients + estimated,
        sampled=images + backward * recipients + len(SWAP_KINDS) * tail * share,
        forward=float(counter.get_total_flops()),
    )


def _images(plan: Plan) -> int:
    """Count the images of a plan, each of which goes through the model once at least."""
    return len(np.unique(plan.rows[["recipient", *SWAP_KINDS]]))


def choose_patches(context: RunContext, cost: Cost) -> PatchChoice:
    """Return whether to patch a sample of the recipients, and why."""
    asked = context.card.audit.patches
    dear = cost.every * cost.forward > AFFORDABLE and cost.sampled < cost.every
    return PatchChoice(
        sampled=asked == "sampled" or (asked == "auto" and dear),
        asked=asked,
        every=cost.every,
        sample=cost.sampled,
        affordable=AFFORDABLE / cost.forward,
    )
