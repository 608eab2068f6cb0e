"""What whole parts carry, from stored rows: known shares, both directions, and what is beyond noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audit.evidence.carried_parts import judge_parts
from audit.evidence.effects import SwapEffects
from audit.records import CarriedKind, CarriedRow
from tests.evidence.simulate import swap_effects
from tests.evidence.test_heads import SETTINGS, TONE
from tests.evidence.test_joint_patching import stored_twice

pytestmark = pytest.mark.unit
# what each part carries when it is patched in, and when it is taken out
PARTS = {"all attention": (0.1, 0.1), "L0": (0.0, 0.0), "L1": (0.1, 0.04), "class token at 1": (0.0, 0.0)}


def table_of(effects: SwapEffects) -> pd.DataFrame:
    """Store parts whose effects are exact; the donors are images of the confirmation split themselves."""
    n = len(effects.label)
    away = np.where(effects.is_group, -1.0, 1.0)  # from recipients of a side to donors of the other
    other = np.array(
        [
            np.flatnonzero((effects.is_group != effects.is_group[i]) & (effects.label == effects.label[i]))[0]
            for i in range(n)
        ]
    )
    own = np.array(
        [
            np.flatnonzero((effects.is_group == effects.is_group[i]) & (effects.label == effects.label[i]))[0]
            for i in range(n)
        ]
    )
    tables = []
    for part, (into, out) in PARTS.items():
        for kind, donor, moved in (("cross", other, 1.0), ("placebo", own, 0.0)):
            for direction, base, change in (
                ("denoising", effects.unpatched, away * into), ("noising", effects.unpatched[donor], -away * out),
            ):  # fmt: skip
                value = base + moved * change
                about = {
                    "contrast": str(TONE), "position": np.arange(n), "recipient": 10_000 + np.arange(n),
                    "donor": 10_000 + donor, "donor_kind": kind, "set": part, "direction": direction, "p:smile": value,
                    "predicted": np.where(value > 0.5, "smile", "frown"), "unit": effects.unit,
                    "side": np.where(effects.is_group, "group", "reference"),
                    "label": np.array(["frown", "smile"])[effects.label],
                }  # fmt: skip
                tables.append(pd.DataFrame(about))
    return pd.concat(tables).sample(frac=1, random_state=0)


def rows() -> dict[tuple[str, int | None], CarriedRow]:
    effects = swap_effects(np.random.default_rng(0), noise=0.0, donor_noise=0.0)
    found = judge_parts(stored_twice(effects), table_of(effects), [TONE], ["smile"], 0, SETTINGS)
    return {(str(row.part), row.layer): row for row in found}


def test_each_part_carries_what_was_planted_in_both_directions() -> None:
    found = rows()
    assert list(found) == [("attention", None), ("layer", 0), ("layer", 1), ("class token", 1)]
    for row, (into, out) in zip(found.values(), PARTS.values(), strict=True):
        assert row.denoised.value == pytest.approx(into)
        assert row.noised.value == pytest.approx(out)
        assert row.apart.value == pytest.approx(into - out)


def test_what_carries_in_the_direction_of_the_gap_is_beyond_noise() -> None:
    found = rows()
    assert {key for key, row in found.items() if row.beyond_noise} == {("attention", None), ("layer", 1)}
    assert found["layer", 1].part is CarriedKind.LAYER
