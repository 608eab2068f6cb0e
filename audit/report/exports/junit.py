"""Controls and comparisons as JUnit XML, as continuous integration reads it (Apache Ant's, as Jenkins takes it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from xml.etree import ElementTree as ET

from audit.records import Audit, ContrastRow, Control, GapCheck, GapState, Gate, State
from audit.report.exports.names import control_name
from audit.report.formats import clean
from audit.report.text import Sentences, untested_sentence

NOTHING: Mapping[str, str] = MappingProxyType({})


def junit(audit: Audit, gate: Gate | None = None, changes: Mapping[str, str] = NOTHING) -> str:
    """Return the controls and the comparisons as JUnit XML: a failed control or a gap above policy is a failure.

    What could not be answered (too little data, not estimable), and comparisons of an invalid audit, are skipped tests.

    Parameters
    ----------
    audit : Audit
    gate : Gate, optional
        Then gaps that are larger than in the baseline are failures, too, and gaps above policy are if they stop a run.
    changes : mapping of str to str
        What the gate says of each gap, by id.
    """
    text = Sentences(audit)
    suites = ET.Element("testsuites", name=clean(f"vit-audit: {audit.name}"))
    _suite(suites, "controls", audit, [_control_case(text, control) for control in audit.controls.controls])
    invalid, with_policy = audit.is_invalid, gate is None or gate.with_policy
    for attribute in dict.fromkeys(row.attribute for row in audit.contrasts):
        rows = [row for row in audit.contrasts if row.attribute == attribute]
        cases = [_contrast_case(text, row, invalid=invalid, with_policy=with_policy) for row in rows]
        _suite(suites, f"comparisons: {attribute}", audit, cases)
    if gate is not None and gate.baseline is not None:
        _suite(suites, "baseline", audit, [_gap_case(gap, changes[gap.id]) for gap in gate.gaps])
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


def _gap_case(gap: GapCheck, said: str) -> ET.Element:
    case = _case(f"baseline.{gap.metric}", gap.id)
    if gap.state == GapState.LARGER:
        ET.SubElement(case, "failure", message=clean(said), type=gap.state).text = "larger than in the baseline"
    elif gap.change is None:
        ET.SubElement(case, "skipped", message=clean(said))
    return case


def _contrast_case(text: Sentences, row: ContrastRow, *, invalid: bool, with_policy: bool) -> ET.Element:
    case = _case(f"comparisons.{row.metric}", row.id)
    if invalid:
        ET.SubElement(case, "skipped", message="withheld: a control failed")
    elif row.above_policy and with_policy:
        message = f"gap {row.estimate.value!r}, adjusted p {row.p_adjusted!r}"
        ET.SubElement(case, "failure", message=message, type=row.state).text = text.core("headline", row)
    elif row.state in (State.TOO_LITTLE_DATA, State.NOT_ESTIMABLE):
        ET.SubElement(case, "skipped", message=clean(f"{row.state}: {untested_sentence(row)}"))
    return case
