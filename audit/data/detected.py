"""Images that never reached the classifier, because no face was found in them, say: told apart and counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from audit.data.groups import group_column
from audit.data.readers.raw import RawTable
from audit.data.rows import Rows
from audit.errors import DataError
from audit.filenames import printable
from audit.records import LeftOut

NOT_DETECTED = "not_detected"  # column of rows
TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


def mark_listed(raw: RawTable, image: str, path: Path) -> RawTable:
    """Add to a table a column that is true of the images that a file lists.

    Parameters
    ----------
    raw : RawTable
    image : str
        Its column of images.
    path : pathlib.Path
        One image per line, in UTF-8.

    Raises
    ------
    DataError
        If the file cannot be read, or lists an image that the table does not have.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise DataError(str(path), "cannot be read as text", "write one image per line, in UTF-8") from None
    listed = {line for line in lines if line}
    unknown = sorted(listed - set(raw.frame[image].dropna())) if image in raw.frame else []
    if unknown:
        what = f"{len(unknown)} of {len(listed)} images are in no row of the table ({printable(unknown[0])})"
        raise DataError(str(path), what, "write each as the table's image column has it")
    marked = raw.frame[image].isin(listed).map({True: TRUE[0], False: FALSE[0]})
    return replace(raw, frame=raw.frame.assign(**{NOT_DETECTED: marked}))


def part_undetected(rows: Rows) -> Rows:
    """Leave out the images that never reached the classifier; they are counted by group.

    Raises
    ------
    DataError
        If a value of the column is neither true nor false.
    """
    if NOT_DETECTED not in rows.frame:
        return rows
    said = rows.frame[NOT_DETECTED].fillna("").str.lower()
    wrong = ~said.isin([*TRUE, *FALSE])
    if wrong.any():
        image, value = rows.frame.loc[wrong, "image"].iloc[0], rows.frame.loc[wrong, NOT_DETECTED].iloc[0]
        given = "nothing" if pd.isna(value) else f"'{printable(value)}'"
        what = f"'{printable(image)}' has {given} in '{rows.card.data.not_detected}' ({int(wrong.sum())} such images)"
        raise DataError(rows.raw.where, what, "write true or false")
    lost = said.isin(TRUE)
    about = rows.frame.loc[lost, ["image", "label", "subject"]]
    groups = {name: group_column(rows.frame.loc[lost, name], spec) for name, spec in rows.card.groups.items()}
    undetected = about.assign(**groups).astype(str).reset_index(drop=True)
    left = rows.without(lost, LeftOut.NOT_DETECTED, chosen=True)
    return replace(left, frame=left.frame.drop(columns=NOT_DETECTED), undetected=undetected)
