"""``reader: table``: a file (CSV, Excel, Parquet, JSON lines) whose rows name image files beside it."""

from __future__ import annotations

import pandas as pd

from audit.card.read_table import read_table, stripped
from audit.card.schema import DataSpec
from audit.data.readers.raw import RawTable, require_columns
from audit.data.sources import ByteSource, FileSource, RemoteSource, safe_key
from audit.remote import Place, RemotePath


def read_image_table(spec: DataSpec, path: Place) -> RawTable:
    """Read the table of images.

    Parameters
    ----------
    spec : DataSpec
        Names the image column.
    path : pathlib.Path or RemotePath
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
    return RawTable(frame, beside(path), str(path), tables=(table.form,))


def beside(path: Place) -> ByteSource:
    """Return the source of images that lie beside a table."""
    return RemoteSource(path.parent) if isinstance(path, RemotePath) else FileSource(path.parent)


def read_keys(spec: DataSpec, path: Place) -> RawTable:
    """Read a table whose image column holds keys of any kind: no image is opened."""
    table = read_table(path)
    require_columns(table.frame, [(spec.image, "data.image")], str(path))
    return RawTable(table.frame, beside(path), str(path), tables=(table.form,))


def with_safe_paths(frame: pd.DataFrame, column: str, path: Place) -> pd.DataFrame:
    """Return the table with image paths relative, with forward slashes, or raise ``DataError``."""
    keys = [None if value is None else safe_key(value, str(path)) for value in stripped(frame[column])]
    return frame.assign(**{column: pd.Series(keys, index=frame.index, dtype=object)})
