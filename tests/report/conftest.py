"""Each example is rendered once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import pytest
from lxml import html as lxml_html

from audit.records import Audit
from audit.report.html import render_html

from .examples import examples


@dataclass(frozen=True)
class Page:
    audit: Audit
    content: bytes
    source: str
    tree: lxml_html.HtmlElement

    @property
    def text(self) -> str:
        body = self.tree.find("body")
        alts = [image.get("alt", "") for image in body.iter("img")]
        return " ".join(" ".join([*body.itertext(), *alts]).split())

    def table(self, caption_start: str) -> list[list[str]]:
        for table in self.tree.iter("table"):
            if " ".join(table.findtext("caption/span", "").split()).startswith(caption_start):
                return [
                    [" ".join(" ".join(cell.itertext()).split()) for cell in row.xpath("th|td")]
                    for row in table.xpath("tbody/tr")
                ]
        raise AssertionError(f"no table '{caption_start}'")


@cache
def _page(name: str) -> Page:
    audit = examples()[name]
    content = audit.model_dump_json().encode()
    source = render_html(audit, sha256(content).hexdigest())
    return Page(audit, content, source, lxml_html.document_fromstring(source))


@pytest.fixture(scope="session")
def page():
    return _page
