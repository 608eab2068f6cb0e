"""Emotions of people in their surroundings, as EMOTIC is published (Kosti, Alvarez, Recasens & Lapedriza 2017, 2020).

The layout of its annotations is that which published code reads (Tandon-A/emotic on GitHub).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.io import loadmat

from audit.data.readers.actions import NO_BOX, Box
from audit.data.readers.embedded import Crop, CropSource
from audit.data.readers.layout import AGAIN, first_file, first_folder, need
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError

SPLITS = ("train", "val", "test")
# Fields of a person by their place: box, categories, dimensions, gender, age; where several annotators looked,
# categories and dimensions are followed by what they have together.
ONE, SEVERAL = 5, 7
EMOTIONS = (
    "Affection", "Anger", "Annoyance", "Anticipation", "Aversion", "Confidence", "Disapproval", "Disconnection",
    "Disquietment", "Doubt/Confusion", "Embarrassment", "Engagement", "Esteem", "Excitement", "Fatigue", "Fear",
    "Happiness", "Pain", "Peace", "Pleasure", "Sadness", "Sensitivity", "Suffering", "Surprise", "Sympathy", "Yearning",
)  # fmt: skip


def read_emotic(path: Path) -> RawTable:
    """EMOTIC: ``Annotations/Annotations.mat`` (or ``CVPR17_Annotations.mat``), ``emotic/`` (or ``cvpr_emotic/``).

    Each image is cut to one person. A column for each of its 26 emotions in lower case, "yes" or "no", none where
    nobody named any, beside ``gender``, ``age`` (kid, teenager, adult) and ``photograph``.
    """
    listed = need(first_file(path / "Annotations" / "Annotations.mat", path / "CVPR17_Annotations.mat"))
    images = first_folder(path / "cvpr_emotic", path / "emotic")
    rows = [row for split in SPLITS for row in _people(_part(listed, split), split, listed)]
    if not rows:
        raise DataError(str(listed), "names no person", AGAIN)
    frame = with_safe_paths(pd.DataFrame(rows, dtype=object), "photograph", listed)
    keys = [f"{name}#{place}" for name, place in zip(frame["photograph"], frame["place"], strict=True)]
    crops = {key: Crop(name, box) for key, name, box in zip(keys, frame["photograph"], frame["box"], strict=True)}
    frame = frame.drop(columns=["place", "box"]).assign(image=keys)
    return RawTable(frame, CropSource(FileSource(images), crops), str(listed))


def _part(listed: Path, split: str) -> list[Any]:
    """Return the photographs of a split, each with its fields in order."""
    try:
        found = loadmat(listed, variable_names=[split], squeeze_me=True)[split]
    except KeyError:
        raise DataError(str(listed), f"has no part '{split}'", AGAIN) from None
    except Exception as error:  # of a damaged file its parser raises nearly anything
        raise DataError(str(listed), f"cannot be read as a file of MATLAB ({type(error).__name__})", AGAIN) from None
    return list(np.atleast_1d(found))


def _people(photographs: Iterable[Any], split: str, listed: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each person of each photograph."""
    for photograph in photographs:
        fields = _fields(photograph)
        if len(fields) != 5 or not all(isinstance(part, str) for part in fields[:2]):
            raise DataError(
                str(listed), f"'{split}' has a photograph that is not of five fields, its name first", AGAIN
            )
        name = f"{fields[1]}/{fields[0]}"
        for place, person in enumerate(np.atleast_1d(fields[4])):
            told = _fields(person)
            if len(told) not in (ONE, SEVERAL):
                raise DataError(str(listed), f"a person in '{name}' has not {ONE} or {SEVERAL} fields", AGAIN)
            named = _names(told[1] if len(told) == ONE else told[2])
            yield {
                "photograph": name,
                "place": place,
                "box": _box(told[0]),
                **{emotion.lower(): _answer(emotion, named) for emotion in EMOTIONS},
                "gender": _text(told[-2]),
                "age": _text(told[-1]),
                GIVEN: split,
            }


def _fields(record: Any) -> list[Any]:
    """Return the fields of a record of MATLAB's in their order; none where it is no record."""
    names = getattr(getattr(record, "dtype", None), "names", None)
    return [_inner(record[name]) for name in names] if names else []


def _inner(value: Any) -> Any:
    """Take a value out of an array without dimensions."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.names is None else value


def _names(value: Any) -> set[str]:
    """Return all texts in a record, however deep they lie."""
    if isinstance(value, str):
        return {value}
    if getattr(getattr(value, "dtype", None), "names", None):
        return {name for field in _fields(value) for name in _names(field)}
    return {name for item in value.flat for name in _names(item)} if isinstance(value, np.ndarray) else set()


def _answer(emotion: str, named: set[str]) -> str | None:
    known = named & set(EMOTIONS)
    return None if not known else "yes" if emotion in known else "no"


def _text(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) and value else None


def _box(value: Any) -> Box:
    """Return left, top, right, bottom in pixels; no numbers where they are not four."""
    sides = value.ravel() if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" else np.empty(0)
    return (float(sides[0]), float(sides[1]), float(sides[2]), float(sides[3])) if sides.size >= 4 else NO_BOX
