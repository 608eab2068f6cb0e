"""Expressions of faces, as the sets of them are published.

Layouts follow the sets' own descriptions: RAF-DB (Li, Deng & Du 2017), CelebA (Liu et al. 2015) and CelebAMask-HQ (Lee,
Liu, Wu & Luo 2020), FER2013 (Goodfellow et al. 2013) with the votes of FERPlus (Barsoum et al. 2016), AffectNet
(Mollahosseini, Hasani & Mahoor 2017), ExpW (Zhang, Luo, Loy & Tang 2018), LFW (Huang et al. 2007) with the expressions
of muxspace/facial_expressions on GitHub (``legend.csv``) and the perceived gender of Afifi & Abdelhamed 2017
(``male_names.txt``, ``female_names.txt``).
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from audit.data.readers.embedded import Crop, CropSource, PixelSource
from audit.data.readers.layout import (
    AGAIN,
    first_file,
    first_folder,
    lines_of,
    named,
    need,
    numbers,
    pairs_of,
    table_with,
)
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError

RAF_EXPRESSIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # 1 to 7
RAF_GENDERS, RAF_RACES = ("male", "female"), ("caucasian", "african-american", "asian")  # from 0; gender 2: unsure
RAF_AGES = ("0-3", "4-19", "20-39", "40-69", "70+")
RAF_LANDMARKS = 5  # lines of a file of attributes before gender, race and age
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
CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}
LFW_NAME = re.compile(r"(.+)_\d{4}\.jpg")
LFW_FOLDERS = ("lfw", "lfw_funneled", "lfw-deepfunneled")
LFW_WORDS = {  # the collection names one expression by several words
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
}


def read_rafdb(path: Path) -> RawTable:
    """RAF-DB, basic: ``EmoLabel/list_patition_label.txt``, ``Annotation/manual``, ``Image/aligned`` or ``original``.

    Columns ``expression``, ``gender``, ``race``, ``age``; gender is missing where the annotators were unsure.
    """
    root = first_folder(path / "basic", path)
    listed = need(root / "EmoLabel" / "list_patition_label.txt")
    rows = [line.split() for line in lines_of(listed)]
    if any(len(row) != 2 or row[1] not in map(str, range(1, 8)) for row in rows):
        raise DataError(str(listed), "has a line that is not 'NAME 1..7'", AGAIN)
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
    codes = [line.strip() for line in lines_of(path)][RAF_LANDMARKS:]
    if len(codes) != 3:
        raise DataError(str(path), "does not end in gender, race and age", AGAIN)
    gender, race, age = codes
    return named(RAF_GENDERS, gender), named(RAF_RACES, race), named(RAF_AGES, age)


def read_celeba(path: Path) -> RawTable:
    """CelebA: ``list_attr_celeba.txt``, ``list_eval_partition.txt``, ``identity_CelebA.txt``, ``img_align_celeba``.

    A column for each of its 40 attributes in lower case, "yes" or "no", beside ``expression`` (smiling, not smiling),
    ``gender`` (male, female), ``age`` (young, not young) and ``person``.
    """
    frame = _celeba_attributes(need(path / "list_attr_celeba.txt"))
    frame = _with_people(frame, frame["image"], path)
    frame["image"] = "img_align_celeba/" + frame["image"]
    return RawTable(frame, FileSource(path), str(path))


def read_celebamask(path: Path) -> RawTable:
    """CelebAMask-HQ: ``CelebAMask-HQ-attribute-anno.txt``, ``CelebA-HQ-to-CelebA-mapping.txt``, ``CelebA-HQ-img``.

    CelebA's ``list_eval_partition.txt`` and ``identity_CelebA.txt`` beside them say the split and the person of each
    photograph. Columns as of CelebA.
    """
    frame = _celeba_attributes(need(path / "CelebAMask-HQ-attribute-anno.txt"))
    listed = need(path / "CelebA-HQ-to-CelebA-mapping.txt")
    rows = [line.split() for line in lines_of(listed)]
    if any(len(row) != 3 for row in rows):
        raise DataError(str(listed), "is no table of idx, orig_idx and orig_file", AGAIN)
    originals = {f"{number}.jpg": file for number, _, file in rows}  # a header, which some copies lack, names no image
    frame = _with_people(frame, frame["image"].map(originals), path)
    frame["image"] = "CelebA-HQ-img/" + frame["image"]
    return RawTable(frame, FileSource(path), str(path))


def _celeba_attributes(listed: Path) -> pd.DataFrame:
    """Read a number of images, names of attributes, and a line for each image; "image" is its name."""
    lines = lines_of(listed)
    names = lines[1].split() if len(lines) > 1 else []
    rows = [line.split() for line in lines[2:]]
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        raise DataError(str(listed), "has another number of columns than its second line names", AGAIN)
    frame = pd.DataFrame([row[1:] for row in rows], columns=[name.lower() for name in names], dtype=object)
    frame = pd.DataFrame({name: frame[name].map({"1": "yes", "-1": "no"}) for name in frame})
    absent = {"smiling", "male", "young"} - set(frame.columns)
    if absent:
        raise DataError(str(listed), f"names no attribute {', '.join(sorted(absent))}", AGAIN)
    frame.insert(0, "image", [row[0] for row in rows])
    frame["expression"] = frame["smiling"].map({"yes": "smiling", "no": "not smiling"})
    frame["gender"] = frame["male"].map({"yes": "male", "no": "female"})
    frame["age"] = frame["young"].map({"yes": "young", "no": "not young"})
    return frame


def _with_people(frame: pd.DataFrame, originals: pd.Series, path: Path) -> pd.DataFrame:
    """Add person and split, by the name that each photograph has in CelebA."""
    people = originals.map(pairs_of(need(path / "identity_CelebA.txt")))
    splits = originals.map(pairs_of(need(path / "list_eval_partition.txt"))).map(CELEBA_SPLITS)
    return frame.assign(**{"person": people, GIVEN: splits})


def read_fer2013(path: Path) -> RawTable:
    """FER2013: ``fer2013.csv`` (emotion, pixels, Usage); with FERPlus' ``fer2013new.csv`` its votes decide.

    Columns ``expression`` and, with FERPlus, ``votes`` for it (of ten); a tie for the first place has no label, nor has
    what the taggers called unknown or no face. The set names no groups: a ``groups.csv`` must, by the keys
    ``fer0000000.png`` in the order of the rows.
    """
    table = table_with(path / "fer2013.csv", ("emotion", "pixels", "Usage"))
    keys = [f"fer{row:07d}.png" for row in range(len(table))]
    frame = pd.DataFrame(
        {
            "image": keys,
            "expression": [named(FER_EXPRESSIONS, str(code)) for code in table["emotion"]],
            GIVEN: table["Usage"].map(FER_SPLITS).to_numpy(),
        }
    )
    plus = path / "fer2013new.csv"
    if plus.is_file():
        frame["expression"], frame["votes"] = _majorities(plus, len(table))
    return RawTable(frame, PixelSource(dict(zip(keys, table["pixels"].fillna(""), strict=True))), str(path))


def _majorities(path: Path, rows: int) -> tuple[list[str | None], list[str]]:
    votes = table_with(path, ())
    if len(votes) != rows or set(PLUS_VOTES) - set(votes.columns):
        raise DataError(str(path), f"does not hold the ten columns of votes for {rows} rows", AGAIN)
    counts = votes[list(PLUS_VOTES)].apply(pd.to_numeric, errors="coerce").fillna(0).to_numpy()
    most = counts.max(axis=1)
    single = (counts == most[:, None]).sum(axis=1) == 1
    winners = [PLUS_VOTES[k] for k in counts.argmax(axis=1)]
    labels = [w if alone and w not in ("unknown", "NF") else None for w, alone in zip(winners, single, strict=True)]
    return labels, [f"{int(n)}" for n in most]


def read_affectnet(path: Path) -> RawTable:
    """AffectNet, annotated by hand: ``training.csv``, ``validation.csv``, ``Manually_Annotated_Images``.

    Each image is cut to its face. Column ``expression``; none, uncertain and no face have no label. The set names no
    groups: a ``groups.csv`` must, by the paths of the two tables.
    """
    lists = first_folder(path / "Manually_Annotated_file_lists", path)
    images = first_folder(path / "Manually_Annotated" / "Manually_Annotated_Images", path / "Manually_Annotated_Images")
    parts = []
    for name, split in AFFECT_SPLITS.items():
        listed = lists / f"{name}.csv"
        table = table_with(listed, AFFECT_COLUMNS, "give it the header it is published with")
        parts.append(with_safe_paths(table, AFFECT_COLUMNS[0], listed).assign(**{GIVEN: split}))
    frame = pd.concat(parts, ignore_index=True)
    left, top, width, height = (numbers(frame[column]) for column in AFFECT_COLUMNS[1:5])
    boxes = zip(left, top, left + width, top + height, strict=True)
    keys = list(frame[AFFECT_COLUMNS[0]])
    columns = {
        "image": keys,
        "expression": [named(AFFECT_EXPRESSIONS, str(code)) for code in frame["expression"]],
        GIVEN: frame[GIVEN],
    }
    crops = {key: Crop(key, box) for key, box in zip(keys, boxes, strict=True)}
    return RawTable(pd.DataFrame(columns), CropSource(FileSource(images), crops), str(lists))


def read_expw(path: Path) -> RawTable:
    """ExpW: ``label.lst`` and ``origin/``; a photograph may hold several faces, and each is an image of its own.

    Columns ``expression`` and ``photograph``, by which faces of one photograph stay in one split. The set names no
    groups: a ``groups.csv`` must, by keys such as ``origin/NAME.jpg#0`` (the face's number in ``label.lst``).
    """
    listed = need(first_file(path / "label.lst", path / "label" / "label.lst"))
    folder = first_folder(path / "image" / "origin", path / "origin")
    rows = [line.split() for line in lines_of(listed)]
    if any(len(row) != EXPW_COLUMNS for row in rows):
        raise DataError(str(listed), f"has a line that is not of {EXPW_COLUMNS} columns", AGAIN)
    table = pd.DataFrame(rows, columns=["photograph", "face", "top", "left", "right", "bottom", "sure", "code"])
    table = with_safe_paths(table, "photograph", listed)
    boxes = zip(*(numbers(table[side]) for side in ("left", "top", "right", "bottom")), strict=True)
    keys = [f"origin/{name}#{face}" for name, face in zip(table["photograph"], table["face"], strict=True)]
    columns = {
        "image": keys,
        "expression": [named(EXPW_EXPRESSIONS, code) for code in table["code"]],
        "photograph": table["photograph"],
    }
    crops = {k: Crop(name, box) for k, name, box in zip(keys, table["photograph"], boxes, strict=True)}
    return RawTable(pd.DataFrame(columns), CropSource(FileSource(folder), crops), str(listed))


def read_lfw(path: Path) -> RawTable:
    """LFW: ``lfw/NAME/NAME_0001.jpg``, ``legend.csv``, ``male_names.txt``, ``female_names.txt``.

    Columns ``expression``, ``gender``, ``person`` (the name) and ``annotator`` of the expression. Images of other
    collections that the legend names are passed over; one that several annotators called differently has no label.
    """
    folder = first_folder(*(path / name for name in LFW_FOLDERS))
    listed = first_file(path / "legend.csv", path / "data" / "legend.csv")
    legend = table_with(listed, ("user.id", "image", "emotion"))
    legend = legend[legend["image"].fillna("").str.fullmatch(LFW_NAME.pattern)]
    if legend.empty:
        raise DataError(str(listed), "names no image as LFW does, NAME_0001.jpg", AGAIN)
    legend = with_safe_paths(legend, "image", listed)
    words = legend["emotion"].str.lower()
    by_image = legend.assign(emotion=words.replace(LFW_WORDS)).groupby("image", sort=True)
    genders = _lfw_genders(path)
    images = [str(image) for image in by_image.groups]
    people = [image[: -len("_0001.jpg")] for image in images]
    columns = {
        "image": [f"{person}/{image}" for person, image in zip(people, images, strict=True)],
        "expression": list(by_image["emotion"].agg(_only)),
        "gender": [genders.get(image) for image in images],
        "person": people,
        "annotator": list(by_image["user.id"].agg(_only)),
    }
    return RawTable(pd.DataFrame(columns, dtype=object), FileSource(folder), str(listed))


def _lfw_genders(path: Path) -> dict[str, str | None]:
    """Return the perceived gender by image; None where both lists name one."""
    genders: dict[str, str | None] = {}
    for gender in ("male", "female"):
        for name in lines_of(need(path / f"{gender}_names.txt")):
            genders[name.strip()] = None if name.strip() in genders else gender
    return genders


def _only(values: pd.Series) -> str | None:
    """Return the one value that there is, None where there are several or none."""
    known = set(values.dropna())
    return str(known.pop()) if len(known) == 1 else None
