"""What a caller gave, checked: another kind of value, or another word, ends in one line that says what to give."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from audit.errors import InputError


def check_choice(where: str, given: object, choices: Collection[str]) -> None:
    """Raise unless a value is one of some words.

    Raises
    ------
    InputError
        Naming all of them.
    """
    if not isinstance(given, str) or given not in choices:
        raise InputError(where, f"is {given!r}", f"choose from {', '.join(choices)}")


def check_kind(where: str, given: object, kinds: type | tuple[type, ...], fix: str) -> None:
    """Raise unless a value is of one of some kinds.

    Raises
    ------
    InputError
        With ``fix``, which says what to give.
    """
    if not isinstance(given, kinds):
        raise InputError(where, f"is a {type(given).__name__}", fix)


def as_path(where: str, given: str | os.PathLike[str]) -> Path:
    """Return a path.

    Raises
    ------
    InputError
        If the value names none.
    """
    check_kind(where, given, (str, os.PathLike), "give a path")
    return Path(given)
