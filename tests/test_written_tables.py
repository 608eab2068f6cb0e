"""Tables of documents are as the code says them, and a field is said in one place."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

ROOT = Path(__file__).parents[1]
EXTENSIONS = ROOT / "docs" / "_ext"
pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    sys.path.insert(0, str(EXTENSIONS))
    try:
        return importlib.import_module("written_tables")
    finally:
        sys.path.remove(str(EXTENSIONS))


class Inner(BaseModel):
    """A part of it."""

    size: int = 3


class Example(BaseModel):
    """A part of a card."""

    name: str  # what it is called
    share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of all
    # how many at once,
    # where several are; default: as many as fit
    block: Annotated[int, Field(ge=1)] | None = None
    kind: Literal["a", "b", "c"] = "a"  # which
    inner: Inner = Inner()  # see there
    others: list[Annotated[float, Field(gt=0)]] = []  # a | b
    texts: Annotated[dict[str, list[str]], Field(min_length=2)] = {}  # by name
    flip: bool = True  # turn it
    rate: Annotated[float, Field(gt=0, lt=0.5)] = 1e-4  # a step


def test_a_part_of_a_card_is_a_table_of_types_defaults_and_comments(writer: ModuleType) -> None:
    assert writer.card_table(Example).splitlines() == [
        "| field | type | default | meaning |",
        "|---|---|---|---|",
        "| `name` | text | required | what it is called |",
        "| `share` | number, 0 to 1 | `0.5` | of all |",
        "| `block` | whole number, at least 1 | as many as fit | how many at once, where several are |",
        "| `kind` | `a`, `b` or `c` | `a` | which |",
        "| `inner` | mapping | see below | see there |",
        "| `others` | list of numbers, above 0 | none | a \\| b |",
        "| `texts` | mapping of names to lists of text, at least 2 | none | by name |",
        "| `flip` | `true` or `false` | `true` | turn it |",
        "| `rate` | number, above 0, below 0.5 | `0.0001` | a step |",
    ]


def test_documents_hold_the_tables_that_the_code_says(writer: ModuleType) -> None:
    made, found = writer.tables(), []
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        found += re.findall(r"<!-- table: ([\w.-]+) -->", text)
        if path.name == "models.md":
            continue  # tests/models/test_supported.py compares it
        assert writer.written(text, made) == text, f"run python docs/_ext/written_tables.py: {path.name}"
    assert sorted(found) == sorted(made)  # each once


def test_a_table_that_differs_is_written_again_and_the_rest_is_kept(writer: ModuleType) -> None:
    text = "# A\n\n<!-- table: t -->\n| old |\n<!-- end of table -->\n\nWords.\n"
    after = writer.written(text, {"t": lambda: "| new |\n|---|"})
    assert after == "# A\n\n<!-- table: t -->\n| new |\n|---|\n<!-- end of table -->\n\nWords.\n"


def test_documents_are_written_or_named(writer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "codes.md"
    document.write_text("<!-- table: exit-codes -->\nold\n<!-- end of table -->\n", encoding="utf-8")
    assert writer.main(tmp_path, check=True) == 1
    assert capsys.readouterr().out == "codes.md: differs from the code\n"
    assert writer.main(tmp_path, check=False) == 0
    assert "| 2 | bad input" in document.read_text(encoding="utf-8")
    assert writer.main(tmp_path, check=True) == 0
    assert capsys.readouterr().out == "codes.md: written\n"
