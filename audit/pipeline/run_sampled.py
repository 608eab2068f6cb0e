"""Stage: Design A with fewer patches. First-order estimates of all of them are corrected by exact patches of some.

On the discovery split every head is patched for a few recipients; heads that are found then, or that more patches would
hardly let find, are left; the others are patched until their intervals are as narrow as the card asks. On the
confirmation split that is done for all. What the numbers mean is said in ``evidence.sampled``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.samples import AUDIT_SPLITS
from audit.evidence.effects import lay_out
from audit.evidence.effects_store import Part, StoredEffects, first_order_of
from audit.evidence.heads import decide_early, discover, found_heads
from audit.evidence.sampled import LEAST, FirstOrder, Sampled, draw
from audit.evidence.stats import Array
from audit.evidence.stored_rows import Rows, StoredRows, columns_of
from audit.models.adapters.registry import Model
from audit.patching.sites import Site, sites_of
from audit.pipeline.context import RunContext
from audit.pipeline.run_sweeps import (
    Plan,
    estimate_part,
    head_settings,
    no_swaps,
    patch_part,
    stage_of,
    swept_layers,
)
from audit.pipeline.train_models import AuditedModels
from audit.pipeline.write_rows import write_in_turn
from audit.records import Contrast, ContrastRow, Effort
from audit.store import write_text

Asked = Mapping[Contrast, Sequence[str]]  # the outcomes in which a gap was detected
Mask = npt.NDArray[np.bool_]
ROUNDS = 4  # of patching until the intervals are narrow enough
ENOUGH = 1.05  # a share that falls short of the needed one by less is enough


@dataclass(frozen=True)
class SampledSweep:
    """What was patched and what was estimated, how many patches it took, and the heads that discovery found."""

    swap: Rows
    first_order: Rows
    effort: list[Effort]

    @property
    def heads(self) -> list[Site]:
        """Return the heads that discovery found in any contrast."""
        return sorted({Site(*head) for effort in self.effort for head in effort.found})


@dataclass
class PartlyPatched:
    """One contrast and split of one model on its way; its rows lie in files until all parts are put together."""

    plan: Plan
    estimates: StoredRows
    chosen: Mask  # (R, K), patched so far
    patched: StoredRows = field(default_factory=lambda: StoredRows([]))
    found_early: int = 0
    given_up_early: int = 0
    found: list[tuple[int, int]] = field(default_factory=list)
    first_order: dict[str, FirstOrder] = field(default_factory=dict)  # the estimates, laid out by outcome


@dataclass(frozen=True)
class _Question:
    """One outcome of a part of the discovery split, with what both splits have of it."""

    part: PartlyPatched
    outcome: str
    effects: Part


def sweep_sampled(
    context: RunContext,
    models: AuditedModels,
    plans: Sequence[Plan],
    asked: Asked,
    unpatched: pd.DataFrame,
    gaps: Mapping[str, ContrastRow],
) -> SampledSweep:
    """Patch as many recipients as are needed for every contrast of ``asked``. What is stored is not computed again."""
    splits = {c: {plan.split for plan in plans if plan.contrast == c} for c in asked}
    wanted = [plan for plan in plans if splits.get(plan.contrast, set()) == set(AUDIT_SPLITS)]
    swap, first_order, effort = [], [], []
    for seed in context.seeds if wanted else []:
        tables, counts = _files(context, seed)
        if not counts.is_file():
            parts = Sampling(context, models.by_seed[seed], seed, asked, unpatched, gaps).run(wanted)
            _put_together(tables["swap"], [part.patched for part in parts])
            _put_together(tables["first-order"], [part.estimates for part in parts])
            write_text(counts, json.dumps([_effort(part, seed).model_dump() for part in parts], indent=1))
        swap.append(tables["swap"])
        first_order.append(tables["first-order"])
        effort += [Effort.model_validate(row) for row in json.loads(counts.read_text(encoding="utf-8"))]
    if not wanted:
        return SampledSweep(no_swaps(context), pd.DataFrame(), [])
    return SampledSweep(StoredRows(swap), StoredRows(first_order), effort)


def _files(context: RunContext, seed: int) -> tuple[dict[str, Path], Path]:
    """Return the tables of a seed, and the counts, which are written last."""
    folder = context.run / "effects"
    tables = {name: folder / f"{name}-seed-{seed}.parquet" for name in ("swap", "first-order")}
    return tables, folder / f"effort-seed-{seed}.json"


def _put_together(path: Path, rows: Sequence[StoredRows]) -> None:
    """Write the rows of all parts into one file."""
    every = StoredRows([file for part in rows for file in part.files])
    write_in_turn(path, every.read(columns_of(every)))


def _effort(part: PartlyPatched, seed: int) -> Effort:
    return Effort(
        contrast=str(part.plan.contrast),
        split=part.plan.split,
        seed=seed,
        patches=2 * int(part.chosen.sum()),
        of=2 * part.chosen.size,
        found_early=part.found_early,
        given_up_early=part.given_up_early,
        found=part.found,
    )


@dataclass(frozen=True)
class Sampling:
    """The sampled sweep of one seed's model."""

    context: RunContext
    model: Model
    seed: int
    asked: Asked
    unpatched: pd.DataFrame
    gaps: Mapping[str, ContrastRow] = field(default_factory=dict)

    def run(self, plans: Sequence[Plan]) -> list[PartlyPatched]:
        """Patch both splits for the first seed, whose heads are searched, confirmation for the others."""
        searched = self.seed == self.context.seeds[0]
        parts = [self.begin(plan) for plan in plans if searched or plan.split == "confirmation"]
        for part in parts:
            self.patch(part, np.full(part.chosen.shape[1], self._first_share(part)), look=1)
        if searched:
            self._search(parts)
        for part in (p for p in parts if p.plan.split == "confirmation"):
            self.narrow(part, np.ones(part.chosen.shape[1], dtype=bool))
        return parts

    def begin(self, plan: Plan) -> PartlyPatched:
        """Estimate a part to first order."""
        file = self._file(plan, "first-order")
        write_in_turn(file, estimate_part(self.context, self.model, self.seed, plan))
        heads = len(sites_of(self.model, swept_layers(self.context)))
        return PartlyPatched(plan, StoredRows([file]), np.zeros((len(plan.rows), heads), dtype=bool))

    def _file(self, plan: Plan, name: str) -> Path:
        """Return where rows of a part lie until all parts are put together."""
        folder = self.context.work / f"{stage_of(plan, self.seed)}-in-part"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.parquet"

    def _first_share(self, part: PartlyPatched) -> float:
        """Return the share of recipients in which ``LEAST`` of those have their part who count in each question."""
        labels, is_group = part.plan.rows["label"], (part.plan.rows["side"] == "group").to_numpy()
        counted = []
        for outcome in self._asked_of(part):
            shares = self._stored(part).label_shares(part.plan.contrast, outcome)
            reference, group = shares["label_shares"], shares["group_shares"] or shares["label_shares"]
            counted.append(int(np.where(is_group, labels.isin(list(group)), labels.isin(list(reference))).sum()))
        return min(1.0, LEAST / min(counted))

    def patch(self, part: PartlyPatched, share: Array, *, look: int) -> None:
        """Patch heads for these shares of the recipients, in addition to those that are patched."""
        cell = part.plan.rows.groupby(["label", "side"]).ngroup().to_numpy().astype(np.int64)
        wanted = draw(cell, share, seed=self.context.card.audit.seed) | part.chosen
        if (wanted != part.chosen).any():
            new = patch_part(self.context, self.model, self.seed, part.plan, wanted & ~part.chosen)
            file = self._file(part.plan, f"patched-{len(part.patched.files)}")
            write_in_turn(file, (table.assign(look=np.int8(look)) for table in new))
            part.patched = StoredRows([*part.patched.files, file])
            part.chosen = wanted

    def _search(self, parts: Sequence[PartlyPatched]) -> None:
        """Look at the discovery split twice, and note which heads were found for any outcome."""
        settings = head_settings(self.context)
        before = self._questions(parts)
        shrinking = [self._still_to_come(self.laid_out(q.part, q.outcome)) for q in before]
        decided = decide_early([q.effects for q in before], shrinking, settings)
        discovery = [part for part in parts if part.plan.split == "discovery"]
        for part in discovery:
            own = [
                d for q, d in zip(before, decided, strict=True) if q.part is part and q.outcome in self._asked_of(part)
            ]
            found, hopeless = (np.array([getattr(d, name) for d in own]) for name in ("found", "hopeless"))
            part.found_early = int(found.any(axis=0).sum())
            part.given_up_early = int((hopeless.all(axis=0)).sum())
            self.narrow(part, ~(found | hopeless).all(axis=0))
        after = self._questions(parts)
        looked = [replace(b.effects, first_look=a.effects.discovery) for a, b in zip(before, after, strict=True)]
        results = discover(looked, settings)
        sites = sites_of(self.model, swept_layers(self.context))
        for part in discovery:
            columns = {k for q, r in zip(after, results, strict=True) if q.part is part
                       for k in found_heads(q.effects, r, settings)}  # fmt: skip
            part.found = [(sites[k].layer, sites[k].head) for k in sorted(columns)]

    def _questions(self, parts: Sequence[PartlyPatched]) -> list[_Question]:
        """Return both splits of every contrast and outcome as they are now."""
        by_split = {(part.plan.contrast, part.plan.split): part for part in parts}
        questions = []
        for (contrast, split), part in by_split.items():
            for outcome in self.context.outcomes if split == "discovery" else ():
                both = (part, by_split[contrast, "confirmation"])
                effects = (self.laid_out(p, outcome).combined() for p in both)
                questions.append(_Question(part, outcome, Part(contrast, outcome, *effects)))
        return questions

    def narrow(self, part: PartlyPatched, heads: Mask) -> None:
        """Patch ``heads`` for more recipients until their intervals are as narrow as the card asks."""
        width = self.context.card.audit.half_width
        for _ in range(ROUNDS):
            asked = [self.laid_out(part, outcome).share_needed(width) for outcome in self._asked_of(part)]
            needed: Array = np.where(heads, np.max(asked, axis=0), 0.0)
            if (needed <= ENOUGH * part.chosen.mean(axis=0)).all():
                return
            self.patch(part, needed, look=2)

    def laid_out(self, part: PartlyPatched, outcome: str) -> Sampled:
        """Return what a part has so far, for the statistics."""
        effects = lay_out(
            part.patched,
            self.unpatched[self.unpatched["seed"] == self.seed],
            self.context.samples.frame["subject"],
            outcome,
            everyone=part.estimates,
            **self._stored(part).label_shares(part.plan.contrast, outcome),
        )
        if outcome not in part.first_order:
            part.first_order[outcome] = first_order_of(part.estimates, outcome)
        return Sampled(effects, part.first_order[outcome])

    def _stored(self, part: PartlyPatched) -> StoredEffects:
        """Return what tells the weights of the labels."""
        return StoredEffects(part.estimates, None, self.unpatched, self.context.samples.frame, gaps=self.gaps)

    def _still_to_come(self, sampled: Sampled) -> Array:
        """Return the variance at the second look as a share of that at the first, by head."""
        now = sampled.chosen.mean(axis=0)
        later = np.maximum(now, sampled.share_needed(self.context.card.audit.half_width))
        before, after = sampled.variance(now), sampled.variance(later)
        return np.divide(after, before, out=np.ones_like(after), where=before > 0)

    def _asked_of(self, part: PartlyPatched) -> Sequence[str]:
        """Return the outcomes in which a gap was detected in a part's contrast."""
        return self.asked[part.plan.contrast]
