"""What a caller gave, checked: another kind of value, or another word, ends in one line that says what to give."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from audit.errors import InputError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def said_of(fault: ErrorDetails) -> str:
    """Return what is wrong in a record or a card: in our own words where a check of ours found it."""
    own = fault.get("ctx", {}).get("error")
    return str(own) if isinstance(own, Exception) else fault["msg"]


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
