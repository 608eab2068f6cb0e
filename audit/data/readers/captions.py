"""What people do in photographs, and who they are taken for, as the captions of Flickr8k say.

Layout after Hodosh, Young & Hockenmaier 2013, as published with the set: ``Flickr8k.token.txt``, one caption per line
after ``NAME.jpg#NUMBER``, lists of the three splits, and the photographs; or ``captions.txt``, the table of a common
copy. Words of captions tell gender as in Zhao, Wang, Yatskar, Ordonez & Chang 2017; which words is this tool's own
choice.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from audit.data.readers.layout import AGAIN, first_file, first_folder, lines_of, need
from audit.data.readers.raw import RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource
from audit.data.splits import GIVEN
from audit.errors import DataError

CAPTION = re.compile(r"(?P<image>[^\t#]+)#\d+\t(?P<text>.*)")
SPLITS = {"train": "train", "dev": "val", "test": "test"}
AGREE = 2  # of the five captions have to name something
WORD = re.compile(r"[a-z]+")

Words = Mapping[str, frozenset[str]]


def _words(**names: str) -> Words:
    return {name.replace("_", " "): frozenset(words.split()) for name, words in names.items()}


ACTIONS = _words(
    ride="ride rides riding bike bikes bicycle biker bikers biking cyclist cyclists horse motorcycle",
    ball="soccer football basketball baseball tennis volleyball rugby hockey ball",
    climb="climb climbs climbing climber climbers",
    jump="jump jumps jumping leap leaps leaping leaped",
    walk_or_run="walk walks walking run runs running jog jogs jogging runner runners",
    sit="sit sits sitting seated",
    stand_or_pose="stand stands standing pose poses posing",
)
KINDS: Mapping[str, frozenset[str]] = {
    "sport": frozenset({"ride", "ball", "climb"}),
    "move": frozenset({"jump", "walk or run"}),
    "still": frozenset({"sit", "stand or pose"}),
}
GENDERS = _words(
    man="man men boy boys male males guy guys gentleman gentlemen father he him his",
    woman="woman women girl girls female females lady ladies mother she her hers",
)
AGES = _words(
    adult="man men woman women lady ladies guy guys gentleman gentlemen mother father adult adults",
    child="boy boys girl girls child children kid kids toddler toddlers baby babies infant",
)


def read_flickr8k(path: Path) -> RawTable:
    """Flickr8k: ``Flickr8k.token.txt`` (or ``captions.txt``), lists of splits, and the photographs.

    Columns ``action``, ``kind`` (sport, move, still), ``gender`` and ``age``: what at least two of an image's five
    captions name, where none names another; else none. The words are those of this module.
    """
    captions = _captions_of(path)
    images = first_folder(
        path / "Flicker8k_Dataset", path / "Flickr8k_Dataset" / "Flicker8k_Dataset", path / "Images", path / "images"
    )
    if not images.is_dir():
        raise DataError(str(path), "has no folder Flicker8k_Dataset or Images", AGAIN)
    splits = _splits_of(path)
    rows = []
    for image, said in captions.items():
        texts = [set(WORD.findall(text.lower())) for text in said]
        kind = named_by(texts, {name: frozenset().union(*(ACTIONS[a] for a in of)) for name, of in KINDS.items()})
        row = (image, named_by(texts, ACTIONS), kind, named_by(texts, GENDERS), named_by(texts, AGES))
        rows.append((*row, splits.get(image)))
    frame = pd.DataFrame(rows, columns=["image", "action", "kind", "gender", "age", GIVEN], dtype=object)
    frame = frame if splits else frame.drop(columns=GIVEN)
    return RawTable(with_safe_paths(frame, "image", path), FileSource(images), str(path))


def named_by(captions: Iterable[set[str]], words: Words) -> str | None:
    """Return what at least ``AGREE`` captions name by one of its words, where none names another; else None."""
    counts = {name: sum(bool(caption & known) for caption in captions) for name, known in words.items()}
    named = [name for name, count in counts.items() if count]
    return named[0] if len(named) == 1 and counts[named[0]] >= AGREE else None


def _captions_of(path: Path) -> dict[str, list[str]]:
    """Return the captions of each image, in the order of the file."""
    listed = first_file(
        *(path / folder / "Flickr8k.token.txt" for folder in (".", "Flickr8k_text")), path / "captions.txt"
    )
    found: dict[str, list[str]] = {}
    if listed.name == "captions.txt":
        for row in csv.DictReader(lines_of(need(listed))):
            if row.get("image") is None or row.get("caption") is None:
                raise DataError(str(listed), "has a line without image and caption", AGAIN)
            found.setdefault(row["image"], []).append(row["caption"])
        return found
    for line in lines_of(need(listed)):
        parts = CAPTION.fullmatch(line)
        if parts is None:
            raise DataError(str(listed), f"'{line[:40]}' is no NAME.jpg#NUMBER, tab, caption", AGAIN)
        found.setdefault(parts["image"], []).append(parts["text"])
    return found


def _splits_of(path: Path) -> dict[str, str]:
    """Return the published split of each image; none where no list is there."""
    found: dict[str, str] = {}
    for name, split in SPLITS.items():
        listed = first_file(*(path / folder / f"Flickr_8k.{name}Images.txt" for folder in (".", "Flickr8k_text")))
        if listed.is_file():
            found |= dict.fromkeys((line.strip() for line in lines_of(listed)), split)
    return found
