"""Links from the first use of a word to the glossary, in a page that is printed already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from audit.report.formats import slug

_TAG = re.compile(r"(<[^>]*>)")
_NAME = re.compile(r"</?([a-z0-9]+)")
# What a link does not belong into: other links, headings, what names rows and columns, and places in a record.
PLAIN = frozenset(
    (
        "a",
        "button",
        "caption",
        "code",
        "dfn",
        "dt",
        "output",
        "summary",
        "th",
        "template",
        *(f"h{n}" for n in range(1, 6)),
    )
)
PLACES = '<span class="source"'
VOID = frozenset(("br", "col", "hr", "img", "input", "meta", "source", "wbr"))


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
    parts, inside = _TAG.split(page), [False]  # of each open element, whether it stays as it is
    for index, part in enumerate(parts):
        name = _NAME.match(part) if index % 2 else None
        if name is not None and name[1] not in VOID:
            if part.startswith("</"):
                inside.pop()
            else:
                inside.append(inside[-1] or name[1] in PLAIN or part.startswith(PLACES))
        elif not index % 2 and not inside[-1] and unseen and part.strip():
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
