"""``reader: huggingface``: a dataset as Hugging Face's ``datasets`` stores it, in Parquet or as a folder of images.

Parquet files hold the images themselves; whole numbers that stand for classes are named by what the file says of its
features. A folder of images has a ``metadata.csv`` or ``metadata.jsonl`` beside them, whose column ``file_name`` names
them. Nothing of ``datasets`` is needed, and no script that a folder may hold is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.card.read_table import read_table
from audit.card.schema import DataSpec
from audit.data.readers.parquet import ParquetSource, Shard, encoded_images, read_parquet_file
from audit.data.readers.raw import RawTable, files_of
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError
from audit.filenames import whole_characters
from audit.remote import Place, RemotePath

SPLIT_NAMES = {"train": "train", "test": "test", "validation": "val", "val": "val", "valid": "val", "dev": "val"}
METADATA = ("metadata.csv", "metadata.jsonl")


def read_huggingface(spec: DataSpec, path: Place) -> RawTable:
    """Read a dataset of Hugging Face's.

    Parameters
    ----------
    spec : DataSpec
        Names the image column; in a folder of images that is ``file_name``, whatever it names.
    path : pathlib.Path or RemotePath
        The folder, or one Parquet file.

    Returns
    -------
    RawTable
        Keys of images in Parquet are SPLIT/ROW, with seven digits.

    Raises
    ------
    DataError
        If it is neither, or its image column holds no images.
    """
    files = files_of(path, "*.parquet")
    if files:
        return _from_parquet(spec, path, files)
    if isinstance(path, RemotePath):
        raise DataError(str(path), "holds no *.parquet", "name a folder of Parquet files, or a table")
    listed = sorted(p for name in METADATA for p in path.rglob(name))
    if not listed:
        what = f"holds no *.parquet and no {' or '.join(METADATA)}"
        raise DataError(str(path), what, "name a folder that 'datasets' wrote, or use reader: folder")
    return _from_folder(spec, path, listed)


def _from_parquet(spec: DataSpec, path: Place, files: Sequence[Place]) -> RawTable:
    parts: list[pd.DataFrame] = []
    shards: dict[str, list[Shard]] = {}
    rows: dict[str, int] = {}
    for file in files:
        split = _split_of(file)
        first = rows.get(split, 0)
        table, absent, groups = _opened(file, spec.image)
        keys = [None if gone else f"{split}/{first + row:07d}" for row, gone in enumerate(absent)]
        shards.setdefault(split, []).append(Shard(file, first, groups))
        rows[split] = first + len(keys)
        images = pd.Series(keys, dtype=object)
        parts.append(_named(table).assign(**{spec.image: images, GIVEN: SPLIT_NAMES.get(split)}))
    if all(part[spec.image].isna().all() for part in parts):
        raise DataError(str(path), f"column '{spec.image}' holds no images", "name the column of images (data.image)")
    source = ParquetSource({split: tuple(of_split) for split, of_split in shards.items()}, spec.image)
    return RawTable(_with_splits(pd.concat(parts, ignore_index=True)), source, str(path))


def _opened(file: Place, image: str) -> tuple[pa.Table, list[bool], tuple[int, ...]]:
    """Return a file's other columns, which rows have no image, and how many rows each of its groups has."""

    def read(opened: IO[bytes]) -> tuple[pa.Table, list[bool], tuple[int, ...]]:
        parquet = pq.ParquetFile(opened)
        names = parquet.schema_arrow.names
        if image not in names:
            raise DataError(str(file), f"no column '{image}' (data.image)", f"it has: {', '.join(names)}")
        groups = range(parquet.num_row_groups)
        absent = [gone for group in groups for gone in _absent(parquet.read_row_group(group, [image]).column(0))]
        other = parquet.read(columns=[name for name in names if name != image])
        return other, absent, tuple(parquet.metadata.row_group(group).num_rows for group in groups)

    return read_parquet_file(file, read)


def _absent(images: pa.ChunkedArray) -> list[bool]:
    """Tell of each row whether it holds no encoded image."""
    encoded = encoded_images(images)
    return [True] * len(images) if encoded is None else encoded.is_null().to_pylist()


def _named(table: pa.Table) -> pd.DataFrame:
    """Return a table's columns as text, classes by their names; columns of anything nested are left out."""
    features = _features(table)
    columns: dict[str, list[str | None]] = {}
    for name in table.column_names:
        if pa.types.is_nested(table.schema.field(name).type) or pa.types.is_binary(table.schema.field(name).type):
            continue
        names = features.get(name, {}).get("names")
        values = table.column(name).to_pylist()
        columns[name] = [_text(value, names if isinstance(names, list) else None) for value in values]
    return pd.DataFrame(columns, dtype=object).assign(**dict.fromkeys(set(table.column_names) - set(columns)))


def _text(value: Any, names: list[Any] | None) -> str | None:
    if value is None or value == "":
        return None
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        return str(names[value]) if 0 <= value < len(names) else None
    return whole_characters(str(value)).strip() or None


def _features(table: pa.Table) -> dict[str, Any]:
    """Return what ``datasets`` wrote of the columns' meaning into the file."""
    written = (table.schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(written)["info"]["features"] if written is not None else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _split_of(file: Place) -> str:
    """Return the split that a file's name or folder begins with; "all" where they name none."""
    for part in (file.stem.split("-")[0], file.parent.name):
        if part.lower() in SPLIT_NAMES:
            return part.lower()
    return "all"


def _from_folder(spec: DataSpec, path: Path, listed: Sequence[Path]) -> RawTable:
    parts = []
    for file in listed:
        frame = read_table(file).frame
        if "file_name" not in frame:
            raise DataError(str(file), "no column 'file_name'", "it names each image, relative to this file")
        frame = with_safe_paths(frame, "file_name", file)
        folder = file.parent.relative_to(path).as_posix()
        below = "" if folder == "." else f"{folder}/"
        names = frame.pop("file_name")
        frame[spec.image] = names.map(lambda name, below=below: None if name is None else below + name)
        frame[GIVEN] = SPLIT_NAMES.get(file.parent.name.lower())
        parts.append(frame)
    frame = _with_splits(pd.concat(parts, ignore_index=True))
    return RawTable(frame, FileSource(path), str(path))


def _with_splits(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the given splits where every row has one."""
    return frame.drop(columns=GIVEN) if frame[GIVEN].isna().any() else frame
