"""The record in formats that other tools read, and a summary to publish."""

from __future__ import annotations

import json
from importlib.metadata import version

from audit import __version__
from audit.records import Audit
from audit.report.exports.cyclonedx import model_card
from audit.report.exports.hugging_face import metadata
from audit.report.exports.in_toto import PREDICATE_TYPE, statement
from audit.report.exports.junit import junit
from audit.report.exports.oscal import assessment_results
from audit.report.html import render_bias_audit

__all__ = ["PREDICATE_TYPE", "PRINTED_WITH", "PRINTERS", "exports", "junit", "model_card", "printed_with", "statement"]
MODEL_CARD, JUNIT, PRINTED_WITH = "model-card.cdx.json", "junit.xml", "printed-with.json"
HUGGING_FACE, OSCAL, BIAS_AUDIT = "huggingface-metadata.yaml", "assessment-results.oscal.json", "local-law-144.html"
PRINTERS = ("jinja2", "matplotlib", "pikepdf", "pydantic", "pyyaml", "weasyprint")  # the bytes of a page depend on them


def exports(audit: Audit, audit_sha256: str) -> dict[str, str]:
    """Return every export but the manifest, by file name."""
    return {
        MODEL_CARD: model_card(audit, audit_sha256),
        HUGGING_FACE: metadata(audit),
        OSCAL: assessment_results(audit, audit_sha256),
        BIAS_AUDIT: render_bias_audit(audit),
        JUNIT: junit(audit),
        PRINTED_WITH: printed_with(),
    }


def printed_with() -> str:
    """Return the versions that pages are printed with here, which may be others than those of the run."""
    versions = {"vit-audit": __version__, **{package: version(package) for package in PRINTERS}}
    return json.dumps(versions, indent=1) + "\n"
