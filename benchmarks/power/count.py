"""Arms of the comparison, each drawn again and again from plan to verdict, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from audit.evidence.effects import SwapEffects
from audit.evidence.effects_store import Settings
from audit.evidence.stats import Array, components
from benchmarks.power.decide import ALPHA, RULES, Confirmed, Halves, decide, decide_at_once, judge_halves
from benchmarks.power.effects import World, draw, people
from benchmarks.power.plans import by_recipient, more_where_answers_move, one_pair, several_pairs

Figures = dict[str, Any]
PLANS = 4  # each serves every fourth draw
SETTINGS = Settings(alpha=ALPHA, permutations=499, bootstrap=300, seed=0, min_group_size=30)


@dataclass(frozen=True)
class Arm:
    """Who is in each half, and who receives from how many pairs."""

    each: int  # people of a label and group
    images_each: int = 1
    donors: int = 1
    at_most: int | None = None  # recipients
    shared: bool = True  # pairs serve both groups, as they do today
    on_average: float | None = None  # pairs a recipient, most where answers can move; ``donors`` at most

    def plan(self, seed: int) -> pd.DataFrame:
        """Return the rows of one half."""
        half = people(self.each, self.images_each)
        if self.donors == 1 and self.shared:
            return one_pair(half, seed, self.at_most)
        return several_pairs(half, self.donors, seed, self.at_most, shared=self.shared)

    def effects(self, world: World, sets: Array, seed: int, rng: np.random.Generator) -> SwapEffects:
        """Draw the effects of one half."""
        rows = planned(self, seed)
        effects = draw(world, people(self.each, self.images_each), rows, sets, rng)
        if self.on_average is None:
            return effects
        kept = np.flatnonzero(more_where_answers_move(rows, effects.unpatched, self.on_average))
        return by_recipient(effects.take(kept), rows["recipient"].to_numpy(dtype=np.int64)[kept])

    def size(self) -> Figures:
        """Return recipients, donor pairs, clusters and patches of one half, a patch being one of each kind of donor."""
        rows = planned(self, 0)
        recipients = rows["recipient"].nunique()
        subject = people(self.each, self.images_each)["subject"].loc[rows["recipient"]].to_numpy(dtype=np.int64)
        return {
            "recipients": int(recipients),
            "pairs": int(rows["unit"].nunique()),
            "clusters": int(components(subject, rows["unit"].to_numpy(dtype=np.int64)).max()) + 1,
            "patches": len(rows) if self.on_average is None else round(self.on_average * recipients),
        }


@cache
def planned(arm: Arm, seed: int) -> pd.DataFrame:
    """Return a plan, made once."""
    return arm.plan(seed)


def draw_halves(arm: Arm, world: World, sets: Array, seed: Sequence[int], number: int) -> Halves:
    """Draw both halves and judge them."""
    rng = np.random.default_rng([*seed, number])
    plan = 2 * (number % PLANS)
    first, second = (arm.effects(world, sets, plan + k, rng) for k in (0, 1))
    return judge_halves(first, second, Settings(**{**SETTINGS.__dict__, "seed": 2 * number}))


def one_draw(arm: Arm, world: World, sets: Array, seed: Sequence[int], number: int, *, pooled: bool) -> Figures:
    """Return of one draw, by rule, what was confirmed, and which truths lie outside the quoted intervals."""
    halves, truth = draw_halves(arm, world, sets, seed, number), world.truth(sets)
    told: Figures = {"enough": halves.enough}
    for name, rule in RULES.items():
        if rule.roles or pooled:
            told[name] = _told(decide(halves, rule) if rule.roles else decide_at_once(halves), truth)
    return told


def _told(told: Confirmed, truth: Array) -> Figures:
    (low, high), (low_all, high_all) = told.each, told.at_once
    return {
        "found_false": bool(told.found[truth == 0].any()),
        "confirmed": np.flatnonzero(told.confirmed).tolist(),
        "missed": np.flatnonzero(~((low <= truth) & (truth <= high))).tolist(),
        "missed_at_once": np.flatnonzero(~((low_all <= truth) & (truth <= high_all))).tolist(),
        "half_width": float(np.median(high - low)) / 2,
    }


def summed(draws: Sequence[Figures], truth: Array, levels: Sequence[str] | None = None) -> Figures:
    """Put the draws of one rule together."""
    confirmed, missed, at_once = (_masks(draws, name, len(truth)) for name in ("confirmed", "missed", "missed_at_once"))
    true = truth != 0
    some = confirmed.any(axis=1)
    told: Figures = {
        "draws": len(draws),
        "found_false": rate(sum(one["found_false"] for one in draws), len(draws)),
        "confirmed_false": rate(int(confirmed[:, ~true].any(axis=1).sum()), len(draws)),
        "coverage": mean(1 - missed.mean(axis=1)),
        "half_width": round(float(np.mean([one["half_width"] for one in draws])), 5),
    }
    if true.any():
        told["power"] = mean(confirmed[:, true].mean(axis=1))
        told["any_true"] = rate(int(confirmed[:, true].any(axis=1).sum()), len(draws))
    if some.any():
        held = np.asarray((~at_once | ~confirmed).all(axis=1))
        right = int(held[some].sum())
        told["coverage_of_confirmed"] = rate(int((~missed)[confirmed].sum()), int(confirmed.sum()))
        told["all_confirmed_held_at_once"] = rate(right, int(some.sum()))
    if levels is not None:
        of = np.array(levels)
        by_level = {level: (confirmed & true)[:, of == level].any(axis=1).mean() for level in dict.fromkeys(levels)}
        told["levels"] = {level: round(float(share), 4) for level, share in by_level.items()}
    return told


def _masks(draws: Sequence[Figures], name: str, columns: int) -> npt.NDArray[np.bool_]:
    masks = np.zeros((len(draws), columns), dtype=bool)
    for mask, one in zip(masks, draws, strict=True):
        mask[one[name]] = True
    return masks


def mean(shares: Array) -> Figures:
    """Return the mean over draws, with its standard error."""
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else np.nan
    return {"estimate": round(float(shares.mean()), 4), "error": round(float(error), 4)}


def rate(hits: int, trials: int) -> Figures:
    """Return a share with its 95% interval (Clopper & Pearson 1934)."""
    low, high = proportion_confint(hits, trials, alpha=0.05, method="beta")
    return {
        "n": trials,
        "estimate": round(hits / trials, 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }
