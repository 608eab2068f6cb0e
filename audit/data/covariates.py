"""Covariates: columns of numbers that donors are matched on and gaps are adjusted for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.card.read_table import plain_text
from audit.data.names import numbers_of
from audit.data.samples import EXAMPLES, UNKNOWN
from audit.errors import DataError
from audit.filenames import printable
from audit.records import CovariateInfo, DataWarning, DataWarningCode

JUST_WITHIN = 1 + 1e-9  # calipers: what is one when written may be a little more when computed


def covariate_column(values: pd.Series, column: str) -> tuple[pd.Series, list[DataWarning]]:
    """Return a column's numbers as plain text, ``unknown`` where there is none, and a warning of what is no number.

    Parameters
    ----------
    values : pandas.Series
        Texts, or missing. Decimal commas are read.
    column : str
        Its name.

    Raises
    ------
    DataError
        If no image has a number, or commas may separate thousands or decimals.
    """
    where = f"match_on (column '{column}')"
    counts = values.value_counts()
    found = {text: number for text, number in numbers_of(counts.index, where).items() if math.isfinite(number)}
    others = [printable(text) for text in sorted(counts.index) if text not in found]
    if not found:
        held = f"; the column holds {', '.join(others[:EXAMPLES])}" if others else ""
        raise DataError(where, f"no image has a number{held}", "name a column of numbers, or leave the caliper out")
    plain = values.map({text: plain_text(number) for text, number in found.items()}).fillna(UNKNOWN)
    if not others:
        return plain, []
    images = int(counts.drop(index=list(found)).sum())
    return plain, [DataWarning(code=DataWarningCode.NO_NUMBER, of=column, images=images, values=others[:EXAMPLES])]


def numbers(frame: pd.DataFrame, columns: Iterable[str]) -> npt.NDArray[np.float64]:
    """Return the covariates (N, C) of samples, not a number where one is unknown."""
    texts = [frame[column] for column in columns]
    if not texts:
        return np.empty((len(frame), 0))
    return np.column_stack([pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64) for text in texts])


def covariate_info(frame: pd.DataFrame, column: str, caliper: float) -> CovariateInfo:
    """Describe a covariate of samples."""
    values = numbers(frame, [column])[:, 0]
    known = values[~np.isnan(values)]
    return CovariateInfo(
        column=column,
        caliper=caliper,
        images=len(known),
        missing=len(values) - len(known),
        lowest=float(known.min()) if len(known) else None,
        highest=float(known.max()) if len(known) else None,
    )


def missing_warnings(frame: pd.DataFrame, columns: Iterable[str]) -> Iterator[DataWarning]:
    """Yield a warning for each covariate that some image lacks."""
    for column in columns:
        missing = int(np.isnan(numbers(frame, [column])).sum())
        if missing:
            yield DataWarning(code=DataWarningCode.COVARIATE_MISSING, of=column, images=missing, total=len(frame))
