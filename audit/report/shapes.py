"""The shapes that templates print: finished strings only, no numbers left to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """One table cell. ``tone`` names a CSS class; ``symbol`` repeats in shape what ``text`` says in words."""

    text: str
    note: str = ""
    tone: str = ""
    symbol: str = ""
    is_header: bool = False
    is_number: bool = False


@dataclass(frozen=True)
class Column:
    """A column heading; ``unit`` is printed small below it."""

    title: str
    unit: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A captioned table. ``kind`` is a CSS class."""

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    kind: Literal["plain", "dense", "dense heads", "grid"] = "plain"
    printed: tuple[tuple[Cell, ...], ...] | None = None  # the rows of the PDF, where they are fewer
    printed_note: str = ""  # where the others stand


@dataclass(frozen=True)
class Picture:
    """An SVG figure as ``data:`` addresses for light and dark pages, with its description in words."""

    light: str
    dark: str
    alt: str
    caption: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Swatch:
    """One step of a colour scale."""

    tone: str
    text: str


@dataclass(frozen=True)
class Scale:
    """The legend of head grids: swatches from lowest to highest, and what each symbol means."""

    unit: str
    swatches: tuple[Swatch, ...]
    symbols: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fact:
    """A term and its value; ``mono`` for hashes and commands."""

    term: str
    value: str
    mono: bool = False


@dataclass(frozen=True)
class Badge:
    """A verdict as symbol, word and tone, never as colour alone."""

    symbol: str
    text: str
    tone: str


@dataclass(frozen=True)
class TableGroup:
    """A heading with the tables, pictures and sentences below it."""

    id: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folded: tuple[Table, ...] = ()
    scale: Scale | None = None
    badge: Badge | None = None


def number_cell(text: str, note: str = "", tone: str = "") -> Cell:
    """Return a right-aligned cell."""
    return Cell(text, note=note, tone=tone, is_number=True)


def header_cell(text: str, note: str = "") -> Cell:
    """Return the header cell of a row."""
    return Cell(text, note=note, is_header=True)


def badge_cell(badge: Badge, note: str = "") -> Cell:
    """Return a verdict as a cell."""
    return Cell(badge.text, note=note, tone=f"verdict {badge.tone}", symbol=badge.symbol)
