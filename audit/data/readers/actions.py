"""What people do in photographs, as the sets of it are published.

Layouts follow the sets' own descriptions: Stanford 40 (Yao et al. 2011), imSitu (Yatskar, Zettlemoyer & Farhadi 2016),
COCO (Lin et al. 2014; Chen et al. 2015 for the captions), FACET (Gustafson et al. 2023). Gender in imSitu and COCO is
recognised as Zhao, Wang, Yatskar, Ordonez & Chang 2017 do (Men also like shopping; uclanlp/reducingbias on GitHub).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from audit.data.readers.embedded import Crop, CropSource
from audit.data.readers.layout import (
    AGAIN,
    MONK_TONES,
    first_folder,
    images_by_name,
    json_of,
    lines_of,
    need,
    numbers,
    table_with,
    the_one,
)
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError

STANFORD_NAME = re.compile(r"(.+)_\d+\.jpg")
SITU_BYTES = 200_000_000  # the largest file of imSitu has about 30 MB
SITU_SPLITS = {"train": "train", "dev": "val", "test": "test"}
WORD = re.compile(r"[a-z]+")
SPORTS = {
    "frisbee": "frisbee",
    "skis": "skiing",
    "snowboard": "snowboarding",
    "kite": "kite flying",
    "baseball bat": "baseball",
    "baseball glove": "baseball",
    "skateboard": "skateboarding",
    "surfboard": "surfing",
    "tennis racket": "tennis",
}
COCO_KEYS = {"images", "annotations", "categories", "id", "image_id", "category_id", "name", "file_name", "caption"}
Box = tuple[float, float, float, float]
NO_BOX: Box = (math.nan, math.nan, math.nan, math.nan)
FACET_GENDERS = {"masc": "masculine", "fem": "feminine", "non_binary": "non-binary"}
FACET_AGES = {"young": "young", "middle": "middle", "older": "older"}
FACET_COLUMNS = (
    "person_id",
    "filename",
    "bounding_box",
    "class1",
    *(f"gender_presentation_{name}" for name in FACET_GENDERS),
    *(f"age_presentation_{name}" for name in FACET_AGES),
    *(f"skin_tone_{tone}" for tones in MONK_TONES.values() for tone in tones),
)


def read_stanford40(path: Path) -> RawTable:
    """Stanford 40: ``ImageSplits/train.txt``, ``ImageSplits/test.txt``, ``JPEGImages/ACTION_NUMBER.jpg``.

    Column ``action``. The set names no groups: a ``groups.csv`` must, by paths such as ``JPEGImages/running_001.jpg``.
    """
    rows = []
    for split in ("train", "test"):
        listed = need(path / "ImageSplits" / f"{split}.txt")
        for line in lines_of(listed):
            found = STANFORD_NAME.fullmatch(line.strip())
            if found is None:
                raise DataError(str(listed), f"'{line}' is not named ACTION_NUMBER.jpg", AGAIN)
            rows.append((f"JPEGImages/{found[0]}", found[1].replace("_", " "), split))
    frame = with_safe_paths(pd.DataFrame(rows, columns=["image", "action", GIVEN]), "image", path)
    return RawTable(frame, FileSource(path), str(path))


def read_imsitu(path: Path) -> RawTable:
    """imSitu: ``train.json``, ``dev.json``, ``test.json``, ``imsitu_space.json`` and ``of500_images_resized/``.

    Columns ``action`` (the verb) and ``gender`` of who does it: "man" or "woman" where one of three annotators at least
    names the agent by a noun with this word in its gloss, and none by one with the other.
    """
    images = first_folder(path / "of500_images_resized", path)
    nouns = _gendered_nouns(path / "imsitu_space.json")
    rows = []
    for name, split in SITU_SPLITS.items():
        listed = path / f"{name}.json"
        for image, said in objects_of(json_of(listed, most=SITU_BYTES), listed):
            frames = said.get("frames")
            if not isinstance(said.get("verb"), str) or not isinstance(frames, list):
                raise DataError(str(listed), f"'{image}' has no verb with its frames", AGAIN)
            agents = [frame.get("agent") for frame in frames if isinstance(frame, dict)]
            genders = {gender for agent in agents if isinstance(agent, str) for gender in nouns.get(agent, ())}
            rows.append((image, said["verb"], the_one(genders), split))
    frame = pd.DataFrame(rows, columns=["image", "action", "gender", GIVEN], dtype=object)
    return RawTable(with_safe_paths(frame, "image", path), FileSource(images), str(path))


def _gendered_nouns(path: Path) -> dict[str, set[str]]:
    """Return which of the words man and woman are in the gloss of a noun, by its synset."""
    space = json_of(path, most=SITU_BYTES)
    nouns = space.get("nouns") if isinstance(space, dict) else None
    found = {}
    for synset, noun in objects_of(nouns, path):
        gloss = noun.get("gloss")
        texts = [text for text in gloss if isinstance(text, str)] if isinstance(gloss, list) else []
        found[synset] = {"man", "woman"} & {word for text in texts for word in text.split()}
    return found


def read_coco(path: Path) -> RawTable:
    """COCO: ``annotations/instances_*.json``, ``annotations/captions_*.json``, ``train2014/``, ``val2014/`` (or 2017).

    A column for each of its categories, "yes" or "no", beside ``sport`` (of the objects in SPORTS an image shows those
    of one sport) and ``gender``: "man" or "woman" where a caption says this word and none the other.
    """
    year = next((y for y in ("2014", "2017") if (path / "annotations" / f"instances_train{y}.json").is_file()), "2014")
    parts = [_coco_part(path, f"{split}{year}").assign(**{GIVEN: split}) for split in ("train", "val")]
    frame = pd.concat(parts, ignore_index=True)
    return RawTable(with_safe_paths(frame, "image", path), FileSource(path), str(path))


def _coco_part(path: Path, part: str) -> pd.DataFrame:
    listed, said = (path / "annotations" / f"{kind}_{part}.json" for kind in ("instances", "captions"))
    instances, captions = json_of(listed, COCO_KEYS), json_of(said, COCO_KEYS)
    names = dict(fields_of(instances, "categories", ("id", "name"), listed))
    shown: dict[Any, set[str]] = {}
    for image, category in fields_of(instances, "annotations", ("image_id", "category_id"), listed):
        shown.setdefault(image, set()).add(str(names.get(category)))
    genders: dict[Any, set[str]] = {}
    for image, caption in fields_of(captions, "annotations", ("image_id", "caption"), said):
        genders.setdefault(image, set()).update({"man", "woman"} & set(WORD.findall(str(caption).lower())))
    files = list(fields_of(instances, "images", ("id", "file_name"), listed))
    columns: dict[str, list[str | None]] = {
        str(name): ["yes" if name in shown.get(image, ()) else "no" for image, _ in files] for name in names.values()
    }
    columns["sport"] = [the_one({SPORTS[n] for n in shown.get(image, ()) if n in SPORTS}) for image, _ in files]
    columns["gender"] = [the_one(genders.get(image, ())) for image, _ in files]
    columns["image"] = [f"{part}/{name}" for _, name in files]
    return pd.DataFrame(columns, dtype=object)


def read_facet(path: Path) -> RawTable:
    """FACET: ``annotations/annotations.csv`` (or ``annotations.csv``), and the photographs in any folders.

    Each image is cut to one person. Columns ``action`` (the first class), ``second class``, ``gender``, ``age``,
    ``skin_tone`` (light, medium, dark: where most of the annotators' marks on the Monk scale lie; a tie has none) and
    ``photograph``.
    """
    listed = path / "annotations" / "annotations.csv"
    listed = listed if listed.is_file() else path / "annotations.csv"
    table = table_with(listed, FACET_COLUMNS)
    table = with_safe_paths(table, "filename", listed)
    files = images_by_name(path)
    photographs = table["filename"].fillna("")
    keys = [f"{name}#{person}" for name, person in zip(photographs, table["person_id"], strict=True)]
    crops = {
        key: Crop(files.get(Path(name).name, name), facet_box(box))
        for key, name, box in zip(keys, photographs, table["bounding_box"], strict=True)
    }
    tones = {
        name: sum(numbers(table[f"skin_tone_{tone}"]).fillna(0) for tone in tones) for name, tones in MONK_TONES.items()
    }
    columns = {
        "image": keys,
        "action": table["class1"].str.replace("_", " "),
        "gender": _marked(table, "gender_presentation", FACET_GENDERS),
        "age": _marked(table, "age_presentation", FACET_AGES),
        "skin_tone": [most_marked(dict(zip(tones, row, strict=True))) for row in zip(*tones.values(), strict=True)],
        "photograph": table["filename"],
    }
    return RawTable(pd.DataFrame(columns, dtype=object), CropSource(FileSource(path), crops), str(listed))


def facet_box(text: str | None) -> Box:
    """Return left, top, right, bottom of ``{"x": 1, "y": 2, "width": 3, "height": 4}``; no numbers where it is none."""
    try:
        box = json.loads((text or "").replace("'", '"'))
        left, top, width, height = (float(box[side]) for side in ("x", "y", "width", "height"))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return NO_BOX
    return left, top, left + width, top + height


def _marked(table: pd.DataFrame, prefix: str, names: Mapping[str, str]) -> list[str | None]:
    """Return the name of the one column among several that is 1, None where none or several are."""
    marks = [table[f"{prefix}_{column}"].isin(["1", "1.0"]) for column in names]
    rows = zip(*marks, strict=True)
    return [the_one({name for name, mark in zip(names.values(), row, strict=True) if mark}) for row in rows]


def most_marked(counts: Mapping[str, float]) -> str | None:
    """Return the name that counts most, None where two do."""
    most = max(counts.values())
    return the_one({name for name, count in counts.items() if count == most})


def objects_of(found: Any, path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield the entries of a JSON object of objects; raise ``DataError`` where it is none."""
    if not isinstance(found, dict):
        raise DataError(str(path), "is no JSON object", AGAIN)
    for key, value in found.items():
        if not isinstance(value, dict):
            raise DataError(str(path), f"'{key}' is no JSON object", AGAIN)
        yield key, value


def fields_of(found: Any, part: str, keys: tuple[str, str], path: Path) -> Iterable[tuple[Any, Any]]:
    """Yield two values of each entry of a list in a JSON file; raise ``DataError`` where there is no such list."""
    entries = found.get(part) if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise DataError(str(path), f"has no list '{part}'", AGAIN)
    for entry in entries:
        values = [entry.get(key) if isinstance(entry, dict) else None for key in keys]
        if not all(isinstance(value, str | int) for value in values):
            raise DataError(str(path), f"'{part}' has an entry without {' and '.join(keys)}", AGAIN)
        yield values[0], values[1]
