"""The gate: each reason that stops a run, with its exit code, and what continuous integration reads of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from sarif_pydantic import Sarif

import vit_audit as va
from audit.records import Gate, GateVerdict, Reason, ReasonCode, State
from tests.report.forbidden import forbidden_words
from tests.small_world import Invoke

pytestmark = pytest.mark.unit
IMAGES = 400
PEOPLE = pd.DataFrame(
    {
        "image": [f"{i}.png" for i in range(IMAGES)],
        "smiles": ["no", "yes"] * (IMAGES // 2),
        "sex": ["f|<b>", "f|<b>", "m", "m"] * (IMAGES // 4),  # the name of a group is foreign text
    }
)


def wrong(share: float, start: int = 0) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Tell which images are called the other class: this share of the women, spread over both labels."""
    rank = np.arange(IMAGES) // 4
    return (PEOPLE["sex"] != "m").to_numpy() & (((rank + start) % 100) < 100 * share)


def audited(folder: Path, share: float) -> va.Result:
    """Audit answers in which so many of the women's smiles are missed."""
    truth = PEOPLE["smiles"].to_numpy()
    missed = wrong(share) & (truth == "yes")
    answers = pd.DataFrame({"image": PEOPLE["image"], "predicted": np.where(missed, "no", truth)})
    groups = {"gender": {"column": "sex", "reference": "m"}}
    data = va.Data.from_frame(PEOPLE, images="image", label="smiles", groups=groups)
    card = {"name": "Smiles [x](y)", "policy": {"gap_above": 0.5, "impact_ratio_below": 0.0}}
    plan = va.plan(card, va.predictions(answers, classes=["no", "yes"]), data)
    return va.audit(plan, out=folder, report=False)


def changed(run: va.Result, folder: Path, **update: Any) -> va.Result:
    """Copy a run, with another record."""
    shutil.copytree(run.folder, folder)
    record = run.record.model_copy(update=update)
    (folder / "audit.json").write_text(record.model_dump_json(), encoding="utf-8")
    return va.open_run(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, va.Result]:
    place = tmp_path_factory.mktemp("runs")
    before, after = audited(place / "before", 0.1), audited(place / "after", 0.4)
    rows = after.record.contrasts
    above = [row.model_copy(update={"above_policy": row.state == State.DISPARITY}) for row in rows]
    few = [row.model_copy(update={"state": State.TOO_LITTLE_DATA}) for row in rows]
    others = after.record.data.model_copy(update={"fingerprint": "0" * 64})
    reasons = [Reason(code=ReasonCode.GAP_ABOVE_POLICY, contrast=row.id) for row in above if row.above_policy]
    found = {"contrasts": above, "outcome": va.Outcome.DISPARITY_FOUND, "reasons": reasons}
    return {
        "before": before,
        "after": after,
        "strict": changed(after, place / "strict", **found),
        "others": changed(after, place / "others", data=others),
        "few": changed(after, place / "few", contrasts=few, outcome=va.Outcome.INCONCLUSIVE, reasons=[]),
    }


def test_a_run_beside_itself_and_a_better_one_pass(runs: dict[str, va.Result]) -> None:
    for run, baseline in (("before", "before"), ("before", "after")):
        found = va.gate(runs[run], runs[baseline])
        assert (found.verdict, found.exit_code, found.passed) == (GateVerdict.PASSED, va.ExitCode.DONE, True)
        assert found.record.paired
    assert all(gap.change is not None and gap.change.value == 0 for gap in va.gate(runs["before"], runs["before"]).gaps)


def test_a_larger_gap_stops_a_run_and_is_the_difference_of_the_two(runs: dict[str, va.Result]) -> None:
    found = runs["after"].gate(runs["before"])
    assert (found.verdict, found.exit_code) == (GateVerdict.WORSE, va.ExitCode.WORSE_THAN_BASELINE)
    gap = found.gaps.to_frame().set_index("id").loc["gender:f|<b>-m:yes:tpr_gap"]
    assert (gap["state"], gap["images"]) == ("larger", 200)
    assert gap["change"] == pytest.approx(-0.3)
    assert runs["after"].gate(runs["before"], tolerance=0.5).passed


def test_a_gap_above_policy_stops_a_run_unless_only_changes_count(runs: dict[str, va.Result]) -> None:
    assert va.gate(runs["strict"]).exit_code == va.ExitCode.DISPARITY
    assert va.gate(runs["strict"], runs["after"]).exit_code == va.ExitCode.DISPARITY
    assert va.gate(runs["strict"], runs["after"], policy=False).passed
    assert va.gate(runs["strict"], runs["before"], policy=False).exit_code == va.ExitCode.WORSE_THAN_BASELINE


def test_other_images_are_compared_by_estimates_and_said_so(runs: dict[str, va.Result]) -> None:
    found = va.gate(runs["others"], runs["before"])
    assert not found.record.paired
    assert found.verdict == GateVerdict.WORSE
    assert any("not paired" in line for line in found.lines())


def test_too_few_people_are_no_pass(runs: dict[str, va.Result]) -> None:
    found = va.gate(runs["few"], runs["before"])
    assert found.exit_code == va.ExitCode.TOO_LITTLE_DATA
    assert {gap.state for gap in found.gaps} == {"too little data"}


