"""The one way that tables are opened: every value as text, an empty cell as missing."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audit.card.text_table import decoded, separator_of
from audit.errors import DataError
from audit.extras import needs
from audit.filenames import name_in_text, printable, whole_characters
from audit.records import Separator, TableForm, TableKind

JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet", *JSON_SUFFIXES)
REPEATED = 4096  # different texts of a column that are looked for
WHOLE_BELOW = 2**53  # a floating-point number holds every whole number up to it

Cells = list[str | None]


@dataclass(frozen=True)
class ReadTable:
    """A table, and how it was read.

    Parameters
    ----------
    frame : pandas.DataFrame
        Texts; missing where a cell is empty.
    form : TableForm
    """

    frame: pd.DataFrame
    form: TableForm


def read_table(path: Path) -> ReadTable:
    """Read a table without guessing types.

    Parameters
    ----------
    path : pathlib.Path
        ``.csv`` or ``.tsv`` (their separator and encoding are found out), ``.xlsx`` (the first sheet), ``.parquet``,
        or JSON lines, ``.jsonl`` or ``.ndjson``.

    Returns
    -------
    ReadTable
        Texts, numbers and the like as ``plain_text`` writes them. The blanks around the values of a column are
        dropped, unless that would make two of them one. Columns without a name are dropped.

    Raises
    ------
    DataError
        If it cannot be read, has no rows, names a column twice or has a row longer than its header.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(str(path), "is a folder, not a table", "name the table in it, or use reader: folder")
    if suffix not in TABLE_SUFFIXES:
        raise DataError(str(path), f"'{path.suffix}' is not a table", f"use {', '.join(TABLE_SUFFIXES)}")
    readers = {".xlsx": _read_excel, ".parquet": _read_parquet, **dict.fromkeys(JSON_SUFFIXES, _read_json_lines)}
    try:
        table = readers.get(suffix, _read_text)(path)
    except FileNotFoundError:
        raise DataError(str(path), "no such table", "check data.path and --data") from None
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error})", "name a readable table") from None
    frame = table.frame.loc[:, [bool(name) for name in table.frame.columns]]
    twice = [name for name, count in Counter(frame.columns).items() if count > 1]
    if twice:
        raise DataError(str(path), f"column '{twice[0]}' occurs twice in the header", "rename one of them")
    if frame.empty:
        raise DataError(str(path), "the table has no rows", "give one row per image")
    columns = {name: _without_outer_blanks(frame[name]) for name in frame.columns}
    return ReadTable(pd.DataFrame(columns, dtype=object), table.form)


def plain_text(value: Any) -> str | None:
    """Return a value as a text file would hold it; None where it is missing.

    Whole numbers have no point (1, not 1.0), truth is ``True`` or ``False``, days and times are as ISO 8601 writes
    them. A text stays as it is, also one that looks like a number.
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return None
        return str(int(number)) if number.is_integer() and abs(number) < WHOLE_BELOW else str(value)
    if isinstance(value, datetime):
        midnight = value.time() == time() and value.tzinfo is None
        return value.date().isoformat() if midnight else value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return whole_characters(str(value))


def stripped(values: Iterable[str | None]) -> Cells:
    """Return texts without outer blanks, missing where nothing else is there."""
    return [None if pd.isna(value) else value.strip() or None for value in values]


def _shown_name(path: Path) -> str:
    return name_in_text(path.name) or printable(path.name)


def _without_outer_blanks(values: Iterable[str | None]) -> Cells:
    """Return a column without outer blanks; but where these are all that tells two values apart, as it is."""
    found: Cells = [value if value is not None and value.strip() else None for value in values]
    bare = stripped(found)
    return bare if len(set(bare)) == len(set(found)) else found


def _read_text(path: Path) -> ReadTable:
    usual = Separator.TAB if path.suffix.lower() == ".tsv" else Separator.COMMA
    text, encoding = decoded(path)
    lines = list(io.StringIO(text, newline=""))
    stated = lines[0].strip().strip('"') if lines else ""
    before = 0
    if stated.lower().startswith("sep="):  # Excel's own line
        lines, before = lines[1:], 1
        sign = stated[4:] or "\t"
        if sign not in list(Separator):
            raise DataError(f"{path}:1", f"columns are separated by '{sign}'", "save it with commas")
        separator = Separator(sign)
    else:
        separator = separator_of(lines, usual)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        if not any(header):
            raise DataError(str(path), "the table is empty", "give a header and one row per image")
        columns = _Columns(len(header))
        for row in rows:
            if any(map(str.strip, row)):
                columns.add(_fitted(row, header, f"{path}:{rows.line_num + before}"))
    except csv.Error as error:
        where = f"{path}:{rows.line_num + before}"
        raise DataError(where, f"not a well-formed table ({error})", "check the quotes in this row") from None
    form = TableForm(file=_shown_name(path), kind=TableKind.TEXT, encoding=encoding, separator=separator)
    frame = pd.DataFrame(dict(enumerate(columns.cells)), dtype=object)
    return ReadTable(frame.set_axis(header, axis=1), form)


class _Columns:
    """Cells by column, row after row; the few texts that a column repeats are held once."""

    def __init__(self, number: int) -> None:
        self.cells: list[Cells] = [[] for _ in range(number)]
        self._same: list[dict[str | None, str | None]] = [{} for _ in range(number)]

    def add(self, row: Cells) -> None:
        """Add a row."""
        for cells, same, value in zip(self.cells, self._same, row, strict=True):
            cells.append(same.setdefault(value, value) if len(same) < REPEATED else same.get(value, value))


def _fitted(row: Sequence[str | None], header: Sequence[str], where: str) -> Cells:
    """Return the row at the header's length, or raise if a value would fall off its end."""
    stray = [value for value in row[len(header) :] if value is not None and value.strip()]
    if stray:
        what = f"{len(row)} values where the header has {len(header)} columns (stray '{stray[0].strip()}')"
        raise DataError(where, what, "name the column in the header, or quote a value that holds a separator")
    return ([*row] + [None] * len(header))[: len(header)]


