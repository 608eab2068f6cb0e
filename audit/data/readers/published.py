"""Datasets read by name, in the very layout in which each is published; the user downloads them, under their terms.

Layouts follow the sets' own descriptions: RAF-DB (Li, Deng & Du 2017), CelebA (Liu et al. 2015), UTKFace (Zhang, Song &
Qi 2017), FairFace (Karkkainen & Joo 2021), FER2013 (Goodfellow et al. 2013) with the votes of FERPlus (Barsoum et al.
2016), AffectNet (Mollahosseini, Hasani & Mahoor 2017), ExpW (Zhang, Luo, Loy & Tang 2018), Stanford 40 (Yao et al.
2011). Columns have one vocabulary; which of them is the label, and which are groups, the card says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from audit.card.schema import DataSpec
from audit.card.tables import read_table
from audit.data.quality import FileSource
from audit.data.readers.embedded import Crop, CropSource, PixelSource
from audit.data.readers.folder import GROUPS_FILE, IMAGE_SUFFIXES, join_groups
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.splits import GIVEN
from audit.errors import DataError

RAF_EXPRESSIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # 1 to 7
RAF_GENDERS, RAF_RACES = ("male", "female"), ("caucasian", "african-american", "asian")  # from 0; gender 2: unsure
RAF_AGES = ("0-3", "4-19", "20-39", "40-69", "70+")
RAF_LANDMARKS = 5  # lines of a file of attributes before gender, race and age
UTK_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)")
UTK_GENDERS, UTK_RACES = ("male", "female"), ("white", "black", "asian", "indian", "other")
DECADES = tuple(f"{start}-{start + 9}" for start in range(0, 120, 10))
FER_EXPRESSIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # 0 to 6
FER_SPLITS = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
PLUS_VOTES = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF",
)  # fmt: skip
AFFECT_EXPRESSIONS = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)  # 0 to 7; 8: none, 9: uncertain, 10: no face
AFFECT_SPLITS = {"training": "train", "validation": "val"}
AFFECT_COLUMNS = ("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "expression")
EXPW_EXPRESSIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # 0 to 6
EXPW_COLUMNS = 8  # image, face, top, left, right, bottom, confidence of the detector, expression
STANFORD_NAME = re.compile(r"(.+)_\d+\.jpg")
CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}


def read_published(spec: DataSpec, path: Path) -> RawTable:
    """Read the set that ``spec.reader`` names.

    Parameters
    ----------
    spec : DataSpec
    path : pathlib.Path
        The folder of the set, unpacked as published. A ``groups.csv`` in it adds columns to the images it names.

    Returns
    -------
    RawTable

    Raises
    ------
    DataError
        If the folder does not hold what the set is published with; it names the file.
    """
    raw = READERS[spec.reader](path)
    frame = raw.frame.rename(columns={"image": spec.image})
    if (path / GROUPS_FILE).is_file():
        frame = join_groups(frame, spec, path)
    return RawTable(frame, raw.source, raw.where)


def read_rafdb(path: Path) -> RawTable:
    """RAF-DB, basic: ``EmoLabel/list_patition_label.txt``, ``Annotation/manual``, ``Image/aligned`` or ``original``.

    Columns ``expression``, ``gender``, ``race``, ``age``; gender is missing where the annotators were unsure.
    """
    root = _first(path / "basic", path)
    listed = _need(root / "EmoLabel" / "list_patition_label.txt")
    rows = [line.split() for line in _lines(listed)]
    if any(len(row) != 2 or row[1] not in map(str, range(1, 8)) for row in rows):
        raise DataError(str(listed), "has a line that is not 'NAME 1..7'", "download it again")
    aligned = (root / "Image" / "aligned").is_dir()
    frame = pd.DataFrame(
        {
            "image": [
                f"Image/aligned/{Path(name).stem}_aligned.jpg" if aligned else f"Image/original/{name}"
                for name, _ in rows
            ],
            "expression": [RAF_EXPRESSIONS[int(code) - 1] for _, code in rows],
            GIVEN: ["train" if name.startswith("train") else "test" for name, _ in rows],
        }
    )
    traits = [_raf_attributes(root / "Annotation" / "manual" / f"{Path(name).stem}_manu_attri.txt") for name, _ in rows]
    for column, values in zip(("gender", "race", "age"), zip(*traits, strict=True), strict=True):
        frame[column] = list(values)
    return RawTable(frame, FileSource(root), str(root))


def _raf_attributes(path: Path) -> tuple[str | None, str | None, str | None]:
    if not path.is_file():
        return None, None, None
    codes = [line.strip() for line in _lines(path)][RAF_LANDMARKS:]
    if len(codes) != 3:
        raise DataError(str(path), "does not end in gender, race and age", "download it again")
    gender, race, age = codes
    return _named(RAF_GENDERS, gender), _named(RAF_RACES, race), _named(RAF_AGES, age)


def read_celeba(path: Path) -> RawTable:
    """CelebA: ``list_attr_celeba.txt``, ``list_eval_partition.txt``, ``identity_CelebA.txt``, ``img_align_celeba``.

    A column for each of its 40 attributes in lower case, "yes" or "no", beside ``expression`` (smiling, not smiling),
    ``gender`` (male, female), ``age`` (young, not young) and ``person``.
    """
    listed = _need(path / "list_attr_celeba.txt")
    lines = _lines(listed)
    names = lines[1].split() if len(lines) > 1 else []
    rows = [line.split() for line in lines[2:]]
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        raise DataError(str(listed), "has another number of columns than its second line names", "download it again")
    frame = pd.DataFrame([row[1:] for row in rows], columns=[name.lower() for name in names], dtype=object)
    frame = frame.apply(lambda column: column.map({"1": "yes", "-1": "no"}))
    absent = {"smiling", "male", "young"} - set(frame.columns)
    if absent:
        raise DataError(str(listed), f"names no attribute {', '.join(sorted(absent))}", "download it again")
    images = [row[0] for row in rows]
    frame.insert(0, "image", [f"img_align_celeba/{name}" for name in images])
    frame["expression"] = frame["smiling"].map({"yes": "smiling", "no": "not smiling"})
    frame["gender"] = frame["male"].map({"yes": "male", "no": "female"})
    frame["age"] = frame["young"].map({"yes": "young", "no": "not young"})
    frame["person"] = pd.Series(images).map(_pairs(_need(path / "identity_CelebA.txt"))).to_numpy()
    splits = pd.Series(images).map(_pairs(_need(path / "list_eval_partition.txt")))
    frame[GIVEN] = splits.map(CELEBA_SPLITS).to_numpy()
    return RawTable(frame, FileSource(path), str(path))


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
            "age": [None if m is None else _named(DECADES, str(int(m[1]) // 10)) for m in found],
        }
    )
    return RawTable(frame, FileSource(path), str(path))


def read_fairface(path: Path) -> RawTable:
    """FairFace: ``fairface_label_train.csv``, ``fairface_label_val.csv``, ``train/`` and ``val/``.

    Columns ``gender``, ``race``, ``age``, in lower case.
    """
    parts = []
    for split in ("train", "val"):
        listed = _need(path / f"fairface_label_{split}.csv")
        table = read_table(listed)
        absent = {"file", "age", "gender", "race"} - set(table.columns)
        if absent:
            raise DataError(str(listed), f"has no column {', '.join(sorted(absent))}", "download it again")
        table = with_safe_paths(table, "file", listed).rename(columns={"file": "image"})
        parts.append(table[["image", "age", "gender", "race"]].assign(**{GIVEN: split}))
    frame = pd.concat(parts, ignore_index=True)
    for column in ("age", "gender", "race"):
        frame[column] = frame[column].str.lower()
    return RawTable(frame, FileSource(path), str(path))


def read_fer2013(path: Path) -> RawTable:
    """FER2013: ``fer2013.csv`` (emotion, pixels, Usage); with FERPlus' ``fer2013new.csv`` its votes decide.

    Columns ``expression`` and, with FERPlus, ``votes`` for it (of ten); a tie for the first place has no label, nor has
    what the taggers called unknown or no face. The set names no groups: a ``groups.csv`` must, by the keys
    ``fer0000000.png`` in the order of the rows.
    """
    listed = _need(path / "fer2013.csv")
    table = read_table(listed)
    absent = {"emotion", "pixels", "Usage"} - set(table.columns)
    if absent:
        raise DataError(str(listed), f"has no column {', '.join(sorted(absent))}", "download it again")
    keys = [f"fer{row:07d}.png" for row in range(len(table))]
    frame = pd.DataFrame(
        {
            "image": keys,
            "expression": [_named(FER_EXPRESSIONS, str(code)) for code in table["emotion"]],
            GIVEN: table["Usage"].map(FER_SPLITS).to_numpy(),
        }
    )
    plus = path / "fer2013new.csv"
    if plus.is_file():
        frame["expression"], frame["votes"] = _majorities(plus, len(table))
    return RawTable(frame, PixelSource(dict(zip(keys, table["pixels"].fillna(""), strict=True))), str(path))


def read_affectnet(path: Path) -> RawTable:
    """AffectNet, annotated by hand: ``training.csv``, ``validation.csv``, ``Manually_Annotated_Images``.

    Each image is cut to its face. Column ``expression``; none, uncertain and no face have no label. The set names no
    groups: a ``groups.csv`` must, by the paths of the two tables.
    """
    lists = _first(path / "Manually_Annotated_file_lists", path)
    images = _first(path / "Manually_Annotated" / "Manually_Annotated_Images", path / "Manually_Annotated_Images")
    parts = []
    for name, split in AFFECT_SPLITS.items():
        listed = _need(lists / f"{name}.csv")
        table = read_table(listed)
        absent = [column for column in AFFECT_COLUMNS if column not in table.columns]
        if absent:
            raise DataError(
                str(listed), f"has no column {', '.join(absent)}", "give it the header it is published with"
            )
        parts.append(with_safe_paths(table, AFFECT_COLUMNS[0], listed).assign(**{GIVEN: split}))
    frame = pd.concat(parts, ignore_index=True)
    left, top, width, height = (_pixels(frame[column]) for column in AFFECT_COLUMNS[1:5])
    boxes = zip(left, top, left + width, top + height, strict=True)
    keys = list(frame[AFFECT_COLUMNS[0]])
    columns = {
        "image": keys,
        "expression": [_named(AFFECT_EXPRESSIONS, str(code)) for code in frame["expression"]],
        GIVEN: frame[GIVEN],
    }
    crops = {key: Crop(key, box) for key, box in zip(keys, boxes, strict=True)}
    return RawTable(pd.DataFrame(columns), CropSource(FileSource(images), crops), str(lists))


def read_expw(path: Path) -> RawTable:
    """ExpW: ``label.lst`` and ``origin/``; a photograph may hold several faces, and each is an image of its own.

    Columns ``expression`` and ``photograph``, by which faces of one photograph stay in one split. The set names no
    groups: a ``groups.csv`` must, by keys such as ``origin/NAME.jpg#0`` (the face's number in ``label.lst``).
    """
    listed = _need(_first_file(path / "label.lst", path / "label" / "label.lst"))
    folder = _first(path / "image" / "origin", path / "origin")
    rows = [line.split() for line in _lines(listed)]
    if any(len(row) != EXPW_COLUMNS for row in rows):
        raise DataError(str(listed), f"has a line that is not of {EXPW_COLUMNS} columns", "download it again")
    table = pd.DataFrame(rows, columns=["photograph", "face", "top", "left", "right", "bottom", "sure", "code"])
    table = with_safe_paths(table, "photograph", listed)
    boxes = zip(*(_pixels(table[side]) for side in ("left", "top", "right", "bottom")), strict=True)
    keys = [f"origin/{name}#{face}" for name, face in zip(table["photograph"], table["face"], strict=True)]
    columns = {
        "image": keys,
        "expression": [_named(EXPW_EXPRESSIONS, code) for code in table["code"]],
        "photograph": table["photograph"],
    }
    crops = {k: Crop(name, box) for k, name, box in zip(keys, table["photograph"], boxes, strict=True)}
    return RawTable(pd.DataFrame(columns), CropSource(FileSource(folder), crops), str(listed))


def read_stanford40(path: Path) -> RawTable:
    """Stanford 40: ``ImageSplits/train.txt``, ``ImageSplits/test.txt``, ``JPEGImages/ACTION_NUMBER.jpg``.

    Column ``action``. The set names no groups: a ``groups.csv`` must, by paths such as ``JPEGImages/running_001.jpg``.
    """
    rows = []
    for split in ("train", "test"):
        listed = _need(path / "ImageSplits" / f"{split}.txt")
        for line in _lines(listed):
            found = STANFORD_NAME.fullmatch(line.strip())
            if found is None:
                raise DataError(str(listed), f"'{line}' is not named ACTION_NUMBER.jpg", "download it again")
            rows.append((f"JPEGImages/{found[0]}", found[1].replace("_", " "), split))
    frame = with_safe_paths(pd.DataFrame(rows, columns=["image", "action", GIVEN]), "image", path)
    return RawTable(frame, FileSource(path), str(path))


def _majorities(path: Path, rows: int) -> tuple[list[str | None], list[str]]:
    votes = read_table(path)
    if len(votes) != rows or set(PLUS_VOTES) - set(votes.columns):
        raise DataError(str(path), f"does not hold the ten columns of votes for {rows} rows", "download it again")
    counts = votes[list(PLUS_VOTES)].apply(pd.to_numeric, errors="coerce").fillna(0).to_numpy()
    most = counts.max(axis=1)
    single = (counts == most[:, None]).sum(axis=1) == 1
    winners = [PLUS_VOTES[k] for k in counts.argmax(axis=1)]
    labels = [w if alone and w not in ("unknown", "NF") else None for w, alone in zip(winners, single, strict=True)]
    return labels, [f"{int(n)}" for n in most]


def _pixels(column: pd.Series) -> pd.Series:
    """Return the numbers of a column; not a number where there is none."""
    return pd.to_numeric(column, errors="coerce").astype(float)


def _first_file(*files: Path) -> Path:
    return next((file for file in files if file.is_file()), files[0])


def _first(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def _need(path: Path) -> Path:
    if not path.is_file():
        raise DataError(str(path), "no such file", "unpack the set as it is published, and name that folder")
    return path


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({type(error).__name__})", "download it again") from None


def _pairs(path: Path) -> dict[str, str]:
    """Read a file of two columns."""
    rows = [line.split() for line in _lines(path)]
    if any(len(row) != 2 for row in rows):
        raise DataError(str(path), "has a line that is not of two columns", "download it again")
    return {row[0]: row[1] for row in rows}


def _named(names: Sequence[str], code: str) -> str | None:
    """Return the name of a code, None where it has none."""
    return names[int(code)] if code.isdecimal() and int(code) < len(names) else None


READERS: Mapping[str, Callable[[Path], RawTable]] = {
    "rafdb": read_rafdb,
    "celeba": read_celeba,
    "utkface": read_utkface,
    "fairface": read_fairface,
    "fer2013": read_fer2013,
    "affectnet": read_affectnet,
    "expw": read_expw,
    "stanford40": read_stanford40,
}
