"""What production answered for some of the images: a table to compare the audited model's answers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy.special import expit, softmax

from audit.card.read_table import read_table
from audit.data.scores import look_like_logits, misses_one, score_table
from audit.errors import DataError

EXAMPLES = 3


@dataclass(frozen=True)
class Served:
    """Answers of the deployed model."""

    # a row for each image, by key; a column for each class, in the order of the model's outputs
    probabilities: pd.DataFrame
    logits: bool  # whether the file has logits, of which these are made


def read_served(
    path: Path, image: str, classes: Sequence[str], keys: Sequence[str], *, exclusive: bool = True
) -> Served:
    """Read a table of answers, of any form: the image's column, and one logit or probability for each class.

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
    where, table = str(path), read_table(path).frame
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
    values = score_table(table[list(classes)], where)
    bad = values.index[values.isna().any(axis=1)]
    if len(bad):
        what = f"{len(bad)} rows hold no finite numbers ({', '.join(map(str, bad[:EXAMPLES]))})"
        raise DataError(where, what, "correct or remove these rows")
    numbers = values.to_numpy()
    logits = look_like_logits(numbers, exclusive=exclusive) or (exclusive and bool(misses_one(numbers).mean() >= 0.5))
    if logits:
        shares = softmax(numbers, axis=1) if exclusive else expit(numbers)
        values = pd.DataFrame(shares, index=values.index, columns=values.columns)
    return Served(values, logits)
