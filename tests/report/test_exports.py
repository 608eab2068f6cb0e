"""Exports meet the schemas that their formats publish, and say what the record says."""

from __future__ import annotations

import json
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from google.protobuf.json_format import MessageToDict, Parse
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as Message
from lxml import etree

from audit.report.exports import PREDICATE_TYPE, junit, model_card, statement

from .examples import HOSTILE, examples

pytestmark = pytest.mark.unit
NAMES = sorted(examples())
FILES = {"audit.json": "a" * 64, "card.yaml": "b" * 64, "report.pdf": "c" * 64}
DIGEST = sha256(b"audit").hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_the_model_card_is_valid_cyclonedx(name: str) -> None:
    from cyclonedx.schema import SchemaVersion  # takes seconds
    from cyclonedx.validation.json import JsonStrictValidator

    text = model_card(examples()[name], DIGEST)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert fault is None, str(fault)
    assert text == model_card(examples()[name], DIGEST)


def test_the_model_card_holds_rates_and_unless_invalid_comparisons() -> None:
    def metrics(name: str) -> list[dict[str, Any]]:
        card = json.loads(model_card(examples()[name], DIGEST))
        found: list[dict[str, Any]] = card["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        return found

    audit = examples()["disparity"]
    gap = next(m for m in metrics("disparity") if m["type"] == "standardised_gap")
    estimate = audit.contrasts[0].estimate
    assert gap["value"] == repr(estimate.value)
    assert gap["confidenceInterval"] == {"lowerBound": repr(estimate.low), "upperBound": repr(estimate.high)}
    assert {m["type"] for m in metrics("invalid")} == {
        "accuracy, training seed 0", "accuracy, training seed 1", "selection rate", "true-positive rate",
        "false-positive rate",
    }  # fmt: skip
    assert any(m["value"] == "not estimable" for m in metrics("disparity"))


@pytest.mark.parametrize("name", NAMES)
def test_the_statement_is_valid_in_toto(name: str) -> None:
    audit = examples()[name]
    text = statement(audit, FILES)
    Statement.copy_from_pb(Parse(text, Message())).validate()
    made = json.loads(text)
    assert made["predicateType"] == PREDICATE_TYPE
    result = MessageToDict(Parse(json.dumps(made["predicate"]), test_result_pb2.TestResult()))
    assert result["result"] in {"PASSED", "WARNED", "FAILED"}
    assert {s["name"]: s["digest"]["sha256"] for s in made["subject"]} == FILES
    assert [c["name"] for c in result["configuration"]] == ["card.yaml"]
    tests = [name for kind in ("passedTests", "warnedTests", "failedTests") for name in result.get(kind, [])]
    invalid = audit.outcome == "INVALID"
    assert len(tests) == len(audit.controls.controls) + (0 if invalid else len(audit.contrasts))


@pytest.mark.parametrize(
    ("name", "result"),
    [("passed", "PASSED"), ("disparity", "FAILED"), ("invalid", "FAILED"), ("inconclusive", "WARNED")],
)
def test_the_outcome_is_the_result(name: str, result: str) -> None:
    assert json.loads(statement(examples()[name], FILES))["predicate"]["result"] == result


JUNIT_SCHEMA = Path(sys.prefix) / "schemas" / "junit-10.xsd"  # put there by make


@pytest.mark.skipif(not JUNIT_SCHEMA.is_file(), reason="the schema of JUnit XML is fetched by make test")
@pytest.mark.parametrize("name", NAMES)
def test_junit_is_valid_by_the_schema_that_jenkins_publishes(name: str) -> None:
    schema = etree.XMLSchema(etree.parse(JUNIT_SCHEMA))
    schema.assertValid(etree.fromstring(junit(examples()[name]).encode()))
    with pytest.raises(etree.DocumentInvalid):
        schema.assertValid(etree.fromstring("<testsuites><case/></testsuites>"))


# Elements and attributes of Apache Ant's JUnit XML as Jenkins reads it: attributes that must be there, and may be.
SHAPES: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "tests", "failures", "errors", "time", "disabled"}),
    "testsuite": (
        {"testcase", "properties", "system-out", "system-err"}, {"name", "tests"},
        {"failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
    ),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"}, {"name", "classname"},
        {"time", "status", "assertions"},
    ),
    "failure": (set(), set(), {"message", "type"}),
    "skipped": (set(), set(), {"message", "type"}),
}  # fmt: skip


def check_shape(element: ET.Element) -> None:
    children, needed, allowed = SHAPES[element.tag]
    assert {child.tag for child in element} <= children
    assert needed <= set(element.attrib) <= needed | allowed
    for child in element:
        check_shape(child)


@pytest.mark.parametrize("name", NAMES)
def test_junit_has_the_shape_that_integration_reads(name: str) -> None:
    root = ET.fromstring(junit(examples()[name]))
    check_shape(root)
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases)
        for kind, counted in (("failure", "failures"), ("skipped", "skipped")):
            assert int(suite.attrib[counted]) == sum(case.find(kind) is not None for case in cases)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])


def test_junit_fails_where_the_audit_does() -> None:
    def failed(name: str) -> set[str]:
        root = ET.fromstring(junit(examples()[name]))
        return {
            case.attrib["classname"].partition(".")[0]
            for case in root.iter("testcase")
            if case.find("failure") is not None
        }

    assert failed("passed") == set()
    assert failed("disparity") == {"comparisons"}
    assert failed("invalid") == {"controls"}
    skipped = ET.fromstring(junit(examples()["disparity"])).findall(".//skipped")
    assert [s.attrib["message"].partition(":")[0] for s in skipped] == ["too little data", "not estimable"]


def test_hostile_labels_stay_text() -> None:
    audit = examples()["hostile"]
    root = ET.fromstring(junit(audit))
    assert any(HOSTILE[0] in suite.attrib["name"] for suite in root)
    assert "\u202e" not in model_card(audit, DIGEST) + statement(audit, FILES) + junit(audit)
