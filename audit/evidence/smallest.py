"""The smallest set of heads that carries a gap: chosen on the discovery split, measured on the confirmation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from audit.evidence.bootstrap import draw_bootstrap, share_of_gap, weighted_estimates
from audit.evidence.carried import Measure, SmallestSet, confirm_set, smallest_set
from audit.evidence.effects import Scalar, SwapEffects, lay_out
from audit.evidence.effects_store import Settings, StoredEffects, shortfall
from audit.evidence.joint_patching import HeadSet
from audit.evidence.stats import Array, Codes, excludes_zero
from audit.evidence.stored_rows import Rows, columns_of, read, some
from audit.records import Contrast, Estimate, SetStep, SmallestSetRow, WhyStopped
from audit.units import name_of

STRONGEST = 8  # heads that are tried
MOST = 300  # recipients for whom sets are patched
RANDOM_SETS = 20

Head = tuple[int, int]
# Rows of a sweep of sets for recipients of a contrast and split; more sets than are asked for may be among them.
Look = Callable[[Contrast, str, Codes, Sequence[HeadSet]], pd.DataFrame]


@dataclass(frozen=True)
class StoredSets:
    """Sets that were patched, as they are stored."""

    table: Rows  # columns of Design A with ``set`` in place of layer and head

    def __call__(self, contrast: Contrast, split: str, _positions: Codes, sets: Sequence[HeadSet]) -> pd.DataFrame:
        """Return the rows of sets."""
        rows = some(self.table, contrast=str(contrast), split=split)
        names = [str(s) for s in sets]
        parts = [part[part["set"].isin(names)] for part in read(rows, columns_of(rows))]
        return pd.concat(parts, ignore_index=True)


def judge_smallest(
    stored: StoredEffects,
    asked: Sequence[tuple[Contrast, str]],
    seed: int,
    settings: Settings,
    look: Look,
) -> list[SmallestSetRow]:
    """Choose and measure the smallest set of each question.

    Parameters
    ----------
    stored : StoredEffects
        Single heads.
    asked : sequence of (contrast, outcome)
    seed : int
        Of the audited model.
    settings : Settings
    look : callable
        Patches sets, or returns what was patched.
    """
    return [_judged(_Question(stored, contrast, outcome, seed, settings, look)) for contrast, outcome in asked]


@dataclass(frozen=True)
class _Question:
    stored: StoredEffects
    contrast: Contrast
    outcome: str
    seed: int
    settings: Settings
    look: Look

    def singles(self, split: str) -> tuple[SwapEffects, Codes]:
        """Return each head alone for some of the recipients, evenly over labels and sides, and where these are."""
        found = self.stored.sampled(self.seed, self.contrast, split, self.outcome)
        if isinstance(found, SwapEffects):
            places = _drawn(found, np.zeros(len(found.label)), self.settings.seed)
            return found.take(places), places
        places = _drawn(found.effects, found.chosen.sum(axis=1), self.settings.seed)
        return found.take(places).combined(), places

    def measure(self, split: str, places: Codes, scalar: Scalar = "p") -> Measure[Head]:
        """Return what patches sets jointly."""
        own, subjects = self.stored.own(self.seed), self.stored.frame["subject"]
        shares = self.stored.label_shares(self.contrast, self.outcome)

        def patched(sets: Sequence[tuple[Head, ...]]) -> SwapEffects:
            wanted = [HeadSet(tuple(sorted(heads))) for heads in sets]
            rows = self.look(self.contrast, split, places, list(dict.fromkeys(wanted)))
            found = lay_out(rows, own, subjects, self.outcome, by=["set"], scalar=scalar, **shares)
            names = sorted({str(s) for s in wanted})
            order = [names.index(str(s)) for s in wanted]
            return _columns(found, order)

        return patched


def _drawn(effects: SwapEffects, patched: Array, seed: int) -> Codes:
    """Draw recipients evenly over labels and sides; those for whom more heads were patched, at random, come first."""
    order = np.random.default_rng(seed).permutation(len(effects.label))
    order = order[np.argsort(-patched[order], kind="stable")]
    cells = pd.DataFrame({"label": effects.label, "side": effects.is_group}).iloc[order]
    place = cells.groupby(["label", "side"]).cumcount()
    return np.sort(place.sort_values(kind="stable").index[:MOST].to_numpy(dtype=np.int64))


def _columns(effects: SwapEffects, order: Sequence[int]) -> SwapEffects:
    """Return some columns, in an order."""
    return replace(effects, cross=effects.cross[:, order], placebo=effects.placebo[:, order])


def _judged(question: _Question) -> SmallestSetRow:
    """Choose on the one split, measure on the other."""
    settings = question.settings
    singles, places = question.singles("discovery")
    heads = [(int(layer), int(head)) for layer, head in singles.heads]
    chosen: SmallestSet[Head] = SmallestSet((), WhyStopped.TOO_LITTLE, np.inf, (), 0)
    if shortfall(singles, settings.min_group_size) is None:
        measure = question.measure("discovery", places)
        chosen = smallest_set(measure, singles, heads, strongest=STRONGEST, alpha=settings.alpha)
    confirmation, there = question.singles("confirmation")
    steps = [
        SetStep(head=name_of(settings.unit, *s.member), gain=s.gain, error=s.error, joint=s.joint) for s in chosen.steps
    ]
    row = SmallestSetRow(
        contrast=str(question.contrast),
        outcome=question.outcome,
        metric=question.stored.metric(question.contrast, question.outcome),
        heads=[step.head for step in steps],
        steps=steps,
        stopped=chosen.stopped,
        limit=float(chosen.limit) if np.isfinite(chosen.limit) else None,
        tried=len(chosen.tried),
        patched=chosen.patched,
        recipients=int(confirmation.weighted.sum()),
    )
    if not chosen.members or shortfall(confirmation, settings.min_group_size) is not None:
        return row
    bootstrap = draw_bootstrap(confirmation, resamples=settings.bootstrap, seed=settings.seed + 1)
    found = confirm_set(
        question.measure("confirmation", there),
        chosen.members,
        confirmation,
        heads,
        bootstrap,
        layer_of=lambda head: head[0],
        random_sets=RANDOM_SETS,
        seed=settings.seed,
    )
    called = question.measure("confirmation", there, "called")([chosen.members])
    (rate,) = weighted_estimates(called.difference, called.mediated_weights(), called, bootstrap)
    (share,) = share_of_gap(called, bootstrap)
    direction = -1.0 if float(confirmation.gap_weights() @ confirmation.unpatched) < 0 else 1.0
    return row.model_copy(
        update={
            "together": found.carried.joint,
            "together_rate": rate,
            "share_of_gap": share,
            "sum_of_singles": found.carried.sum_of_singles,
            "redundancy": found.carried.redundancy,
            "random": list(found.random),
            "beyond_random": found.beyond_random,
            "p_random": found.p if found.random else None,
            "confirmed": _is_beyond(found.carried.joint, direction)
            and (not found.random or _is_beyond(found.beyond_random, direction)),
        }
    )


def _is_beyond(estimate: Estimate, direction: float) -> bool:
    """Tell whether an interval lies on one side of 0, that of the direction."""
    return excludes_zero(estimate) and estimate.value is not None and direction * estimate.value > 0
