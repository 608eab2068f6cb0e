"""Controls and comparisons as JUnit XML, as continuous integration reads it (Apache Ant's, as Jenkins takes it)."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from audit.records import Audit, ContrastRow, Control, State
from audit.report.exports.names import control_name
from audit.report.formats import clean
from audit.report.text import Sentences, untested_sentence


def junit(audit: Audit) -> str:
    """Return the controls and the comparisons as JUnit XML: a failed control or a gap above policy is a failure.

    What could not be answered (too little data, not estimable), and comparisons of an invalid audit, are skipped tests.
    """
    text = Sentences(audit)
    suites = ET.Element("testsuites", name=clean(f"vit-audit: {audit.name}"))
    _suite(suites, "controls", audit, [_control_case(text, control) for control in audit.controls.controls])
    invalid = audit.is_invalid
    for attribute in dict.fromkeys(row.attribute for row in audit.contrasts):
        cases = [_contrast_case(row, invalid=invalid) for row in audit.contrasts if row.attribute == attribute]
        _suite(suites, f"comparisons: {attribute}", audit, cases)
    for counted in ("tests", "failures"):
        suites.set(counted, str(sum(int(suite.get(counted, "0")) for suite in suites)))
    ET.indent(suites, " ")
    return ET.tostring(suites, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="UTF-8"?>\n', "\n")
    )


def _suite(suites: ET.Element, name: str, audit: Audit, cases: Sequence[ET.Element]) -> None:
    suite = ET.SubElement(
        suites,
        "testsuite",
        name=clean(name),
        timestamp=audit.provenance.started[:19],
        hostname="localhost",
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors="0",
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time="0",
    )
    suite.extend(cases)


def _case(classname: str, name: str) -> ET.Element:
    return ET.Element("testcase", classname=clean(classname), name=clean(name), time="0")


def _control_case(text: Sentences, control: Control) -> ET.Element:
    case = _case(f"controls.{control.kind}", control_name(text, control))
    if not control.passed:
        measured = f"{text.control('statistic', control)}: {control.estimate.value!r}"
        message = f"{measured}, required {control.relation} {control.threshold!r}"
        ET.SubElement(case, "failure", message=clean(message), type=control.kind).text = text.control("fix", control)
    return case


def _contrast_case(row: ContrastRow, *, invalid: bool) -> ET.Element:
    case = _case(f"comparisons.{row.metric}", row.id)
    if invalid:
        ET.SubElement(case, "skipped", message="withheld: a control failed")
    elif row.above_policy:
        message = f"gap {row.estimate.value!r}, adjusted p {row.p_adjusted!r}"
        ET.SubElement(case, "failure", message=message, type=row.state).text = "above the policy of this audit"
    elif row.state in (State.TOO_LITTLE_DATA, State.NOT_ESTIMABLE):
        ET.SubElement(case, "skipped", message=clean(f"{row.state}: {untested_sentence(row)}"))
    return case