def _read_json_lines(path: Path) -> ReadTable:
    text, encoding = decoded(path)
    form = TableForm(file=_shown_name(path), kind=TableKind.JSON_LINES, encoding=encoding)
    return ReadTable(pd.DataFrame(_json_rows(text, path), dtype=object), form)


def _json_rows(text: str, path: Path) -> list[dict[str, str | None]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}", "is no JSON object", "write one object per line")
        flat = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
        rows.append({whole_characters(k).strip(): plain_text(v) for k, v in flat.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _read_excel(path: Path) -> ReadTable:
    load_workbook = needs("openpyxl", str(path), error=DataError, otherwise="save it as CSV").load_workbook
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of drop-down lists and the like, which hold no values
            book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            sheet, names = book.worksheets[0], book.sheetnames
            sheet.reset_dimensions()  # what a file says of its size may be wrong
            rows = [[plain_text(value) for value in row] for row in sheet.iter_rows(values_only=True)]
    except OSError:
        raise
    except Exception as error:  # of a damaged file openpyxl and its parsers raise nearly anything
        what = f"not a readable workbook ({type(error).__name__})"
        raise DataError(str(path), what, "save it again as .xlsx, or as CSV") from None
    form = TableForm(file=_shown_name(path), kind=TableKind.EXCEL, sheet=sheet.title, sheets=len(names))
    return ReadTable(_with_header(rows, path), form)


def _with_header(rows: Sequence[Cells], path: Path) -> pd.DataFrame:
    header = [(name or "").strip() for name in rows[0]] if rows else []
    if not any(header):
        raise DataError(str(path), "the first row of the first sheet is empty", "give a header and one row per image")
    header = header[: max(place for place, name in enumerate(header, start=1) if name)]
    below = [
        _fitted(row, header, f"{path}, row {number}")
        for number, row in enumerate(rows[1:], start=2)
        if any(value is not None and value.strip() for value in row)
    ]
    return pd.DataFrame(below, columns=header, dtype=object)


def _read_parquet(path: Path) -> ReadTable:
    try:
        with path.open("rb") as file:  # pyarrow cannot open each name in each locale
            frame = pd.read_parquet(file, dtype_backend="numpy_nullable")  # whole numbers stay whole beside gaps
    except Exception as error:  # of a damaged file pyarrow raises nearly anything, OSError without a number included
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:120]
        raise DataError(str(path), f"not a readable Parquet file ({reason})", "write it again") from None
    names = [str(name).strip() for name in frame.columns]
    columns = [[plain_text(value) for value in frame.iloc[:, place].array] for place in range(len(names))]
    texts = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    texts.columns = pd.Index(names)
    return ReadTable(texts, TableForm(file=_shown_name(path), kind=TableKind.PARQUET))
