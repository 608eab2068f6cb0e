"""What the parts are called that are patched: heads of a transformer, or slices of a convolutional network's channels.

Sentences are written once, about heads, and turned into the words of the other kind where they are about it. What a
user has named (labels, groups) is put into a sentence after that.
"""

from __future__ import annotations

import re
from typing import Literal

Unit = Literal["head", "slice"]

FULL: dict[Unit, str] = {"head": "attention head", "slice": "slice of channels"}
LETTERS: dict[Unit, str] = {"head": "H", "slice": "C"}  # in a part's name, such as L9H3
NAME = re.compile(rf"L(\d+)[{''.join(LETTERS.values())}](\d+)")

# Of sentences about heads, in order: what they say of slices.
_OF_SLICES: tuple[tuple[str, str], ...] = (
    ("Patching attention", "Patching what blocks write"),
    ("each attention layer into its heads", "what each block writes into its slices"),
    ("what attention writes", "what the block writes"),
    ("what the head attends to", "where the slice is large"),
    ("The attention heads", "The slices of channels"),
    ("attention heads", "slices of channels"),
    ("Attention heads", "Slices of channels"),
    ("an attention head", "a slice of channels"),
    ("one attention head", "one slice of channels"),
    ("attention head", "slice of channels"),
    ("Q, K, V, O of head h", "the block of slice h"),
    ("heads", "slices"),
    ("Heads", "Slices"),
    ("head", "slice"),
    ("Head", "Slice"),
)
_ANY = re.compile("|".join(rf"\b{re.escape(said)}\b" for said, _ in _OF_SLICES))
_MEANT = dict(_OF_SLICES)


def said_of(unit: Unit, sentence: str) -> str:
    """Return a sentence about heads as one about the given kind of part."""
    return sentence if unit == "head" else _ANY.sub(lambda found: _MEANT[found.group()], sentence)


def name_of(unit: Unit, layer: int, number: int) -> str:
    """Return a part's name: ``L9H3`` is head 3 of layer 9, ``L9C3`` slice 3 of what block 9 writes, from 0 both."""
    return f"L{layer}{LETTERS[unit]}{number}"


def parse_name(name: str) -> tuple[int, int]:
    """Return layer and number of a part by its name.

    Raises
    ------
    ValueError
        If it is no name of a part.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"'{name}' names no head and no slice of channels")
    return int(match[1]), int(match[2])
