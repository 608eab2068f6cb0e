"""The audit as OSCAL assessment results: what was observed, and what follows for the audit's own two objectives.

The objectives are that the method passes its own tests, and that no comparison is above the card's policy; neither is a
clause of law. Source: NIST, Open Security Controls Assessment Language 1.1.2, assessment results.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from audit import __version__
from audit.records import Audit, ContrastRow, Control, Estimate
from audit.report.exports.names import control_name
from audit.report.formats import clean
from audit.report.text import Sentences, data_file, export_sentence

OSCAL_VERSION = "1.1.2"
METHOD, POLICY = "vit-audit-method", "vit-audit-policy"  # the objectives
NAMESPACE = "https://vit-audit.invalid/ns/oscal"  # of properties; an address that leads nowhere, as it should
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
Part = dict[str, Any]


def assessment_results(audit: Audit, audit_sha256: str) -> str:
    """Return the document as JSON; identifiers follow from the hash of ``audit.json``, so it is the same each time."""
    return json.dumps({"assessment-results": _Document(audit, audit_sha256).whole()}, indent=1) + "\n"


class _Document:
    """What every part of the document needs."""

    def __init__(self, audit: Audit, digest: str) -> None:
        self.audit, self.digest = audit, digest
        self.text = Sentences(audit)
        self.words: dict[str, str] = data_file("words.yaml")["oscal"]
        self.no_certificate: str = data_file("words.yaml")["fixed"]["no_certificate"]
        self.moment = _moment(audit.provenance.started)

    def id_of(self, *names: str) -> str:
        """Return an identifier that is the same for the same part of the same record."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "|".join((self.digest, *names))))

    def whole(self) -> Part:
        """Return the document below its root."""
        record, plan = self.id_of("record"), self.id_of("plan")
        hashes = {"audit.json": self.digest}
        if registered := self.audit.provenance.hashes.get("preregistration"):
            hashes["preregistration.json"] = registered
        return {
            "uuid": self.id_of("document"),
            "metadata": {
                "title": _said(export_sentence("title", self.audit.name)),
                "last-modified": self.moment,
                "version": _said(self.audit.provenance.versions.get("vit-audit", __version__)),
                "oscal-version": OSCAL_VERSION,
                "remarks": self.no_certificate,
            },
            "import-ap": {"href": f"#{plan}", "remarks": self.words["plan"]},
            "local-definitions": {
                "objectives-and-methods": [
                    self._objective(METHOD, self.words["method"]),
                    self._objective(POLICY, self.words["policy"]),
                ]
            },
            "results": [self._result()],
            "back-matter": {
                "resources": [
                    _resource(record, self.words["record"], "audit.json", hashes),
                    _resource(plan, self.words["plan"], "preregistration.json", hashes),
                ]
            },
        }

    def _objective(self, name: str, prose: str) -> Part:
        part = {"id": f"{name}-objective", "name": "objective", "prose": prose}
        return {"control-id": name, "description": prose, "parts": [part]}

    def _result(self) -> Part:
        observations = list(self._observations())
        controls = [{"control-id": METHOD}, {"control-id": POLICY}]
        result: Part = {
            "uuid": self.id_of("result"),
            "title": _said(f"{self.audit.outcome}: {self.audit.name}"),
            "description": _said(" ".join(self.text.not_shown()) or self.no_certificate),
            "start": self.moment,
            "props": [
                _property("outcome", self.audit.outcome),
                _property("audit-id", self.audit.audit_id),
                _property("weights-sha256", self.audit.model.weights_sha256),
                _property("data-sha256", self.audit.data.fingerprint),
            ],
            "reviewed-controls": {"control-selections": [{"include-controls": controls}]},
            "findings": list(self._findings(observations)),
            "remarks": self.no_certificate,
        }
        return result | ({"observations": observations} if observations else {})

    def _observations(self) -> Iterator[Part]:
        """Yield the tests of the method and, unless one of them failed, the comparisons."""
        for control in self.audit.controls.controls:
            yield self._observed_control(control)
        for row in [] if self.audit.is_invalid else self.audit.contrasts:
            yield self._observed_gap(row)

    def _observed_control(self, control: Control) -> Part:
        limits = [_property("relation", control.relation), _property("threshold", repr(control.threshold))]
        return self._observed(
            f"control: {control.id}",
            METHOD,
            control_name(self.text, control),
            self.text.control("statistic", control),
            [_property("passed", str(control.passed).lower()), *_numbers(control.estimate), *limits],
        )

    def _observed_gap(self, row: ContrastRow) -> Part:
        names = self.text.names
        group, reference = (names.group(row.attribute, group) for group in (row.group, row.reference))
        metric, of_whom = self.text.words["metrics"][row.metric]["name"], names.attribute(row.attribute)
        about = f"{metric}: {of_whom}, {group} minus {reference}, called “{names.label(row.outcome)}”"
        return self._observed(
            f"comparison: {row.id}",
            POLICY,
            about,
            f"{about}: {row.state}",
            [_property("above-policy", str(row.above_policy).lower()), *_numbers(row.estimate)],
        )

    def _observed(self, name: str, objective: str, title: str, description: str, properties: list[Part]) -> Part:
        return {
            "uuid": self.id_of(name),
            "title": _said(title),
            "description": _said(description),
            "props": [_property("objective", objective), *properties],
            "methods": ["TEST"],
            "types": ["control-objective"],
            "relevant-evidence": [{"href": f"#{self.id_of('record')}", "description": _said(name)}],
            "collected": self.moment,
        }

    def _findings(self, observations: list[Part]) -> Iterator[Part]:
        """Yield one finding for each objective, and one for each disparity that the audit found."""
        invalid, outcome = self.audit.is_invalid, self.audit.outcome
        said = export_sentence("outcome", outcome)
        yield self._finding(METHOD, self.words["method"], said, _state(not invalid), observations)
        known = outcome in ("PASSED", "DISPARITY FOUND")
        status = _state(outcome == "PASSED") if known else self._unanswered()
        yield self._finding(POLICY, self.words["policy"], said, status, observations)
        for found in [] if invalid else self.audit.findings:
            if found.kind == "disparity":
                contrast = f"{found.attribute}:{found.group}-{found.reference}:{found.outcome}:{found.metric}"
                mine = [o for o in observations if o["uuid"] == self.id_of(f"comparison: {contrast}")]
                title, effect = (self.text.finding(part, found) for part in ("title", "effect"))
                state = _state(not found.above_policy)
                yield self._finding(POLICY, title, effect, state, mine, found.id)

    def _unanswered(self) -> Part:
        """Return the status of what could not be answered: the format knows no third state, but reasons."""
        return {"state": "not-satisfied", "reason": "other", "remarks": self.words["not_answered"]}

    def _finding(
        self, objective: str, title: str, description: str, status: Part, observed: list[Part], name: str = ""
    ) -> Part:
        mine = [o["uuid"] for o in observed if o["props"][0]["value"] == objective]
        finding: Part = {
            "uuid": self.id_of("finding", objective, name),
            "title": _said(title),
            "description": _said(description),
            "target": {"type": "objective-id", "target-id": f"{objective}-objective", "status": status},
        }
        return finding | ({"related-observations": [{"observation-uuid": each} for each in mine]} if mine else {})


def _state(is_met: bool) -> Part:
    return {"state": "satisfied" if is_met else "not-satisfied"}


def _numbers(estimate: Estimate) -> list[Part]:
    named = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return [_property(name, "not estimable" if v is None else repr(v)) for name, v in named.items()]


def _property(name: str, value: str) -> Part:
    return {"name": name, "ns": NAMESPACE, "value": _said(value)}


def _resource(identifier: str, title: str, name: str, hashes: dict[str, str]) -> Part:
    link: Part = {"href": f"../{name}"}
    if name in hashes:
        link["hashes"] = [{"algorithm": "SHA-256", "value": hashes[name]}]
    return {"uuid": identifier, "title": title, "rlinks": [link]}


def _said(text: str) -> str:
    """Return text as the format takes it: one line that begins and ends with a sign, never empty."""
    return re.sub(r"\s+", " ", clean(text)).strip() or "not stated"


def _moment(started: str) -> str:
    """Return the start of the audit with its time zone; a foreign date must not keep an export from being printed."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        moment = EPOCH
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
