"""Arrays as the table of a task's result, a number for each row, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

Shapes = Mapping[str, tuple[int, ...]]


def flattened(arrays: Mapping[str, npt.NDArray[np.generic]]) -> pd.DataFrame:
    """Return all numbers, in double precision: ``name``, ``place`` in the array, ``value``."""
    parts = [
        pd.DataFrame({"name": name, "place": np.arange(values.size), "value": values.reshape(-1).astype(np.float64)})
        for name, values in arrays.items()
    ]
    return pd.concat(parts, ignore_index=True)


def restored(table: pd.DataFrame, shapes: Shapes) -> dict[str, npt.NDArray[np.float64]]:
    """Put arrays of known shapes together again."""
    by_name = table.groupby("name")["value"]
    return {name: by_name.get_group(name).to_numpy().reshape(shape) for name, shape in shapes.items()}


def numbers_in(shapes: Shapes) -> int:
    """Return how many rows the table has."""
    return sum(map(math.prod, shapes.values()))
