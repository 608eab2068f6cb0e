"""Runs of earlier versions, trimmed from this project's own history, are opened and looked at, and nothing more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vit_audit as va
from audit.records import LocalisationStatus
from audit.records.earlier import upgraded
from audit.report import load_audit

pytestmark = pytest.mark.unit
HERE = Path(__file__).parent
RECORDS = ("of_0_1_0", "last_of_1_0", "first_of_2_0")
QUESTION = "skin_tone:darker-lighter:smiling"


def held(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(params=RECORDS)
def old(request: pytest.FixtureRequest) -> dict[str, Any]:
    return held(request.param) | {"file": request.param}


@pytest.fixture
def run(old: dict[str, Any], tmp_path: Path) -> Path:
    return laid_out(tmp_path, old["file"])


def laid_out(folder: Path, name: str) -> Path:
    place = folder / "run"
    place.mkdir()
    shutil.copy(HERE / f"{name}.json", place / "audit.json")
    return place


def numbers(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


def test_gaps_rates_heads_and_findings_are_those_that_the_file_holds(run: Path, old: dict[str, Any]) -> None:
    result = va.open_run(run)
    assert (result.outcome, result.exit_code) == (va.Outcome.DISPARITY_FOUND, va.ExitCode.DISPARITY)
    gaps = result.gaps.to_frame()
    assert gaps["estimate"].tolist() == [row["estimate"]["value"] for row in old["contrasts"]]
    assert gaps["p_adjusted"].tolist() == [row["p_adjusted"] for row in old["contrasts"]]
    assert [row.selection_rate.low for row in result.record.rates] == [r["selection_rate"]["low"] for r in old["rates"]]
    assert [h.confirmation.value for h in result.record.heads] == [h["confirmation"]["value"] for h in old["heads"]]
    assert [str(h.verdict) for h in result.record.heads] == [h["verdict"] for h in old["heads"]]
    same = ("id", "kind", "severity", "group", "outcome", "p_adjusted", "heads", "reproduce", "expected", "hashes")
    found = [finding.model_dump(mode="json") for finding in result.findings]
    assert [numbers(row, *same) for row in found] == [numbers(row, *same) for row in old["findings"]]
    assert [c.passed for c in result.record.controls.controls] == [c["passed"] for c in old["controls"]["controls"]]
    assert result.earlier is not None
    assert (result.earlier.schema, result.earlier.version) == (old["schema_version"], "0.1.0")


def test_what_sentences_said_is_data(run: Path, old: dict[str, Any]) -> None:
    record = va.open_run(run).record
    where = record.localisation[QUESTION]
    confirmed = list(old["findings"][0]["heads"])
    assert (where.status, where.heads) == (LocalisationStatus.LOCALISED, confirmed)
    training = record.model.training
    assert training is not None
    assert (training.blocks, training.images, training.epochs, training.batch_size) == (3, 2400, 3, 32)
    assert (training.learning_rate, training.weight_decay) == (0.0003, 0.05)
    assert record.model.weights == "rendered"
    source = record.data.source
    assert (source.kind, source.version, source.seed) == ("rendered", "faces-1", 0)
    assert record.method.engine.device == "CPU"
    said = old["method"]["engine"]
    assert f"{record.method.engine.largest_difference:.1e}" in said
    assert (record.stability[0].heads, record.stability[0].seeds) == (16, 2)
    seen = record.model.preprocessing
    assert seen is not None
    assert seen.steps == ["crop to a centred square, resize to 64 x 64, bicubic"]  # all versions before 0.2 did that
    assert record.grids[0].outcome == "smiling"
    assert f"{record.grids[0].contrast}:smiling" in old["grids"][0]["id"]


def test_controls_are_named_as_the_first_version_names_them_that_recorded_names() -> None:
    made = {row["id"]: row for row in (upgraded(held("last_of_1_0")) or ({}, None))[0]["controls"]["controls"]}
    recorded = {row["id"]: row for row in held("first_of_2_0")["controls"]["controls"]}
    shared = made.keys() & recorded.keys()
    assert len(shared) >= 25
    for name in shared:
        for field, missing in (("check", None), ("channel", None), ("form", ""), ("contrast", ""), ("judged", "value")):
            assert made[name].get(field, missing) == recorded[name][field], f"{name}, {field}"
        assert bool(made[name]["head"]) == bool(recorded[name]["head"]), name


def test_counts_behind_rates_are_those_of_the_rates(run: Path) -> None:
    for row in va.open_run(run).record.rates:
        assert row.positives + row.negatives == row.images
        assert row.true_positives / row.positives == row.true_positive_rate.value
        assert row.false_positives / row.negatives == row.false_positive_rate.value
        assert (row.true_positives + row.false_positives) / row.images == row.selection_rate.value
        missed = row.false_negative_rate
        assert missed.value == pytest.approx(row.false_negatives / row.positives)
        assert missed.low is not None
        assert missed.low <= (missed.value or 0.0) <= (missed.high or 1.0)


def test_a_head_of_1_0_mediates_a_gap_in_mean_probability(tmp_path: Path) -> None:
    old = held("of_0_1_0")["findings"][1]
    finding = va.open_run(laid_out(tmp_path, "of_0_1_0")).findings[1]
    assert finding.probability is not None
    assert finding.probability.model_dump() == old["estimate"]
    assert finding.estimate.value is None  # in rates, 0.1.0 did not ask
    newer = held("last_of_1_0")
    (tmp_path / "newer").mkdir()
    finding = va.open_run(laid_out(tmp_path / "newer", "last_of_1_0")).findings[1]
    row = next(row for row in newer["heads"] if row["name"] == finding.heads[0])
    assert finding.estimate.model_dump() == row["confirmation_rate"]
    assert finding.placebo is not None
    assert finding.placebo.model_dump() == row["placebo"]


def test_what_the_earlier_form_did_not_hold_is_missing(run: Path, old: dict[str, Any]) -> None:
    result = va.open_run(run)
    assert result.earlier is not None
    assert (len(result.answers), len(result.ledger), len(result.sensitivity)) == (0, 0, 0)
    assert "controls.setting" in result.earlier.left_out
    if old["schema_version"] == "1.0":  # shares were of another gap
        assert {"reasons", "findings.wording", "heads.share_of_gap"} <= set(result.earlier.left_out)
        assert all(head.share_of_gap.value is None for head in result.record.heads)
        assert result.record.reasons == []


WRITES: dict[str, Callable[[va.Result, Path], object]] = {
    "render": lambda result, _: result.render(),
    "report": lambda result, out: result.report(out / "report.html"),
    "card_section": lambda result, _: result.card_section(),
    "serve": lambda result, _: result.serve(),
    "diff": lambda result, _: result.diff(result),
    "gate": lambda result, _: result.gate(),
    "reproduce": lambda result, _: result.reproduce(result.findings[0].id),
    "track": lambda result, out: result.track(va.TensorBoardTracker(str(out / "board"))),
}


@pytest.mark.parametrize("what", WRITES)
def test_nothing_is_made_of_it_and_one_line_says_so(what: str, tmp_path: Path) -> None:
    run = laid_out(tmp_path, "of_0_1_0")
    with pytest.raises(va.InputError) as caught:
        WRITES[what](va.open_run(run), tmp_path)
    said = str(caught.value)
    assert "has schema 1.0, made by vit-audit 0.1.0; this version can open it to be looked at, and no more" in said
    assert "\n" not in said
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == ["audit.json"]


def test_no_copy_of_it_is_made_to_hand_on(tmp_path: Path) -> None:
    run = laid_out(tmp_path, "of_0_1_0")
    with pytest.raises(va.InputError):
        va.open_run(run).share(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_review_of_it_is_refused(tmp_path: Path) -> None:
    run = laid_out(tmp_path, "of_0_1_0")
    result = va.open_run(run)
    review = tmp_path / "review.json"
    decision = {"finding": result.findings[0].id, "decision": "accept", "name": "A", "role": "B", "reason": "C",
                "decided": "2026-11-29T12:00:00Z"}  # fmt: skip
    review.write_text(json.dumps({"audit_sha256": result.digest, "decisions": [decision]}), encoding="utf-8")
    with pytest.raises(va.InputError, match=r"has schema 1\.0, made by vit-audit 0\.1\.0"):
        result.review(review)
    assert not (run / "decisions.jsonl").exists()


def test_verify_checks_files_and_says_that_no_figure_is_derived(tmp_path: Path) -> None:
    found = va.verify(laid_out(tmp_path, "first_of_2_0"))
    assert not found.holds
    assert found.figures == 0
    assert any("an earlier form of schema 2.0" in fault.what for fault in found.faults)


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_one_is_refused_as_before(name: str, tmp_path: Path) -> None:
    run, old = laid_out(tmp_path, name), held(name)
    old["model"]["training"] = "somehow"  # a trained model must not pass for one that was audited as it is
    (run / "audit.json").write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(va.InputError) as caught:
        va.open_run(run)
    assert "\n" not in str(caught.value)
    for missing in ("model", "heads", "controls", "provenance"):
        (run / "audit.json").write_text(json.dumps({k: v for k, v in old.items() if k != missing}), encoding="utf-8")
        with pytest.raises(va.InputError):
            va.open_run(run)


def test_this_versions_own_records_pass_through(small_record: Path) -> None:
    assert upgraded(json.loads(small_record.read_text(encoding="utf-8"))) is None
    assert load_audit(small_record).schema_version == "2.0"


@pytest.fixture
def small_record() -> Path:
    return HERE.parents[1] / "reports" / "sample" / "audit.json"
