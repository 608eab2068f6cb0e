"""What is killed and when, and how the page words what was found."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import killed
from benchmarks.scale.executors import tables
from benchmarks.scale.killed import KINDS, Kills

pytestmark = pytest.mark.unit
ABOUT = {
    "date": "2026-11-29", "hardware": "x86_64, 2 cores", "load_average": 0.3, "torch": "2.14.1", "code": "0a1b2c3",
}  # fmt: skip


def test_kinds_are_killed_in_turn_each_once_something_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed, "AFTER", 0.0)
    kills = Kills(random.Random(0), 3, KINDS["slurm"], before=1)
    found = []
    for number in range(8):
        result = tmp_path / "run" / "work" / "stage" / f"{number // 2}.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.touch()
        kind = kills.due(tmp_path)
        found.append(kind)
        if kind is not None:
            kills.count(kind, there=number != 2)
    assert found == ["node", None, "coordinator", None, "coordinator", None, "worker", None]
    assert kills.done == {"node": 1, "coordinator": 1, "worker": 1}


def test_the_page_counts_each_kind_of_kill_and_names_where_it_was_measured() -> None:
    results: dict[str, Any] = {
        "executors": {
            "local": {"audits": 2, "identical": 2, "kills": {"worker": 3, "coordinator": 2}, "seconds": [9, 9]},
            "ray": {"audits": 3, "identical": 2, "kills": {"worker": 1, "node": 2, "coordinator": 2}, "seconds": []},
            "about": {**ABOUT, "seed": 28},
        },
        "ray": {"tasks": 12, "task_s": 5.0, "local_s": 30.2, "ray_s": 30.9, "ray_first_stage_s": 33.0,
                "ray_overhead": 0.0232, **ABOUT},
    }  # fmt: skip
    lines = tables(results).splitlines()
    assert lines[2:4] == ["| local | 2 | 3 | - | 2 | 2 |", "| ray | 3 | 1 | 2 | 2 | 2 |"]
    assert lines[5].startswith("Seed 28; 2026-11-29, x86_64, 2 cores, load 0.3 before, torch 2.14.1, code of commit")
    assert lines[7].startswith("12 tasks of 5 s: 30.2 s by two local workers, 30.9 s by Ray (2.3% more), 33.0 s where")
