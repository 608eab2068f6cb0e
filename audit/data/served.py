"""What production answered for some of the images: a table to compare the audited model's answers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from audit.errors import DataError

EXAMPLES = 3
SUMS_TO_ONE = 1e-2  # how far a row of rounded probabilities may be from it


@dataclass(frozen=True)
class Served:
    """Answers of the deployed model.

    Parameters
    ----------
    probabilities : pandas.DataFrame
        A row an image, by key; a column a class, in the order of the model's outputs.
    logits : bool
        Whether the file has logits, of which these are made.
    """

    probabilities: pd.DataFrame
    logits: bool


def read_served(
    path: Path, image: str, classes: Sequence[str], keys: Sequence[str], *, exclusive: bool = True
) -> Served:
    """Read a CSV table of answers: the image's column, and one logit or probability a class.

    Parameters
    ----------
    path : pathlib.Path
    image : str
        Name of the column of keys.
    classes : sequence of str
        Columns that must be there.
    keys : sequence of str
        The audit's images; rows of others are passed over.
    exclusive : bool
        Whether the classes exclude each other: probabilities sum to 1, and logits become a softmax, not sigmoids.

    Raises
    ------
    DataError
        If the file cannot be read, a column is missing, an image comes twice, a value is no finite number, or none of
        the audit's images is in it.
    """
    where = str(path)
    try:
        table = pd.read_csv(path, dtype={image: str}, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserError) as error:
        what = f"cannot be read as CSV ({type(error).__name__})"
        raise DataError(where, what, f"write a table with {image} and a column a class") from None
    missing = [name for name in (image, *classes) if name not in table.columns]
    if missing:
        has = ", ".join(map(str, table.columns[:6]))
        raise DataError(where, f"has no column '{missing[0]}' (it has {has})", "name the columns by image and classes")
    twice = table[image][table[image].duplicated()].unique()
    if len(twice):
        shown = ", ".join(map(str, twice[:EXAMPLES]))
        raise DataError(where, f"{len(twice)} images come twice ({shown})", "give each image once")
    table = table[table[image].isin(set(keys))].set_index(image)
    if table.empty:
        raise DataError(where, "holds none of the audit's images", f"write their keys under '{image}' as the data do")
    values = table[list(classes)].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = values.index[~np.isfinite(values).all(axis=1)]
    if len(bad):
        what = f"{len(bad)} rows hold no finite numbers ({', '.join(map(str, bad[:EXAMPLES]))})"
        raise DataError(where, what, "correct or remove these rows")
    numbers = values.to_numpy()
    sums = exclusive and float(np.abs(numbers.sum(axis=1) - 1).max()) > SUMS_TO_ONE
    logits = bool(numbers.min() < 0 or numbers.max() > 1 or sums)
    if logits:
        shares = softmax(numbers, axis=1) if exclusive else expit(numbers)
        values = pd.DataFrame(shares, index=values.index, columns=values.columns)
    return Served(values, logits)
