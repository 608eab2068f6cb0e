"""The files of a run as an in-toto Statement, with the audit's outcome as a test result.

Source: in-toto Attestation Framework v1, Statement and test-result v0.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from audit.records import Audit, ContrastRow, Control, State
from audit.report.exports.names import control_name
from audit.report.formats import clean
from audit.report.text import Sentences

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
RESULTS = {"PASSED": "PASSED", "DISPARITY FOUND": "FAILED", "INVALID": "FAILED", "INCONCLUSIVE": "WARNED"}


def statement(audit: Audit, files: Mapping[str, str]) -> str:
    """Return the in-toto Statement over the files of a run, with the audit's outcome as a test result.

    Parameters
    ----------
    audit : Audit
    files : mapping of str to str
        SHA-256 by name relative to the run directory.
    """
    text = Sentences(audit)
    verdicts = [(f"control: {control_name(text, c)}", _of_control(c)) for c in audit.controls.controls]
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
