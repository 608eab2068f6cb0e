"""What readers of published sets share: their files, their codes, and photographs found by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from audit.card.read_table import read_table
from audit.data.decode import IMAGE_SUFFIXES
from audit.errors import DataError
from audit.filenames import whole_characters

AGAIN = "download it again"
MONK_TONES = {"light": (1, 2, 3), "medium": (4, 5, 6), "dark": (7, 8, 9, 10)}  # this tool's bins of the ten tones
MAX_JSON_BYTES = 2_000_000_000  # COCO's largest file has 0.5 GB


def need(path: Path) -> Path:
    """Return a file's path; raise ``DataError`` where it is none."""
    if not path.is_file():
        raise DataError(str(path), "no such file", "unpack the set as it is published, and name that folder")
    return path


def first_file(*files: Path) -> Path:
    """Return the first of the files that is there, else the first."""
    return next((file for file in files if file.is_file()), files[0])


def first_folder(*folders: Path) -> Path:
    """Return the first of the folders that is there, else the last."""
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({type(error).__name__})", AGAIN) from None


def pairs_of(path: Path) -> dict[str, str]:
    """Read a file of two columns."""
    rows = [line.split() for line in lines_of(path)]
    if any(len(row) != 2 for row in rows):
        raise DataError(str(path), "has a line that is not of two columns", AGAIN)
    return {row[0]: row[1] for row in rows}


def table_with(path: Path, columns: Sequence[str], fix: str = AGAIN, *, alone: bool = False) -> pd.DataFrame:
    """Read a table, of a large one these columns ``alone``; raise ``DataError`` where it lacks one of them."""
    table = read_table(need(path), columns if alone else None).frame
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise DataError(str(path), f"has no column {', '.join(absent)}", fix)
    return table


def json_of(path: Path, keys: Collection[str] | None = None, *, most: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : pathlib.Path
        In UTF-8.
    keys : collection of str, optional
        Keep these keys of every object; the outlines in COCO's files would take ten times their size in memory.
    most : int
        Bytes; a larger file is refused before it is read.

    Raises
    ------
    DataError
        If it is not there, too large, or no JSON.
    """

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {whole_characters(key): _whole(value) for key, value in pairs if keys is None or key in keys}

    try:
        size = need(path).stat().st_size
        if size > most:
            raise DataError(str(path), f"{size:,} bytes is over the limit of {most:,}", "is this the set's file?")
        return json.loads(path.read_bytes(), object_pairs_hook=kept)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(str(path), f"cannot be read as JSON ({type(error).__name__})", AGAIN) from None


def _whole(value: Any) -> Any:
    """Escape half characters in a text, or in those of a list."""
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return whole_characters(value) if isinstance(value, str) else value


def images_by_name(path: Path) -> dict[str, str]:
    """Return the images of a folder and of the folders in it, by their names: paths relative to it.

    Raises
    ------
    DataError
        If two of them have one name.
    """
    found: dict[str, str] = {}
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            key = file.relative_to(path).as_posix()
            if file.name in found:
                raise DataError(str(path), f"'{found[file.name]}' and '{key}' have one name", "remove one of them")
            found[file.name] = key
    return found


def numbers(column: pd.Series) -> pd.Series:
    """Return the numbers of a column; not a number where there is none."""
    return pd.to_numeric(column, errors="coerce").astype(float)


def named(names: Sequence[str], code: str | None) -> str | None:
    """Return the name of a code that counts from 0, None where it has none."""
    known = code is not None and code.isascii() and code.isdecimal() and len(code) < 10
    return names[int(code)] if code is not None and known and int(code) < len(names) else None


def the_one(names: Iterable[str]) -> str | None:
    """Return the one name that there is, None where there are several or none."""
    found = list(names)
    return found[0] if len(found) == 1 else None
