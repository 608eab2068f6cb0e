"""``reader: table``: a file (CSV, Excel, Parquet, JSON lines) whose rows name image files beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from audit.card.read_table import read_table, stripped
from audit.card.schema import DataSpec
from audit.data.readers.raw import RawTable, require_columns
from audit.data.sources import FileSource, safe_key


def read_image_table(spec: DataSpec, path: Path) -> RawTable:
    """Read the table of images.

    Parameters
    ----------
    spec : DataSpec
        Names the image column.
    path : pathlib.Path
        The table; image paths are relative to its folder.

    Returns
    -------
    RawTable
        Image paths in their one spelling.

    Raises
    ------
    DataError
        If the table cannot be read, has no image column, or a path leaves the table's folder.
    """
    table = read_table(path)
    frame = table.frame
    require_columns(frame, [(spec.image, "data.image")], str(path))
    frame = with_safe_paths(frame, spec.image, path)
    return RawTable(frame, FileSource(path.parent), str(path), tables=(table.form,))


def read_keys(spec: DataSpec, path: Path) -> RawTable:
    """Read a table whose image column holds keys of any kind: no image is opened."""
    table = read_table(path)
    require_columns(table.frame, [(spec.image, "data.image")], str(path))
    return RawTable(table.frame, FileSource(path.parent), str(path), tables=(table.form,))


def with_safe_paths(frame: pd.DataFrame, column: str, path: Path) -> pd.DataFrame:
    """Return the table with image paths relative, with forward slashes, or raise ``DataError``."""
    keys = [None if value is None else safe_key(value, str(path)) for value in stripped(frame[column])]
    return frame.assign(**{column: pd.Series(keys, index=frame.index, dtype=object)})
