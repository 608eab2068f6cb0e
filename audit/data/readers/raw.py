"""What every reader hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from audit.card.faults import did_you_mean
from audit.data.quality import ByteSource
from audit.errors import DataError


@dataclass(frozen=True)
class About:
    """What a set's own metadata say of it.

    Parameters
    ----------
    name, licence, citation : str
        Empty where they say nothing.
    """

    name: str = ""
    licence: str = ""
    citation: str = ""


@dataclass(frozen=True)
class RawTable:
    """Rows as they were found, before anything is chosen or left out.

    Parameters
    ----------
    frame : pandas.DataFrame
        Text columns, missing where a cell was empty; ``given_split`` where folders or files say the split.
    source : ByteSource
        Opens the images.
    where : str
        The file or folder, for messages.
    about : About
        What stands in for what the card does not say.
    """

    frame: pd.DataFrame
    source: ByteSource
    where: str
    about: About = About()


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
    hint = did_you_mean(absent[0][0], columns)
    what = f"no column {asked} among {', '.join(columns)}" if hint.startswith("did") else f"no column {asked}"
    raise DataError(where, what, hint)
