"""What a person reads in place of the values of the data: names of groups, labels, combinations and models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lxml import html as lxml_html

from audit.records import Audit
from audit.report.exports.cyclonedx import model_card
from audit.report.exports.oscal import assessment_results
from audit.report.html import render_html
from audit.report.names import Names
from audit.report.text import Sentences
from audit.terminal import summary

from .examples import changed, examples

pytestmark = pytest.mark.unit
NAMES = Names({"gender": {"female": "women"}, "skin_tone": {"darker": "darker faces"}}, {"happiness": "happy"})


def test_a_combination_of_groups_has_the_names_of_both() -> None:
    assert NAMES.group("gender x skin_tone", "female x darker") == "women, darker faces"
    assert NAMES.group("gender x skin_tone", "male x darker") == "male, darker faces"
    assert NAMES.people("gender x skin_tone", "female x darker") == "images of 'women, darker faces'"
    assert NAMES.attribute("gender x skin_tone") == "gender and skin tone"


def test_a_group_that_the_card_does_not_name_keeps_its_own() -> None:
    assert (NAMES.people("gender", "female"), NAMES.people("gender", "male")) == ("women", "images of 'male'")
    assert NAMES.group("size", "4 x 6") == "4 x 6"  # no combination: the attribute is one
    assert NAMES.group("gender x skin_tone", "female") == "female"  # nor is this
    assert (NAMES.label("happiness"), NAMES.label("neutral"), NAMES.label("")) == ("happy", "neutral", "(blank)")
    assert NAMES.group("gender", "a\u202eb") == "a\\u202eb"


def named(audit: Audit) -> Audit:
    info = audit.data.attributes[0].model_dump() | {"display": {"female": "women", "male": "men"}}
    shown = {"happiness": "happy", "neutral": "calm"}
    return changed(audit, data=audit.data.model_dump() | {"attributes": [info], "display": shown})


@pytest.mark.parametrize("name", ["disparity", "inconclusive", "not_localisable"])
def test_names_of_the_card_are_used_wherever_a_person_reads(name: str) -> None:
    audit = named(examples()[name])
    tree = lxml_html.document_fromstring(render_html(audit, "0" * 64))
    for hidden in tree.xpath("//script | //style | //*[@class='source']"):
        hidden.drop_tree()
    shown = " ".join([tree.text_content(), *tree.xpath("//img/@alt"), summary(audit, Path("run"))])
    for value in ("female", "male", "happiness", "neutral"):
        found = re.findall(rf".{{0,30}}\b{value}\b.{{0,9}}", shown)
        assert [said for said in found if f"(in the data: {value})" not in said] == []
    assert "women are called 'happy'" in shown or "between women and men" in shown
    assert "women, asian" in shown


def test_exports_call_groups_as_the_card_does_where_a_person_reads() -> None:
    audit = named(examples()["disparity"])
    observed = json.loads(assessment_results(audit, "0" * 64))["assessment-results"]["results"][0]["observations"]
    gaps = {o["relevant-evidence"][0]["description"]: o for o in observed}
    gap = gaps["comparison: gender:female-male:happiness:standardised_gap"]
    assert gap["title"] == "Label-standardised gap: gender, women minus men, called “happy”"
    assert gap["description"].startswith(gap["title"] + ": ")
    card = json.loads(model_card(audit, "0" * 64))["components"][0]["modelCard"]
    assert "gender: women" in {a["groupAtRisk"] for a in card["considerations"]["fairnessAssessments"]}
    slices = {metric["slice"] for metric in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert "gender: female; outcome: happiness" in slices


def test_a_finding_of_a_combination_is_titled_with_the_names_of_both() -> None:
    audit = named(examples()["disparity"])
    gap = audit.findings[0].model_copy(
        update={"attribute": "gender x race", "group": "female x asian", "reference": "male x caucasian"}
    )
    assert Sentences(audit).finding("title", gap) == (
        "gender and race: images of 'women, asian' are called 'happy' more often than images of 'men, caucasian', at "
        "equal labels"
    )


def of_model(**update: object) -> Audit:
    audit = examples()["disparity"]
    return changed(audit, model=audit.model.model_dump() | update)


@pytest.mark.parametrize(
    ("display", "weights", "called"),
    [
        ("Sorter 3", "mine.safetensors", "Sorter 3"),
        ("Sorter 3", "rendered", "Sorter 3"),
        ("", "mine.safetensors", "vit_small_patch14_dinov2"),
        ("", "rendered", "a model of 4 layers of 4 heads, built for this audit"),
        ("", "none", "a model of 4 layers of 4 heads, built for this audit"),
    ],
)
def test_a_model_is_called_by_what_is_true_of_it(display: str, weights: str, called: str) -> None:
    audit = of_model(display=display, weights=weights)
    tree = lxml_html.document_fromstring(render_html(audit, "0" * 64))
    shown = called.replace("a model of", "A model of")
    assert f"{shown}: 3,300,000 parameters" in tree.get_element_by_id("system").text_content()
    assert tree.get_element_by_id("system").text_content().count("4 layers of 4 heads") == 1
    assert summary(audit, Path("run")).count(f"audited: {called}") == 1
    assert f'"name": "{called}"' in model_card(audit, "0" * 64)
    provenance = tree.get_element_by_id("provenance").text_content()
    assert ("none of the weights of that model are in it" in provenance) == (weights in ("rendered", "none"))
    front = [tree.get_element_by_id(part).text_content() for part in ("summary", "system")]
    assert any("vit_small" in said for said in front) == (called.startswith("vit_small"))


def test_who_ran_an_audit_is_null_where_nobody_says_it() -> None:
    audit = examples()["passed"]
    provenance = audit.provenance.model_dump()
    for given in (None, "not stated"):  # the words of earlier records
        record = changed(audit, provenance=provenance | {"run_by": given})
        assert record.provenance.run_by is None
        page = render_html(record, "0" * 64)
        assert "Audited by" in page
        assert "run by" not in page
    assert "run by A. Auditor" in render_html(audit, "0" * 64)
