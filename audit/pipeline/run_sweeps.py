"""Stage: the sweeps of Designs A and C, stored one row per image x head x donor kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from audit.batching import freed_memory_returned
from audit.data.samples import AUDIT_SPLITS
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.joint_patching import HeadSet
from audit.evidence.power import Feasibility, feasibility, plan_contrast
from audit.evidence.stored_rows import Rows, StoredRows, columns_of, distinct, read
from audit.models.adapters.registry import Model
from audit.patching.plans import draw_evenly
from audit.patching.sites import Site, sites_of
from audit.patching.sweep import DonorKind, measure_unpatched
from audit.pipeline.context import RunContext, Scope
from audit.pipeline.in_blocks import (
    PATCH,
    PATCH_OF_SET,
    do_blocks,
    estimate_in_blocks,
    plan_sweep,
    sweep_sets_in_blocks,
)
from audit.pipeline.run_controls import trained_layers
from audit.pipeline.train_models import AuditedModels, reseed_of
from audit.pipeline.write_rows import write_sorted
from audit.records import Contrast, ContrastRow, Effort, PatchChoice, SearchPrecision
from audit.store import folder_name
from audit.units import UNITS

SWAP_KINDS = ("cross", "placebo")
UNPATCHED = "effects/unpatched.parquet"  # of a run: what the models answer
IN_FLOAT32 = "float32:"  # begins the columns of what was computed again
COMPARED = 8  # recipients of every part that is computed less precisely
OTHER_DESIGNS = 200  # images for the designs that accompany Design A, where that is not patched in full


@dataclass(frozen=True)
class Plan:
    """Who donates to whom in one contrast and split: ``rows`` as of ``plan_group_swap``."""

    contrast: Contrast
    split: str
    rows: pd.DataFrame

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of row numbers or codes."""
        values: npt.NDArray[np.int64] = self.rows[name].to_numpy(dtype=np.int64)
        return values

    def donors(self, model: Model) -> list[DonorKind]:
        """Return the donors that share the recipients' model."""
        return [DonorKind(kind, model, self.column(kind)) for kind in SWAP_KINDS]


@dataclass(frozen=True)
class Swept:
    """Stored effects, the plans they follow, how many recipients found no donor, and how much was patched.

    ``heads``: where not everything was patched, the heads that were found; Designs B and C try no others, and they and
    sets of heads take ``OTHER_DESIGNS`` images at most.
    """

    effects: StoredEffects
    plans: Sequence[Plan]
    without_donor: dict[str, int]
    heads: list[Site] | None
    choice: PatchChoice | None
    effort: list[Effort]

    @property
    def most_images(self) -> int | None:
        """How many images may be patched by the designs that accompany Design A; None for all."""
        return None if self.heads is None else OTHER_DESIGNS


def sweep_every(context: RunContext, models: AuditedModels, plans: Sequence[Plan]) -> StoredRows:
    """Run Design A with every head of every recipient. What is stored is not computed again."""
    return StoredRows([_swap(context, models, seed, plans) for seed in context.seeds])


def audit_rows(scope: Scope) -> npt.NDArray[np.int64]:
    """Return the rows of all images kept out of training."""
    return np.flatnonzero(scope.samples.frame["split"].isin(AUDIT_SPLITS)).astype(np.int64)


def with_class_names(table: pd.DataFrame, labels: tuple[str, ...]) -> pd.DataFrame:
    """Replace class numbers by class names."""
    return table.assign(predicted=np.asarray(labels)[table["predicted"].to_numpy(dtype=np.int64)])


def with_image_keys(scope: Scope, table: pd.DataFrame) -> pd.DataFrame:
    """Name the images of a table by their keys, in addition to their rows."""
    keys = scope.samples.frame["image"].array  # of which some are copied as they lie in memory, not as Python's texts
    named = {"recipient": "image", "donor": "donor_image"}
    return table.assign(**{name: keys.take(table[row].to_numpy()) for row, name in named.items() if row in table})


