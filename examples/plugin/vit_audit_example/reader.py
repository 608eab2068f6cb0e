"""A reader: from a folder to a row for each image."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_pairs(path: Path) -> pd.DataFrame:
    """Read a folder whose files are named ``LABEL_GROUP_PERSON.png``.

    Parameters
    ----------
    path : pathlib.Path
        What the card's ``data.path`` names.

    Returns
    -------
    pandas.DataFrame
        A row for each image. ``image`` is its file, relative to ``path``; which of the other columns is the label,
        the subject or a group, the card says. Unreadable images, splits and unknown groups are vit-audit's work.
    """
    rows = [dict(zip(("label", "group", "person"), f.stem.split("_"), strict=True), image=f.name) for f in _files(path)]
    return pd.DataFrame(rows, columns=["image", "label", "group", "person"])


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.png"))
