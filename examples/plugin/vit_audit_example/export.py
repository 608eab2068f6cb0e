"""An export: from the record of a run to a file in its folder ``exports/``."""

from __future__ import annotations

from audit.records import Audit


def gaps(audit: Audit, audit_sha256: str) -> str:
    """Return every gap in a line.

    Parameters
    ----------
    audit : Audit
        The whole of ``audit.json``. Of an invalid audit say nothing about groups.
    audit_sha256 : str
        Of ``audit.json``.

    Returns
    -------
    str
        The same text for the same record: ``vit-audit verify`` prints it again.
    """
    if audit.is_invalid:
        return "INVALID\n"
    lines = [f"{row.id} {row.estimate.value} {row.state}" for row in audit.contrasts]
    return "\n".join([audit_sha256, *lines]) + "\n"
