"""From what a card says of its data to the reader that opens them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from audit.card.load import resolve
from audit.card.schema import DataSpec
from audit.data.readers.cifar100 import read_cifar100
from audit.data.readers.croissant import read_croissant
from audit.data.readers.embedded import CropSource
from audit.data.readers.folder import read_folder
from audit.data.readers.hf import read_huggingface
from audit.data.readers.published import read_published
from audit.data.readers.raw import RawTable
from audit.data.readers.table import read_image_table
from audit.data.sources import FileSource

READERS: Mapping[str, Callable[[DataSpec, Path], RawTable]] = {
    "table": read_image_table,
    "folder": read_folder,
    "huggingface": read_huggingface,
    "croissant": read_croissant,
    "cifar100": read_cifar100,
}  # any other is a set as it is published


def read_raw(spec: DataSpec, card_path: Path, data_root: Path | None) -> RawTable:
    """Read what ``data.reader`` and ``data.path`` name.

    Parameters
    ----------
    spec : DataSpec
        With a path.
    card_path, data_root : pathlib.Path
        Where relative paths start.

    Returns
    -------
    RawTable

    Raises
    ------
    DataError
        If it cannot be read.
    """
    assert spec.path is not None  # the schema asks for it
    path = resolve(spec.path, card_path=card_path, data_root=data_root, missing_ok=spec.reader == "cifar100")
    raw = READERS.get(spec.reader, read_published)(spec, path)
    return _with_links(raw) if spec.links else raw


def _with_links(raw: RawTable) -> RawTable:
    """Let links lead out of the data's folder."""
    source = raw.source
    if isinstance(source, FileSource):
        return replace(raw, source=replace(source, links=True))
    if isinstance(source, CropSource):
        return replace(raw, source=replace(source, files=replace(source.files, links=True)))
    return raw
