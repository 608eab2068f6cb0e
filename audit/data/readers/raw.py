"""What every reader hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from audit.card.faults import closest, did_you_mean
from audit.data.samples import ImageSource
from audit.errors import DataError
from audit.records import DataWarning, TableForm
from audit.remote import Place

KIND, DETAIL = "left_out:kind", "left_out:detail"  # columns of what is left out


@dataclass(frozen=True)
class About:
    """What a set's own metadata say of it."""

    # empty where they say nothing
    name: str = ""
    licence: str = ""
    citation: str = ""


@dataclass(frozen=True)
class RawTable:
    """Rows as they were found, before anything is chosen or left out."""

    # text columns, missing where a cell was empty; ``given_split`` where folders or files say the split
    frame: pd.DataFrame
    source: ImageSource  # opens the images
    where: str  # the file or folder, for messages
    about: About = About()  # what stands in for what the card does not say
    # files that are not read: the image column, KIND (a ``LeftOut``), DETAIL, and the columns of ``frame`` that are
    # known of them
    left_out: pd.DataFrame | None = None
    warnings: tuple[DataWarning, ...] = ()  # what was odd on reading
    tables: tuple[TableForm, ...] = ()  # how its tables were read


def files_of(path: Place, pattern: str) -> list[Place]:
    """Return the file that is named, or the files of a pattern below a folder, in order."""
    if path.is_file():
        return [path]
    found: list[Place] = [*path.rglob(pattern)]
    return sorted(found, key=lambda file: str(file).split("/"))


def require_columns(frame: pd.DataFrame, needed: Sequence[tuple[str, str]], where: str) -> None:
    """Check that columns are there.

    Parameters
    ----------
    frame : pandas.DataFrame
        The table.
    needed : sequence of (str, str)
        Column and the key of the card that asks for it.
    where : str
        The file, for the message.

    Raises
    ------
    DataError
        Naming every column that is not there, those that are, and the likeliest one.
    """
    columns = [str(column) for column in frame.columns if column != "given_split"]
    absent = [(column, key) for column, key in needed if column not in frame.columns]
    if not absent:
        return
    asked = ", ".join(f"'{column}' ({key})" for column, key in absent)
    is_close = closest(absent[0][0], columns) is not None
    what = f"no column {asked} among {', '.join(columns)}" if is_close else f"no column {asked}"
    raise DataError(where, what, did_you_mean(absent[0][0], columns))
