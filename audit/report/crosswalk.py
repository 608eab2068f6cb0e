"""The crosswalk: which section of the report bears on which clause, and what it does not cover."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from audit.records import Audit
from audit.report.svg import Cell, Column, Table, header_cell
from audit.resources import resource_dir
from audit.units import said_of

SECTIONS = {
    "summary": "1 Summary",
    "legal": "2 Legal screen",
    "instrument": "3 Is the instrument valid?",
    "data": "4 Data",
    "rates": "5 Rates by group",
    "findings": "6 Findings and heads",
    "method": "7 Method",
    "provenance": "9 Provenance and sign-off",
}
NOT_COVERED = "not covered"


@cache
def _rows() -> tuple[dict[str, Any], ...]:
    content = yaml.safe_load((resource_dir("templates") / "crosswalk.yaml").read_text(encoding="utf-8"))
    return tuple(content["rows"])


def crosswalk_table(audit: Audit) -> Table:
    """Return one row per clause; where the audit is invalid, findings and comparisons are named as withheld."""
    withheld = " Findings and comparisons are withheld from this report." if audit.is_invalid else ""
    return Table(
        id="crosswalk-table",
        caption="Clauses and where evidence on them stands",
        columns=(Column("Clause"), Column("Asks"), Column("Stands in"), Column("Not covered")),
        rows=tuple(
            (
                header_cell(row["clause"]),
                Cell(row["asks"]),
                Cell(", ".join(said_of(audit.model.unit, SECTIONS[name]) for name in row["stands"]) or NOT_COVERED),
                Cell(row["missing"] or "–"),
            )
            for row in _rows()
        ),
        note=f"In the tool’s own words; where they differ, the official text prevails.{withheld}",
    )
