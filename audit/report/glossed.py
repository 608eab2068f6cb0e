"""Links from the first use of a word to the glossary, in a page that is printed already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from audit.report.formats import slug

_TAG = re.compile(r"(<[^>]*>)")
_NAME = re.compile(r"</?([a-z0-9]+)")
# What a link does not belong into: other links, headings and what names rows and columns.
PLAIN = frozenset(
    ["a", "button", "caption", "code", "dfn", "dt", "h1", "h2", "h3", "h4", "h5", "output", "th", "template"]
)


def linked(page: str, forms: Mapping[str, Sequence[str]]) -> Markup:
    """Link each term of a glossary where it is first used.

    Parameters
    ----------
    page : str
        HTML of our own templates: tags are closed, and no attribute holds ">".
    forms : mapping of str to sequence of str
        The terms, each with the words that stand for it.

    Returns
    -------
    Markup
    """
    unseen = {form.casefold(): term for term, words in forms.items() for form in words}
    depth, parts = 0, _TAG.split(page)
    for index, part in enumerate(parts):
        if index % 2:
            name = _NAME.match(part)
            if name is not None and name[1] in PLAIN:
                depth += -1 if part.startswith("</") else 1
        elif not depth and unseen and part.strip():
            parts[index] = _linked(part, unseen)
    return Markup("".join(parts))  # noqa: S704 - what came in was escaped by the templates


def _linked(text: str, unseen: dict[str, str]) -> str:
    """Link the terms that a text uses first, and take them from those that are unseen."""
    done, rest = "", text
    while unseen:
        words = "|".join(re.escape(form) for form in sorted(unseen, key=len, reverse=True))
        found = re.search(rf"(?<![\w-])(?:{words})(?![\w-])", rest, re.IGNORECASE)
        if found is None:
            break
        term = unseen[found[0].casefold()]
        for form in [form for form, of in unseen.items() if of == term]:
            del unseen[form]
        done += f'{rest[: found.start()]}<a class="term" href="#term-{slug(term)}">{found[0]}</a>'
        rest = rest[found.end() :]
    return done + rest
