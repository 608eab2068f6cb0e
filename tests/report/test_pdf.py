"""The PDF as a reader, and what reads aloud, finds it: order, pictures in words, text that stays text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import pikepdf
import pypdf
import pytest
from lxml import html as lxml_html

from audit.report.html import render_html
from audit.report.pdf import render_pdf

from .examples import HOSTILE, examples
from .forbidden import NO_CERTIFICATE, forbidden_words

pytestmark = pytest.mark.unit
NAMES = ["disparity", "hostile", "invalid", "inconclusive", "passed"]
FOOT = 17 * 72 / 25.4  # points, that the running foot takes
LONG = ("inconclusive", "passed")  # laid out as that of a disparity is
CASES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in NAMES]


@cache
def printed(name: str) -> tuple[str, bytes]:
    """Return the page that is printed, and the PDF."""
    page = render_html(examples()[name], "0" * 64, for_print=True)
    return page, render_pdf(page, b"{}", "0" * 64, "2026-03-01T00:00:00+00:00")


@cache
def text_of(name: str) -> str:
    reader = pypdf.PdfReader(io.BytesIO(printed(name)[1]))
    return " ".join(" ".join(page.extract_text() for page in reader.pages).split())


def squeezed(text: str) -> str:
    """Return text without its white space, which line breaks and hyphens of a page change."""
    return "".join(text.split())


def elements(pdf: pikepdf.Pdf) -> Iterator[Any]:
    """Yield the elements of the structure tree in reading order."""
    waiting = [pdf.Root.StructTreeRoot]
    while waiting:
        element = waiting.pop()
        yield element
        children = element.get("/K", [])
        children = [children] if isinstance(children, pikepdf.Dictionary) else list(children)
        waiting.extend(c for c in reversed(children) if isinstance(c, pikepdf.Dictionary) and "/S" in c)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "disparity" else [pytest.mark.long]) for n in NAMES if n != "hostile"],
)
def test_the_pdf_uses_no_forbidden_word(name: str) -> None:
    assert NO_CERTIFICATE in text_of(name)
    assert forbidden_words(text_of(name)) == []


@pytest.mark.parametrize("name", [c for c in CASES if c.values != ("hostile",)])  # which has words from right to left
def test_text_is_drawn_in_the_order_of_the_page(name: str) -> None:
    tree = lxml_html.document_fromstring(printed(name)[0])
    headings = tree.xpath("//main//h2 | //main//h3 | //main//h4")
    text, at = squeezed(text_of(name)), 0
    assert len(headings) > 20
    for heading in headings:
        wanted = squeezed(heading.text_content())
        found = text.find(wanted, at)
        assert found >= 0, wanted
        at = found + len(wanted)


@pytest.mark.parametrize("name", CASES)
def test_what_reads_aloud_goes_through_each_page_once_and_forwards(name: str) -> None:
    """The marked pieces of a page stand in the structure tree in the order in which they are drawn.

    But for pictures and the signs before list items, which WeasyPrint draws last; in the tree they are in their places.
    """
    with pikepdf.open(io.BytesIO(printed(name)[1])) as pdf:
        order: dict[tuple[int, int], list[int]] = {}
        for element in elements(pdf):
            if element.get("/S") == "/Figure" or element.get("/P", {}).get("/S") == "/Lbl":
                continue
            children = element.get("/K")
            for child in children if isinstance(children, pikepdf.Array) else []:
                if isinstance(child, int):
                    order.setdefault(element.Pg.objgen, []).append(int(child))
                elif isinstance(child, pikepdf.Dictionary) and "/MCID" in child:
                    order.setdefault((child.get("/Pg") or element.Pg).objgen, []).append(int(child.MCID))
        assert sum(map(len, order.values())) > 500
        assert all(pieces == sorted(set(pieces)) for pieces in order.values())


@pytest.mark.parametrize("name", CASES)
def test_every_picture_is_told_in_words(name: str) -> None:
    page, content = printed(name)
    told = [image.get("alt") for image in lxml_html.document_fromstring(page).iter("img")]
    with pikepdf.open(io.BytesIO(content)) as pdf:
        figures = [str(e.Alt) for e in elements(pdf) if e.get("/S") == "/Figure"]
    assert figures == told
    assert all(figures)


def filled(page: pypdf.PageObject) -> float:
    """Return how much of a page is used, from its top to the lowest text or picture above the running foot."""
    height = float(page.mediabox.height)
    lowest = [height]

    def place_of(part: Any, here: Any, place: Any, _font: Any, _size: Any) -> None:
        y = here[1] * place[4] + here[3] * place[5] + here[5]
        if part.strip() and y > FOOT:
            lowest.append(y)

    def place_of_picture(operator: bytes, given: Any, here: Any, _place: Any) -> None:
        if operator == b"Do":
            drawn: Any = page["/Resources"]["/XObject"][given[0]]
            box = [0, 0, 1, 1] if drawn["/Subtype"] == "/Image" else [float(v) for v in drawn["/BBox"]]
            lowest.extend(here[1] * x + here[3] * y + here[5] for x in box[::2] for y in box[1::2])

    page.extract_text(visitor_operand_before=place_of_picture, visitor_text=place_of)
    return 1 - min(lowest) / height


@pytest.mark.parametrize("name", CASES)
def test_no_page_is_under_a_third_full(name: str) -> None:
    *pages, _ = pypdf.PdfReader(io.BytesIO(printed(name)[1])).pages  # the last one ends where it ends
    assert len(pages) > 12
    assert {number: round(filled(page), 2) for number, page in enumerate(pages, 1) if filled(page) < 1 / 3} == {}


def test_hostile_text_stays_text_in_the_pdf() -> None:
    text = squeezed(text_of("hostile"))
    for shown in (HOSTILE[0], HOSTILE[1], '=HYPERLINK("//evil","x")'):
        assert squeezed(shown) in text
    assert "\u202e" not in text
    assert "x" * 200 not in text
    with pikepdf.open(io.BytesIO(printed("hostile")[1])) as pdf:
        actions = {str(o.get("/S")) for o in pdf.objects if isinstance(o, pikepdf.Dictionary) and "/S" in o}
        assert actions.isdisjoint({"/JavaScript", "/URI", "/Launch", "/SubmitForm", "/GoToR"})
        assert not any("/JS" in o or "/AA" in o for o in pdf.objects if isinstance(o, pikepdf.Dictionary))
