"""What an experiment tracker is told of a run: numbers, facts and documents."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from audit.records import Audit, Estimate
from audit.report.formats import clean
from audit.report.text import Sentences

LONGEST = 40  # characters of one part of a name
TOLD = re.compile(r"[^\w .-]")  # what the name of a number may not hold: MLflow is the strictest
DOCUMENTS = ("report.html", "report.pdf", "audit.json", "card.yaml", "manifest.json", "tables/*", "exports/*")


def numbers(audit: Audit) -> dict[str, float]:
    """Return numbers by name: ``gap/ATTRIBUTE/GROUP - REFERENCE/OUTCOME/METRIC`` with its interval, rates, counts.

    Names of groups and outcomes are written with letters, digits, blanks, ``_``, ``.`` and ``-``; distinct ones stay
    distinct. Of an invalid audit only the controls are told of.
    """
    controls = audit.controls.controls
    found = {
        "controls/passed": float(sum(c.passed for c in controls)),
        "controls/failed": float(sum(not c.passed for c in controls)),
    }
    if audit.is_invalid:
        return found
    found["findings"] = float(len(audit.findings))
    found["gaps above policy"] = float(sum(row.above_policy for row in audit.contrasts))
    for row in audit.contrasts:
        pair = f"{_part(row.group)} - {_part(row.reference)}"
        found |= _with_interval(f"gap/{_part(row.attribute)}/{pair}/{_part(row.outcome)}/{row.metric}", row.estimate)
    for rate in audit.rates:
        where = f"rate/{_part(rate.attribute)}/{_part(rate.group)}/{_part(rate.outcome)}"
        for name in ("selection_rate", "true_positive_rate", "false_positive_rate"):
            value = getattr(rate, name).value
            found |= {} if value is None else {f"{where}/{name}": value}
    return found


def _with_interval(name: str, estimate: Estimate) -> dict[str, float]:
    parts = {name: estimate.value, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
    return {key: value for key, value in parts.items() if value is not None}


def _part(text: str) -> str:
    """Write a name so that every tracker takes it."""
    shown = TOLD.sub("_", clean(text))[:LONGEST].strip()
    return shown if shown == text else f"{shown}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def facts(audit: Audit, digest: str) -> dict[str, str]:
    """Return what a run is, by name."""
    return {
        "vit_audit.outcome": str(audit.outcome),
        "vit_audit.audit_id": clean(audit.audit_id),
        "vit_audit.audit_sha256": digest,
        "vit_audit.weights_sha256": audit.model.weights_sha256,
        "vit_audit.data_fingerprint": audit.data.fingerprint,
        "vit_audit.model": clean(Sentences(audit).core("model_called")),
        "vit_audit.version": audit.provenance.versions.get("vit-audit", ""),
    }


def documents(folder: Path) -> dict[str, Path]:
    """Return the files that people read, by name: no stored effect, which name images, and no model."""
    found = sorted(path for pattern in DOCUMENTS for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}
