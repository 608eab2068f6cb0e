"""The small audit with as many patches as are needed, beside the one with all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from audit.exit_codes import ExitCode
from audit.records import Audit
from audit.report.text import Sentences
from tests.end_to_end.conftest import Invoke, Run, write_card
from tests.small_world import without_pdf

pytestmark = pytest.mark.end_to_end
TONE = "skin_tone:darker-lighter:smiling"


@pytest.fixture(scope="module")
def sampled_run(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Run:
    """Audit the same faces and the same model as the small audit does."""
    place = tmp_path_factory.mktemp("sampled")
    card = write_card(place / "card.yaml", audit={"patches": "sampled"})
    with without_pdf():
        result = invoke("run", card, "--out", place / "out")
    assert result.exit_code in (0, 1, 4), result.output
    (folder,) = (place / "out").iterdir()
    return Run(card, place / "out", folder, result)


def test_estimates_are_those_of_all_patches_to_within_their_intervals(sampled_run: Run, small_run: Run) -> None:
    every = {head["name"]: head["confirmation"] for head in small_run.record["heads"]}
    for head in sampled_run.record["heads"]:
        exact, found = every[head["name"]], head["confirmation"]
        assert head["first_order_correlation"] > 0.5
        assert exact["low"] <= found["value"] <= exact["high"]
    shares = [head["patched_share"] for head in sampled_run.record["heads"]]
    assert sum(shares) / len(shares) < 0.8
    assert sampled_run.record["localisation"][TONE]["status"] == "localised"
    assert sampled_run.record["outcome"] == small_run.record["outcome"]


def test_the_report_says_how_many_patches_were_made(sampled_run: Run) -> None:
    audit = Audit.model_validate(sampled_run.record)
    swap = pd.read_parquet(sampled_run.folder / "effects" / "swap-seed-0.parquet")
    assert [part.split for part in audit.method.effort] == ["discovery", "confirmation"]
    assert sum(part.patches for part in audit.method.effort) == len(swap) < sum(p.of for p in audit.method.effort)
    page = (sampled_run.folder / "report.html").read_text(encoding="utf-8")
    made, every = (f"{sum(getattr(p, n) for p in audit.method.effort):,}" for n in ("patches", "of"))
    assert f"Patches made: {made} of {every}" in page
    assert audit.method.patches is not None and audit.method.patches.sampled
    assert Sentences(audit).patches() in page


def test_other_designs_try_the_found_heads_only(sampled_run: Run) -> None:
    found = {(h["layer"], h["head"]) for h in sampled_run.record["heads"] if h["confirmation_p"] is not None}
    pairs = pd.read_parquet(sampled_run.folder / "effects" / "pairs.parquet")
    assert set(pairs.loc[pairs["layer"] >= 0, ["layer", "head"]].itertuples(index=False, name=None)) == found


def test_a_finding_reproduces(sampled_run: Run, invoke: Invoke) -> None:
    (finding, *_) = [f for f in sampled_run.record["findings"] if f["kind"] == "head"]
    result = invoke("reproduce", sampled_run.folder, finding["id"])
    assert result.exit_code == 0, result.output
    assert invoke("verify", sampled_run.folder).stdout.startswith("verified: ")


@pytest.mark.long
def test_what_is_there_is_not_patched_again(sampled_run: Run, invoke: Invoke) -> None:
    patched = [
        p
        for name in ("swap-*", "first-order-*", "effort-*", "pairs.parquet", "together.parquet")
        for p in (sampled_run.folder / "effects").glob(name)
    ]
    assert len(patched) >= 5
    before, times = sampled_run.record, [p.stat().st_mtime_ns for p in patched]
    result = invoke("run", sampled_run.card, "--out", sampled_run.out, "--no-report")
    assert [p.stat().st_mtime_ns for p in patched] == times
    assert result.exit_code == sampled_run.result.exit_code, result.output
    for part in ("heads", "method", "findings", "joint", "agreement"):
        assert sampled_run.record[part] == before[part]


def test_where_no_gap_is_detected_nothing_is_patched(invoke: Invoke, tmp_path: Path) -> None:
    assigned = {"skin_tone": {"column": "skin_tone", "reference": "lighter", "permuted": 3}}
    policy = {"gap_above": 0.4}
    card = write_card(tmp_path / "card.yaml", groups=assigned, policy=policy, audit={"patches": "sampled"})
    result = invoke("run", card, "--out", tmp_path / "out", "--no-report")
    # a model trained for seconds is not shown to know the labels on every machine
    assert result.exit_code in (ExitCode.DONE, ExitCode.TOO_LITTLE_DATA), result.output
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert record["heads"] == record["method"]["effort"] == []
    assert record["localisation"][TONE]["status"] == "no gap detected, nothing to localise"
    assert not list((folder / "effects").glob("swap-seed-*"))
