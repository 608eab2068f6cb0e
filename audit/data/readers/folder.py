"""``reader: folder``: one folder per class, images anywhere in it; groups in a ``groups.csv`` beside the folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from audit.card.read_table import read_table
from audit.card.schema import DataSpec
from audit.data.decode import IMAGE_SUFFIXES
from audit.data.readers.raw import DETAIL, KIND, RawTable, require_columns
from audit.data.readers.table import with_safe_paths
from audit.data.readers.walk import files_below, tells_of_data
from audit.data.sources import FileSource
from audit.data.splits import GIVEN, UNASSIGNED
from audit.errors import DataError
from audit.filenames import printable
from audit.records import LeftOut, TableForm

GROUPS_FILE = "groups.csv"


@dataclass(frozen=True)
class ClassFolders:
    """What class folders hold."""

    # columns ``image`` (relative path) and ``label``; ``given_split`` where there are split folders. Sorted by image.
    images: pd.DataFrame
    # columns ``image``, KIND and DETAIL: every other file in a class folder, and what lies in none and tells of no
    # data
    left_out: pd.DataFrame


def read_folder(spec: DataSpec, path: Path) -> RawTable:
    """Read class folders and the annotations beside them.

    Parameters
    ----------
    spec : DataSpec
        Names the image and label columns of the answer.
    path : pathlib.Path
        Holds ``<class>/**/*.png`` or ``{train,test}/<class>/**/*.png``, and ``groups.csv``.

    Returns
    -------
    RawTable
        Rows of ``groups.csv`` joined by image path; images without a row are left out.

    Raises
    ------
    DataError
        If there is no class folder or no ``groups.csv``.
    """
    found = class_folders(path)
    groups, form = read_groups(spec, path)
    columns = {"image": spec.image, "label": spec.label}
    images, left_out = found.images.rename(columns=columns), found.left_out.rename(columns=columns)
    _check_rows(groups, spec, [*images[spec.image], *left_out[spec.image]], path)
    named = images[spec.image].isin(groups[spec.image])
    without = images[~named].assign(**{KIND: LeftOut.NO_ROW, DETAIL: GROUPS_FILE})
    left_out = pd.concat([left_out, without], ignore_index=True)
    return RawTable(
        images[named].merge(groups, on=spec.image, how="left"),
        FileSource(path),
        str(path),
        left_out=left_out.merge(groups, on=spec.image, how="left"),
        tables=(form,),
    )


def class_folders(path: Path) -> ClassFolders:
    """List the images of class folders.

    Parameters
    ----------
    path : pathlib.Path
        ``<class>/**/*`` or ``{train,test,val}/<class>/**/*``. Texts and tables beside the class folders, such as
        ``groups.csv``, are passed over.

    Raises
    ------
    DataError
        If there is no image.
    """
    if not path.is_dir():
        raise DataError(str(path), "is not a folder", "name the folder that holds the class folders")
    tops = {child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")}
    level = 1 if "train" in tops and tops <= {"train", *UNASSIGNED} else 0  # of the class folders
    rows: list[tuple[str, str, str]] = []
    left_out: list[tuple[str, LeftOut, str]] = []
    for key, why in files_below(path):
        folders = key.split("/")[:-1]
        in_a_class = bool(folders) and not folders[0].startswith(".")
        if why is None and len(folders) > level:
            rows.append((key, folders[level], folders[0]))
        elif in_a_class or not tells_of_data(key):
            left_out.append((printable(key), *(why or (LeftOut.NO_CLASS_FOLDER, ""))))
    if not rows:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(str(path), f"no class folder with images ({suffixes})", "make one folder per class")
    frame = pd.DataFrame(rows, columns=["image", "label", GIVEN], dtype=object)
    frame = frame if level else frame.drop(columns=GIVEN)
    return ClassFolders(
        frame.sort_values("image", ignore_index=True),
        pd.DataFrame(left_out, columns=["image", KIND, DETAIL], dtype=object),
    )


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
    groups, _ = read_groups(spec, path)
    _check_rows(groups, spec, list(frame[spec.image]), path)
    return frame.merge(groups, on=spec.image, how="left")


def read_groups(spec: DataSpec, path: Path) -> tuple[pd.DataFrame, TableForm]:
    """Read the ``groups.csv`` of a folder: one row per image.

    Raises
    ------
    DataError
        If the file is missing, or names one image twice.
    """
    table = path / GROUPS_FILE
    if not table.is_file():
        fix = f"write it with a column '{spec.image}' (path in the folder) and one column per attribute"
        raise DataError(str(table), "no such file, and folders alone name no groups", fix)
    read = read_table(table)
    groups = read.frame
    require_columns(groups, [(spec.image, "data.image")], str(table))
    groups = with_safe_paths(groups, spec.image, table).drop(columns=[spec.label], errors="ignore")
    twice = groups[spec.image][groups[spec.image].duplicated()]
    if len(twice):
        raise DataError(str(table), f"'{twice.iloc[0]}' occurs twice", "keep one row per image")
    return groups, read.form


def _check_rows(groups: pd.DataFrame, spec: DataSpec, images: list[str], path: Path) -> None:
    strange = sorted(set(groups[spec.image].dropna()) - set(images))
    if strange:
        what = f"{len(strange)} rows name no image of the class folders (e.g. '{strange[0]}')"
        fix = "write paths such as 'class/image.png', relative to this table"
        raise DataError(str(path / GROUPS_FILE), what, fix)
