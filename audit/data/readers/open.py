"""From what a card says of its data to the reader that opens them.

Published sets are read in the layout in which each is published; the user downloads them, under their terms. Their
columns have one vocabulary; which of them is the label, and which are groups, the card says.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from audit.card.load import locate
from audit.card.reader_names import OF_PLACES, PUBLISHED, READERS
from audit.card.schema import DataSpec
from audit.data.readers.embedded import CropSource
from audit.data.readers.folder import GROUPS_FILE, join_groups
from audit.data.readers.raw import DETAIL, KIND, RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.readers.walk import unnamed_files
from audit.data.sources import FileSource
from audit.errors import AuditError, DataError, one_line_of
from audit.filenames import printable
from audit.plugins import DATASETS, broken, load_plugin, package_of, plugins


def read_raw(spec: DataSpec, card_path: Path, data_root: Path | None) -> RawTable:
    """Read what ``data.reader`` and ``data.path`` name.

    Parameters
    ----------
    spec : DataSpec
        With a path.
    card_path, data_root : pathlib.Path
        Where relative paths start.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    assert spec.path is not None  # the schema asks for it
    absent = spec.reader == "cifar100"
    place = locate(spec.path, card_path=card_path, data_root=data_root, missing_ok=absent)
    if spec.reader in OF_PLACES:
        raw = _named(OF_PLACES[spec.reader])(spec, place)
    else:
        assert isinstance(place, Path)  # the schema names the readers of addresses
        raw = _named(READERS[spec.reader])(spec, place) if spec.reader in READERS else _read_published(spec, place)
    raw = _with_links(raw) if spec.links else raw
    return raw if spec.reader == "folder" else _with_unnamed(raw, spec)  # which counts them itself


def _with_unnamed(raw: RawTable, spec: DataSpec) -> RawTable:
    """Tell of images in the data's folder that no row names, and count what else lies there."""
    source = raw.source
    if isinstance(source, FileSource):
        warnings, others = unnamed_files(source.root, raw.frame[spec.image].dropna())
    elif isinstance(source, CropSource):
        warnings, others = unnamed_files(source.files.root, [crop.file for crop in source.crops.values()])
    else:
        return raw
    if not others:
        return replace(raw, warnings=warnings)
    rows = [(printable(key), kind, detail) for key, (kind, detail) in others]
    left_out = pd.DataFrame(rows, columns=[spec.image, KIND, DETAIL], dtype=object)
    return replace(raw, warnings=warnings, left_out=left_out)


def _with_links(raw: RawTable) -> RawTable:
    """Let links lead out of the data's folder."""
    source = raw.source
    if isinstance(source, FileSource):
        return replace(raw, source=replace(source, links=True))
    if isinstance(source, CropSource):
        return replace(raw, source=replace(source, files=replace(source.files, links=True)))
    return raw


def _named(place: str) -> Any:
    """Return what "module:name" says."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _read_published(spec: DataSpec, path: Path) -> RawTable:
    """Read a set as it is published; a ``groups.csv`` in its folder adds columns to the images that it names."""
    raw = _named(PUBLISHED[spec.reader])(path) if spec.reader in PUBLISHED else _read_plugin(spec.reader, path)
    frame = raw.frame.rename(columns={"image": spec.image})
    if (path / GROUPS_FILE).is_file():
        frame = join_groups(frame, spec, path)
    return RawTable(frame, raw.source, raw.where)


def _read_plugin(reader: str, path: Path) -> RawTable:
    """Read what another package reads: a data frame with a column ``image`` of files below the path."""
    point = plugins(DATASETS)[reader]
    read = load_plugin(point)
    try:
        frame = read(path)
    except AuditError:
        raise
    except Exception as error:
        what = f"cannot be read by {package_of(point)} ({type(error).__name__}: {one_line_of(error)[:200]})"
        raise DataError(str(path), what, "compare the folder with what that package asks for") from error
    if not isinstance(frame, pd.DataFrame) or "image" not in frame or not frame.columns.is_unique:
        raise broken(point, "gives no pandas.DataFrame with a column 'image', each column once")
    text = frame.astype(object).map(lambda value: None if pd.isna(value) else str(value)).reset_index(drop=True)
    return RawTable(with_safe_paths(text, "image", path), FileSource(path), str(path))
