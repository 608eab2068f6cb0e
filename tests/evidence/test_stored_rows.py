"""Stored effects read part by part give what the whole table in memory gives, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audit.evidence.effects_store import StoredEffects
from audit.evidence.heads import localise
from audit.evidence.stored_rows import Grid, Rows, StoredRows, by_image, columns_of, count, distinct, read, some
from tests.evidence.simulate import swap_effects
from tests.evidence.test_heads import SETTINGS, SPLITS, TONE, simulated, with_reference

pytestmark = pytest.mark.unit


def stored(table: Rows | None, folder: Path, name: str, files: int = 1) -> StoredRows:
    """Write a table to so many files, in row groups of a few rows."""
    assert isinstance(table, pd.DataFrame)
    paths = []
    for number, places in enumerate(np.array_split(np.arange(len(table)), files)):
        paths.append(folder / f"{name}-{number}.parquet")
        table.iloc[places].to_parquet(paths[-1], index=False, row_group_size=700)
    return StoredRows(paths)


def in_memory() -> StoredEffects:
    cells = {(0, TONE, s): swap_effects(np.random.default_rng(7), planted=[0.1]) for s in SPLITS}
    lifts = {"balanced-0": [0.0, 0.1, 0.2, 0.2, 0.2, 0.2], "reseed": [0.2, 0.2, 0.2, 0.2, 0.2, 0.1]}
    effects = with_reference(simulated(cells), lifts)
    assert isinstance(effects.swap, pd.DataFrame)
    swap = effects.swap[effects.swap["split"] == "confirmation"]
    estimates = swap.assign(**{f"{a}:smile": 0.9 * swap["p:smile"] for a in ("own", "pair", "both")})
    return replace(effects, first_order=estimates, transplant=effects.reference)


@pytest.mark.parametrize("sampled", [False, True])
def test_heads_are_judged_the_same_to_the_bit(tmp_path: Path, sampled: bool) -> None:
    whole = in_memory()
    if sampled:
        assert isinstance(whole.swap, pd.DataFrame)
        whole = replace(whole, swap=whole.swap[(whole.swap["split"] == "discovery") | (whole.swap["position"] % 3 > 0)])
    lazily = replace(
        whole,
        swap=stored(whole.swap, tmp_path, "swap", 2),
        first_order=stored(whole.first_order, tmp_path, "first-order"),
        reference=stored(whole.reference, tmp_path, "reference"),
        transplant=stored(whole.transplant, tmp_path, "transplant", 3),
    )
    assert lazily.patched_in_both_splits([TONE]) == [TONE]
    rows, again = (localise(effects, [TONE], ["smile"], [0], SETTINGS) for effects in (whole, lazily))
    assert repr(again) == repr(rows)
    assert (rows[0][0].patched_share < 1) is sampled
    assert rows[0][0].design_c is not None


def test_parts_are_those_of_the_table(tmp_path: Path) -> None:
    table = pd.DataFrame({"seed": [0, 0, 1, 1], "kind": ["ä", "b", "ä", "b"], "p:x": [0.1, 0.2, 0.3, 0.4]})
    rows = stored(table, tmp_path, "t", 2)
    assert columns_of(rows) == columns_of(table) == ["seed", "kind", "p:x"]
    for each in (table, rows):
        part = some(some(each, seed=1), kind="b")
        assert [r["p:x"].tolist() for r in read(part, ["p:x"])] == [[0.4]]
        assert (count(each), count(some(each, kind="ä")), count(part), count(some(each, seed=9))) == (4, 2, 1, 0)
        assert distinct(each, ["kind"])["kind"].tolist() == ["ä", "b"]
        assert distinct(each, ["kind", "p:x"], by=["kind"])["p:x"].tolist() == [0.1, 0.2]


def test_what_a_file_lacks_is_missing_in_its_rows(tmp_path: Path) -> None:
    whole = pd.DataFrame({"seed": [0], "p:x": [0.1], "float32:x": [0.2]})
    rows = StoredRows([*stored(whole, tmp_path, "a").files, *stored(whole[["seed", "p:x"]], tmp_path, "b").files])
    found = pd.concat(read(rows, ["p:x", "float32:x"]))
    np.testing.assert_array_equal(found["float32:x"], [0.2, np.nan])


def test_a_patch_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"position": [4, 2, 4], "donor_kind": "cross", "layer": 0, "head": 1, "p:x": [0.1, 0.2, 0.3]})
    for each in (table, stored(table, tmp_path, "t")):
        grid = Grid.of(each, "position", ["layer", "head"], "cross")
        assert (grid.index.tolist(), list(grid.patched)) == ([2, 4], [(0, 1)])
        with pytest.raises(ValueError, match="a patch twice"):
            grid.fill(each, ["p:x"], lambda rows: rows["p:x"])
        once = Grid.of(some(each, position=2), "position", ["layer", "head"], "cross")
        assert once.fill(some(each, position=2), ["p:x"], lambda rows: rows["p:x"])["cross"].tolist() == [[0.2]]


def test_rows_of_an_image_that_lie_in_two_groups_are_put_together(tmp_path: Path) -> None:
    """Three rows an image, in groups that hold whole images only by chance."""
    values = np.random.default_rng(0).normal(size=(900, 3, 2)).astype(np.float32)
    table = pd.DataFrame(
        {
            "recipient": np.repeat(np.arange(900) * 2 + 5, 3),
            "part": np.tile(["head", "MLP", "held"], 900),
            **{f"m:{k}": values[..., k].reshape(-1) for k in range(2)},
        }
    )
    for rows in (table, stored(table, tmp_path, "parts", 2)):
        recipients, named, found = by_image(rows, ["part"], ["m:1", "m:0"])
        np.testing.assert_array_equal(recipients, np.arange(900) * 2 + 5)
        assert list(named["part"]) == ["head", "MLP", "held"]
        np.testing.assert_array_equal(found, values[..., ::-1])
        assert found.dtype == np.float32
