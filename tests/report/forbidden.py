"""The words that nothing the tool prints may use."""

from __future__ import annotations

import re

from audit.report.text import data_file

NO_CERTIFICATE: str = data_file("words.yaml")["fixed"]["no_certificate"]
FORBIDDEN = re.compile(
    r"\b(unbiased|de-?biased|bias[- ]free|fair|fairly|prove[sdn]?|proven|compliant|certif(?:y|ies|ied|icate))\b",
    re.IGNORECASE,
)
ALLOWED = (NO_CERTIFICATE, "that removing it makes the system fair.")


def forbidden_words(text: str) -> list[str]:
    """Return each forbidden word of a rendered text, in order, but for the two fixed sentences that deny a claim."""
    flat = " ".join(text.split())
    for sentence in ALLOWED:
        flat = flat.replace(sentence, "")
    return [match.group(0) for match in FORBIDDEN.finditer(flat)]
