"""The one way that tables are opened: every value as text, an empty cell as missing."""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from pathlib import Path

import pandas as pd

from audit.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
SNIFFED_BYTES = 1000


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet file without guessing types.

    Parameters
    ----------
    path : pathlib.Path
        ``.csv`` (comma), ``.tsv`` (tab) or ``.parquet``; text is UTF-8, with or without a byte order mark.

    Returns
    -------
    pandas.DataFrame
        Texts stripped of outer blanks; missing where a cell is empty. Columns without a name are dropped.

    Raises
    ------
    DataError
        If it cannot be read, has no rows, names a column twice or has a row longer than its header.
    """
    if path.is_dir():
        raise DataError(str(path), "is a folder, not a table", "name the table in it, or use reader: folder")
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(str(path), f"'{path.suffix}' is not a table", f"use {', '.join(TABLE_SUFFIXES)}")
    try:
        frame = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    except FileNotFoundError:
        raise DataError(str(path), "no such table", "check data.path and --data") from None
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error})", "name a readable table") from None
    twice = [name for name, count in Counter(frame.columns).items() if count > 1]
    if twice:
        raise DataError(str(path), f"column '{twice[0]}' occurs twice in the header", "rename one of them")
    if frame.empty:
        raise DataError(str(path), "the table has no rows", "give one row per image")
    return frame


def _read_text(path: Path) -> pd.DataFrame:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open("rb") as binary:
            begun = binary.read(SNIFFED_BYTES)
        if begun.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in begun:
            raise DataError(str(path), "UTF-16 text, or no text at all", "save the table as UTF-8")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(rows, [])]
            _check_header(header, path, separator)
            cells = [_fit(row, header, path, rows.line_num) for row in rows if any(map(str.strip, row))]
    except UnicodeDecodeError:
        raise DataError(str(path), "not UTF-8 text", "save the table as UTF-8") from None
    except csv.Error as error:
        where = f"{path}:{rows.line_num}"
        raise DataError(where, f"not a well-formed table ({error})", "check the quotes in this row") from None
    frame = pd.DataFrame(cells, columns=header, dtype=object)
    return frame.loc[:, [bool(name) for name in header]]


def _check_header(header: list[str], path: Path, separator: str) -> None:
    if not any(header):
        raise DataError(str(path), "the table is empty", "give a header and one row per image")
    if header[0].lower().startswith("sep="):
        raise DataError(f"{path}:1", f"'{header[0]}' is a line of Excel's, not the header", "remove this line")
    between = "tabs" if separator == "\t" else "commas"
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
        if sign != separator and "".join(header).count(sign) >= len(header):
            what = f"columns are separated by {name}, not by {between}"
            raise DataError(f"{path}:1", what, "save it with commas, or with tabs as .tsv")


def _fit(row: list[str], header: list[str], path: Path, line: int) -> list[str | None]:
    """Return the row at the header's length, or raise if a value would fall off its end."""
    values = [value.strip() or None for value in row]
    stray = [value for value in values[len(header) :] if value is not None]
    if stray:
        raise DataError(
            f"{path}:{line}",
            f"{len(row)} values where the header has {len(header)} columns (stray '{stray[0]}')",
            "name the column in the header, or quote a value that holds a comma",
        )
    return (values + [None] * len(header))[: len(header)]


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa

    try:
        frame = pd.read_parquet(path, dtype_backend="numpy_nullable")  # whole numbers stay whole beside gaps
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(str(path), f"not a readable Parquet file ({reason})", "write it again") from None
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if not frame.columns.is_unique:  # reported by read_table
        return frame
    columns = {
        name: [value.strip() or None for value in frame[name].astype("string").fillna("")] for name in frame.columns
    }
    return pd.DataFrame(columns, dtype=object)
