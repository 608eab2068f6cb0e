"""The ten lines of docs/record.md compute what the record holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vit_audit as va
from tests.small_world import Run

pytestmark = pytest.mark.end_to_end
PAGE = Path(__file__).parents[2] / "docs" / "record.md"


def test_rates_and_gap_are_recomputed_from_the_stored_tables(small_run: Run) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    result = va.open_run(small_run.folder)
    row = next(g for g in result.gaps if g.metric == "standardised_gap")
    names: dict[str, Any] = {
        "run": small_run.folder, "seed": 0, "attribute": row.attribute, "outcome": row.outcome, "group": row.group,
        "reference": row.reference,
    }  # fmt: skip
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["gap"] == pytest.approx(row.estimate.value, abs=1e-12)
    for rates in result.rates:
        for metric in ("selection_rate", "true_positive_rate", "false_positive_rate"):
            stored = getattr(rates, metric).value
            assert names["rates"].loc[rates.group, metric] == pytest.approx(stored, abs=1e-12)
