"""A gate's decision for continuous integration: SARIF 2.1.0, Markdown, and lines for a terminal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from audit import __version__
from audit.records import Audit, GapCheck, GapState, Gate, GateVerdict, Outcome
from audit.report.exports.junit import junit
from audit.report.exports.names import control_name
from audit.report.formats import clean, markdown, spread
from audit.report.names import names_of
from audit.report.text import Sentences, comparison_note, environment, one_line, words_of
from audit.units import UNITS

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
SHOWN = 20  # comparisons in the summary; gate.json has all
ORDER = [GapState.LARGER, GapState.TOO_LITTLE_DATA, GapState.NOT_LARGER, GapState.NOT_IN_BASELINE]


def _templates(audit: Audit) -> Any:
    values = {"unit": UNITS[audit.model.unit], "names": names_of(audit)}
    return environment().get_template("text/gate.j2").make_module(values)


def _said(gate: Gate, audit: Audit) -> dict[str, str]:
    of = _templates(audit)
    return {"verdict": one_line(str(of.verdict(gate))), "pairing": one_line(str(of.pairing(gate)))}


def _ordered(gate: Gate) -> list[GapCheck]:
    """Return the comparisons, those that stop a run first, then large changes before small ones."""

    def rank(gap: GapCheck) -> tuple[int, float]:
        change = None if gap.change is None else gap.change.value
        return ORDER.index(gap.state), -abs(change or 0.0)

    return sorted(gate.gaps, key=rank)


def gate_lines(gate: Gate, audit: Audit) -> list[str]:
    """Say in a few lines whether a run passes, and what stops it."""
    of, said = _templates(audit), _said(gate, audit)
    stopping = [g for g in _ordered(gate) if g.state in (GapState.LARGER, GapState.TOO_LITTLE_DATA)]
    lines = [f"gate: {gate.verdict}: {said['verdict']}", *_reasons(gate, audit)]
    lines += [one_line(str(of.change(gap))) for gap in stopping]
    return [clean(line) for line in [*lines, said["pairing"], *_notes(gate, audit)] if line]


def _reasons(gate: Gate, audit: Audit) -> list[str]:
    """Return why the audit itself does not pass; nothing where that does not stop the run."""
    stopped = audit.is_invalid or audit.outcome == Outcome.INCONCLUSIVE or (gate.with_policy and gate.above_policy)
    return Sentences(audit).reasons() if stopped else []


def _notes(gate: Gate, audit: Audit) -> list[str]:
    return [comparison_note(note, audit.model.unit) for note in gate.notes]


def gate_markdown(gate: Gate, audit: Audit) -> str:
    """Return a summary in Markdown, for the page of a job: ``cat summary.md >> $GITHUB_STEP_SUMMARY``."""
    rows = _ordered(gate)
    page = environment().get_template("gate.md.j2").render(
        g=gate,
        name=audit.name,
        names=names_of(audit),
        said={name: markdown(line) for name, line in _said(gate, audit).items()},
        words=words_of(audit.model.unit),
        reasons=_reasons(gate, audit),
        shown=rows[:SHOWN],
        more=max(0, len(rows) - SHOWN),
        notes=_notes(gate, audit),
    )  # fmt: skip
    return page.strip() + "\n"


def gate_junit(gate: Gate, audit: Audit) -> str:
    """Return JUnit XML: controls, the policy, and the gaps beside the baseline."""
    of = _templates(audit)
    return junit(audit, gate, {gap.id: one_line(str(of.change(gap))) for gap in gate.gaps})


def gate_sarif(gate: Gate, audit: Audit, place: str) -> str:
    """Return SARIF 2.1.0, as code scanning shows it.

    Parameters
    ----------
    gate : Gate
    audit : Audit
        Of the run.
    place : str
        The file that results are shown at, relative to the root of the repository.
    """
    of, words = _templates(audit), words_of(audit.model.unit)["gate_rules"]
    text = Sentences(audit)
    failed = [c for c in audit.controls.controls if c.id in gate.controls_failed]
    results = [_result("control-failed", "error", c.id, control_name(text, c), place) for c in failed]
    level = "error" if gate.with_policy else "note"
    for row in audit.contrasts:
        if row.id in gate.above_policy:
            gap = f"{one_line(str(of.gap(row)))}: {spread(row.estimate)}"
            results.append(_result("gap-above-policy", level, row.id, gap, place))
    results += [
        _result("worse-than-baseline", "error", check.id, one_line(str(of.change(check))), place)
        for check in _ordered(gate)
        if check.state == GapState.LARGER
    ]
    if gate.verdict == GateVerdict.TOO_LITTLE_DATA:
        results.append(_result("too-little-data", "warning", "", _said(gate, audit)["verdict"], place))
    driver = {
        "name": "vit-audit",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(key, said) for key, said in words.items()],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(key: str, said: Mapping[str, str]) -> dict[str, object]:
    return {
        "id": key,
        "name": "".join(part.capitalize() for part in key.split("-")),
        "shortDescription": {"text": one_line(said["short"])},
        "fullDescription": {"text": one_line(said["full"])},
        "defaultConfiguration": {"level": said["level"]},
    }


def _result(rule: str, level: str, key: str, said: str, place: str) -> dict[str, object]:
    location: dict[str, object] = {"physicalLocation": {"artifactLocation": {"uri": place}, "region": {"startLine": 1}}}
    if key:
        location["logicalLocations"] = [{"fullyQualifiedName": clean(key), "kind": "member"}]
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": clean(said)},
        "locations": [location],
        "partialFingerprints": {"vitAuditComparison/v1": hashlib.sha256(f"{rule}\0{key}".encode()).hexdigest()},
    }


def gate_files(gate: Gate, audit: Audit, place: str) -> dict[str, str]:
    """Return every file of a gate, by name."""
    return {
        "gate.json": gate.model_dump_json(indent=1) + "\n",
        "junit.xml": gate_junit(gate, audit),
        "gate.sarif": gate_sarif(gate, audit, place),
        "summary.md": gate_markdown(gate, audit),
    }
