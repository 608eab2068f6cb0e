"""Another machine's audit with imported control models: it trains none, and its record is the same to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vit_audit as va
from tests.pipeline.test_share_controls import keys

from .conftest import write_card

pytestmark = [pytest.mark.end_to_end, pytest.mark.cluster]


def of_controls(run: Path) -> dict[str, Any]:
    """Return what a run's log says of its control models."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (found,) = [line for line in lines if "controls" in line]
    return dict(found)


# Control models that hardly learn end an audit before anything else is trained; the record has all that they show.
BRIEF = {
    "model": {"weights": "none"},
    "controls": {"train_images": 40, "eval_images": 24, "base_epochs": 1, "condition_epochs": 1},
}


@pytest.mark.parametrize("changes", [BRIEF, pytest.param({}, marks=pytest.mark.long)], ids=["INVALID", "whole"])
def test_imported_models_are_not_trained_and_the_record_is_the_same(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    card = write_card(tmp_path / "card.yaml", **changes)
    private, public = keys(tmp_path, "team")

    def audited(machine: str) -> tuple[Path, set[str]]:
        """Audit with a machine's cache; return the run, and the steps at which control models were worked on."""
        steps: list[str] = []
        plan = va.plan(card, callback=lambda name, *_: steps.append(name))
        out = tmp_path / machine / "run"
        result = va.audit(plan, out=out, report=False, callback=lambda name, *_: steps.append(name))
        assert (result.outcome == "INVALID") == bool(changes)
        return result.folder, {name for name in steps if name.startswith("controls")}

    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache one"))
    first, worked = audited("one")
    assert {"controls: base", "controls: 10 models side by side"} <= worked
    (exported,) = va.export_controls(tmp_path / "store", private, run=first)
    assert (exported.models, len(exported.measured)) == (11, 1)
    assert of_controls(first) == {"controls": [exported.key], "imported": []}

    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache two"))
    va.import_controls(tmp_path / "store", public)
    second, worked = audited("two")
    assert worked == set()  # none is trained, and nothing is measured
    assert (second / "audit.json").read_bytes() == (first / "audit.json").read_bytes()
    imported = [{"sha256": exported.sha256, "signed_by": exported.signed_by[0]}]
    assert of_controls(second) == {"controls": [exported.key], "imported": imported}
    log = "log.jsonl"
    assert log in {row["name"] for row in json.loads((second / "manifest.json").read_bytes())["subject"]}
