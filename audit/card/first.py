"""``vit-audit init``: a first card, guessed from a table or from class folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from audit.card.read_table import TABLE_SUFFIXES, read_table
from audit.errors import DataError

# Parts of column names, the likeliest first.
_IMAGE = ("image", "img", "file", "filename", "filepath", "path", "photo", "picture")
_LABEL = ("expression", "emotion", "action", "label", "class", "category", "target", "y")
_SUBJECT = ("subject", "person", "identity", "participant", "individual", "actor", "id")
_GROUPS = ("gender", "sex", "race", "ethnicity", "ethnic", "age", "skin", "tone", "nationality", "disability")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_EMOTIONS = ("expression", "emotion")
_MOST_LABELS, _MOST_GROUPS = 1000, 12  # distinct values; more are no classes, no groups
_TRIED = 20  # values of a column that are looked for on disk
_FEWEST_IMAGES = 30  # of a group that is named where there are many


def first_card(path: Path, *, card_folder: Path | None = None) -> str:
    """Write the text of a first card, as :func:`vit_audit.first_card` describes it.

    ``card_folder`` is where the card will lie, for the relative path in it; by default the current folder.
    """
    where = _relative(path, card_folder or Path.cwd())
    if path.is_dir():
        return _card_of_folder(path, where)
    if not path.exists():
        raise DataError(str(path), "no such file or folder", "name a table of images or a folder of class folders")
    frame = read_table(path).frame
    return _card_of_table(frame, path, where)


def _card_of_table(frame: pd.DataFrame, path: Path, where: str) -> str:
    columns = [str(column) for column in frame.columns]
    image = _image_column(frame, path)
    label = _named(frame, _LABEL, [image], most=_MOST_LABELS)
    if label is None:
        raise _cannot_guess(path, "label", "expression, emotion, action, label or class", columns)
    subject = _named(frame, _SUBJECT, [image, label], most=None)
    groups = _group_columns(frame, [image, label, *([subject] if subject else [])])
    if not groups:
        raise _cannot_guess(path, "group", "gender, sex, race, ethnicity, age or skin_tone", columns)
    others = [c for c in columns if c not in (image, label, subject, *groups)]
    lines = [
        *_head(path.stem, label),
        "data:",
        "  reader: table",
        f"  path: {_quoted(where)}   # relative to this card, or to --data",
        f"  image: {_quoted(image)}   # column with the image paths, relative to the table",
        f"  label: {_quoted(label)}   # column with what the model predicts",
        *_label_lines(frame[label]),
        *_subject_lines(subject),
        "groups:",
        *(line for column in groups for line in _group_lines(column, frame[column])),
        *_match_lines(others),
        *_tail(),
    ]
    return "\n".join(lines) + "\n"


def _card_of_folder(path: Path, where: str) -> str:
    table = path / "groups.csv"
    if not any(child.is_dir() and not child.name.startswith(".") for child in path.iterdir()):
        tables = sorted(child.name for child in path.iterdir() if child.suffix.lower() in TABLE_SUFFIXES)
        fix = f"did you mean the table '{tables[0]}' in it?" if tables else "make one folder per class"
        raise DataError(str(path), "holds no class folders", fix)
    subject: str | None = None
    if table.is_file():
        frame = read_table(table).frame
        subject = _named(frame, _SUBJECT, ["image"], most=None)
        named = _group_columns(frame, ["image", *([subject] if subject else [])])
        if not named:
            columns = [str(column) for column in frame.columns]
            raise _cannot_guess(table, "group", "gender, sex, race, ethnicity, age or skin_tone", columns)
        groups = [line for column in named for line in _group_lines(column, frame[column])]
    else:
        groups = [
            "  # Folders name no groups. Write groups.csv into the folder: a column 'image' (class/a.png)",
            "  # and one column per attribute; then name those columns here.",
            *_group_lines("gender", pd.Series([], dtype=object)),
        ]
    lines = [
        *_head(path.resolve().name, "class"),
        "data:",
        "  reader: folder",
        f"  path: {_quoted(where)}   # one folder per class; relative to this card, or to --data",
        *_subject_lines(subject),
        "groups:",
        *groups,
        *_tail(),
    ]
    return "\n".join(lines) + "\n"


def _head(name: str, label: str) -> list[str]:
    words = _words(label)
    task = "emotion" if words & set(_EMOTIONS) else "action" if "action" in words else "other"
    return [
        "# A first card, guessed from names and contents: read every line before you rely on it.",
        "#   vit-audit check CARD   counts what it finds and says what can be detected",
        "#   vit-audit run CARD     runs the audit",
        f"name: {_quoted(name)}",
        f"task: {task}   # emotion | action | other: selects the legal screen and the wording",
        'intended_use: ""   # fill in: what the model is for',
        'out_of_scope: ""   # fill in: what it must not be used for',
    ]


def _tail() -> list[str]:
    return [
        "model:",
        "  name: vit_small_patch16_224   # or another of 'vit-audit models'",
        "  weights: pretrained   # pretrained | none | FILE.safetensors",
        "training:",
        "  epochs: 3",
        "  seeds: [0, 1, 2]   # several, so that the report can say what depends on chance",
    ]


def _label_lines(values: pd.Series) -> list[str]:
    counts = values.dropna().value_counts()
    order = sorted(counts.index, key=lambda value: (-counts[value], value))
    kept = [value for value in order if counts[value] >= _FEWEST_IMAGES]
    kept = kept if len(kept) >= 2 else order
    if len(kept) < 2:
        raise DataError(f"column '{values.name}'", "one class only", "an audit needs two labels or more")
    rest = len(order) - len(kept)
    note = f"the {rest} rarer ones are left out and counted" if rest else "all of them"
    return [f"  labels: [{', '.join(map(_quoted, kept))}]   # {note}"]


def _subject_lines(subject: str | None) -> list[str]:
    if subject is None:
        return ["  # subject: person   # who is shown; without it each image counts as a person"]
    return [f"  subject: {_quoted(subject)}   # who is shown; nobody is in two splits"]


def _group_lines(column: str, values: pd.Series) -> list[str]:
    counts = values.dropna().value_counts()
    lines = [f"  {_quoted(_attribute_name(column))}:", f"    column: {_quoted(column)}"]
    if len(counts) > _MOST_GROUPS // 2:
        kept = [value for value in sorted(counts.index) if counts[value] >= _FEWEST_IMAGES]
        lines.append(f"    values: [{', '.join(map(_quoted, kept))}]   # the others count as unknown")
    lines.append('    assigned_by: "not stated"   # FILL IN: who assigned the groups, and how')
    return lines


def _match_lines(others: Sequence[str]) -> list[str]:
    if not others:
        return []
    listed = " ".join(", ".join(others[:20]).split())
    return [f"# match_on: []   # nuisance columns, such as the source, that donors are matched on: {listed}"]


def _image_column(frame: pd.DataFrame, path: Path) -> str:
    columns = [str(column) for column in frame.columns]
    looks = [column for column in columns if _holds_images(frame[column], path.parent)]
    ranked = sorted(looks, key=lambda column: (_rank(column, _IMAGE), columns.index(column)))
    if not ranked:
        raise _cannot_guess(path, "image", "image, file or path, holding names such as a.png", columns)
    return ranked[0]


def _holds_images(values: pd.Series, folder: Path) -> bool:
    known = values.dropna()
    if known.empty:
        return False
    named_so = float(known.str.lower().str.endswith(_SUFFIXES).mean()) >= 0.8
    return named_so or all((folder / value).is_file() for value in known.head(_TRIED))


def _named(frame: pd.DataFrame, names: Sequence[str], taken: Sequence[str], *, most: int | None) -> str | None:
    """Return the column whose name comes first in ``names`` and that has two values or more."""
    columns = [str(column) for column in frame.columns]
    fitting = [
        column
        for column in columns
        if column not in taken
        and _rank(column, names) < len(names)
        and frame[column].nunique() >= 2
        and (most is None or frame[column].nunique() <= most)
    ]
    return min(fitting, key=lambda column: (_rank(column, names), columns.index(column)), default=None)


def _group_columns(frame: pd.DataFrame, taken: Sequence[str]) -> list[str]:
    return [
        str(column)
        for column in frame.columns
        if column not in taken and _rank(str(column), _GROUPS) < len(_GROUPS) and _can_be_groups(frame[column])
    ]


def _can_be_groups(values: pd.Series) -> bool:
    counts = values.value_counts()
    if len(counts) > _MOST_GROUPS:
        counts = counts[counts >= _FEWEST_IMAGES]  # the rare ones count as unknown
    return 2 <= len(counts) <= _MOST_GROUPS


def _rank(column: str, names: Sequence[str]) -> int:
    words = _words(column)
    return next((position for position, name in enumerate(names) if name in words), len(names))


def _words(column: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", column)  # skinTone -> skin Tone
    return set(re.split(r"[^a-z0-9]+", spaced.lower()))


def _attribute_name(column: str) -> str:
    """Return the column's name, or one beside it where that has a meaning of its own in a report."""
    name = column.replace(":", "_").replace(" x ", "_x_")
    return f"{name}_group" if name in ("image", "label", "subject", "split") else name


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


def _quoted(text: str) -> str:
    """Return text as a YAML scalar: plain where that is safe, else in double quotes."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*", text)
    words = ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "none")
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=True)


def _cannot_guess(path: Path, what: str, names: str, columns: Sequence[str]) -> DataError:
    return DataError(
        str(path),
        f"cannot tell which column holds the {what} among {', '.join(columns)}",
        f"name it {names}, or write the card by hand",
    )
