"""People who were asked: photographs and videos that were taken for a set, as the sets are published.

Layouts follow the sets' own documentation: FHIBE (Xiang et al. 2025; SonyResearch/fhibe_evaluation_api on GitHub) and
HaGRID (Kapitanov et al. 2024, Nuzhdin et al. 2024; hukenovs/hagrid on GitHub). That of the frames of Casual
Conversations v2 (Porgali et al. 2023) is not documented in public; it is what published code reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from audit.data.readers.actions import NO_BOX, Box, objects_of
from audit.data.readers.embedded import Crop, CropSource
from audit.data.readers.layout import AGAIN, MONK_TONES, images_by_name, json_of, named, need, table_with, the_one
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError

FHIBE_TABLE = Path("data") / "processed" / "fhibe_downsampled" / "fhibe_downsampled.csv"
FHIBE_IMAGES = "data/raw/fhibe_downsampled/"
FHIBE_FOLDERS = "fhibe.*_downsampled_public"
FHIBE_COLUMNS = (
    "filepath",
    "subject_id",
    "consent",
    "person_bbox",
    "action_body_pose",
    "action_subject_object_interaction",
    "pronoun",
    "age",
    "ancestry",
    "natural_skin_color",
    "apparent_skin_color",
    "scene",
)
FHIBE_NUMBER = re.compile(r"\d+\.\s*")  # before every option that could be chosen
FHIBE_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")  # each of several options, in one sort of quotes or the other
FHIBE_OPEN = {"not listed", "free-text", "report string"}  # options that name nothing
FHIBE_REGIONS = ("africa", "americas", "asia", "europe", "oceania")  # others are parts of these
FHIBE_TONES = ("dark", "brown", "tan", "intermediate", "light", "very light")  # 0 to 5, of the Fitzpatrick scale
HAGRID_SPLITS = ("train", "val", "test")
HAGRID_BYTES = 2_000_000_000
CCV2_TABLE = "CasualConversationsV2.json"
CCV2_KEYS = {"video_name", "subject_id", "age", "gender", "geo_location", "country", "monk_skin_tone", "scale"}
CCV2_FRAME = re.compile(r"(.+_(?:non)?scripted_\d+)_.*frame\d+\.jpe?g", re.IGNORECASE)


def read_fhibe(path: Path) -> RawTable:
    """FHIBE, downsampled: ``data/processed/fhibe_downsampled/fhibe_downsampled.csv`` and ``data/raw``, or their folder.

    Each image is cut to one person. Columns ``action`` (the body pose), ``interaction`` (with an object; where it is
    one), ``pronoun``, ``age`` in years, ``ancestry`` (the continents), ``skin_tone`` (natural), ``apparent_skin_tone``,
    ``scene``, ``person``, and ``people``: who stands in photographs with whom, by which both stay in one split. Several
    pronouns or continents of one person are one value, joined by "and".
    """
    root = _newest(path)
    listed = need(root / FHIBE_TABLE)
    table = with_safe_paths(table_with(listed, FHIBE_COLUMNS, alone=True), "filepath", listed)
    if any((answer or "").lower() != "true" for answer in table["consent"]):
        raise DataError(str(listed), "has people without consent", "download the newest version of FHIBE")
    photographs = [name.removeprefix(FHIBE_IMAGES) for name in table["filepath"].fillna("")]
    keys = [f"{name}#{person}" for name, person in zip(photographs, table["subject_id"].fillna(""), strict=True)]
    people = [person or key for person, key in zip(table["subject_id"], keys, strict=True)]
    crops = {
        key: Crop(name, box_of(box)) for key, name, box in zip(keys, photographs, table["person_bbox"], strict=True)
    }
    columns = {
        "image": keys,
        "action": [the_one(_named_options(text)) for text in table["action_body_pose"]],
        "interaction": [the_one(_named_options(text)) for text in table["action_subject_object_interaction"]],
        "pronoun": [_joined(options_of(text)) for text in table["pronoun"]],
        "age": table["age"],
        "ancestry": [_joined(name for name in options_of(text) if name in FHIBE_REGIONS) for text in table["ancestry"]],
        "skin_tone": [_tone(text) for text in table["natural_skin_color"]],
        "apparent_skin_tone": [_tone(text) for text in table["apparent_skin_color"]],
        "scene": [the_one(options_of(text)) for text in table["scene"]],
        "person": table["subject_id"],
        "people": together(people, photographs),
    }
    return RawTable(
        pd.DataFrame(columns, dtype=object), CropSource(FileSource(root / FHIBE_IMAGES), crops), str(listed)
    )


def _newest(path: Path) -> Path:
    """Return the folder that holds ``data``: the one that is named, or what FHIBE's archive unpacks to in it."""
    versions = sorted(path.glob(FHIBE_FOLDERS)) if path.is_dir() else []
    if len(versions) > 1:
        what = f"holds {len(versions)} versions of FHIBE, '{versions[0].name}' among them"
        raise DataError(str(path), what, "keep the newest: people may have left the set since the others")
    return versions[0] if versions else path


def options_of(text: str | None) -> list[str]:
    """Return what was chosen, in lower case: of "0. Standing" the words, of "['1. He/him/his']" each item's."""
    text = text or ""
    chosen = [one or other for one, other in FHIBE_QUOTED.findall(text)] if text.startswith("[") else [text]
    names = [FHIBE_NUMBER.sub("", item, count=1).strip().lower() for item in chosen]
    return [name for name in names if name]


