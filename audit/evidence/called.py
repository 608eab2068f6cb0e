"""Whether an image is called an outcome."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd


def is_called(table: pd.DataFrame, outcome: str) -> pd.Series:
    """Tell for each row whether it is called the outcome.

    Parameters
    ----------
    table : pandas.DataFrame
        Stored predictions: ``called:<outcome>`` where an image may be called several classes or none; else
        ``predicted``.
    outcome : str
    """
    column = f"called:{outcome}"
    return table[column].astype(bool) if column in table else table["predicted"] == outcome


def is_called_its_label(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tell for each row whether it is called its own label.

    Parameters
    ----------
    table : pandas.DataFrame
        As :func:`is_called` takes it, with ``label``.
    """
    right = np.zeros(len(table), dtype=bool)
    for label in table["label"].unique():
        own = (table["label"] == label).to_numpy()
        right[own] = is_called(table, label).to_numpy()[own]
    return right
