"""A section for a model's card: the outcome of the audit, escaped, in place of an earlier one and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.errors import InputError
from audit.report.card_section import BEGIN, END, card_section, with_section
from tests.report.examples import HOSTILE, examples
from tests.report.forbidden import forbidden_words
from tests.small_world import Invoke

pytestmark = pytest.mark.unit
SAMPLE = Path(__file__).parents[2] / "reports" / "sample"
FRONT = "---\nlicense: mit\n---\n# Smiles\n"


@pytest.mark.parametrize("name", sorted(examples()))
def test_every_outcome_has_its_section(name: str) -> None:
    audit = examples()[name]
    section = card_section(audit, "d" * 64)
    assert section.splitlines()[1] == f"## Differences between groups: {audit.outcome}"
    assert forbidden_words(section) == []
    assert (section.count("\n| ") > 1) is not audit.is_invalid or not audit.contrasts
    assert audit.model.weights_sha256 in section


def test_foreign_names_stay_text() -> None:
    section = card_section(examples()["hostile"], "d" * 64)
    assert not any(text in section for text in HOSTILE[:2])
    assert "\\<script\\>" in section
    assert {line.count("|") - line.count("\\|") for line in section.splitlines() if line.startswith("| ")} == {5}


def test_a_later_section_takes_the_place_of_the_earlier_one_and_the_rest_stays() -> None:
    first, second = (card_section(examples()[name], name) for name in ("disparity", "passed"))
    card = with_section(FRONT, first, "README.md")
    assert card == f"{FRONT}\n{first}"
    assert with_section(f"{card}\n## Use\n", second, "README.md") == f"{FRONT}\n{second}\n## Use\n"
    assert with_section("", first, "README.md") == first


@pytest.mark.parametrize("card", [BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}" * 2])
def test_marks_that_are_no_pair_are_refused(card: str) -> None:
    with pytest.raises(InputError, match="leave one of each, in this order, around the section, or remove both"):
        with_section(card, card_section(examples()["passed"], "d"), "README.md")


def test_the_command_prints_it_or_writes_it(tmp_path: Path, invoke: Invoke) -> None:
    said = invoke("card-section", SAMPLE)
    assert said.exit_code == 0
    readme = tmp_path / "README.md"
    readme.write_text(FRONT, encoding="utf-8")
    assert invoke("card-section", SAMPLE, "--readme", readme).output == f"wrote {readme}\n"
    assert readme.read_text(encoding="utf-8") == f"{FRONT}\n{said.output}"
    readme.write_bytes(b"\xff\xfe")
    refused = invoke("card-section", SAMPLE, "--readme", readme)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert refused.output.startswith(f"{readme}: cannot be read")
    assert readme.read_bytes() == b"\xff\xfe"
