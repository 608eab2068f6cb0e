"""Whether an image is called an outcome."""

from __future__ import annotations

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
