"""Scores in tables: text as numbers, and whether they are probabilities or logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.names import numbers_of

ROUNDING = 0.01  # by which the probabilities of an image may miss 1
EDGE = 1e-4  # by which a rounded probability may be below 0 or above 1


def score_table(texts: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a table of texts as numbers, decimal commas included; NaN where a text is none, or not finite.

    Raises
    ------
    DataError
        If commas may separate thousands or decimals.
    """
    known = numbers_of({text for name in texts for text in texts[name].dropna()}, where)
    return pd.DataFrame({name: texts[name].map(known) for name in texts}, texts.index, dtype=np.float64)


def outside(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which scores (N, classes) are no probabilities, not even rounded ones."""
    return (scores < -EDGE) | (scores > 1 + EDGE)


def misses_one(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which rows (N, classes) do not sum to 1."""
    return np.asarray(np.abs(scores.sum(axis=1) - 1) > ROUNDING)


def look_like_logits(scores: npt.NDArray[np.float64], *, exclusive: bool) -> bool:
    """Tell whether scores (N, classes) of which nothing else is known are logits.

    One wrong row makes no logits of a table of probabilities: where classes exclude each other, its rows sum to 1.
    """
    sum_to_one = exclusive and misses_one(scores).mean() < 0.5
    return bool(outside(scores).any()) and not sum_to_one
