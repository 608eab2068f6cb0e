"""Covariates: columns of numbers that donors are matched on and gaps are adjusted for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
MOST_CATEGORIES = 12  # of a column: with more there are too few images of each to adjust for them
APART = 0.5  # caliper of a category: two images of different ones are never alike


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


@dataclass(frozen=True)
class Term:
    """A number, or whether a category is one of its values."""

    column: str
    value: str | None  # None of a number
    caliper: float  # how far apart two images may be and still count as alike

    def of(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the term (N,) of samples, not a number where it is unknown."""
        if self.value is None:
            return numbers(frame, [self.column])[:, 0]
        column = frame[self.column]
        found: npt.NDArray[np.float64] = (column == self.value).to_numpy().astype(np.float64)
        found[(column == UNKNOWN).to_numpy()] = np.nan
        return found


@dataclass(frozen=True)
class Covariates:
    """What gaps are adjusted for: numbers, and of categories a term for each value but the most common one."""

    terms: tuple[Term, ...] = ()

    @classmethod
    def of(cls, frame: pd.DataFrame, calipers: Mapping[str, float], categories: Sequence[str]) -> Covariates:
        """Return those of samples; a category of one value, or of over ``MOST_CATEGORIES``, is left out."""
        terms = [Term(column, None, caliper) for column, caliper in calipers.items()]
        for column in categories:
            counts = frame[column].value_counts().drop(UNKNOWN, errors="ignore")
            if 1 < len(counts) <= MOST_CATEGORIES:
                values = sorted(counts.index, key=lambda value: (-counts[value], value))
                terms += [Term(column, str(value), APART) for value in values[1:]]
        return cls(tuple(terms))

    @property
    def columns(self) -> list[str]:
        """The columns, numbers first."""
        return list(dict.fromkeys(term.column for term in self.terms))

    def values(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the terms (N, T) of samples in calipers, not a number where one is unknown."""
        if not self.terms:
            return np.empty((len(frame), 0))
        return np.column_stack([term.of(frame) / term.caliper for term in self.terms])


NO_COVARIATES = Covariates()


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
