"""Stage: what whole parts carry of a gap, and the smallest set of heads that does, in the first seed's model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from audit.evidence.joint_patching import HeadSet
from audit.evidence.smallest import StoredSets, judge_smallest
from audit.evidence.stats import Codes
from audit.evidence.stored_rows import Rows, StoredRows
from audit.models.adapters.registry import Model
from audit.patching.plans import draw_evenly
from audit.patching.sites import Site, parts_swept
from audit.pipeline.context import RunContext
from audit.pipeline.in_blocks import PATCH_OF_SET, sweep_parts_in_blocks, sweep_sets_in_blocks
from audit.pipeline.run_sweeps import (
    Plan,
    Swept,
    described,
    head_settings,
    stage_of,
    with_class_names,
    with_image_keys,
)
from audit.pipeline.train_models import AuditedModels
from audit.pipeline.write_rows import write_sorted
from audit.records import Contrast, SmallestSetRow
from audit.units import UNITS

PARTS = "effects/parts.parquet"
SMALLEST = "effects/smallest.parquet"
RECIPIENTS = 200  # of a contrast, for whom parts are patched
PATCH_OF_PART = ["position", "set", "direction", "donor_kind"]


def measure_parts(
    context: RunContext, models: AuditedModels, swept: Swept, contrasts: Sequence[Contrast]
) -> Rows | None:
    """Patch whole parts on the confirmation split, in both directions; None where there is nothing to patch.

    Returns
    -------
    Rows or None
        Rows of :func:`audit.patching.sweep.sweep_parts`, with ``contrast``, ``split``, ``seed``, ``unit``, ``side`` and
        ``label``.
    """
    path = context.run / PARTS
    if path.is_file():
        return StoredRows([path])
    asked = [plan for plan in swept.plans if plan.split == "confirmation" and plan.contrast in contrasts]
    if not asked or not parts_swept(models.primary):
        return None
    write_sorted(path, (_patch_parts(context, models.primary, plan) for plan in asked), PATCH_OF_PART)
    return StoredRows([path])


def _patch_parts(context: RunContext, model: Model, plan: Plan) -> Iterator[pd.DataFrame]:
    """Patch parts in one contrast, block by block."""
    rng = np.random.default_rng(context.card.audit.seed)
    rows = draw_evenly(plan.rows, ["label", "side"], RECIPIENTS, rng)
    part = Plan(plan.contrast, plan.split, rows)
    tables = sweep_parts_in_blocks(
        context,
        f"{stage_of(plan, context.seeds[0])}-parts",
        model,
        part.column("recipient"),
        part.donors(model),
        parts=parts_swept(model),
        units=part.column("unit"),
        progress=context.step(f"ledger: what parts carry, {plan.contrast}"),
    )
    for table in tables:
        yield _named(context, table, plan, rows.index.to_numpy(dtype=np.int64))


def _named(context: RunContext, table: pd.DataFrame, plan: Plan, positions: Codes) -> pd.DataFrame:
    """Give the rows of some recipients their places in the plan, and say what they are part of."""
    placed = described(table.assign(position=positions[table["position"]]), plan, context.seeds[0])
    return with_image_keys(context, with_class_names(placed, context.samples.labels))


def find_smallest(
    context: RunContext, models: AuditedModels, swept: Swept, asked: Sequence[tuple[Contrast, str]]
) -> list[SmallestSetRow]:
    """Choose the smallest set of each question, patching sets as they are asked for; all that was patched is stored."""
    path, settings, seed = context.run / SMALLEST, head_settings(context), context.seeds[0]
    if path.is_file():
        return judge_smallest(swept.effects, asked, seed, settings, StoredSets(StoredRows([path])))
    look = _Patching(context, models.primary, swept.plans)
    found = judge_smallest(swept.effects, asked, seed, settings, look)
    if look.kept:
        write_sorted(path, [[table] for table in look.tables()], PATCH_OF_SET)
    return found


@dataclass
class _Patching:
    """Sets that are patched when they are asked for; none is patched twice."""

    context: RunContext
    model: Model
    plans: Sequence[Plan]
    kept: dict[tuple[str, str], dict[str, pd.DataFrame]] = field(default_factory=dict)

    def __call__(self, contrast: Contrast, split: str, positions: Codes, sets: Sequence[HeadSet]) -> pd.DataFrame:
        """Return the rows of sets, for some recipients of a plan."""
        known = self.kept.setdefault((str(contrast), split), {})
        new = [s for s in sets if str(s) not in known]
        if new:
            plan = next(p for p in self.plans if p.contrast == contrast and p.split == split)
            table = pd.concat(self._patched(plan, positions, new), ignore_index=True)
            known |= {str(name): rows for name, rows in table.groupby("set")}
        return pd.concat([known[str(s)] for s in sets], ignore_index=True)

    def _patched(self, plan: Plan, positions: Codes, sets: Sequence[HeadSet]) -> Iterator[pd.DataFrame]:
        part = Plan(plan.contrast, plan.split, plan.rows.loc[positions])
        tables = sweep_sets_in_blocks(
            self.context,
            f"{stage_of(plan, self.context.seeds[0])}-sets",
            self.model,
            part.column("recipient"),
            part.donors(self.model),
            sets={str(s): [Site(*head) for head in s.heads] for s in sets},
            units=part.column("unit"),
            progress=self.context.step(f"ledger: the smallest set of {UNITS[self.context.unit].plural}"),
        )
        for table in tables:
            yield _named(self.context, table, plan, positions)

    def tables(self) -> Iterator[pd.DataFrame]:
        """Yield all rows, contrast by contrast and split by split."""
        for by_name in self.kept.values():
            if by_name:
                yield pd.concat(list(by_name.values()), ignore_index=True)
