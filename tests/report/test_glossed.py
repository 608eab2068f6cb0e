"""Links from the first use of a word to the glossary."""

from __future__ import annotations

import pytest
from lxml import html as lxml_html

from audit.report.glossed import linked

pytestmark = pytest.mark.unit
FORMS = {"Gap": ("gap", "gaps"), "Attention head": ("attention head", "head", "heads"), "Interval": ("interval",)}


def links(page: str) -> list[str]:
    return [a.text_content() for a in lxml_html.fragment_fromstring(page, create_parent=True).iter("a")]


def test_the_first_use_of_each_term_is_linked_whatever_form_it_has() -> None:
    page = linked("<p>Two heads, one gap. An attention head.</p><p>Gaps and the Gap.</p>", FORMS)
    assert links(page) == ["heads", "gap"]
    assert page.count('href="#term-') == 2


def test_a_longer_term_is_no_shorter_one() -> None:
    assert links(linked("<p>An attention head and a head.</p>", FORMS)) == ["attention head"]


def test_headings_links_captions_and_parts_of_words_stay_as_they_are() -> None:
    page = "<h2>Heads</h2><a href='#x'>gap</a><table><caption>Interval</caption></table><p>header, gap-free, ungap</p>"
    assert linked(page, FORMS) == page
    place = '<p><span class="source">In <span class="x">gap</span>, heads</span></p>'
    assert linked(place, FORMS) == place


def test_text_is_unchanged_but_for_links() -> None:
    page = "<ul><li>A &lt;gap&gt; of 3 &amp; more</li></ul><p>interval</p>"
    tree = lxml_html.fragment_fromstring(linked(page, FORMS), create_parent=True)
    assert tree.text_content() == "A <gap> of 3 & moreinterval"
    assert links(linked(page, FORMS)) == ["gap", "interval"]
