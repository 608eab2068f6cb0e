"""Nouns for the two kinds of parts that are patched."""

from __future__ import annotations

import pytest

from audit.report.text import data_file, of_unit
from audit.units import UNITS, Unit, name_of, parse_name

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("file", ["method.yaml", "glossary.yaml"])
def test_what_is_said_of_slices_does_not_speak_of_heads(file: str) -> None:
    content = {k: v for k, v in data_file(file).items() if k not in UNITS}
    of_slices, of_heads = (str(of_unit(content, unit)).lower() for unit in ("slice", "head"))
    assert "slice" in of_slices
    assert "slice" not in of_heads
    assert "head" not in of_slices.replace("ahead", "")
    assert "an slice" not in of_slices


def test_nouns() -> None:
    assert {unit: words.a_full for unit, words in UNITS.items()} == {
        "head": "an attention head", "slice": "a slice of channels",
    }  # fmt: skip
    assert all(unit == words.name and words.title == words.plural.capitalize() for unit, words in UNITS.items())


@pytest.mark.parametrize("unit", UNITS)
def test_names_are_read_as_they_are_written(unit: Unit) -> None:
    assert parse_name(name_of(unit, 12, 3)) == (12, 3)


@pytest.mark.parametrize("name", ["", "L1", "H3", "L1H3 ", "L1X3", "l1h3", "L-1H3", "L1H3+L2H4"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names no head"):
        parse_name(name)
