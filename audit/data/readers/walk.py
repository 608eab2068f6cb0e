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
from audit.records import DataWarning, DataWarningCode

MOST_FILES = 200_000  # that are looked at beside a table


def files_below(root: Path) -> Iterator[tuple[str, str]]:
    """Yield every file below a folder, links to folders followed once.

    Parameters
    ----------
    root : pathlib.Path
        A folder.

    Yields
    ------
    key : str
        Path relative to the root, with forward slashes.
    reason : str
        Why it is not read; empty for an image by its suffix.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    waiting = [(str(root), "", "", frozenset({os.path.realpath(root)}))]
    while waiting:
        folder, prefix, reason, above = waiting.pop()
        for entry in _entries(folder):
            name = name_in_text(entry.name)
            key = prefix + (printable(entry.name) if name is None else name)
            why = reason or _odd_name(name)
            if _is_folder(entry):
                real = os.path.realpath(entry.path)
                if real in above:
                    yield key, "link in a circle"
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


def _odd_name(name: str | None) -> str:
    if name is None:
        return "name is not UTF-8"
    return "hidden file" if name.startswith(".") else ""


def _no_image(entry: os.DirEntry[str]) -> str:
    suffix = PurePosixPath(entry.name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        return f"suffix '{suffix}' is no image's" if suffix else "no suffix"
    return "" if entry.is_file() or entry.is_symlink() else "no file"


def unnamed_images(folder: Path, named: Collection[str]) -> tuple[DataWarning, ...]:
    """Return a warning where a folder holds images that a table does not name.

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
        return ()
    known = set(named)
    unnamed = sorted(key for key, reason in files if not reason and key not in known)
    if not unnamed:
        return ()
    return (
        DataWarning(
            code=DataWarningCode.UNNAMED_FILES,
            images=len(unnamed),
            examples=[printable(key) for key in unnamed[:EXAMPLES]],
            numbers={"looked_at": float(len(files))},
        ),
    )
