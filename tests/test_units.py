"""Words for the two kinds of parts that are patched."""

from __future__ import annotations

import pytest

from audit.evidence.findings import BOUNDED, HEAD_ADVICE, HEAD_ALTERNATIVES
from audit.pipeline.build_record import DESIGNS, ESTIMANDS, HYPOTHESES
from audit.report import wording
from audit.units import LETTERS, Unit, name_of, parse_name, said_of

pytestmark = pytest.mark.unit
SENTENCES = [
    *HEAD_ALTERNATIVES,
    HEAD_ADVICE,
    BOUNDED,
    *HYPOTHESES,
    *DESIGNS,
    *(text for row in ESTIMANDS for text in row),
    *(text for text in vars(wording).values() if isinstance(text, str)),
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_no_sentence_about_slices_speaks_of_heads(sentence: str) -> None:
    said = said_of("slice", sentence).lower()
    assert "head" not in said.replace("ahead", "")
    assert "an slice" not in said
    assert said_of("head", sentence) == sentence


def test_what_is_said_of_slices() -> None:
    assert said_of("slice", "Patching a head with itself") == "Patching a slice with itself"
    assert said_of("slice", "An output of an attention head") == "An output of a slice of channels"
    assert said_of("slice", "heads, head; Heads, Head") == "slices, slice; Slices, Slice"
    assert said_of("slice", "header, forehead") == "header, forehead"


@pytest.mark.parametrize("unit", LETTERS)
def test_names_are_read_as_they_are_written(unit: Unit) -> None:
    assert parse_name(name_of(unit, 12, 3)) == (12, 3)


@pytest.mark.parametrize("name", ["", "L1", "H3", "L1H3 ", "L1X3", "l1h3", "L-1H3", "L1H3+L2H4"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names no head"):
        parse_name(name)
