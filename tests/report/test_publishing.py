"""Exports for those who publish: Local Law 144's summary, a Hugging Face card, OSCAL; they say what the record says."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from lxml import html as lxml_html

from audit.records import Audit
from audit.report import formats
from audit.report.bias_audit import Category, bias_tables, category_of
from audit.report.exports import BIAS_AUDIT, HUGGING_FACE, OSCAL, exports
from audit.report.exports.hugging_face import metadata
from audit.report.exports.oscal import assessment_results
from audit.report.html import render_bias_audit
from tests.report.examples import examples
from tests.report.forbidden import forbidden_words

pytestmark = pytest.mark.unit
NAMES = sorted(examples())
DIGEST = "a" * 64
UUID = {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[45][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"}
LINE = {"type": "string", "pattern": r"^\S(.*\S)?$"}
TOKEN = {"type": "string", "pattern": r"^[^\W\d][\w.\-]*$"}
MOMENT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def of(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": required | optional, "required": [*required], "additionalProperties": False,
    }  # fmt: skip


def some(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


PROPERTIES = some(of({"name": TOKEN, "value": LINE}, ns={"type": "string", "format": "uri"}))
STATUS = of({"state": {"enum": ["satisfied", "not-satisfied"]}}, reason=TOKEN, remarks=LINE)
TARGET = of({"type": {"enum": ["statement-id", "objective-id"]}, "target-id": TOKEN, "status": STATUS})
OBJECTIVE = of({"control-id": TOKEN, "parts": some(of({"id": TOKEN, "name": TOKEN, "prose": LINE}))}, description=LINE)
OBSERVATION = of(
    {"uuid": UUID, "description": LINE, "methods": some(LINE), "collected": MOMENT},
    title=LINE,
    props=PROPERTIES,
    types=some(TOKEN),
    **{"relevant-evidence": some(of({"description": LINE}, href=LINE))},
)
FINDING = of(
    {"uuid": UUID, "title": LINE, "description": LINE, "target": TARGET},
    **{"related-observations": some(of({"observation-uuid": UUID}))},
)
CONTROLS = of({"control-selections": some(of({"include-controls": some(of({"control-id": TOKEN}))}))})
RESULT = of(
    {"uuid": UUID, "title": LINE, "description": LINE, "start": MOMENT, "reviewed-controls": CONTROLS},
    props=PROPERTIES,
    observations=some(OBSERVATION),
    findings=some(FINDING),
    remarks=LINE,
)
LINKS = some(of({"href": LINE}, hashes=some(of({"algorithm": LINE, "value": LINE}))))
METADATA = of({"title": LINE, "last-modified": MOMENT, "version": LINE, "oscal-version": LINE}, remarks=LINE)
# What NIST's schema of OSCAL 1.1 requires of the parts that are used here, and that there are no others.
ESSENTIAL = of(
    {
        "assessment-results": of(
            {
                "uuid": UUID,
                "metadata": METADATA,
                "import-ap": of({"href": LINE}, remarks=LINE),
                "results": some(RESULT),
            },
            **{
                "local-definitions": of({}, **{"objectives-and-methods": some(OBJECTIVE)}),
                "back-matter": of({"resources": some(of({"uuid": UUID, "title": LINE, "rlinks": LINKS}))}),
            },
        )
    }
)


def oscal(audit: Audit) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(assessment_results(audit, DIGEST))
    jsonschema.Draft202012Validator(ESSENTIAL).validate(found)
    return found["assessment-results"]


@pytest.mark.parametrize("name", NAMES)
def test_assessment_results_have_the_structure_of_oscal_and_no_loose_end(name: str) -> None:
    audit = examples()[name]
    found = oscal(audit)
    (result,) = found["results"]
    observed = [o["uuid"] for o in result["observations"]]
    assert len(set(observed)) == len(observed)
    assert len(observed) == len(audit.controls.controls) + (0 if audit.is_invalid else len(audit.contrasts))
    related = {r["observation-uuid"] for f in result["findings"] for r in f.get("related-observations", ())}
    assert related == set(observed)
    objectives = {p["id"] for o in found["local-definitions"]["objectives-and-methods"] for p in o["parts"]}
    assert {f["target"]["target-id"] for f in result["findings"]} == objectives
    resources = {r["uuid"]: r["rlinks"][0] for r in found["back-matter"]["resources"]}
    assert resources[found["import-ap"]["href"].removeprefix("#")]["href"] == "../preregistration.json"
    cited = {e["href"].removeprefix("#") for o in result["observations"] for e in o["relevant-evidence"]}
    assert {resources[c]["href"] for c in cited} == {"../audit.json"}
    assert [resources[c]["hashes"][0]["value"] for c in cited] == [DIGEST]


def test_exports_are_the_same_each_time() -> None:
    made = exports(examples()["disparity"], DIGEST)
    assert made == exports(examples()["disparity"], DIGEST)
    assert {HUGGING_FACE, OSCAL, BIAS_AUDIT} <= made.keys()


def test_the_structure_is_strict() -> None:
    found = {"assessment-results": oscal(examples()["passed"])}
    del found["assessment-results"]["import-ap"]
    with pytest.raises(jsonschema.ValidationError, match="import-ap"):
        jsonschema.Draft202012Validator(ESSENTIAL).validate(found)


@pytest.mark.parametrize(
    ("name", "method", "policy"),
    [
        ("passed", "satisfied", {"state": "satisfied"}),
        ("disparity", "satisfied", {"state": "not-satisfied"}),
        ("invalid", "not-satisfied", {"state": "not-satisfied", "reason": "other"}),
        ("inconclusive", "satisfied", {"state": "not-satisfied", "reason": "other"}),
    ],
)
def test_the_outcome_is_that_of_the_objectives(name: str, method: str, policy: dict[str, str]) -> None:
    first, second, *_ = oscal(examples()[name])["results"][0]["findings"]
    assert first["target"]["status"]["state"] == method
    assert {key: value for key, value in second["target"]["status"].items() if key != "remarks"} == policy
    assert ("reason" in policy) == ("remarks" in second["target"]["status"])


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_reads_the_metadata_and_every_number_is_the_records(name: str) -> None:
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    audit = examples()[name]
    held = yaml.safe_load(metadata(audit))
    _, results = model_index_to_eval_results(held["model-index"])
    card = ModelCardData(**held)
    assert card.pipeline_tag == "image-classification"
    assert card.eval_results == results
    rates = ("selection_rate", "true_positive_rate", "false_positive_rate")
    wanted = [e.value for row in audit.rates for e in (getattr(row, rate) for rate in rates) if e.value is not None]
    gaps = [] if audit.is_invalid else [c.estimate.value for c in audit.contrasts if c.estimate.value is not None]
    assert [r.metric_value for r in results if r.metric_type in rates] == wanted
    assert [r.metric_value for r in results if r.metric_type.endswith("_gap")] == gaps
    assert [r.metric_value for r in results if r.metric_type == "accuracy"] == audit.model.accuracy_by_seed


def text_of(audit: Audit) -> str:
    page = lxml_html.document_fromstring(render_bias_audit(audit))
    return " ".join(page.find("body").text_content().split())


def renamed(audit: Audit, **names: str) -> Audit:
    def new(attribute: str) -> str:
        return " x ".join(names.get(part, part) for part in attribute.split(" x "))

    rates = [row.model_copy(update={"attribute": new(row.attribute)}) for row in audit.rates]
    infos = [info.model_copy(update={"attribute": new(info.attribute)}) for info in audit.data.attributes]
    return audit.model_copy(update={"rates": rates, "data": audit.data.model_copy(update={"attributes": infos})})


def test_attributes_stand_for_categories_of_the_rule_by_their_names() -> None:
    named = {
        "gender": Category.SEX, "Sex": Category.SEX, "race": Category.RACE, "race/ethnicity": Category.RACE,
        "race x gender": Category.BOTH, "gender x race_or_ethnicity": Category.BOTH, "skin_tone": Category.OTHER,
        "gender x age": Category.OTHER, "sex x gender": Category.OTHER, "embrace": Category.OTHER,
    }  # fmt: skip
    assert {name: category_of(name) for name in named} == named


def test_the_public_summary_has_what_the_rule_wants_published() -> None:
    """Date, data, unknown, people, rates and ratios by group; what an audit cannot know is left to be filled in."""
    audit = examples()["disparity"]
    said = text_of(audit)
    assert "Date of the bias audit1 March 2026" in said
    assert f"Source of the datatable: {audit.data.source.name}" in said
    info, row = audit.data.attributes[0], audit.rates[0]
    assert f"{info.attribute} sex {info.assigned_by} {info.unknown_images}" in said
    called = row.true_positives + row.false_positives
    rate = row.selection_rate
    shown = f"{formats.percent(rate.value)}{formats.rate_interval(rate)} 1.00"
    assert f"{row.group} {row.images:,} {row.subjects} {called} {shown}" in said
    assert "By sex: called “happiness”" in said
    assert "By both together: called “happiness”" in said
    assert "No table by race or ethnicity: no attribute of this audit has that name" in said
    assert "Distribution date of the toolto be filled in by whoever uses the tool" in said
    assert "This report does not certify legal compliance." in said
    assert forbidden_words(said) == []


def test_images_of_unknown_group_are_counted_and_have_no_rate() -> None:
    audit = examples()["disparity"]
    unknown = audit.rates[0].model_copy(update={"group": "unknown", "images": 12_345})
    said = text_of(audit.model_copy(update={"rates": [*audit.rates, unknown]}))
    assert "12,345" not in said
    assert "Unknownimages" in said


def test_groups_of_two_attributes_are_each_in_the_summary_and_a_comma_hides_none() -> None:
    """An intersection joins its groups with " x ", and is "unknown" where one of them is; a name may hold a comma."""
    audit = examples()["disparity"]
    single, both = (next(r for r in audit.rates if r.attribute == a) for a in ("gender", "gender x race"))
    rows = [
        single.model_copy(update={"group": "other, unknown", "images": 401}),
        both.model_copy(update={"group": "female x white", "images": 503}),
        both.model_copy(update={"group": "female x not, unknown", "images": 607}),
        both.model_copy(update={"group": "unknown", "images": 12_345}),
    ]
    first, second = bias_tables(audit.model_copy(update={"rates": rows}))
    assert (first.category, [row.images for row in first.rows]) == (Category.SEX, [401])
    assert (second.category, [row.images for row in second.rows]) == (Category.BOTH, [503, 607])
    said = text_of(audit.model_copy(update={"rates": rows}))
    assert "female, white 503" in said and "other, unknown 401" in said and "12,345" not in said


def test_a_summary_of_other_attributes_says_so() -> None:
    said = text_of(renamed(examples()["disparity"], gender="vendor", race="skin_tone"))
    for category in ("sex", "race or ethnicity", "both together"):
        assert f"No table by {category}: " in said
    assert "Not a category of the rule; given because the audit has it." in said


def test_a_summary_of_an_invalid_audit_has_no_ratios() -> None:
    said = text_of(examples()["invalid"])
    assert "INVALID: a control failed, so no impact ratio is given" in said
    assert said.count("withheld") == len(examples()["invalid"].rates)


def test_hostile_names_are_text_in_every_export() -> None:
    made = exports(examples()["hostile"], DIGEST)
    page = lxml_html.document_fromstring(made[BIAS_AUDIT])
    assert page.xpath("//script | //img | //iframe") == []
    assert not [name for element in page.iter() for name in element.attrib if name.startswith("on")]
    assert "\u202e" not in "".join(made.values())
