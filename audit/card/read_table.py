"""The one way that tables are opened: every value as text, an empty cell as missing."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any

import numpy as np
import pandas as pd

from audit.card.text_table import TextFile, open_text, separator_of
from audit.errors import DataError
from audit.extras import needs
from audit.filenames import name_in_text, printable, whole_characters
from audit.records import Separator, TableForm, TableKind
from audit.remote import Place

JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet", *JSON_SUFFIXES)
REPEATED = 4096  # different texts of a column that are looked for
WHOLE_BELOW = 2**53  # a floating-point number holds every whole number up to it
LONGEST_CELL = 16_000_000  # characters; outlines of people in published tables are longer than csv's own 131,072

Cells = list[str | None]


@dataclass(frozen=True)
class ReadTable:
    """A table, and how it was read."""

    frame: pd.DataFrame  # texts; missing where a cell is empty
    form: TableForm


def read_table(path: Place, only: Collection[str] | None = None) -> ReadTable:
    """Read a table without guessing types.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
        ``.csv`` or ``.tsv`` (their separator and encoding are found out), ``.xlsx`` (the first sheet), ``.parquet``,
        or JSON lines, ``.jsonl`` or ``.ndjson``.
    only : collection of str, optional
        Hold these columns of a text file and pass over its others.

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
        table = readers[suffix](path) if suffix in readers else _read_text(path, only)
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
    return [value.strip() or None if isinstance(value, str) else None for value in values]


class _Repeated:
    """Holds the few texts that a column repeats once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, value: str | None) -> str | None:
        """Return a text, the same object where it was met before."""
        if value is None:
            return None
        return self._known.setdefault(value, value) if len(self._known) < REPEATED else self._known.get(value, value)


def _shown_name(path: Place) -> str:
    return name_in_text(path.name) or printable(path.name)


def _without_outer_blanks(values: Iterable[str | None]) -> Cells:
    """Return a column without outer blanks; but where these are all that tells two values apart, as it is."""
    found: Cells = [value if value is not None and value.strip() else None for value in values]
    bare = stripped(found)
    changed = any(one is not other for one, other in zip(bare, found, strict=True))
    return found if changed and len(set(bare)) < len(set(found)) else bare


def _read_text(path: Place, only: Collection[str] | None) -> ReadTable:
    csv.field_size_limit(LONGEST_CELL)
    usual = Separator.TAB if path.suffix.lower() == ".tsv" else Separator.COMMA
    lines = open_text(path)
    stated = next(iter(lines), "").strip().strip('"')
    if stated.lower().startswith("sep="):  # Excel's own line
        lines = replace(lines, skipped=1)
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
        kept = [place for place, name in enumerate(header) if only is None or name in only]
        columns: list[Cells] = [[] for _ in kept]
        once = [_Repeated() for _ in kept]
        for row in rows:
            if any(map(str.strip, row)):
                fitted = _fitted(row, header, f"{path}:{rows.line_num + lines.skipped}")
                for cells, same, place in zip(columns, once, kept, strict=True):
                    cells.append(same(fitted[place]))
    except csv.Error as error:
        where = f"{path}:{rows.line_num + lines.skipped}"
        raise DataError(where, f"not a well-formed table ({error})", "check the quotes in this row") from None
    form = TableForm(file=_shown_name(path), kind=TableKind.TEXT, encoding=lines.encoding, separator=separator)
    frame = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    return ReadTable(frame.set_axis([header[place] for place in kept], axis=1), form)


def _fitted(row: Sequence[str | None], header: Sequence[str], where: str) -> Cells:
    """Return the row at the header's length, or raise if a value would fall off its end."""
    stray = [value for value in row[len(header) :] if value is not None and value.strip()]
    if stray:
        what = f"{len(row)} values where the header has {len(header)} columns (stray '{stray[0].strip()}')"
        raise DataError(where, what, "name the column in the header, or quote a value that holds a separator")
    return ([*row] + [None] * len(header))[: len(header)]


def _read_json_lines(path: Place) -> ReadTable:
    lines = open_text(path, newline="\n")
    form = TableForm(file=_shown_name(path), kind=TableKind.JSON_LINES, encoding=lines.encoding)
    return ReadTable(pd.DataFrame(_json_columns(lines), dtype=object), form)


def _json_columns(lines: TextFile) -> dict[str, Cells]:
    columns: dict[str, Cells] = {}
    once: dict[str, _Repeated] = {}
    rows = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{lines.path}:{number}", "is no JSON object", "write one object per line")
        flat = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
        for name, value in {whole_characters(k).strip(): plain_text(v) for k, v in flat.items()}.items():
            columns.setdefault(name, [None] * rows).append(once.setdefault(name, _Repeated())(value))
        rows += 1
        for cells in columns.values():
            cells += [None] * (rows - len(cells))
    return columns


def _read_excel(path: Place) -> ReadTable:
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


def _with_header(rows: Sequence[Cells], path: Place) -> pd.DataFrame:
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


def _read_parquet(path: Place) -> ReadTable:
    try:
        with path.open("rb") as file:  # pyarrow cannot open each name in each locale
            frame = pd.read_parquet(file, dtype_backend="numpy_nullable")  # whole numbers stay whole beside gaps
    except Exception as error:  # of a damaged file pyarrow raises nearly anything, OSError without a number included
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:120]
        raise DataError(str(path), f"not a readable Parquet file ({reason})", "write it again") from None
    names = [str(name).strip() for name in frame.columns]
    columns = [list(map(_Repeated(), map(plain_text, frame.iloc[:, place].array))) for place in range(len(names))]
    texts = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    texts.columns = pd.Index(names)
    return ReadTable(texts, TableForm(file=_shown_name(path), kind=TableKind.PARQUET))
