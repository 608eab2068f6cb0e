"""How people in photographs look to others, as the sets of it are published; nobody's action or expression.

Layouts follow the sets' own descriptions: UTKFace (Zhang, Song & Qi 2017), FairFace (Karkkainen & Joo 2021), MIAP
(Schumann, Ricco, Prabhu, Ferrari & Pantofaru 2021: More Inclusive Annotations for People, of Open Images).
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from audit.data.decode import IMAGE_SUFFIXES
from audit.data.readers.embedded import Crop, CropSource
from audit.data.readers.layout import images_by_name, named, numbers, table_with
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError

UTK_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)")
UTK_GENDERS, UTK_RACES = ("male", "female"), ("white", "black", "asian", "indian", "other")
MIAP_SPLITS = {"train": "train", "val": "val", "test": "test"}
MIAP_SIDES = ("XMin", "YMin", "XMax", "YMax")  # shares of the photograph's width and height
MIAP_COLUMNS = ("ImageID", *MIAP_SIDES, "IsGroupOf", "IsDepictionOf", "GenderPresentation", "AgePresentation")
MIAP_GENDERS = {"Predominantly Masculine": "masculine", "Predominantly Feminine": "feminine"}
MIAP_AGES = {"Young": "young", "Middle": "middle", "Older": "older"}
DECADES = tuple(f"{start}-{start + 9}" for start in range(0, 120, 10))


def read_utkface(path: Path) -> RawTable:
    """UTKFace: images named AGE_GENDER_RACE_DATE.jpg, in the folder or in its parts.

    Columns ``gender``, ``race``, ``age`` (decades). Files with another name, of which the set has a few, have none.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else []
    if not files:
        raise DataError(str(path), "holds no image", "name the folder that UTKFace was unpacked to")
    found = [UTK_NAME.match(p.name) for p in files]
    if not any(found):
        raise DataError(str(path), f"no image is named AGE_GENDER_RACE_DATE, as '{files[0].name}'", "name UTKFace")
    frame = pd.DataFrame(
        {
            "image": [p.relative_to(path).as_posix() for p in files],
            "gender": [None if m is None else UTK_GENDERS[int(m[2])] for m in found],
            "race": [None if m is None else UTK_RACES[int(m[3])] for m in found],
            "age": [None if m is None else named(DECADES, str(int(m[1]) // 10)) for m in found],
        }
    )
    return RawTable(frame, FileSource(path), str(path))


def read_fairface(path: Path) -> RawTable:
    """FairFace: ``fairface_label_train.csv``, ``fairface_label_val.csv``, ``train/`` and ``val/``.

    Columns ``gender``, ``race``, ``age``, in lower case.
    """
    parts = []
    for split in ("train", "val"):
        listed = path / f"fairface_label_{split}.csv"
        table = table_with(listed, ("file", "age", "gender", "race"))
        table = with_safe_paths(table, "file", listed).rename(columns={"file": "image"})
        parts.append(table[["image", "age", "gender", "race"]].assign(**{GIVEN: split}))
    frame = pd.concat(parts, ignore_index=True)
    for column in ("age", "gender", "race"):
        frame[column] = frame[column].str.lower()
    return RawTable(frame, FileSource(path), str(path))


def read_miap(path: Path) -> RawTable:
    """MIAP: ``open_images_extended_miap_boxes_train.csv``, ``_val.csv``, ``_test.csv``, and photographs IMAGEID.jpg.

    Each image is cut to one person. Columns ``gender`` and ``age`` as annotators perceived them, and ``photograph``. A
    box around several people, or around a drawing of one, has neither. A part of the set that has no table is left out;
    without the part to train on, the others are assigned as the card says.
    """
    tables = {name: path / f"open_images_extended_miap_boxes_{name}.csv" for name in MIAP_SPLITS}
    there = {name: table for name, table in tables.items() if table.is_file()} or {"train": tables["train"]}
    parts = [table_with(table, MIAP_COLUMNS).assign(**{GIVEN: MIAP_SPLITS[name]}) for name, table in there.items()]
    frame = pd.concat(parts, ignore_index=True)
    one = (frame["IsGroupOf"] != "1") & (frame["IsDepictionOf"] != "1")
    photographs = frame["ImageID"].fillna("")
    keys = [
        f"{name}#{place}" for name, place in zip(photographs, photographs.groupby(photographs).cumcount(), strict=True)
    ]
    files = images_by_name(path)
    boxes = zip(*(numbers(frame[side]) for side in MIAP_SIDES), strict=True)
    crops = {
        key: Crop(files.get(f"{name}.jpg", f"{name}.jpg"), box, in_shares=True)
        for key, name, box in zip(keys, photographs, boxes, strict=True)
    }
    columns = {
        "image": keys,
        "gender": frame["GenderPresentation"].map(MIAP_GENDERS).where(one, None),
        "age": frame["AgePresentation"].map(MIAP_AGES).where(one, None),
        "photograph": frame["ImageID"],
        GIVEN: frame[GIVEN],
    }
    answer = pd.DataFrame(columns, dtype=object)
    answer = answer if "train" in there else answer.drop(columns=GIVEN)
    return RawTable(answer, CropSource(FileSource(path), crops), ", ".join(table.name for table in there.values()))
