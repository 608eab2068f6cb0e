"""Names of what is patched: heads of a transformer, or slices of a convolutional network's channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["head", "slice"]


@dataclass(frozen=True)
class UnitWords:
    """The nouns of one kind of part, for templates and messages."""

    name: Unit
    singular: str
    plural: str
    full: str  # "attention head"
    full_plural: str
    a_full: str  # with its article
    letter: str  # in a part's name, such as L9H3
    writer: str  # what writes into the residual stream: the sum of a layer's parts
    parameters: str  # what a weight transplant takes along

    @property
    def title(self) -> str:
        """The plural at the beginning of a sentence."""
        return self.plural.capitalize()


UNITS: Mapping[Unit, UnitWords] = {
    "head": UnitWords(
        "head", "head", "heads", "attention head", "attention heads", "an attention head", "H", "attention",
        "Q, K, V, O of head h",
    ),
    "slice": UnitWords(
        "slice", "slice", "slices", "slice of channels", "slices of channels", "a slice of channels", "C",
        "the block", "the block of slice h",
    ),
}  # fmt: skip
NAME = re.compile(rf"L(\d+)[{''.join(words.letter for words in UNITS.values())}](\d+)")


def name_of(unit: Unit, layer: int, number: int) -> str:
    """Return a part's name: ``L9H3`` is head 3 of layer 9, ``L9C3`` slice 3 of what block 9 writes, from 0 both."""
    return f"L{layer}{UNITS[unit].letter}{number}"


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


def layers_in(name: str) -> tuple[int, int] | None:
    """Return the first and the last layer of a part's name, such as ``L3 attention`` or ``L0 to L2``; None: in none."""
    found = [int(layer) for layer in re.findall(r"L(\d+)", name)]
    return (min(found), max(found)) if found else None
