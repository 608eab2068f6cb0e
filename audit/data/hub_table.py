"""The table of a ``datasets.Dataset`` of Hugging Face: every column but its images, labels by their names."""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

from audit.data.in_memory import SHOWN
from audit.errors import DataError

ROW = "row"  # column of keys, where none is named


def is_hub_dataset(dataset: object) -> bool:
    """Tell whether a dataset is one of Hugging Face, which can only be where its package is imported.

    Raises
    ------
    DataError
        If it is a mapping of several.
    """
    package: Any = sys.modules.get("datasets")
    if package is None or not hasattr(package, "DatasetDict"):
        return False
    if isinstance(dataset, package.DatasetDict):
        splits = ", ".join(list(dataset)[:SHOWN])
        raise DataError("dataset", f"is a DatasetDict of splits ({splits})", "give one of them, as dataset['train']")
    return isinstance(dataset, package.Dataset)


def table_of(dataset: Any, image: str, key: str | None) -> tuple[pd.DataFrame, str]:
    """Return the columns of a dataset without its images, and the name of the column of keys.

    Parameters
    ----------
    dataset : datasets.Dataset
    image : str
        Column of the images, which are not decoded here.
    key : str, optional
        Column of keys; by default images are named by their rows, from 0.

    Raises
    ------
    DataError
        If a column is not there, or the row numbers need the name of one that is.
    """
    for field, column in (("image", image), ("key", key)):
        if column is not None and column not in dataset.column_names:
            names = ", ".join(dataset.column_names)
            raise DataError("dataset", f"no column '{column}'", f"name one of {names} with {field}=")
    pictures = {image, *(name for name, kind in dataset.features.items() if type(kind).__name__ == "Image")}
    kept = [name for name in dataset.column_names if name not in pictures]
    table: pd.DataFrame = dataset.with_format(None).select_columns(kept).to_pandas()
    for name in kept:
        of_label = getattr(dataset.features[name], "names", None)  # of a ClassLabel, whose values are numbers
        if of_label is not None:
            known = range(len(of_label))
            table[name] = [of_label[k] if k in known else None for k in _numbers(table[name])]
    if key is not None:
        return table, key
    if ROW in table:
        raise DataError("dataset", f"its column '{ROW}' has the name that rows would get", "name a column with key=")
    return table.assign(**{ROW: [str(k) for k in range(len(dataset))]}), ROW


def _numbers(column: pd.Series) -> list[int | None]:
    return [None if pd.isna(value) else int(value) for value in column]
