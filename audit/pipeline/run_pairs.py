"""Stage: Design B, where exact pairs exist: the same picture in two groups, everything else equal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.pixels import Images, ImagesOnDemand, Pixels, fits, load_pixels, select
from audit.data.samples import EditableSource, pair_column
from audit.models.device import idle_cores
from audit.patching.plans import draw_evenly, find_twins
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, measure_unpatched, sweep
from audit.pipeline.context import RunContext
from audit.pipeline.in_blocks import PATCH, do_blocks, plan_sweep
from audit.pipeline.run_sweeps import Swept, choose, swept_layers
from audit.pipeline.train_models import AuditedModels
from audit.records import Contrast
from audit.store import write_table

ROUND_TRIPS = 8  # images whose edit there and back is patched
VERSIONS = ("own", "edited")


@dataclass(frozen=True)
class Pairs:
    """Images as they are and their twins of the other group, row by row."""

    rows: pd.DataFrame  # of the samples, with ``side`` ("group" or "reference")
    images: Images  # N as they are, then their N twins
    back: Pixels | None  # the first few edited there and back again, where the source can do that


def sweep_pairs(context: RunContext, models: AuditedModels, swept: Swept) -> pd.DataFrame | None:
    """Patch each picture's heads from its twin, and the twin's from it, on the confirmation split.

    Where Design A was not patched in full: only the heads that it found, on some of the pictures.

    Returns
    -------
    pandas.DataFrame or None
        Rows of a sweep with ``contrast``, ``pair`` (0..N-1), ``version``, ``side``, ``label``, ``subject``; where
        nothing was patched layer is -1. Versions: "own" and "edited" receive from their twin; "back" and "self" are the
        picture with donors from its edit there and back, and from itself. None where no exact pairs exist.
    """
    path = context.run / "effects" / "pairs.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    if swept.heads == []:
        return None
    parts = [
        _sweep_contrast(context, models, contrast, pairs, swept.heads)
        for contrast in context.contrasts
        if (pairs := _exact_pairs(context, contrast, swept.most_images)) is not None
    ]
    if not parts:
        return None
    table = pd.concat(parts, ignore_index=True)
    write_table(path, table)
    return table


def _exact_pairs(context: RunContext, contrast: Contrast, most_images: int | None) -> Pairs | None:
    """Edit pictures where the source can, or look up their twins where the card names the columns of a pair."""
    if context.card.groups[contrast.attribute].permuted is not None:
        return None  # the annotation no longer says what is drawn
    frame = context.samples.of_split("confirmation")
    sides = {contrast.group: "group", contrast.reference: "reference"}
    known = frame[frame[contrast.attribute].isin(list(sides))].sort_index()
    known = known.assign(side=known[contrast.attribute].map(sides))
    rng, source = np.random.default_rng(context.card.audit.seed), context.samples.source
    at_most = min((n for n in (context.card.audit.max_images, most_images) if n is not None), default=None)
    geometry = context.preprocessing.geometry
    column = pair_column(contrast.attribute)
    drawn = context.card.groups[contrast.attribute].column
    if isinstance(source, EditableSource) and source.can_edit(drawn):
        rows = draw_evenly(known, ["label", "side"], at_most, rng)
        other = {contrast.group: contrast.reference, contrast.reference: contrast.group}
        there = [
            source.edited(k, drawn, other[g]) for k, g in zip(rows["image"], rows[contrast.attribute], strict=True)
        ]
        few = list(zip(there, rows[contrast.attribute], strict=True))[:ROUND_TRIPS]
        back = load_pixels(source, [source.edited(key, drawn, g) for key, g in few], geometry)
        own = rows["image"].tolist()
        images = ImagesOnDemand(source, [*own, *there], geometry, idle_cores(context.compute.device))
        seen = images[:] if fits(images, context.card.data.cache) else images
        return Pairs(rows, seen, back) if len(rows) else None
    if column not in known:
        return None
    found = find_twins(known, column)
    rows = draw_evenly(found, ["label", "side"], at_most, rng)
    both = np.concatenate([rows["row"], rows["row_twin"]]).astype(np.int64)
    return Pairs(rows, select(context.pixels, both), None) if len(rows) else None


def _sweep_contrast(
    context: RunContext, models: AuditedModels, contrast: Contrast, pairs: Pairs, heads: Sequence[Site] | None
) -> pd.DataFrame:
    """Run both directions of one contrast, and the edits there and back."""
    n, model, layers = len(pairs.rows), models.primary, swept_layers(context)
    every = np.arange(2 * n, dtype=np.int64)
    stage = f"pairs-{hashlib.sha256(str(contrast).encode()).hexdigest()[:8]}"
    tasks = plan_sweep(
        context,
        stage,
        model,
        every,
        [DonorKind("pair", model, np.roll(every, n))],
        layers=layers,
        images=pairs.images,
        chosen=choose(model, layers, 2 * n, heads),
        units=every % n,
    )
    blocks = do_blocks(context, stage, tasks, context.step(f"patching: {contrast}, exact pairs"))
    patched = pd.concat(blocks, ignore_index=True).sort_values(PATCH, ignore_index=True)
    unpatched = measure_unpatched(model, pairs.images, every, context.outcomes).assign(
        position=every, layer=-1, head=-1
    )
    parts = [_described(part, pairs.rows, np.repeat(VERSIONS, n), n) for part in (patched, unpatched)]
    own = pairs.images[: 0 if pairs.back is None else len(pairs.back)]
    for version, donors in () if pairs.back is None else (("back", pairs.back), ("self", own)):
        few = np.arange(len(donors), dtype=np.int64)
        # "self" donors are copies: both versions run in batches alike, in which equal images give equal bits.
        trip = sweep(
            model,
            np.concatenate([own, donors]),
            few,
            [DonorKind(version, model, few + len(donors))],
            layers=layers,
            outcomes=context.outcomes,
            chosen=choose(model, layers, len(few), heads),
        )
        parts.append(_described(trip, pairs.rows, np.repeat(version, n), n))
    return pd.concat(parts, ignore_index=True).assign(contrast=str(contrast))


def _described(table: pd.DataFrame, rows: pd.DataFrame, versions: npt.NDArray[np.str_], n: int) -> pd.DataFrame:
    """Say of each row which pair it is of, and who receives."""
    position = table["position"].to_numpy()
    about = rows.iloc[position % n]
    told = {name: about[name].to_numpy() for name in ("side", "label", "subject")}
    kept = table.drop(columns=["recipient", "donor", "donor_kind", "predicted", "position"], errors="ignore")
    return kept.assign(pair=position % n, version=versions[position], image=about["image"].to_numpy(), **told)
