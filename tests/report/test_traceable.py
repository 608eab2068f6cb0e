"""Every number in a table or a finding comes from the part of audit.json that stands beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonpointer import resolve_pointer
from lxml.html import HtmlElement

from audit.report.pointers import places, spelled

from .examples import examples

pytestmark = pytest.mark.unit
NAMES = sorted(set(examples()) - {"hostile"})
NUMBER = re.compile(r"(?<![\w<.])[+−]?\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?")
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
NUMBERED = (
    "Estimate", "In mean probability", "n", "p, raw", "p, adjusted", "Value to expect", "Tolerance",
)  # fmt: skip
ADDED_UP = ("regions-",)  # sums over a part of the record


def leaves(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        yield len(tree)
        for value in tree:
            yield from leaves(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def plain(cell: HtmlElement) -> str:
    """Return a cell's text, with powers of ten as a computer writes them."""
    return " ".join(" ".join(cell.itertext()).split()).replace(" × 10", "e").translate(SUPERSCRIPTS)


def is_there(token: str, known: list[float]) -> bool:
    """Tell whether a number that is shown is one of the record's, rounded as it is shown, as such or in percent."""
    mantissa, _, power = token.replace(",", "").replace("−", "-").partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    shown, half = abs(float(f"{mantissa}e{power or 0}")), 0.5001 * unit
    return any(abs(shown - scale * abs(value)) <= half for value in known for scale in (1, 100))


def rows(tree: HtmlElement) -> Iterator[tuple[str, HtmlElement, str]]:
    for table in tree.iter("table"):
        for row in table.xpath("tbody/tr"):
            sources = row.xpath("th/@data-source")
            yield table.get("id"), row, sources[0] if sources else ""


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_table_is_in_the_row_of_the_record_that_it_names(page, name) -> None:
    page = page(name)
    record = json.loads(page.content)
    checked = 0
    for table, row, source in rows(page.tree):
        cells = [plain(cell) for cell in row.xpath("td[contains(@class, 'number')]")]
        tokens = [token for cell in cells for token in NUMBER.findall(cell)]
        if tokens in ([], ["0"]) and not source:
            continue  # "None: 0" where nothing was left out
        assert source, (table, tokens)
        parts = [resolve_pointer(record, pointer) for pointer in source.split()]
        if table.startswith(ADDED_UP):
            continue
        known = [*leaves(parts), sum(p["images"] for p in parts if isinstance(p, dict) and "images" in p)]
        missing = [token for token in tokens if not is_there(token, known)]
        assert missing == [], (table, source, missing, cells)
        checked += len(tokens)
    assert checked > 200


@pytest.mark.parametrize("name", ["disparity", "many"])
def test_the_numbers_of_a_finding_are_those_of_its_record(page, name) -> None:
    page = page(name)
    record = json.loads(page.content)
    articles = page.tree.xpath("//article[@class='finding']")
    assert len(articles) == len(page.audit.findings)
    for article in articles:
        part = resolve_pointer(record, article.get("data-source"))
        assert part["id"] == article.get("data-finding")
        known = [*leaves(part), 0.95]
        for fact in article.xpath(".//dl[@class='facts']/div"):
            term, text = fact.findtext("dt"), " ".join(fact.find("dd").itertext())
            if term in (
                "Estimate",
                "In mean probability",
                "n",
                "p, raw",
                "p, adjusted",
                "Value to expect",
                "Tolerance",
            ):
                tokens = NUMBER.findall(text)
                assert tokens and all(is_there(token, known) for token in tokens), (term, text)


def test_a_number_that_is_not_there_is_missed() -> None:
    assert is_there("+2.85", [0.0285]) and is_there("12.3%".rstrip("%"), [0.1234]) and is_there("1,204", [1204])
    assert not is_there("+2.86", [0.0285]) and not is_there("1,205", [1204])


def test_places_are_spelled_by_list() -> None:
    first, second = object(), object()
    place = places({"/heads": [first], "/grids": [object(), second]})
    assert (place(first), place(second)) == ("/heads/0", "/grids/1")
    assert spelled(["/heads/3", "/heads/1", "/heads/2 /rates/0", "/rates/0", "/method/thresholds"]) == (
        "/heads/1 to 3, /rates/0, /method/thresholds"
    )
    assert spelled([]) == ""
    assert spelled(["/a/7", "/a/1", "/a/3", "/a/2"]) == "/a/1 to 3, 7"
