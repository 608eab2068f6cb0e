"""Records of earlier versions, brought to the form of this one step by step, each from plain data to plain data.

What a later form has no place for is left out, and is named; what an earlier form did not hold is missing, as the
default of its field has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from audit.records.from_1_0 import Plain, from_1_0, without
from audit.records.from_2_0 import (
    from_notes,
    from_sentences,
    has_notes,
    has_sentences,
    lacks_preprocessing,
    with_preprocessing,
)


def is_1_0(held: Plain) -> bool:
    """Tell whether a record is of schema 1.0."""
    return bool(held["schema_version"] == "1.0")


STEPS: tuple[tuple[Callable[[Plain], bool], Callable[[Plain], Plain]], ...] = (  # which records, and what is done
    (is_1_0, from_1_0),
    (has_sentences, from_sentences),
    (has_notes, from_notes),
    (lacks_preprocessing, with_preprocessing),
)


@dataclass(frozen=True)
class Earlier:
    """What a record was before it was brought to this version's form.

    Parameters
    ----------
    schema : str
        Its ``schema_version``.
    version : str
        Of the vit-audit that wrote it.
    left_out : tuple of str
        Fields that it holds and this version has no place for, by their names in the file.
    """

    schema: str
    version: str
    left_out: tuple[str, ...]


def upgraded(held: Plain) -> tuple[Plain, Earlier] | None:
    """Bring a record to the form of this version.

    Parameters
    ----------
    held : dict
        The content of an ``audit.json``.

    Returns
    -------
    tuple of (dict, Earlier) or None
        None where no step applies: it has this version's form already, or one that no step begins at.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    try:
        new, taken = held, False
        for applies, step in STEPS:
            if applies(new):
                new, taken = step(new), True
        version = str(held["provenance"]["versions"]["vit-audit"])
    except (LookupError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"no record ({error})") from error
    return (new, Earlier(str(held["schema_version"]), version, tuple(_lost(held, new)))) if taken else None


def _lost(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield each field, once, that holds something in a record and nothing in what was made of it."""
    if _is_empty(new) and not _is_empty(old):
        yield place
    elif isinstance(old, dict) and isinstance(new, dict):
        for name, value in without(old, "level").items():
            yield from _lost(value, new.get(name), f"{place}.{name}" if place else name)
    elif isinstance(old, list) and isinstance(new, list):
        yield from dict.fromkeys(found for a, b in zip(old, new, strict=False) for found in _lost(a, b, place))


def _is_empty(value: Any) -> bool:
    """Tell whether a value says nothing; of an estimate its level alone does not."""
    if isinstance(value, dict):
        return all(_is_empty(inner) for name, inner in value.items() if name != "level")
    return value is None or value == "" or value == []
