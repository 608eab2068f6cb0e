"""Datasets read by name, in the very layout in which each is published; the user downloads them, under their terms.

What a set's files look like stands in the module of its kind. Columns have one vocabulary; which of them is the label,
and which are groups, the card says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from audit.card.schema import DataSpec
from audit.data.readers.actions import read_coco, read_facet, read_imsitu, read_stanford40
from audit.data.readers.appearance import read_fairface, read_miap, read_utkface
from audit.data.readers.expressions import (
    read_affectnet,
    read_celeba,
    read_expw,
    read_fer2013,
    read_lfw,
    read_rafdb,
)
from audit.data.readers.folder import GROUPS_FILE, join_groups
from audit.data.readers.raw import RawTable

READERS: Mapping[str, Callable[[Path], RawTable]] = {
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
}


def read_published(spec: DataSpec, path: Path) -> RawTable:
    """Read the set that ``spec.reader`` names.

    Parameters
    ----------
    spec : DataSpec
    path : pathlib.Path
        The folder of the set, unpacked as published. A ``groups.csv`` in it adds columns to the images it names.

    Returns
    -------
    RawTable

    Raises
    ------
    DataError
        If the folder does not hold what the set is published with; it names the file.
    """
    raw = READERS[spec.reader](path)
    frame = raw.frame.rename(columns={"image": spec.image})
    if (path / GROUPS_FILE).is_file():
        frame = join_groups(frame, spec, path)
    return RawTable(frame, raw.source, raw.where)
