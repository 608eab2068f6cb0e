"""The shapes that templates print: finished strings only, no numbers left to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Place = Callable[[object], str]


@dataclass(frozen=True)
class Cell:
    """One table cell. ``tone`` names a CSS class; ``symbol`` repeats in shape what ``text`` says in words.

    The header cell of a row says in ``source`` which part of ``audit.json`` the row is printed from, as a JSON Pointer
    (RFC 6901); several are parted by spaces.
    """

    text: str
    note: str = ""
    tone: str = ""
    symbol: str = ""
    is_header: bool = False
    is_number: bool = False
    source: str = ""


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

    @property
    def source(self) -> str:
        """Which parts of ``audit.json`` the rows come from, in words; "" where they come from none."""
        return spelled(cell.source for row in self.rows for cell in row if cell.source)


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
    source: str = ""  # what the paragraphs are printed from
    badge: Badge | None = None


def number_cell(text: str, note: str = "", tone: str = "") -> Cell:
    """Return a right-aligned cell."""
    return Cell(text, note=note, tone=tone, is_number=True)


def header_cell(text: str, note: str = "", *, source: str = "") -> Cell:
    """Return the header cell of a row."""
    return Cell(text, note=note, is_header=True, source=source)


def spelled(sources: Iterable[str]) -> str:
    """Write pointers into ``audit.json`` in words: each list once, neighbours in it as first and last."""
    lists: dict[str, list[int]] = {}
    single: list[str] = []
    for pointer in dict.fromkeys(p for several in sources for p in several.split()):
        parent, _, last = pointer.rpartition("/")
        if last.isdecimal():
            lists.setdefault(parent, []).append(int(last))
        else:
            single.append(pointer)
    return ", ".join([f"{parent}/{_runs(numbers)}" for parent, numbers in lists.items()] + single)


def _runs(numbers: Sequence[int]) -> str:
    """Write numbers in their order, an unbroken row as its ends: "1, 4 to 6"."""
    numbers = sorted(set(numbers))
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def places(lists: Mapping[str, Sequence[object]]) -> Place:
    """Return what tells a row's place in ``audit.json``, as a JSON Pointer, given the lists by where they stand."""
    known = {id(row): f"{parent}/{number}" for parent, rows in lists.items() for number, row in enumerate(rows)}
    return lambda row: known[id(row)]


def badge_cell(badge: Badge, note: str = "") -> Cell:
    """Return a verdict as a cell."""
    return Cell(badge.text, note=note, tone=f"verdict {badge.tone}", symbol=badge.symbol)