def _named_options(text: str | None) -> list[str]:
    return [name for name in options_of(text) if name not in FHIBE_OPEN]


def _joined(names: Iterable[str]) -> str | None:
    """Return several names as one, None where there is none."""
    return " and ".join(dict.fromkeys(names)) or None


def _tone(text: str | None) -> str | None:
    """Return the name of "0. [102, 78, 65]", whose number says which of six tones it is."""
    return named(FHIBE_TONES, (text or "").partition(".")[0])


def box_of(text: str | None) -> Box:
    """Return left, top, right, bottom of "[left, top, width, height]"; no numbers where it is none."""
    try:
        left, top, width, height = (float(side) for side in json.loads(text or ""))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return NO_BOX
    return left, top, left + width, top + height


def together(people: list[str], photographs: list[str]) -> list[str]:
    """Return a name for each person that all share who are in photographs together, directly or through others.

    Parameters
    ----------
    people, photographs : list of str
        Who is in which, row by row.
    """
    first, person = np.unique(people, return_index=True)[1], np.unique(people, return_inverse=True)[1]
    photograph = np.unique(photographs, return_inverse=True)[1] + len(first)
    size = len(first) + len(set(photographs))
    links = coo_array((np.ones(len(people)), (person, photograph)), shape=(size, size))
    _, circle = connected_components(links, directed=False)
    names = {int(circle[place]): people[first[place]] for place in reversed(range(len(first)))}
    return [names[int(circle[place])] for place in person]


def read_hagrid(path: Path) -> RawTable:
    """HaGRID: ``hagrid_dataset/GESTURE/NAME.jpg``, ``hagrid_annotations/train/GESTURE.json``, ``val``, ``test``.

    Read are the gestures whose folders are there. Columns ``action`` (the gesture), ``person``, and ``gender``, ``age``
    (years) and ``race`` as two neural networks guessed them; none where they saw several faces, or no one.
    """
    images, listed = path / "hagrid_dataset", path / "hagrid_annotations"
    gestures = sorted(folder.name for folder in images.iterdir() if folder.is_dir()) if images.is_dir() else []
    if not gestures:
        raise DataError(str(images), "holds no folder of a gesture", "unpack HaGRID's archives into it")
    rows = []
    for split in HAGRID_SPLITS:
        for gesture in gestures:
            file = need(listed / split / f"{gesture}.json")
            for name, said in objects_of(json_of(file, most=HAGRID_BYTES), file):
                meta = said.get("meta")
                guessed = [_only_text(meta, key) for key in ("gender", "age", "race")]
                person = said.get("user_id")
                if not isinstance(person, str):
                    raise DataError(str(file), f"'{name}' has no user_id", AGAIN)
                rows.append((f"{gesture}/{name}.jpg", gesture.replace("_", " "), person, *guessed, split))
    frame = pd.DataFrame(rows, columns=["image", "action", "person", "gender", "age", "race", GIVEN], dtype=object)
    return RawTable(with_safe_paths(frame, "image", listed), FileSource(images), str(listed))


def _only_text(meta: Any, key: str) -> str | None:
    """Return the one value of a list in an object, as text in lower case; None where it has none or several."""
    values = meta.get(key) if isinstance(meta, Mapping) else None
    if not isinstance(values, list) or len(values) != 1:
        return None
    value = values[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if math.isfinite(value) else None
    return value.lower() if isinstance(value, str) and value else None


def read_casualconversations2(path: Path) -> RawTable:
    """Casual Conversations v2: ``CasualConversationsV2.json``, frames VIDEO_..._frameNUMBER.jpg, in any folders.

    Columns ``gender`` and ``age`` as the people say, ``country``, ``skin_tone`` (the annotators' tone of the Monk
    scale, in the bins of FACET), ``person`` and ``video``.
    """
    files = images_by_name(path)
    listed = next((file for file in sorted(path.rglob(CCV2_TABLE))), path / CCV2_TABLE)
    entries = json_of(listed, CCV2_KEYS)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(str(listed), "is no list of videos", AGAIN)
    videos = {Path(str(entry.get("video_name"))).stem: entry for entry in entries}
    frames = [(key, CCV2_FRAME.fullmatch(name)) for name, key in files.items()]
    shown = [(key, found[1]) for key, found in frames if found is not None and found[1] in videos]
    if not shown:
        what = "no image is named after one of its videos, VIDEO_..._frameNUMBER.jpg"
        raise DataError(str(listed), what, "unpack the set's frames beside it")
    rows = [(key, video, *_told(videos[video])) for key, video in shown]
    names = ["image", "video", "person", "gender", "age", "country", "skin_tone"]
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    return RawTable(with_safe_paths(frame, "image", path), FileSource(path), str(listed))


def _told(entry: Mapping[str, Any]) -> list[str | None]:
    """Return person, gender, age, country and skin tone of a video."""
    place, tone = (_object(entry.get(key)) for key in ("geo_location", "monk_skin_tone"))
    number = re.search(r"\d+", str(tone.get("scale")))
    tones = [name for name, ones in MONK_TONES.items() if number is not None and int(number[0]) in ones]
    told = [entry.get("subject_id"), entry.get("gender"), entry.get("age"), place.get("country")]
    texts = [str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None for value in told]
    return [*texts, the_one(tones)]


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
