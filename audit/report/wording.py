"""The words that a report may not use, and the glossary."""

from __future__ import annotations

import re
from functools import cache

from audit.report.text import data_file, of_unit
from audit.units import Unit

NO_CERTIFICATE: str = data_file("words.yaml")["fixed"]["no_certificate"]
EMOTION_NOTE: str = data_file("words.yaml")["fixed"]["emotion"]
_FORBIDDEN = re.compile(
    r"\b(unbiased|de-?biased|bias[- ]free|fair|fairly|prove[sdn]?|proven|compliant|certif(?:y|ies|ied|icate))\b",
    re.IGNORECASE,
)
_ALLOWED = (NO_CERTIFICATE, "that removing it makes the system fair.")


def forbidden_words(text: str) -> list[str]:
    """Return the words of a rendered text that the report may not use.

    Parameters
    ----------
    text : str
        Rendered text, white space of any kind.

    Returns
    -------
    list of str
        Each forbidden word found, in order, but for the two fixed sentences that deny a claim.
    """
    flat = " ".join(text.split())
    for sentence in _ALLOWED:
        flat = flat.replace(sentence, "")
    return [match.group(0) for match in _FORBIDDEN.finditer(flat)]


@cache
def glossary(unit: Unit) -> tuple[tuple[str, str], ...]:
    """Return terms and their meanings, from ``templates/glossary.yaml``, for a kind of part that is patched."""
    content = data_file("glossary.yaml")
    terms = of_unit({**content["terms"], **content[unit]}, unit)
    return tuple((term, terms[term]) for term in sorted(terms, key=str.casefold))
