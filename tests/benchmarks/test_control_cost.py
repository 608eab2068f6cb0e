"""What the controls cost, as counted: stored figures are of this kind, and the cheaper path is cheaper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.control_cost.run import CORES, TRAINED, minutes

pytestmark = pytest.mark.unit
STORED = Path(__file__).parents[2] / "benchmarks" / "control_cost" / "results.json"


def test_minutes_are_of_busy_cores() -> None:
    assert minutes(120_000, 0.001) == pytest.approx(120 / CORES / 60)


def test_the_stored_stages_stay_within_their_five_minutes() -> None:
    found = json.loads(STORED.read_text(encoding="utf-8"))
    assert found["minutes_on_2_cores"].keys() == TRAINED.keys()
    for name, passes in found["block_passes"].items():
        assert sum(passes.values()) < sum(found["before"]["block_passes"][name].values())
        assert found["minutes_on_2_cores"][name] < 5
