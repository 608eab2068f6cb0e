"""The record in formats that other tools read, and a summary to publish."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from importlib.metadata import EntryPoint, version

from audit import __version__
from audit.errors import one_line_of
from audit.plugins import EXPORTS, broken, load_plugin, package_of, plugins
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

FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,60}", re.ASCII)


def exports(audit: Audit, audit_sha256: str) -> dict[str, str]:
    """Return every export but the manifest, by file name: the tool's own, and those of other packages."""
    own = {
        MODEL_CARD: model_card(audit, audit_sha256),
        HUGGING_FACE: metadata(audit),
        OSCAL: assessment_results(audit, audit_sha256),
        BIAS_AUDIT: render_bias_audit(audit),
        JUNIT: junit(audit),
        PRINTED_WITH: printed_with(),
    }
    return own | {name: _of_plugin(point, own, audit, audit_sha256) for name, point in plugins(EXPORTS).items()}


def _of_plugin(point: EntryPoint, own: Collection[str], audit: Audit, audit_sha256: str) -> str:
    """Return what another package makes of a record."""
    if point.name in own or FILE_NAME.fullmatch(point.name) is None:
        raise broken(point, "has a name that is no file name of its own")
    make = load_plugin(point)
    try:
        text = make(audit, audit_sha256)
    except Exception as error:
        raise broken(point, f"makes no export ({type(error).__name__}: {one_line_of(error)[:200]})") from error
    if not isinstance(text, str):
        raise broken(point, f"makes a {type(text).__name__}, no text")
    return text


def printed_with() -> str:
    """Return the versions that pages are printed with here, which may be others than those of the run."""
    versions = {"vit-audit": __version__, **{package: version(package) for package in PRINTERS}}
    versions |= dict(package_of(point).rsplit(" ", 1) for point in plugins(EXPORTS).values())
    return json.dumps(versions, indent=1) + "\n"
