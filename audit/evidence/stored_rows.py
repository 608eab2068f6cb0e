"""Rows that sweeps left: held in memory, or in Parquet files of which a part is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import and_
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from audit.evidence.stats import Array, Codes

ROWS_AT_ONCE: Final = 1 << 14
PARTS_HELD: Final = 64
DONOR_KIND: Final = "donor_kind"


@dataclass(frozen=True)
class StoredRows:
    """Rows of Parquet files, one file after the other."""

    files: Sequence[Path]
    where: Mapping[str, str | int] = field(default_factory=dict)  # columns and the values that they have in these rows

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of all files; what a file lacks is missing in its rows."""
        return pa.unify_schemas([pq.read_schema(file) for file in self.files])

    def read(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yield the rows, a limited number at once."""
        dataset = ds.dataset([str(file) for file in self.files], schema=self.schema, format="parquet")
        which = reduce(and_, (ds.field(name) == value for name, value in self.where.items()), ds.scalar(True))
        batches = dataset.to_batches(
            columns=list(columns), filter=which, batch_size=ROWS_AT_ONCE, batch_readahead=1, fragment_readahead=1,
            use_threads=False,
        )  # fmt: skip
        for batch in batches:
            if batch.num_rows:
                yield batch.to_pandas()


Rows = pd.DataFrame | StoredRows


def columns_of(rows: Rows) -> list[str]:
    """Return the names of the columns."""
    return list(rows.schema.names if isinstance(rows, StoredRows) else rows.columns)


def some(rows: Rows, **where: str | int) -> Rows:
    """Return the rows in which some columns have these values."""
    if isinstance(rows, StoredRows):
        return StoredRows(rows.files, {**rows.where, **where})
    return rows[np.logical_and.reduce([rows[name] == value for name, value in where.items()])]


def read(rows: Rows, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield columns of the rows, a limited number at once where they are stored."""
    yield from rows.read(columns) if isinstance(rows, StoredRows) else [rows[list(columns)]]


def count(rows: Rows) -> int:
    """Return how many rows there are."""
    return len(rows) if isinstance(rows, pd.DataFrame) else sum(map(len, rows.read(list(rows.where))))


def by_image(
    rows: Rows, names: Sequence[str], values: Sequence[str]
) -> tuple[Codes, pd.DataFrame, npt.NDArray[np.float32]]:
    """Put together what was stored of each image, in as many rows of each, side by side and in one order.

    Parameters
    ----------
    rows : Rows
        With ``recipient``.
    names : sequence of str
        Columns that tell one row of an image from another.
    values : sequence of str
        Columns of numbers.

    Returns
    -------
    tuple of numpy.ndarray (N,), pandas.DataFrame and numpy.ndarray (N, K, values)
        Recipients, the K names, and the numbers.
    """
    found, at = np.empty((count(rows), len(values)), dtype=np.float32), 0
    named, recipients = pd.DataFrame(columns=list(names)), []
    for part in read(rows, ["recipient", *names, *values]):
        images = part["recipient"].to_numpy(dtype=np.int64)
        if not at:
            named = part.loc[images == images[0], list(names)]
        recipients.append(images[-at % len(named) :: len(named)].copy())
        found[at : at + len(part)] = part[list(values)].to_numpy(dtype=np.float32)
        at += len(part)
    return np.concatenate(recipients), named, found.reshape(-1, len(named), len(values))


def distinct(rows: Rows, columns: Sequence[str], by: Sequence[str] | None = None) -> pd.DataFrame:
    """Return columns of the first row of each combination of values in ``by``, by default of all the columns."""
    key = list(by or columns)
    found: list[pd.DataFrame] = []
    for part in read(rows, columns):
        found.append(part.drop_duplicates(key))
        if len(found) > PARTS_HELD:
            found = [pd.concat(found).drop_duplicates(key)]
    return pd.concat(found).drop_duplicates(key) if found else pd.DataFrame(columns=list(columns))


@dataclass(frozen=True)
class Grid:
    """Where values lie in arrays (R, K): by image or position, and by what was patched."""

    name: str  # column that tells one of the R from the other
    index: Codes  # (R,), its values, sorted
    by: Sequence[str]  # columns that say what was patched
    patched: pd.Index  # each combination of their values, sorted

    @staticmethod
    def of(rows: Rows, name: str, by: Sequence[str], kind: str) -> Grid:
        """Lay out rows, of which those of a donor kind say what was patched."""
        index = np.sort(distinct(rows, [name])[name].to_numpy(dtype=np.int64))
        patched = distinct(some(rows, **{DONOR_KIND: kind}), list(by)).sort_values(list(by))
        return Grid(name, index, by, _keys(patched, by))

    def fill(
        self, rows: Rows, columns: Sequence[str], value: Callable[[pd.DataFrame], npt.ArrayLike]
    ) -> dict[str, Array]:
        """Return by donor kind the values (R, K) of what was patched, not a number elsewhere.

        Parameters
        ----------
        rows : Rows
        columns : sequence of str
            What ``value`` takes.
        value : callable
            From some of the rows to their values.

        Raises
        ------
        ValueError
            If two rows are of the same place.
        """
        filled: dict[str, Array] = {}
        taken: dict[str, npt.NDArray[np.bool_]] = {}
        rows_of: dict[str, int] = {}
        shape = len(self.index), len(self.patched)
        for part in read(rows, [self.name, DONOR_KIND, *self.by, *columns]):
            values = np.asarray(value(part), dtype=np.float64)
            row = pd.Index(self.index).get_indexer(pd.Index(part[self.name]))
            column = self.patched.get_indexer(_keys(part, self.by))
            known = (row >= 0) & (column >= 0)
            kinds = part[DONOR_KIND].to_numpy(dtype=object)
            for kind in pd.unique(kinds):
                at = np.flatnonzero(known & (kinds == kind))
                grid = filled.setdefault(str(kind), np.full(shape, np.nan))
                seen = taken.setdefault(str(kind), np.zeros(shape, dtype=bool))
                grid[row[at], column[at]] = values[at]
                seen[row[at], column[at]] = True
                rows_of[str(kind)] = rows_of.get(str(kind), 0) + len(at)
        if any(rows_of[kind] != seen.sum() for kind, seen in taken.items()):
            raise ValueError("stored effects hold a patch twice")
        return filled


def _keys(rows: pd.DataFrame, by: Sequence[str]) -> pd.Index:
    """Return what was patched, row by row."""
    return pd.Index(rows[by[0]]) if len(by) == 1 else pd.MultiIndex.from_frame(rows[list(by)])
