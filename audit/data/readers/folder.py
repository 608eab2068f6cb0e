"""``reader: folder``: one folder per class, images inside; groups in a ``groups.csv`` beside the folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from audit.card.read_table import read_table
from audit.card.schema import DataSpec
from audit.data.quality import FileSource
from audit.data.readers.raw import RawTable, require_columns
from audit.data.readers.table import with_safe_paths
from audit.data.splits import GIVEN, TO_DEAL
from audit.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GROUPS_FILE = "groups.csv"


def read_folder(spec: DataSpec, path: Path) -> RawTable:
    """Read class folders and the annotations beside them.

    Parameters
    ----------
    spec : DataSpec
        Names the image and label columns of the answer.
    path : pathlib.Path
        Holds ``<class>/*.png`` or ``{train,test}/<class>/*.png``, and ``groups.csv``.

    Returns
    -------
    RawTable
        Rows of ``groups.csv`` joined by image path; images without a row have no annotation.

    Raises
    ------
    DataError
        If there is no class folder or no ``groups.csv``.
    """
    frame = class_folders(path).rename(columns={"image": spec.image, "label": spec.label})
    return RawTable(join_groups(frame, spec, path), FileSource(path), str(path))


def class_folders(path: Path) -> pd.DataFrame:
    """List the images of class folders.

    Parameters
    ----------
    path : pathlib.Path
        ``<class>/*`` or ``{train,test,val}/<class>/*``.

    Returns
    -------
    pandas.DataFrame
        Columns ``image`` (relative path) and ``label``; ``given_split`` where there are split folders.
        Sorted by image.

    Raises
    ------
    DataError
        If there is no image.
    """
    if not path.is_dir():
        raise DataError(str(path), "is not a folder", "name the folder that holds the class folders")
    tops = list(_folders(path))
    split_layout = "train" in {top.name for top in tops} and all(top.name in ("train", *TO_DEAL) for top in tops)
    rows: list[tuple[str, str, str | None]] = []
    for top in tops:
        classes = list(_folders(top)) if split_layout else [top]
        split = top.name if split_layout else None
        rows += [(key, folder.name, split) for folder in classes for key in _images(folder, path)]
    if not rows:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(str(path), f"no class folder with images ({suffixes})", "make one folder per class")
    frame = pd.DataFrame(rows, columns=["image", "label", GIVEN], dtype=object)
    frame = frame if split_layout else frame.drop(columns=GIVEN)
    return frame.sort_values("image", ignore_index=True)


def join_groups(frame: pd.DataFrame, spec: DataSpec, path: Path) -> pd.DataFrame:
    """Join the annotations of ``groups.csv`` to a list of images.

    Parameters
    ----------
    frame : pandas.DataFrame
        With the column ``spec.image``.
    spec : DataSpec
        Names the image column.
    path : pathlib.Path
        The folder where ``groups.csv`` lies.

    Returns
    -------
    pandas.DataFrame
        The same rows with the annotations; missing where an image has none.

    Raises
    ------
    DataError
        If the file is missing, or names an image that is not there, or one image twice.
    """
    table = path / GROUPS_FILE
    if not table.is_file():
        fix = f"write it with a column '{spec.image}' (path in the folder) and one column an attribute"
        raise DataError(str(table), "no such file, and folders alone name no groups", fix)
    groups = read_table(table)
    require_columns(groups, [(spec.image, "data.image")], str(table))
    groups = with_safe_paths(groups, spec.image, table).drop(columns=[spec.label], errors="ignore")
    twice = groups[spec.image][groups[spec.image].duplicated()]
    if len(twice):
        raise DataError(str(table), f"'{twice.iloc[0]}' stands twice", "keep one row per image")
    strange = sorted(set(groups[spec.image].dropna()) - set(frame[spec.image]))
    if strange:
        what = f"{len(strange)} rows name no image of the class folders (e.g. '{strange[0]}')"
        raise DataError(str(table), what, "write paths such as 'class/image.png', relative to this table")
    return frame.merge(groups, on=spec.image, how="left")


def _folders(path: Path) -> Iterator[Path]:
    yield from sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _images(folder: Path, root: Path) -> Iterator[str]:
    for child in sorted(folder.iterdir()):
        if child.suffix.lower() in IMAGE_SUFFIXES and child.is_file() and not child.name.startswith("."):
            yield child.relative_to(root).as_posix()
