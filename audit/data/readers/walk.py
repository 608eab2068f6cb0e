"""Every file below a folder: an image by its name, or the reason why it is none."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from audit.data.decode import IMAGE_SUFFIXES
from audit.data.samples import EXAMPLES
from audit.errors import DataError
from audit.filenames import name_in_text, printable
from audit.records import DataWarning, DataWarningCode, LeftOut

MOST_FILES = 200_000  # that are looked at beside a table
# What tells of data, or was made of it: no one takes these for images.
TELLING = (
    ".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".arrow", ".json", ".jsonl", ".ndjson", ".xml", ".mat", ".lst",
    ".yaml", ".yml", ".toml", ".txt", ".md", ".rst", ".bib", ".html", ".pdf", ".py", ".ipynb", ".log",
    ".npy", ".npz", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".part",
)  # fmt: skip
ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "authors", "makefile")
SYSTEM_FILES = (".ds_store", "thumbs.db", "desktop.ini", ".fetched", ".lock", ".gitignore", ".gitattributes")
Why = tuple[LeftOut, str]  # why a file is not read, and a detail of it


def files_below(root: Path) -> Iterator[tuple[str, Why | None]]:
    """Yield every file below a folder, links to folders followed once.

    Parameters
    ----------
    root : pathlib.Path
        A folder.

    Yields
    ------
    key : str
        Path relative to the root, with forward slashes.
    why : tuple of (LeftOut, str) or None
        Why it is not read, and a detail; None for an image by its suffix.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    begin: tuple[str, str, Why | None, frozenset[str]] = (str(root), "", None, frozenset({os.path.realpath(root)}))
    waiting = [begin]
    while waiting:
        folder, prefix, inherited, above = waiting.pop()
        for entry in _entries(folder):
            name = name_in_text(entry.name)
            key = prefix + (printable(entry.name) if name is None else name)
            why = inherited or _odd_name(name)
            if _is_folder(entry):
                real = os.path.realpath(entry.path)
                if real in above:
                    yield key, (LeftOut.LINK_IN_CIRCLE, "")
                else:
                    waiting.append((entry.path, f"{key}/", why, above | {real}))
            else:
                yield key, why or _no_image(entry)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(printable(folder), f"cannot be read ({error.strerror})", "make it readable") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _odd_name(name: str | None) -> Why | None:
    if name is None:
        return LeftOut.NAME_NOT_UTF8, ""
    return (LeftOut.HIDDEN, "") if name.startswith(".") else None


def _no_image(entry: os.DirEntry[str]) -> Why | None:
    suffix = PurePosixPath(entry.name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        return LeftOut.SUFFIX, printable(suffix)
    return None if entry.is_file() or entry.is_symlink() else (LeftOut.NO_FILE, "")


def tells_of_data(key: str) -> bool:
    """Tell whether a file is no part of the data by its name: texts, tables, cards, weights, what a system leaves."""
    path = PurePosixPath(key)
    name, is_image = path.name.lower(), path.suffix.lower() in IMAGE_SUFFIXES
    inside_hidden = any(folder.startswith(".") for folder in path.parts[:-1])
    described = name in SYSTEM_FILES or path.suffix.lower() in TELLING or name.split(".")[0] in ABOUT
    return not is_image and (inside_hidden or described)


def unnamed_files(folder: Path, named: Collection[str]) -> tuple[tuple[DataWarning, ...], list[tuple[str, Why]]]:
    """Return a warning where a folder holds images that a table does not name, and what else lies there and why.

    Parameters
    ----------
    folder : pathlib.Path
        MOST_FILES files in it are looked at.
    named : collection of str
        Keys of the images that the table names.
    """
    try:
        files = list(islice(files_below(folder), MOST_FILES))
    except DataError:  # a folder beside the table, which nothing needs
        return (), []
    known = set(named)
    unnamed = sorted(key for key, why in files if why is None and key not in known)
    others = [(key, why) for key, why in files if why is not None and key not in known and not tells_of_data(key)]
    if not unnamed:
        return (), others
    warning = DataWarning(
        code=DataWarningCode.UNNAMED_FILES,
        images=len(unnamed),
        examples=[printable(key) for key in unnamed[:EXAMPLES]],
        numbers={"looked_at": float(len(files))},
    )
    return (warning,), others
