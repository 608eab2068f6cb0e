"""Names of files and text: the same file whatever encoding the locale says, and one line whatever a name holds."""

from __future__ import annotations

import os


def name_on_disk(name: str) -> str:
    """Return a name as the operating system has it: in UTF-8, whatever encoding the locale says.

    Raises
    ------
    UnicodeEncodeError
        If it holds half a character.
    """
    return os.fsdecode(name.encode("utf-8"))


def name_in_text(name: str) -> str | None:
    """Return the name of a file as text; None where it is not UTF-8."""
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return None


def whole_characters(text: str) -> str:
    """Return a text with half characters escaped, which JSON and Python may hold and no table can."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(name: str) -> str:
    """Return a name as it can be shown in one line: line breaks, control characters and half characters escaped."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
