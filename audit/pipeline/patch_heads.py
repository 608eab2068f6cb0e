"""Stage: the sweeps, with all patches or with as many as are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    model, layers = models.primary, swept_layers(context)
    sweeps = [p for p in plans for seed in context.seeds if p.split == "confirmation" or seed == context.seeds[0]]
    every, sampled = count_passes(
        {layer: heads_of(model, layer) for layer in layers},
        adapter(model).depth,
        len(context.outcomes),
        list(map(_size, sweeps)),
        [_size(p) for p in plans if p.split == "confirmation"],
    )
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(as_input(model, context.pixels[:1]))
    return Cost(every, sampled, forward=float(counter.get_total_flops()))


@dataclass(frozen=True)
class SweepSize:
    """How many recipients a sweep has, and how many images, their donors among them."""

    recipients: int
    images: int


def count_passes(
    heads: Mapping[int, int], depth: int, outcomes: int, sweeps: Sequence[SweepSize], confirmation: Sequence[SweepSize]
) -> tuple[float, float]:
    """Count the forward passes of one image that Design A takes: with all patches, and with some of them.

    Parameters
    ----------
    heads : mapping of int to int
        How many are patched, by layer.
    depth : int
        Layers of the model.
    outcomes : int
        Those that are audited: first order takes a backward pass for each.
    sweeps : sequence of SweepSize
        One for each contrast, split and seed.
    confirmation : sequence of SweepSize
        Of each contrast the confirmation split, which is estimated to first order where all is patched, too.
    """
    tail = sum(n * (depth - i - 0.5) for i, n in heads.items()) / depth  # forward passes a recipient and donor
    recipients, images = sum(s.recipients for s in sweeps), sum(s.images for s in sweeps)
    backward = outcomes * (depth - min(heads, default=depth)) / depth
    estimated = sum(s.images + backward * s.recipients for s in confirmation)
    share = sum(max(LIKELY_SHARE * s.recipients, min(LEAST, s.recipients)) for s in sweeps)
    every = images + len(SWAP_KINDS) * tail * recipients + estimated
    return every, images + backward * recipients + len(SWAP_KINDS) * tail * share


def _size(plan: Plan) -> SweepSize:
    """Count the recipients and images of a plan; each image goes through the model once at least."""
    return SweepSize(len(plan.rows), len(np.unique(plan.rows[["recipient", *SWAP_KINDS]])))


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
