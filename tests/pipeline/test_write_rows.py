"""Rows of sweeps, written in pieces: sorted, each once, whatever is held at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audit.errors import UnfinishedError
from audit.pipeline.write_rows import write_in_turn, write_sorted
from tests.limits import files_of_at_most

pytestmark = pytest.mark.unit
BY = ["position", "head", "donor_kind"]


def rows(positions: list[int], value: float) -> pd.DataFrame:
    """Return a batch of a sweep: two heads and two donors of each position."""
    every = [(p, h, k) for k in ("cross", "placebo") for h in (1, 0) for p in positions]
    return pd.DataFrame(every, columns=BY).assign(**{"p:smile": value + np.arange(len(every)), "image": "ä"})


def sweep(seed: int, batches: int = 20) -> list[pd.DataFrame]:
    order = np.random.default_rng(seed).permutation(4 * batches).reshape(batches, 4)
    return [rows(part.tolist(), 100.0 * number) for number, part in enumerate(order)]


def parts_of(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("at_once", [1, 7, 30, 10**6])
def test_rows_are_sorted_sweep_by_sweep_however_few_are_held(tmp_path: Path, at_once: int) -> None:
    sweeps = [sweep(0, 9), sweep(1, 3)]
    write_sorted(tmp_path / "swap.parquet", sweeps, BY, rows_at_once=at_once)
    wanted = pd.concat([pd.concat(s).sort_values(BY) for s in sweeps], ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "swap.parquet"), wanted, check_exact=True)
    assert parts_of(tmp_path) == ["swap.parquet"]


def test_positions_of_which_nothing_is_patched_leave_gaps(tmp_path: Path) -> None:
    """Ranges without rows lie between the first ones and the last."""
    tables = [rows([0, 1], 0.0), rows([2, 400], 50.0), rows([401], 90.0)]
    write_sorted(tmp_path / "swap.parquet", [tables], BY, rows_at_once=4)
    wanted = pd.concat(tables).sort_values(BY, ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "swap.parquet"), wanted, check_exact=True)


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_rows_that_are_not_sorted_stay_in_the_order_in_which_they_came(tmp_path: Path, at_once: int) -> None:
    write_in_turn(tmp_path / "part.parquet", iter(sweep(0)), rows_at_once=at_once)
    wanted = pd.concat(sweep(0), ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "part.parquet"), wanted, check_exact=True)
    with pytest.raises(ValueError, match="no rows"):
        write_in_turn(tmp_path / "none.parquet", [])
    assert parts_of(tmp_path) == ["part.parquet"]


def test_a_row_that_comes_twice_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    twice = [*sweep(0), rows([3], 0.0)]
    with pytest.raises(ValueError, match="have the same position, head, donor_kind"):
        write_sorted(tmp_path / "swap.parquet", [twice], BY, rows_at_once=30)
    assert parts_of(tmp_path) == []


def test_an_interrupted_sweep_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[pd.DataFrame]:
        yield from sweep(0)[:9]
        assert len(parts_of(tmp_path)) > 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sorted(tmp_path / "swap.parquet", [broken()], BY, rows_at_once=30)
    assert parts_of(tmp_path) == []


def test_without_a_row_the_empty_table_is_written(tmp_path: Path) -> None:
    write_sorted(tmp_path / "swap.parquet", [[]], BY, without=pd.DataFrame(columns=BY))
    assert pd.read_parquet(tmp_path / "swap.parquet").columns.tolist() == BY
    with pytest.raises(ValueError, match="no rows"):
        write_sorted(tmp_path / "other.parquet", [], BY)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with files_of_at_most(4096), pytest.raises(UnfinishedError, match=r"swap\.parquet: cannot be written \(File too"):
        write_sorted(tmp_path / "swap.parquet", [sweep(0, 200)], BY)
    assert parts_of(tmp_path) == []


def test_what_a_later_sweep_lacks_is_missing_and_more_than_the_first_has_is_refused(tmp_path: Path) -> None:
    wide = rows([0], 0.0).assign(exact=1.5)
    write_sorted(tmp_path / "swap.parquet", [[wide], [rows([1], 9.0)]], BY)
    stored = pd.read_parquet(tmp_path / "swap.parquet")
    assert stored.loc[stored["position"] == 0, "exact"].tolist() == [1.5] * 4
    assert stored.loc[stored["position"] == 1, "exact"].isna().all()
    with pytest.raises(ValueError, match="the first rows have no exact"):
        write_sorted(tmp_path / "other.parquet", [[rows([1], 9.0)], [wide]], BY)
    assert parts_of(tmp_path) == ["swap.parquet"]
