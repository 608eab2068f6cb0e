"""The record in formats that other tools read: in-toto, CycloneDX, JUnit.

Sources: in-toto Attestation Framework v1, Statement and test-result v0.1; CycloneDX 1.6, modelCard; the JUnit XML that
continuous integration reads (Apache Ant's, as Jenkins takes it).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from xml.etree import ElementTree as ET

from audit import __version__
from audit.records import Audit, ContrastRow, Control, Estimate, Finding, State
from audit.report.formats import clean
from audit.report.text import Sentences, source_sentence, untested_sentence
from audit.units import Unit

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
RESULTS = {"PASSED": "PASSED", "DISPARITY FOUND": "FAILED", "INVALID": "FAILED", "INCONCLUSIVE": "WARNED"}
MODEL_CARD, JUNIT, PRINTED_WITH = "model-card.cdx.json", "junit.xml", "printed-with.json"
PRINTERS = ("jinja2", "matplotlib", "pikepdf", "pydantic", "weasyprint")  # on whose versions the bytes of a page depend
FAMILIES: dict[Unit, str] = {"head": "vision transformer", "slice": "convolutional network"}
TASKS = {"emotion": "image classification: facial expression", "action": "image classification: action"}


def exports(audit: Audit, audit_sha256: str) -> dict[str, str]:
    """Return every export but the manifest, by file name."""
    return {MODEL_CARD: model_card(audit, audit_sha256), JUNIT: junit(audit), PRINTED_WITH: printed_with()}


def printed_with() -> str:
    """Return the versions that pages are printed with here, which may be others than those of the run."""
    versions = {"vit-audit": __version__, **{package: version(package) for package in PRINTERS}}
    return json.dumps(versions, indent=1) + "\n"


def statement(audit: Audit, files: Mapping[str, str]) -> str:
    """Return the in-toto Statement over the files of a run, with the audit's outcome as a test result.

    Parameters
    ----------
    audit : Audit
    files : mapping of str to str
        SHA-256 by name relative to the run directory.
    """
    text = Sentences(audit)
    verdicts = [(f"control: {_control_name(text, c)}", _of_control(c)) for c in audit.controls.controls]
    if not audit.is_invalid:
        verdicts += [(f"comparison: {row.id}", _of_contrast(row)) for row in audit.contrasts]
    predicate = {
        "result": "FAILED" if audit.is_invalid else RESULTS[audit.outcome],
        "configuration": [
            _descriptor(name, files[name]) for name in ("card.yaml", "preregistration.json") if name in files
        ],
        **{
            f"{kind}Tests": [clean(name) for name, of in verdicts if of == kind]
            for kind in ("passed", "warned", "failed")
        },
    }
    made = {
        "_type": STATEMENT_TYPE,
        "subject": [_descriptor(name, digest) for name, digest in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    return json.dumps(made, indent=1) + "\n"


def _control_name(text: Sentences, control: Control) -> str:
    return f"{text.control('title', control)} ({text.control('where', control)})"


def _descriptor(name: str, digest: str) -> dict[str, object]:
    return {"name": name, "digest": {"sha256": digest}}


def _of_control(control: Control) -> str:
    if control.passed:
        return "passed"
    return "failed" if control.gates == "audit" else "warned"


def _of_contrast(row: ContrastRow) -> str:
    if row.above_policy:
        return "failed"
    return "passed" if row.state == State.NOT_DETECTED else "warned"


def model_card(audit: Audit, audit_sha256: str) -> str:
    """Return a CycloneDX 1.6 bill of materials whose one model carries its card."""
    model, data, versions = audit.model, audit.data, audit.provenance.versions
    text = Sentences(audit)
    classes = clean(", ".join(model.classes))
    made = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, audit_sha256)}",
        "version": 1,
        "metadata": {
            "timestamp": audit.provenance.started,
            "tools": {
                "components": [
                    {"type": "application", "name": "vit-audit", "version": versions.get("vit-audit", "")}
                ]
            },
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": clean(model.name),
                "description": text.of_method("origin", model),
                "hashes": [{"alg": "SHA-256", "content": model.weights_sha256}],
                "modelCard": {
                    "modelParameters": {
                        "approach": {"type": "supervised"},
                        "task": TASKS.get(audit.task, "image classification"),
                        "architectureFamily": FAMILIES[model.unit] if model.has_inside else "not given",
                        "modelArchitecture": clean(model.name),
                        "datasets": [{"ref": "data"}],
                        "inputs": [{"format": _format(model.image_size)}],
                        "outputs": [{"format": f"one of {len(model.classes)} classes: {classes}"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": _metrics(audit)},
                    "considerations": {
                        "useCases": [clean(audit.intended_use)] if audit.intended_use else [],
                        "technicalLimitations": [clean(sentence) for sentence in text.not_shown()],
                        "ethicalConsiderations": [
                            {"name": text.finding("title", f), "mitigationStrategy": text.finding("recommendation", f)}
                            for f in _findings(audit)
                        ],
                        "fairnessAssessments": [
                            {"groupAtRisk": clean(f"{f.attribute}: {f.group}"), "harms": text.finding("effect", f),
                             "mitigationStrategy": text.finding("recommendation", f)}
                            for f in _findings(audit)
                            if f.kind == "disparity"
                        ],
                    },
                },
                "properties": [
                    {"name": "vit-audit:outcome", "value": audit.outcome},
                    {"name": "vit-audit:audit_id", "value": clean(audit.audit_id)},
                    {"name": "vit-audit:audit_sha256", "value": audit_sha256},
                ],
            },
            {
                "type": "data",
                "bom-ref": "data",
                "name": clean(source_sentence(data.source)),
                "hashes": [{"alg": "SHA-256", "content": data.fingerprint}],
                "data": [
                    {
                        "type": "dataset",
                        "name": clean(source_sentence(data.source)),
                        "classification": "rendered, no real people" if audit.synthetic else "images of people",
                        "description": f"{data.images} images of {data.subjects} subjects",
                    }
                ],
            },
        ],
    }  # fmt: skip
    return json.dumps(made, indent=1, ensure_ascii=True) + "\n"


def _format(side: int | None) -> str:
    return "image" if side is None else f"image, {side} x {side} pixels"


def _findings(audit: Audit) -> Sequence[Finding]:
    return [] if audit.is_invalid else audit.findings


def _metrics(audit: Audit) -> list[dict[str, object]]:
    """Return accuracy, the rates of every group, and unless the audit is invalid every comparison."""
    seeds: list[int | None] = [*audit.model.seeds] or [None]
    rows = [
        _metric(
            "accuracy" if seed is None else f"accuracy, training seed {seed}", Estimate(value=value), "held-out images"
        )
        for seed, value in zip(seeds, audit.model.accuracy_by_seed, strict=False)
    ]
    for rate in audit.rates:
        where = f"{rate.attribute}: {rate.group}; outcome: {rate.outcome}"
        rows.append(_metric("selection rate", rate.selection_rate, where))
        rows.append(_metric("true-positive rate", rate.true_positive_rate, where))
        rows.append(_metric("false-positive rate", rate.false_positive_rate, where))
    if not audit.is_invalid:
        for row in audit.contrasts:
            where = f"{row.attribute}: {row.group} against {row.reference}; outcome: {row.outcome}"
            rows.append(_metric(row.metric, row.estimate, where))
    return rows


def _metric(kind: str, estimate: Estimate, where: str) -> dict[str, object]:
    value = "not estimable" if estimate.value is None else repr(estimate.value)
    metric: dict[str, object] = {"type": kind, "value": value, "slice": clean(where)}
    if estimate.low is not None and estimate.high is not None:
        metric["confidenceInterval"] = {"lowerBound": repr(estimate.low), "upperBound": repr(estimate.high)}
    return metric


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
    case = _case(f"controls.{control.kind}", _control_name(text, control))
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
