"""The smallest set, from stored effects to the record: what is chosen on one split is measured on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from audit.evidence.effects import SwapEffects
from audit.evidence.joint_patching import HeadSet
from audit.evidence.smallest import Look, StoredSets, judge_smallest
from audit.evidence.stats import Codes
from audit.records import Contrast, SmallestSetRow, WhyStopped
from tests.evidence.simulate import swap_effects
from tests.evidence.test_heads import SETTINGS, TONE
from tests.evidence.test_joint_patching import stored_twice

pytestmark = pytest.mark.unit
PLANTED = [0.08, 0.06, *([0.0] * 10)]  # of the first two of twelve heads, in points of mean probability
ASKED = [(TONE, "smile")]


def effects_of(planted: Sequence[float], seed: int = 1) -> SwapEffects:
    return swap_effects(np.random.default_rng(seed), heads=12, planted=list(planted), noise=0.01, donor_noise=0.01)


def patching(effects: SwapEffects, worth: Callable[[np.ndarray], np.ndarray], asked: list[str]) -> Look:
    """Return what patches sets, of which the difference (R,) is ``worth`` of those of its heads (R, heads)."""
    column = {head: k for k, head in enumerate(effects.heads)}

    def look(contrast: Contrast, split: str, positions: Codes, sets: Sequence[HeadSet]) -> pd.DataFrame:
        asked.extend(f"{split} {s}" for s in sets)
        tables = []
        for heads in sets:
            change = worth(effects.difference[:, [column[h] for h in heads.heads]])
            for kind, value in (("cross", effects.placebo[:, 0] + change), ("placebo", effects.placebo[:, 0])):
                about = {
                    "contrast": str(contrast), "split": split, "position": positions,
                    "recipient": 10_000 * (split == "confirmation") + positions, "donor_kind": kind, "set": str(heads),
                    "p:smile": value[positions], "predicted": np.where(value[positions] > 0.5, "smile", "frown"),
                    "unit": effects.unit[positions],
                    "side": np.where(effects.is_group[positions], "group", "reference"),
                    "label": np.array(["frown", "smile"])[effects.label[positions]],
                }  # fmt: skip
                tables.append(pd.DataFrame(about))
        return pd.concat(tables, ignore_index=True)

    return look


def total(differences: np.ndarray) -> np.ndarray:
    return differences.sum(axis=1)


def judged(effects: SwapEffects, look: Look) -> SmallestSetRow:
    (row,) = judge_smallest(stored_twice(effects), ASKED, 0, SETTINGS, look)
    return row


def test_two_planted_heads_are_the_set_and_are_confirmed_beyond_random_ones() -> None:
    effects, asked = effects_of(PLANTED), list[str]()
    row = judged(effects, patching(effects, total, asked))
    first, second = (f"L{layer}H{head}" for layer, head in effects.heads[:2])
    assert row.heads == [first, second]
    assert (row.stopped, row.confirmed) == (WhyStopped.NOISE, True)
    joint = float(effects.mediated_weights() @ effects.difference[:, :2].sum(axis=1))
    assert row.together.value == pytest.approx(joint)
    assert row.redundancy.value == pytest.approx(0.0, abs=1e-9)
    assert row.sum_of_singles.value == pytest.approx(joint)
    assert row.p_random == pytest.approx(1 / (1 + len(row.random)))
    assert row.patched == sum(name.startswith("discovery") for name in asked)
    assert len(asked) == len(set(asked)) + 1  # the set itself a second time, for its rate


def test_what_is_stored_gives_the_same_row() -> None:
    effects, tables = effects_of(PLANTED), list[pd.DataFrame]()
    look = patching(effects, total, [])

    def kept(contrast: Contrast, split: str, positions: Codes, sets: Sequence[HeadSet]) -> pd.DataFrame:
        tables.append(look(contrast, split, positions, sets))
        return tables[-1]

    row = judged(effects, kept)
    every = pd.concat(tables).drop_duplicates(["split", "position", "donor_kind", "set"])
    assert judged(effects, StoredSets(every.sample(frac=1, random_state=0))) == row


def test_of_two_heads_that_carry_the_same_one_is_named_and_the_other_counted_once() -> None:
    effects = effects_of([0.08, 0.08, *([0.0] * 10)])
    row = judged(effects, patching(effects, lambda differences: differences.mean(axis=1), []))
    assert len(row.heads) == 1
    assert row.confirmed


def test_where_nothing_is_there_the_row_says_why_and_nothing_is_patched() -> None:
    effects, asked = effects_of([0.0] * 12), list[str]()
    row = judged(effects, patching(effects, total, asked))
    assert (row.heads, row.confirmed, row.stopped, asked) == ([], False, WhyStopped.NOISE, [])
    assert row.together.value is None


def test_relabelled_groups_turn_the_signs() -> None:
    effects = effects_of(PLANTED)
    swapped = replace(effects, is_group=~effects.is_group)
    row, other = (judged(e, patching(e, total, [])) for e in (effects, swapped))
    assert other.heads == row.heads
    assert other.together.value == pytest.approx(-(row.together.value or 0.0), abs=1e-6)


def test_too_few_people_are_said() -> None:
    effects = effects_of(PLANTED).take(np.arange(6))
    row = judged(effects, patching(effects, total, []))
    assert (row.heads, row.stopped) == ([], WhyStopped.TOO_LITTLE)
