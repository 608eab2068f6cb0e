"""Names of labels and groups: near-duplicates pointed out or merged, numbers put into bins."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from audit.card.faults import did_you_mean
from audit.card.read_table import plain_text
from audit.errors import DataError
from audit.filenames import printable
from audit.records import DataWarning, DataWarningCode

NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234 may be either
MOST_NUMBERS = 12  # groups that are numbers without a word about bins


@dataclass(frozen=True)
class Names:
    """What names in a column become."""

    new: Mapping[str, str]  # of each name that changes
    warnings: tuple[DataWarning, ...]  # what was merged, what is alike and was not, and numbers that may better be bins
    bins: list[str] | None = None  # the groups that bins make, from low to high

    def of(self, values: pd.Series) -> pd.Series:
        """Return a column under its new names."""
        return values.map(lambda name: self.new.get(name, name)).astype(object) if self.new else values


def settled(
    values: pd.Series,
    of: str,
    merge: bool | Mapping[str, str],
    kept: Sequence[str] | None,
    where: str,
    edges: Sequence[float] | None = None,
) -> Names:
    """Return what the names of a label or an attribute become.

    Parameters
    ----------
    values : pandas.Series
        Texts, or missing.
    of : str
        The attribute, or "label".
    merge, kept, where
        As ``merged_names`` takes them.
    edges : sequence of float, optional
        Of bins.
    """
    merged = merged_names(values, merge, kept, where)
    warnings = list(merge_warnings(of, values, merged))
    given = values.dropna().unique()
    found = list(dict.fromkeys(merged.get(name, name) for name in given))
    if edges is not None:
        groups, names = binned(found, edges, f"groups.{of}.bins")
        new = {name: groups.get(merged.get(name, name), merged.get(name, name)) for name in given}
        return Names(new, tuple(warnings), names)
    warnings += similar_name_warnings(of, found, kept)
    if kept is None and of != "label":
        warnings += number_warnings(of, found)
    return Names(merged, tuple(warnings))


def same_name(name: str) -> str:
    """Return what names have in common that differ in case, blanks, invisible signs or the form of a letter only."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return "".join(unicodedata.normalize("NFKC", visible.casefold()).split())


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the names that have others like them, together."""
    together: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        together.setdefault(same_name(name), []).append(name)
    return [several for several in together.values() if len(several) > 1]


def similar_name_warnings(of: str, found: Iterable[str], kept: Sequence[str] | None) -> Iterator[DataWarning]:
    """Yield a warning for each set of names that are alike.

    Parameters
    ----------
    of : str
        The attribute, or "label".
    found : iterable of str
        The names in the data.
    kept : sequence of str or None
        Those that the card keeps, None for all; names that are left out and like no other are no matter.
    """
    for several in alike([*found, *(kept or [])]):
        if kept is None or any(name in kept for name in several):
            yield DataWarning(code=DataWarningCode.SIMILAR_NAMES, of=of, names=several)


def merged_names(
    values: pd.Series, merge: bool | Mapping[str, str], kept: Sequence[str] | None, where: str
) -> dict[str, str]:
    """Return the new name of each name that is merged with another.

    Parameters
    ----------
    values : pandas.Series
        Texts, or missing.
    merge : bool or mapping of str to str
        True merges what is alike into a name that is kept, else into the commonest; a mapping says what into what.
    kept : sequence of str or None
        Names that the card keeps.
    where : str
        The field of the card, for messages.

    Raises
    ------
    DataError
        If the mapping names what is not there.
    """
    counts = values.value_counts()
    if isinstance(merge, Mapping):
        absent = [name for name in merge if name not in counts.index]
        if absent:
            what = f"no image has '{printable(absent[0])}'"
            raise DataError(where, what, did_you_mean(absent[0], map(str, counts.index)))
        return {old: new for old, new in merge.items() if old != new}
    if not merge:
        return {}
    new_names: dict[str, str] = {}
    for several in alike([*counts.index, *(kept or [])]):
        wanted = [name for name in several if kept is not None and name in kept]
        target = wanted[0] if wanted else max(several, key=lambda name: int(counts[name]))
        new_names |= {name: target for name in several if name not in (target, *wanted)}
    return new_names


def merge_warnings(of: str, values: pd.Series, new_names: Mapping[str, str]) -> Iterator[DataWarning]:
    """Yield a notice for each name that others were merged into; it stands first among the names."""
    for target in sorted(set(new_names.values())):
        old = sorted(name for name, new in new_names.items() if new == target)
        images = int(values.isin(old).sum())
        yield DataWarning(code=DataWarningCode.NAMES_MERGED, of=of, images=images, names=[target, *old])


def numbers_of(values: Iterable[str], where: str) -> dict[str, float]:
    """Return the number that each text is, decimal commas included; texts that are none are left out.

    Raises
    ------
    DataError
        If commas may separate thousands or decimals.
    """
    texts = [text for text in set(values) if NUMBER.fullmatch(text.strip())]
    commas = sorted(text.strip() for text in texts if "," in text)
    if commas and all(THOUSANDS.fullmatch(text) for text in commas):
        what = f"'{commas[0]}' may be {commas[0].replace(',', '')} or {commas[0].replace(',', '.')}"
        raise DataError(where, what, "write decimals with a point, and thousands without a sign")
    return {text: float(text.strip().replace(",", ".")) for text in texts}


def bin_names(edges: Sequence[float], *, whole: bool) -> list[str]:
    """Return the names of the groups between edges, each of which belongs to the group that it begins.

    Parameters
    ----------
    edges : sequence of float
        Rising.
    whole : bool
        Whether there are whole numbers only: "18 to 29" rather than "18 to under 30".
    """
    written = [str(plain_text(float(edge))) for edge in edges]
    if whole:
        last = [str(plain_text(float(edge) - 1)) for edge in edges]
        between = [a if a == b else f"{a} to {b}" for a, b in zip(written, last[1:], strict=False)]
    else:
        between = [f"{a} to under {b}" for a, b in pairwise(written)]
    return [f"under {written[0]}", *between, f"{written[-1]} and over"]


def binned(values: Iterable[str], edges: Sequence[float], where: str) -> tuple[dict[str, str], list[str]]:
    """Put numbers into half-open bins.

    Parameters
    ----------
    values : iterable of str
    edges : sequence of float
        Rising.
    where : str
        For messages.

    Returns
    -------
    groups : dict of str to str
        Of each text that is a number.
    names : list of str
        Of all groups, from low to high.
    """
    numbers = numbers_of(values, where)
    whole = all(float(number).is_integer() for number in [*edges, *numbers.values()])
    names = bin_names(edges, whole=whole)
    cut = pd.cut(pd.Series(numbers, dtype=float), [-np.inf, *edges, np.inf], right=False, labels=names)
    return {str(text): str(name) for text, name in cut.items()}, names


def number_warnings(of: str, found: Iterable[str]) -> Iterator[DataWarning]:
    """Yield a warning where groups are so many numbers that they may better be bins."""
    values = [float(name.strip().replace(",", ".")) for name in found if NUMBER.fullmatch(name.strip())]
    if len(values) > MOST_NUMBERS:
        ends = {"lowest": min(values), "highest": max(values)}
        yield DataWarning(code=DataWarningCode.MANY_NUMBERS, of=of, images=len(values), numbers=ends)
