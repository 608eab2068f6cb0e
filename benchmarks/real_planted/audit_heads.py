"""An audit of heads by the tool's own plans, sweep and decisions, without the controls of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from timm.models.vision_transformer import VisionTransformer

from audit.evidence.disparity import Thresholds, contrasts, primary_gaps
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.heads import localise
from audit.evidence.outcome import has_gap, localisation, without_gap
from audit.evidence.stats import is_at_most
from audit.models.adapters.registry import adapter
from audit.patching.plans import plan_group_swap
from audit.patching.sweep import measure_unpatched, sweep
from audit.pipeline.run_sweeps import Plan, described, with_class_names
from audit.records import ContrastRow, HeadRow, Verdict
from benchmarks.real_planted.photographs import ATTRIBUTE, CONTRAST, LABELS, OUTCOME, OUTCOMES, QUESTION, World

SEED = 0  # of the audited model, in the tables
KEY = f"{CONTRAST}:{OUTCOME}"
AUDITED = ("discovery", "confirmation")
LIMITS = Thresholds(alpha=0.05, min_group_size=30, impact_ratio_below=0.8, gap_above=0.1)


@dataclass(frozen=True)
class Heads:
    """What an audit says of the gap and of the heads."""

    stored: StoredEffects
    gap: ContrastRow  # that the heads are asked about
    rows: list[HeadRow]
    named: list[str]  # heads that carry a gap which was detected
    confirmed: list[str]  # on both splits, gap or no gap
    discovered: list[str]

    @property
    def detected(self) -> bool:
        """Tell whether there is a gap whose heads are asked for."""
        return has_gap(self.gap)

    @property
    def enough(self) -> bool:
        """Tell whether there were donors and recipients enough to judge heads at all."""
        return all(row.verdict is not Verdict.TOO_LITTLE_DATA for row in self.rows)


def answer(model: VisionTransformer, world: World, splits: tuple[str, ...] = AUDITED) -> pd.DataFrame:
    """Return what a model answers to the photographs of some splits, as an audit stores it."""
    found = measure_unpatched(model, world.features, world.rows(*splits), OUTCOMES)
    return with_class_names(found, LABELS).assign(seed=SEED)


def joined(frame: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return the photographs that were answered, with the answers."""
    return frame.join(answers.set_index("recipient").drop(columns="seed"), how="inner")


def make_plans(
    frame: pd.DataFrame, *, recipients: int | None, seed: int, nuisance: tuple[str, ...] = ()
) -> dict[str, Plan]:
    """Return who donates to whom, by split."""
    made = {}
    for split in AUDITED:
        part = frame[frame["split"] == split]
        rows = plan_group_swap(part, CONTRAST, nuisance, seed=seed, max_images=recipients).rows
        made[split] = Plan(CONTRAST, split, rows)
    return made


def sweep_plans(model: VisionTransformer, world: World, plans: Mapping[str, Plan]) -> pd.DataFrame:
    """Patch every head of every recipient of both splits."""
    layers = range(adapter(model).depth)
    tables = [
        described(
            sweep(
                model,
                world.features,
                plan.column("recipient"),
                plan.donors(model),
                layers=layers,
                outcomes=OUTCOMES,
                units=plan.column("unit"),
            ),
            plan,
            SEED,
        )
        for plan in plans.values()
    ]
    return with_class_names(pd.concat(tables, ignore_index=True), LABELS)


def judge(frame: pd.DataFrame, answers: pd.DataFrame, swap: pd.DataFrame, settings: Settings) -> Heads:
    """Decide on the gap and on the heads as an audit does (``analyze.judge_effects``)."""
    compared = contrasts(joined(frame, answers), [QUESTION], [OUTCOME], LIMITS)
    gaps = primary_gaps(compared)
    stored = StoredEffects(swap, None, answers, frame, gaps=gaps)
    rows, _ = localise(stored, [CONTRAST], [OUTCOME], [SEED], settings)
    where = localisation(rows, compared)
    rows = without_gap(rows, where)
    confirmed = [r.name for r in rows if r.verdict in (Verdict.CONFIRMED, Verdict.CONFIRMED_NO_GAP)]
    discovered = [r.name for r in rows if is_at_most(r.discovery_p_adjusted, settings.alpha)]
    return Heads(stored, gaps[KEY], rows, list(where[KEY].heads), confirmed, discovered)


def codes_of(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return the labels' class numbers."""
    return pd.Index(LABELS).get_indexer(pd.Index(frame["label"])).astype(np.int64)


def is_of_group(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tell which photographs are of the compared group."""
    return (frame[ATTRIBUTE] == CONTRAST.group).to_numpy()