def invalid(run: va.Result, folder: Path) -> va.Result:
    """Copy a run, with a control that failed."""
    control = run.record.controls.controls[0].model_copy(update={"passed": False, "gates": "audit"})
    controls = run.record.controls.model_copy(update={"valid": False, "controls": [control]})
    reasons = [Reason(code=ReasonCode.CONTROL_FAILED, control=control.id)]
    return changed(run, folder, outcome=va.Outcome.INVALID, controls=controls, reasons=reasons)


def test_a_failed_control_stops_a_run_before_all_else(runs: dict[str, va.Result], tmp_path: Path) -> None:
    found = va.gate(invalid(runs["strict"], tmp_path / "invalid"), runs["before"])
    assert (found.verdict, found.exit_code, len(found.gaps)) == (GateVerdict.INVALID, va.ExitCode.INVALID, 0)
    assert [r["ruleId"] for r in sarif(found, tmp_path)["runs"][0]["results"]] == ["control-failed"]
    assert "smiles" not in found.markdown()


def sarif(found: va.GateResult, folder: Path) -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    text = (found.save(folder / "gate") / "gate.sarif").read_text(encoding="utf-8")
    Sarif.model_validate_json(text)
    read: dict[str, list[dict[str, list[dict[str, str]]]]] = json.loads(text)
    return read


def test_every_format_says_the_same(
    runs: dict[str, va.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs["strict"].folder.parent)
    found = va.gate(runs["strict"], runs["before"])
    results = sarif(found, tmp_path)["runs"][0]["results"]
    larger, above = (
        [r for r in results if r["ruleId"] == rule] for rule in ("worse-than-baseline", "gap-above-policy")
    )
    assert len(larger) == sum(gap.state == "larger" for gap in found.gaps) > 0
    assert len(above) == len(found.record.above_policy) > 0
    assert '"uri": "strict/audit.json"' in json.dumps(results)
    root = ET.parse(tmp_path / "gate" / "junit.xml").getroot()
    assert root.get("failures") == str(len(larger) + len(above))
    kept = (tmp_path / "gate" / "gate.json").read_text(encoding="utf-8")
    assert Gate.model_validate_json(kept) == found.record
    text = (tmp_path / "gate" / "summary.md").read_text(encoding="utf-8")
    assert text == found.markdown()
    assert text.count("▲ larger") == len(larger)
    assert "<b>" not in text and "f\\|\\<b\\>" in text and "\\[x\\](y)" in text
    assert forbidden_words(text) == []
    cells = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| ▲")}
    assert cells == {8}


def test_the_command_line_says_what_stops_a_run(runs: dict[str, va.Result], tmp_path: Path, invoke: Invoke) -> None:
    run, baseline = (runs[name].folder for name in ("after", "before"))
    said = invoke("gate", run, "--baseline", baseline, "--out", tmp_path / "out")
    assert said.exit_code == 8, said.output
    first, *_rest, last = said.output.splitlines()
    assert first == "gate: WORSE THAN BASELINE: 2 gaps larger than in the baseline, beyond noise"
    assert last == f"summary: {tmp_path / 'out' / 'summary.md'}"
    assert invoke("gate", run, "--baseline", baseline, "--tolerance", "0.5").exit_code == 0


def test_bad_input_is_one_line(runs: dict[str, va.Result], tmp_path: Path, invoke: Invoke) -> None:
    failed = invalid(runs["before"], tmp_path / "invalid")
    answer = {
        "gate: no such run": (["gate", "runs/none"], "runs/none: no such run directory; name one that 'vit-audit run'"),
        "no such baseline": (
            ["gate", runs["after"].folder, "--baseline", "none"],
            "none: no such run directory; name one",
        ),
        "invalid baseline": (
            ["gate", runs["after"].folder, "--baseline", failed.folder, "--out", tmp_path / "out"],
            f"{failed.folder}: is INVALID: a control failed, so it has no gaps to compare with; name an earlier run",
        ),
    }
    for arguments, line in answer.values():
        said = invoke(*arguments)
        assert (said.exit_code, said.output.count("\n")) == (2, 1), said.output
        assert said.output.startswith(line)
    assert not (tmp_path / "out").exists()
    for wrong_ in (1.0, -0.1, "0.1", True):
        with pytest.raises(va.InputError, match=r"tolerance: is .*; give a fraction from 0 to below 1"):
            va.gate(runs["after"], tolerance=wrong_)  # type: ignore[arg-type]


def test_a_baseline_that_asks_something_else_is_refused(runs: dict[str, va.Result], tmp_path: Path) -> None:
    rows = [row.model_copy(update={"id": f"other {row.id}"}) for row in runs["before"].record.contrasts]
    with pytest.raises(va.InputError, match="asks nothing that the run asks: it compares 'other gender"):
        va.gate(runs["after"], changed(runs["before"], tmp_path / "other", contrasts=rows))


def test_damaged_answers_of_the_baseline_are_told_of(runs: dict[str, va.Result], tmp_path: Path) -> None:
    shutil.copytree(runs["before"].folder, tmp_path / "cut")
    (tmp_path / "cut" / "effects" / "unpatched.parquet").write_bytes(b"PAR1")
    found = va.gate(runs["after"], tmp_path / "cut")
    assert not found.record.paired
    assert any("Not compared image by image" in line for line in found.lines())
