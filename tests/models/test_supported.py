"""The table of models is what the code says, in the documentation too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import vit_audit as va
from audit.cli import main
from audit.models.adapters.registry import FAMILIES
from audit.models.supported import names_like, refusals
from audit.terminal import models_table
from tests.models_for_tests import OLDER_TIMM

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.unit
def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    assert models_table(va.supported_models(), markdown=True) in (DOCS / "models.md").read_text(encoding="utf-8")


@pytest.mark.unit
def test_each_family_of_timm_has_models_by_its_names() -> None:
    for made in FAMILIES.values():
        for pattern in made.named:
            names = names_like(pattern)
            assert names, pattern
    assert names_like("regnet*") == []


@pytest.mark.property
@pytest.mark.skipif(OLDER_TIMM, reason="the documentation names the models of timm 1.0.31")
def test_models_that_the_documentation_names_as_refused_are_and_the_first_of_each_family_is_not() -> None:
    (text,) = re.findall(r"models \d+ are refused(.*?)\n\n[A-Z]", (DOCS / "models.md").read_text("utf-8"), re.DOTALL)
    named = sorted(set(re.findall(r"`(\w+)`", text)) & set(names_like("*")))
    assert len(named) > 9
    assert [name for name in named if not dict(refusals(name))[name]] == []
    first = [names_like(pattern)[0] for made in FAMILIES.values() for pattern in made.named]
    assert [name for name in first if dict(refusals(name))[name] and name not in named] == []


@pytest.mark.long
@pytest.mark.property
@pytest.mark.skipif(OLDER_TIMM, reason="the documentation counts the models of timm 1.0.31")
def test_what_is_refused_among_timms_models_is_what_the_documentation_says() -> None:
    """Every model of the families, each made without memory for its weights."""
    tried = dict(refusals("*"))
    refused = {name: reason for name, reason in tried.items() if reason}
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    assert f"Of {len(tried)} models {len(refused)} are refused" in text
    assert [name for name in refused if f"`{name}`" not in text] == []


@pytest.mark.unit
def test_models_are_listed_by_name() -> None:
    result = CliRunner().invoke(main, ["models", "vit_small_patch16_18x2_224"])
    assert result.output == "vit_small_patch16_18x2_224: no, block 0 is a ParallelThingsBlock, not attention then MLP\n"
    assert CliRunner().invoke(main, ["models", "beit_base_patch16_224"]).output == "beit_base_patch16_224: yes\n"
    assert "Hugging Face" in CliRunner().invoke(main, ["models"]).output
    nothing = CliRunner().invoke(main, ["models", "regnet*"])
    assert (nothing.exit_code, "no model of a supported family" in nothing.output) == (2, True)
