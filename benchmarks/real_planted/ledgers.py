"""The three ledgers of one model, by the tool's own functions: who writes, which trained weights, what carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from timm.models.vision_transformer import VisionTransformer

from audit.evidence.carried_parts import judge_parts
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.ledgers import judge_written
from audit.evidence.trained import draw_images
from audit.evidence.trained_rows import ON_PATHS, judge_trained, layer_to_part
from audit.models.adapters.registry import adapter
from audit.models.transforms import as_input
from audit.patching.contributions import Contributions
from audit.patching.parts import Kind, Part
from audit.patching.plans import draw_evenly
from audit.patching.sweep import sweep_parts
from audit.patching.written import written
from audit.pipeline.run_sweeps import Plan, described, with_class_names
from audit.pipeline.run_trained import Exchange
from audit.records import CarriedRow, ContrastRow, HybridOrder, LedgerRow, Metric, PartKind, TrainedRow, TrainedTotal
from benchmarks.real_planted.audit_heads import SEED, codes_of
from benchmarks.real_planted.photographs import ATTRIBUTE, CONTRAST, LABELS, OUTCOME, OUTCOMES, QUESTION, World

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """Who writes the gap of log-odds."""

    rows: list[LedgerRow]  # parts, over all images
    closure: float  # |sum of the parts - gap|, nats
    closure_of_images: float  # largest |sum - log-odds| of an image, over the largest |log-odds| or 1 nat

    @property
    def own(self) -> list[LedgerRow]:
        """The rows of heads and MLPs."""
        return [row for row in self.rows if row.part in (PartKind.HEAD, PartKind.MLP)]


def contributions(model: VisionTransformer, world: World, rows: Codes) -> Contributions:
    """Return what every part writes into the log-odds of some photographs."""
    images = as_input(model, world.features[rows])
    return written(model, images, OUTCOMES, codes_of(world.frame.loc[rows])).centred()


def judge_writers(given: Contributions, frame: pd.DataFrame, gap: ContrastRow, *, resamples: int, seed: int) -> Written:
    """Part the gap of the same photographs' log-odds."""
    totals, rows = judge_written(given, frame, [(QUESTION, CONTRAST, gap)], resamples=resamples, seed=seed)
    (total,) = (t for t in totals if t.among == "all")
    parts = [row for row in rows if row.among == "all" and row.level == "part"]
    assert total.closure is not None and total.closure_of_images is not None
    return Written(parts, total.closure, total.closure_of_images)


def writer(row: LedgerRow) -> str:
    """Name what writes: "L1H3", "L2 MLP", or the kind of part."""
    if row.part is PartKind.HEAD and row.layer is not None:
        return str(Part(Kind.HEAD, row.layer, row.head))
    if row.part is PartKind.MLP and row.layer is not None:
        return str(Part(Kind.MLP, row.layer))
    return f"{row.part}" if row.layer is None else f"L{row.layer} {row.part}"


def draw_rows(world: World, rows: Codes, most: int, seed: int) -> Codes:
    """Draw some photographs, as many of each group and label as all have, in shares."""
    drawn: Codes = rows[draw_images(world.frame.loc[rows], ATTRIBUTE, most, seed)]
    return drawn


def exchanged(
    reference: VisionTransformer,
    model: VisionTransformer,
    world: World,
    rows: Codes,
    *,
    seed: int,
    in_sets: bool = False,
    layer: int | None = None,
) -> pd.DataFrame:
    """Return what hybrids of a reference and a model answer."""
    exchange = Exchange("balanced-0", reference, model, rows, in_sets=in_sets, layer=layer)
    return with_class_names(exchange.measure(world.features, rows, OUTCOMES, seed), LABELS)


def judge_weights(
    table: pd.DataFrame, frame: pd.DataFrame, metric: Metric, *, resamples: int, seed: int
) -> tuple[list[TrainedTotal], list[TrainedRow]]:
    """Share the gap out among the players."""
    return judge_trained(table, frame, [(CONTRAST, OUTCOME, metric)], resamples=resamples, seed=seed)


def over_paths(rows: Sequence[TrainedRow]) -> dict[str, float]:
    """Return the mean over both paths of each player's row, in rates: by which an audit says whose heads it parts."""
    return {
        player: float(np.mean([r.rate.value or 0.0 for r in rows if r.player == player and r.order in ON_PATHS]))
        for player in dict.fromkeys(r.player for r in rows if r.player and r.order in ON_PATHS)
    }


def over_orders(rows: Sequence[TrainedRow]) -> dict[str, float]:
    """Return each block's Shapley value, in rates: by which an audit answers."""
    return {r.player: r.rate.value or 0.0 for r in rows if r.player and r.order is HybridOrder.SHAPLEY}


def heads_exchanged(rows: Sequence[TrainedRow]) -> dict[str, float]:
    """Return the rows of the parted layer's heads, in rates."""
    layer = layer_to_part(rows)
    return {
        r.player: r.rate.value or 0.0
        for r in rows
        if r.order is HybridOrder.HEADS and layer is not None and r.player.startswith(f"L{layer}H")
    }


def parts_carried(model: VisionTransformer) -> list[Part]:
    """Return the attention and the MLP of every layer."""
    layers = range(adapter(model).depth)
    return [Part(kind, layer) for layer in layers for kind in (Kind.ATTENTION, Kind.MLP)]


def sweep_carried(model: VisionTransformer, world: World, plan: Plan, *, recipients: int, seed: int) -> pd.DataFrame:
    """Patch whole parts for some recipients, evenly over label and group, in both directions."""
    rows = draw_evenly(plan.rows, ["label", "side"], recipients, np.random.default_rng(seed))
    part = Plan(plan.contrast, plan.split, rows)
    table = sweep_parts(
        model,
        world.features,
        part.column("recipient"),
        part.donors(model),
        parts=parts_carried(model),
        outcomes=OUTCOMES,
        units=part.column("unit"),
    )
    placed = table.assign(position=rows.index.to_numpy(dtype=np.int64)[table["position"]])
    return with_class_names(described(placed, plan, SEED), LABELS)


def judge_carriers(stored: StoredEffects, table: pd.DataFrame, settings: Settings) -> list[CarriedRow]:
    """Estimate what parts carry."""
    return judge_parts(stored, table, [CONTRAST], [OUTCOME], SEED, settings)


def carrier(row: CarriedRow) -> str:
    """Name what carries: "L1 attention"."""
    return str(Part(Kind(row.part.value), row.layer))