def measure_images(context: RunContext, models: AuditedModels) -> pd.DataFrame:
    """Predict all images kept out of training, with every seed's model; what is stored is not done again."""
    path = context.run / UNPATCHED
    if path.is_file():
        return pd.read_parquet(path)
    outcomes, rows = context.outcomes, audit_rows(context)
    parts = [
        measure_unpatched(models.by_seed[seed], context.pixels, rows, outcomes).assign(seed=seed)
        for seed in context.seeds
    ]
    table = with_class_names(pd.concat(parts, ignore_index=True), context.samples.labels)
    return with_image_keys(context, table)


@freed_memory_returned()
def make_plans(scope: Scope) -> tuple[list[Plan], dict[str, int]]:
    """Match recipients and donors for every contrast and audit split.

    Contrasts whose heads can be asked for in no outcome and metric have no plan: nothing of them is patched.
    """
    plans: list[Plan] = []
    without: dict[str, int] = {}
    able = {found.contrast for found in what_can_be_asked(scope) if found.heads is None}
    for contrast in scope.contrasts:
        samples = scope.samples
        both = plan_contrast(samples.frame, contrast, samples.nuisance, scope.card.audit, samples.calipers)
        without |= {f"{contrast} {split}": plan.without_donor for split, plan in both.items()}
        if contrast in able:
            plans += [Plan(contrast, split, plan.rows) for split, plan in both.items()]
    return plans, without


@freed_memory_returned()
def what_can_be_asked(scope: Scope) -> list[Feasibility]:
    """Tell of every question and metric whether it can be estimated, from the samples and the card alone."""
    samples, outcomes = scope.samples, list(scope.outcomes)
    return feasibility(samples.frame, scope.contrasts, outcomes, samples.nuisance, scope.card.audit, samples.calipers)


def localisable(scope: Scope, gaps: Mapping[str, ContrastRow]) -> set[str]:
    """Return the questions whose heads can be asked for in the metric of their gap (``disparity.primary_gaps``)."""
    metrics = {key: gap.metric for key, gap in gaps.items()}
    return {f.key for f in what_can_be_asked(scope) if f.heads is None and metrics.get(f.key) == f.metric}


def swept_layers(context: RunContext) -> range:
    """Return the layers whose heads are patched."""
    trained = trained_layers(context)
    return trained if context.card.audit.layers == "trained" else range(trained.stop)


def head_settings(scope: Scope) -> Settings:
    """Return strictness and sizes of the localisation, as the card has them."""
    spec, policy = scope.card.audit, scope.card.policy
    margin = policy.head_share_above * policy.gap_above
    return Settings(spec.alpha, spec.permutations, spec.bootstrap, spec.seed, spec.min_group_size, margin, scope.unit)


def _swap(context: RunContext, models: AuditedModels, seed: int, plans: Sequence[Plan]) -> Path:
    """Run Design A of one seed: both splits for the first, whose heads are searched, confirmation for the others."""
    path = context.run / "effects" / f"swap-seed-{seed}.parquet"
    model = models.by_seed[seed]
    asked = [plan for plan in plans if plan.split == "confirmation" or seed == context.seeds[0]]
    if not path.is_file():
        parts = (patch_part(context, model, seed, plan) for plan in asked)
        write_sorted(path, parts, PATCH, without=no_swaps(context))
    return path


