"""From what a card says of its data to the reader that opens them.

Published sets are read in the layout in which each is published; the user downloads them, under their terms. Their
columns have one vocabulary; which of them is the label, and which are groups, the card says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from audit.card.load import locate
from audit.card.schema import DataSpec
from audit.data.readers.actions import read_coco, read_facet, read_imsitu, read_stanford40
from audit.data.readers.appearance import read_fairface, read_miap, read_utkface
from audit.data.readers.captions import read_flickr8k
from audit.data.readers.cifar100 import read_cifar100
from audit.data.readers.croissant import read_croissant
from audit.data.readers.embedded import CropSource
from audit.data.readers.expressions import (
    read_affectnet,
    read_celeba,
    read_expw,
    read_fer2013,
    read_lfw,
    read_rafdb,
)
from audit.data.readers.folder import GROUPS_FILE, join_groups, read_folder
from audit.data.readers.hf import read_huggingface
from audit.data.readers.raw import DETAIL, KIND, RawTable
from audit.data.readers.table import read_image_table
from audit.data.readers.walk import unnamed_files
from audit.data.readers.webdataset import read_webdataset
from audit.data.sources import FileSource
from audit.filenames import printable
from audit.remote import Place

PUBLISHED: Mapping[str, Callable[[Path], RawTable]] = {
    "rafdb": read_rafdb,
    "celeba": read_celeba,
    "utkface": read_utkface,
    "fairface": read_fairface,
    "fer2013": read_fer2013,
    "affectnet": read_affectnet,
    "expw": read_expw,
    "lfw": read_lfw,
    "miap": read_miap,
    "stanford40": read_stanford40,
    "imsitu": read_imsitu,
    "coco": read_coco,
    "facet": read_facet,
    "flickr8k": read_flickr8k,
}
READERS_OF_PLACES: Mapping[str, Callable[[DataSpec, Place], RawTable]] = {  # of this machine, or of a store
    "table": read_image_table,
    "huggingface": read_huggingface,
    "webdataset": read_webdataset,
}
READERS: Mapping[str, Callable[[DataSpec, Path], RawTable]] = {
    "folder": read_folder,
    "croissant": read_croissant,
    "cifar100": read_cifar100,
}


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
    if spec.reader in READERS_OF_PLACES:
        raw = READERS_OF_PLACES[spec.reader](spec, place)
    else:
        assert isinstance(place, Path)  # the schema names the readers of addresses
        raw = READERS.get(spec.reader, _read_published)(spec, place)
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


def _read_published(spec: DataSpec, path: Path) -> RawTable:
    """Read a set as it is published; a ``groups.csv`` in its folder adds columns to the images that it names."""
    raw = PUBLISHED[spec.reader](path)
    frame = raw.frame.rename(columns={"image": spec.image})
    if (path / GROUPS_FILE).is_file():
        frame = join_groups(frame, spec, path)
    return RawTable(frame, raw.source, raw.where)
