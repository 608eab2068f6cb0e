"""Where in ``audit.json`` a row of the report is printed from, as JSON Pointers (RFC 6901)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

Place = Callable[[object], str]


def places(lists: Mapping[str, Sequence[object]]) -> Place:
    """Return what tells a row's place in ``audit.json``, as a JSON Pointer, given the lists by where they are."""
    known = {id(row): f"{parent}/{number}" for parent, rows in lists.items() for number, row in enumerate(rows)}
    return lambda row: known.get(id(row), "")


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
