"""Tables of a sweep written to a Parquet file while they are made, sorted, whatever their number: memory is bounded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.store import UNFINISHED, atomic_write

ROWS_AT_ONCE: Final = 1 << 14  # that are held
ROW_GROUP: Final = 1 << 11  # of what is sorted in pieces: a piece is read again a few of them at a time


def write_sorted(
    path: Path,
    sweeps: Iterable[Iterable[pd.DataFrame]],
    by: Sequence[str],
    *,
    without: pd.DataFrame | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> None:
    """Write the rows of sweeps into one Parquet file, whole or not at all; each sweep's are sorted.

    Parameters
    ----------
    path : pathlib.Path
    sweeps : iterable of iterables of pandas.DataFrame
        Tables made while they are written. What the first sweep has no column of, no other may have.
    by : sequence of str
        What the rows of a sweep are sorted by and told apart by; the first is a whole number.
    without : pandas.DataFrame, optional
        What is written where there is no table.
    rows_at_once : int
        About so many rows are held at a time; more lie in files beside ``path`` until they are put together.

    Raises
    ------
    UnfinishedError
        If it cannot be written.
    ValueError
        If two rows of a sweep are alike in ``by``, a later sweep has more columns, or there is nothing to write.
    """
    sorted_rows = (rows for sweep in sweeps for rows in _sorted(sweep, list(by), path, rows_at_once))
    _write(path, sorted_rows, without)


def write_in_turn(path: Path, tables: Iterable[pd.DataFrame], *, rows_at_once: int = ROWS_AT_ONCE) -> None:
    """Write tables into one Parquet file in the order in which they are made, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
    tables : iterable of pandas.DataFrame
        Made while they are written. What the first has no column of, no other may have.
    rows_at_once : int
        About so many rows are held at a time.

    Raises
    ------
    UnfinishedError
        If it cannot be written.
    ValueError
        If a later table has more columns, or there is nothing to write.
    """
    _write(path, _gathered(tables, rows_at_once), None)


def _gathered(tables: Iterable[pd.DataFrame], at_once: int) -> Iterator[pd.DataFrame]:
    """Yield the rows of several tables together, about so many."""
    held: list[pd.DataFrame] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= at_once:
            yield pd.concat(held, ignore_index=True)
            held = []
    if held:
        yield pd.concat(held, ignore_index=True)


def _write(path: Path, parts: Iterable[pd.DataFrame], without: pd.DataFrame | None) -> None:
    """Write rows part by part; ``without`` where there is none."""
    with atomic_write(path) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for rows in parts:
            if writer is None:
                table = pa.Table.from_pandas(rows, preserve_index=False)
                writer = stack.enter_context(pq.ParquetWriter(temporary, table.schema, compression="zstd"))
            else:
                table = _like(writer.schema, rows)
            writer.write_table(table)
        if writer is None:
            if without is None:
                raise ValueError(f"{path}: no rows")
            without.to_parquet(temporary, index=False, compression="zstd")


def _like(schema: pa.Schema, rows: pd.DataFrame) -> pa.Table:
    """Return rows with the columns of the first ones; what they lack is missing in them."""
    if strange := [name for name in rows.columns if name not in schema.names]:
        raise ValueError(f"the first rows have no {', '.join(strange)}")
    return pa.Table.from_pandas(rows.reindex(columns=schema.names), schema=schema, preserve_index=False)


def _sorted(tables: Iterable[pd.DataFrame], by: list[str], path: Path, at_once: int) -> Iterator[pd.DataFrame]:
    """Yield the rows of one sweep in their order: of all its tables at once, or of sorted pieces, range by range."""
    with ExitStack() as stack:
        pieces: list[tuple[Path, int, int]] = []  # each with the first and last place in it
        held: list[pd.DataFrame] = []
        total, last = 0, -1
        for table in tables:
            held.append(table)
            total, last = total + len(table), max(last, int(table[by[0]].max()) if len(table) else -1)
            if sum(map(len, held)) >= at_once:
                pieces.append(_piece(held, by, path, stack))
                held = []
        if not pieces:
            if held:
                yield _in_order(held, by)
            return
        if held:
            pieces.append(_piece(held, by, path, stack))
        width = max(1, at_once * (last + 1) // total)
        for start in range(0, last + 1, width):
            end = start + width
            inside = [(by[0], ">=", start), (by[0], "<", end)]
            parts = [pd.read_parquet(piece, filters=inside) for piece, a, b in pieces if a < end and b >= start]
            if some := [part for part in parts if len(part)]:
                yield _in_order(some, by)


def _piece(tables: Sequence[pd.DataFrame], by: list[str], path: Path, stack: ExitStack) -> tuple[Path, int, int]:
    """Write some tables, sorted, into a file that is gone with the stack, or cleared where the run is killed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    piece = Path(name)
    stack.callback(piece.unlink, missing_ok=True)
    rows = _in_order(tables, by)
    rows.to_parquet(piece, index=False, row_group_size=ROW_GROUP)
    return piece, int(rows[by[0]].iloc[0]), int(rows[by[0]].iloc[-1])


def _in_order(tables: Sequence[pd.DataFrame], by: list[str]) -> pd.DataFrame:
    rows = pd.concat(tables, ignore_index=True).sort_values(by, kind="stable", ignore_index=True)
    if rows.duplicated(by).any():
        raise ValueError(f"two rows of a sweep have the same {', '.join(by)}")
    return rows