def patch_part(
    context: RunContext,
    model: Model,
    seed: int,
    plan: Plan,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Iterator[pd.DataFrame]:
    """Patch one contrast and split of Design A: all of it, or what is ``chosen`` (recipients, heads); batch by batch.

    Discovery is computed as precisely as the user asked. Where that is less than float32, some recipients are computed
    in float32 as well, in columns ``float32:<outcome>``.
    """
    stage, layers, units = stage_of(plan, seed), swept_layers(context), plan.column("unit")
    tick = context.step(f"patching: {plan.contrast}, {plan.split}, seed {seed}")

    def run(name: str, **asked: Any) -> Iterator[pd.DataFrame]:
        recipients, donors = plan.column("recipient"), plan.donors(model)
        tasks = plan_sweep(context, name, model, recipients, donors, layers=layers, units=units, **asked)
        return do_blocks(context, name, tasks, tick)

    if plan.split == "discovery" and context.compute.precision != torch.float32:
        every = np.ones((len(plan.rows), len(sites_of(model, layers))), dtype=bool)
        again = pd.concat(run(f"{stage}-again", chosen=_few(every if chosen is None else chosen)), ignore_index=True)
        names = {f"p:{name}": f"{IN_FLOAT32}{name}" for name in context.outcomes}
        exact = again[[*PATCH, *names]].rename(columns=names)
        rough = run(stage, chosen=chosen, precision=context.compute.precision)
        tables: Iterable[pd.DataFrame] = (table.merge(exact, on=PATCH, how="left") for table in rough)
    else:
        tables = run(stage, chosen=chosen)
    for table in tables:
        yield with_image_keys(context, with_class_names(described(table, plan, seed), context.samples.labels))


def _few(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep of (recipients, heads) at most ``COMPARED`` recipients, evenly over those for whom anything is patched."""
    rows = np.flatnonzero(chosen.any(axis=1))
    kept = rows[np.linspace(0, len(rows) - 1, min(COMPARED, len(rows))).astype(int)]
    few = np.zeros_like(chosen)
    few[kept] = chosen[kept]
    return few


def search_precision(swap: Rows, outcomes: Sequence[str], dtype: str) -> SearchPrecision | None:
    """Return how far discovery is from float32, in probability, where both were computed; None where it is float32."""
    pairs = [(f"{IN_FLOAT32}{name}", f"p:{name}") for name in outcomes if f"{IN_FLOAT32}{name}" in columns_of(swap)]
    if not pairs:
        return None
    apart = [
        (rows[exact] - rows[rough]).abs().dropna().to_numpy(dtype=np.float64)
        for rows in read(swap, [name for pair in pairs for name in pair])
        for exact, rough in pairs
    ]
    together = np.concatenate(apart)
    return SearchPrecision(dtype=dtype, largest_difference=float(together.max()), compared=len(together) // len(pairs))


def estimate_part(
    context: RunContext,
    model: Model,
    seed: int,
    plan: Plan,
    layers: range | None = None,
    outcomes: Mapping[str, int] | None = None,
) -> Iterator[pd.DataFrame]:
    """Estimate one contrast and split of Design A by attribution patching, block by block: all of it, or a part."""
    tables = estimate_in_blocks(
        context,
        f"{stage_of(plan, seed)}-first-order",
        model,
        plan.rows,
        pd.factorize(context.samples.frame["subject"])[0].astype(np.int64),
        SWAP_KINDS,
        layers=layers or swept_layers(context),
        outcomes=outcomes or context.outcomes,
        progress=context.step(f"patching: {plan.contrast}, {plan.split}, seed {seed}, first order"),
    )
    yield from (with_image_keys(context, described(table, plan, seed)) for table in tables)


def stage_of(plan: Plan, seed: int) -> str:
    """Name a sweep of Design A as the folder of its pieces; the names of groups may hold what no folder's may."""
    told = hashlib.sha256(str(plan.contrast).encode()).hexdigest()[:8]
    return f"{folder_name(str(plan.contrast))}-{told}-{plan.split}-seed-{seed}"


def described(table: pd.DataFrame, plan: Plan, seed: int) -> pd.DataFrame:
    """Say of each row what it is part of."""
    about = plan.rows[["unit", "side", "label"]]
    return table.join(about, on="position").assign(contrast=str(plan.contrast), split=plan.split, seed=seed)


def sweep_sets(
    context: RunContext, models: AuditedModels, swept: Swept, wanted: Mapping[str, Sequence[HeadSet]]
) -> Rows:
    """Patch sets of heads at once, for the first seed on the confirmation split, by contrast."""
    path = context.run / "effects" / "together.parquet"
    if path.is_file():
        stored = StoredRows([path])
        found = distinct(stored, ["contrast", "set"])
        if set(zip(found["contrast"], found["set"], strict=True)) == {
            (c, str(s)) for c, ss in wanted.items() for s in ss
        }:
            return stored
    asked = [plan for plan in swept.plans if plan.split == "confirmation" and wanted.get(str(plan.contrast))]
    if not asked:
        return pd.DataFrame(columns=["contrast", "set"])
    parts = (
        _patch_sets(context, models.primary, plan, wanted[str(plan.contrast)], swept.most_images) for plan in asked
    )
    write_sorted(path, parts, PATCH_OF_SET)
    return StoredRows([path])


def _patch_sets(
    context: RunContext, model: Model, plan: Plan, sets: Sequence[HeadSet], most_images: int | None
) -> Iterator[pd.DataFrame]:
    """Patch sets of heads in one contrast, block by block."""
    rng = np.random.default_rng(context.card.audit.seed)
    part = Plan(plan.contrast, plan.split, draw_evenly(plan.rows, ["label", "side"], most_images, rng))
    tables = sweep_sets_in_blocks(
        context,
        f"{stage_of(plan, context.seeds[0])}-together",
        model,
        part.column("recipient"),
        part.donors(model),
        sets={str(s): [Site(*head) for head in s.heads] for s in sets},
        units=part.column("unit"),
        progress=context.step(f"patching: {plan.contrast}, {UNITS[context.unit].plural} together"),
    )
    positions = part.rows.index.to_numpy()
    for table in tables:
        placed = described(table.assign(position=positions[table["position"]]), plan, context.seeds[0])
        yield with_image_keys(context, with_class_names(placed, context.samples.labels))


def no_swaps(context: RunContext) -> pd.DataFrame:
    """Return the table of a sweep in which nobody had a donor."""
    columns = ["position", "recipient", "donor", "donor_kind", "layer", "head", "predicted", "unit", "side", "label"]
    values = [f"{kind}:{name}" for name in context.outcomes for kind in ("p", "m")]
    return pd.DataFrame(columns=[*columns, *values, "contrast", "split", "seed"])


def estimate_confirmation(context: RunContext, models: AuditedModels, plans: Sequence[Plan]) -> StoredRows | None:
    """Estimate Design A of the first seed by attribution patching on the confirmation split, to compare with it."""
    seed = context.seeds[0]
    path = context.run / "effects" / f"first-order-seed-{seed}.parquet"
    asked = [plan for plan in plans if plan.split == "confirmation"]
    if not path.is_file() and asked:
        write_sorted(path, (estimate_part(context, models.primary, seed, plan) for plan in asked), PATCH)
    return StoredRows([path]) if path.is_file() else None


def sweep_reference(
    context: RunContext,
    models: AuditedModels,
    rows: npt.NDArray[np.int64],
    heads: Sequence[Site] | None,
    *,
    weights_only: bool = False,
) -> StoredRows | None:
    """Run Design C: heads of the balanced model and of a second seed into the first, each image its own donor.

    With ``weights_only`` the heads' weights are transplanted, not what they write; with ``heads`` only these are tried.
    """
    reseed = reseed_of(context)
    if reseed is None or heads == []:
        return None
    path = context.run / "effects" / ("transplant.parquet" if weights_only else "reference.parquet")
    if path.is_file():
        return StoredRows([path])
    donors = {f"balanced-{k}": m for k, m in enumerate(models.balanced)} | {"reseed": models.by_seed[reseed]}
    stage, layers = "transplant" if weights_only else "reference", swept_layers(context)
    kinds = [DonorKind(name, m, rows, weights_only=weights_only) for name, m in donors.items()]
    chosen = choose(models.primary, layers, len(rows), heads)
    tasks = plan_sweep(context, stage, models.primary, rows, kinds, layers=layers, chosen=chosen)
    tick = context.step("patching: " + ("weight transplant" if weights_only else "balanced reference model"))
    tables = do_blocks(context, stage, tasks, tick)
    named = (with_image_keys(context, with_class_names(table, context.samples.labels)) for table in tables)
    write_sorted(path, [named], PATCH)
    return StoredRows([path])


def choose(model: Model, layers: range, images: int, heads: Sequence[Site] | None) -> npt.NDArray[np.bool_] | None:
    """Return the mask (images, heads of ``layers``) of some heads for every image; None for all heads."""
    return None if heads is None else np.tile([site in heads for site in sites_of(model, layers)], (images, 1))
