"""Heads patched together, on effects whose sum is known: independent, redundant, and making up for one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from audit.evidence.effects import SwapEffects
from audit.evidence.effects_store import StoredEffects
from audit.evidence.joint_patching import HeadSet, judge_together, parse_set, sets_of_question, sets_to_patch
from audit.records import JointRow, Localisation
from tests.evidence.rows import around, head_row
from tests.evidence.simulate import swap_effects
from tests.evidence.test_heads import SETTINGS, TONE, simulated

pytestmark = pytest.mark.unit
FOUND = Localisation(status="localised", heads=["L1H0", "L1H1"])

PAIR = HeadSet(((0, 0), (0, 1)))


def called(p: np.ndarray | pd.Series) -> np.ndarray:
    return np.where(p > 0.5, "smile", "frown")


def stored_twice(effects: SwapEffects) -> StoredEffects:
    """Store the same effects on both splits, an image being called what it more likely is."""
    stored = simulated({(0, TONE, "discovery"): effects, (0, TONE, "confirmation"): effects})
    swap, unpatched = (t.assign(predicted=called(t["p:smile"])) for t in (stored.swap, stored.unpatched))
    return replace(stored, swap=swap, unpatched=unpatched)


def together(effects: SwapEffects, sets: dict[str, np.ndarray]) -> pd.DataFrame:
    """Store what sets of heads do, each given as its p with cross-group donors."""
    n = len(effects.label)
    parts = [
        pd.DataFrame(
            {
                "contrast": str(TONE), "position": np.arange(n), "recipient": 10_000 + np.arange(n), "donor_kind": kind,
                "set": name, "p:smile": values, "predicted": called(values), "unit": effects.unit,
                "side": np.where(effects.is_group, "group", "reference"),
                "label": np.array(["frown", "smile"])[effects.label],
            }
        )
        for name, cross in sets.items()
        for kind, values in (("cross", cross), ("placebo", effects.placebo[:, 0]))
    ]  # fmt: skip
    return pd.concat(parts).sample(frac=1, random_state=1)


def judged(joint: float) -> tuple[JointRow, SwapEffects]:
    """Patch two heads that carry 5 points each; together they carry ``joint`` times the sum."""
    effects = swap_effects(np.random.default_rng(0), planted=[0.05, 0.05], noise=0.01, donor_noise=0.01)
    cross = effects.placebo[:, 0] + joint * effects.difference[:, :2].sum(axis=1)
    (row,) = judge_together(
        stored_twice(effects), together(effects, {str(PAIR): cross}), [TONE], ["smile"], 0, SETTINGS
    )
    return row, effects


@pytest.mark.parametrize("joint", [1.0, 0.5, 1.5])
def test_the_whole_beside_the_sum_of_its_parts(joint: float) -> None:
    row, effects = judged(joint)
    single = effects.mediated_weights() @ effects.difference
    assert row.sum_of_singles.value == pytest.approx(single[:2].sum())
    assert row.together.value == pytest.approx(joint * single[:2].sum())
    assert row.beyond_sum.value == pytest.approx((joint - 1) * single[:2].sum())
    patched = effects.placebo[:, 0] + joint * effects.difference[:, :2].sum(axis=1)
    rate = effects.mediated_weights() @ (1.0 * (patched > 0.5) - (effects.placebo[:, 0] > 0.5))
    of_singles = effects.mediated_weights() @ (1.0 * (effects.cross > 0.5) - (effects.placebo > 0.5))[:, :2].sum(axis=1)
    gap = effects.gap_weights() @ (effects.unpatched > 0.5)
    assert row.together_rate is not None and row.together_rate.value == pytest.approx(rate)
    assert row.share_of_gap.value == pytest.approx(rate / gap)
    assert row.sum_share_of_gap.value == pytest.approx(of_singles / gap)
    assert (row.heads, row.all_heads) == (["L0H0", "L0H1"], False)


def test_redundant_heads_are_told_from_independent_ones() -> None:
    alike, redundant = (judged(j)[0].beyond_sum for j in (1.0, 0.5))
    assert alike.low is not None and alike.high is not None
    assert alike.low <= 0 <= alike.high
    assert redundant.high is not None and redundant.high < 0


def test_every_head_at_once_is_called_so() -> None:
    effects = swap_effects(np.random.default_rng(0), planted=[0.05], heads=2)
    stored = stored_twice(effects)
    heads = HeadSet(tuple(sorted(effects.heads)))
    cross = effects.placebo[:, 0] + effects.difference.sum(axis=1)
    (row,) = judge_together(stored, together(effects, {str(heads): cross}), [TONE], ["smile"], 0, SETTINGS)
    assert row.all_heads
    assert judge_together(stored, pd.DataFrame(columns=["contrast", "set"]), [TONE], ["smile"], 0, SETTINGS) == []


def test_sets_are_all_heads_the_confirmed_ones_and_the_largest_of_discovery_in_pairs() -> None:
    """Sizes on the confirmation split, here in the opposite order, choose nothing."""
    confirmed = [
        head_row(
            layer=1, head=h, name=f"L1H{h}", discovery=around(-0.01 * (h + 1)), confirmation=around(-0.01 * (9 - h))
        )
        for h in range(5)
    ]
    none = "no effect found"
    others = [head_row(layer=0, head=h, name=f"L0H{h}", discovery=around(0.002), verdict=none) for h in range(2)]
    sets = [str(s) for s in sets_of_question([*others, *confirmed])]
    assert sets[0] == "L0H0+L0H1+L1H0+L1H1+L1H2+L1H3+L1H4"
    assert sets[1] == "L1H0+L1H1+L1H2+L1H3+L1H4"
    assert sorted(sets[2:]) == ["L1H1+L1H2", "L1H1+L1H3", "L1H1+L1H4", "L1H2+L1H3", "L1H2+L1H4", "L1H3+L1H4"]
    assert [str(s) for s in sets_of_question(others)] == ["L0H0+L0H1"]  # redundant heads may both stay unconfirmed
    assert [str(s) for s in sets_of_question([*others, confirmed[0]])] == [
        "L0H0+L0H1+L1H0",
        "L0H0+L1H0",
        "L0H1+L1H0",
        "L0H0+L0H1",
    ]


def test_sets_are_patched_where_a_gap_was_detected_and_nowhere_else() -> None:
    rows = [head_row(layer=1, head=h, name=f"L1H{h}") for h in range(2)]
    key = f"{rows[0].contrast}:{rows[0].outcome}"
    for answer in ("no gap detected, nothing to localise", "too little data"):
        assert sets_to_patch(rows, {key: Localisation(status=answer)}) == {}
    found = sets_to_patch(rows, {key: FOUND})
    assert sets_to_patch(rows, {key: Localisation(status="not localisable")}) == found
    assert {c: [str(s) for s in sets] for c, sets in found.items()} == {rows[0].contrast: ["L1H0+L1H1"]}
    again = [r.model_copy(update={"outcome": "frowning"}) for r in rows]
    both = sets_to_patch([*rows, *again], {key: FOUND, f"{rows[0].contrast}:frowning": FOUND})
    assert both == found


def test_the_name_of_a_set_says_what_is_in_it() -> None:
    heads = HeadSet(((0, 3), (11, 5)))
    assert str(heads) == "L0H3+L11H5"
    assert parse_set(str(heads)) == heads
    assert replace(heads) == heads
