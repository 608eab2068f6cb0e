"""The small audit with its heads searched for in bfloat16, beside the one in float32."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from audit.records import Audit
from tests.end_to_end.conftest import Invoke, Run

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def rough_run(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, small_run: Run) -> Run:
    """Audit the card of the small audit, beside a copy of that run: nothing of it may be taken up."""
    out = tmp_path_factory.mktemp("rough") / "out"
    shutil.copytree(small_run.out, out)
    result = invoke("run", small_run.card, "--out", out, "--precision", "bf16")
    assert result.exit_code == small_run.result.exit_code, result.output
    (folder,) = (f for f in out.iterdir() if f.name != small_run.folder.name)
    return Run(small_run.card, out, folder, result)


def swaps(run: Run, split: str) -> pd.DataFrame:
    table = pd.read_parquet(run.folder / "effects" / "swap-seed-0.parquet")
    return table[table["split"] == split].reset_index(drop=True)


def test_confirmation_is_that_of_float32_to_the_last_bit(rough_run: Run, small_run: Run) -> None:
    here, there = swaps(rough_run, "confirmation"), swaps(small_run, "confirmation")
    pd.testing.assert_frame_equal(here[there.columns], there, rtol=0, atol=0)
    assert here["float32:smiling"].isna().all()
    for rough, exact in zip(rough_run.record["heads"], small_run.record["heads"], strict=True):
        assert rough["confirmation"] == exact["confirmation"]


def test_discovery_is_close_to_float32_and_the_record_says_how_close(rough_run: Run, small_run: Run) -> None:
    here, there = swaps(rough_run, "discovery"), swaps(small_run, "discovery")
    apart = (here["p:smiling"] - there["p:smiling"]).abs()
    twice = here["float32:smiling"].notna()
    assert 0 < apart.max() < 0.02
    assert here.loc[twice, "recipient"].nunique() == 8
    pd.testing.assert_series_equal(
        here.loc[twice, "float32:smiling"], there.loc[twice, "p:smiling"], check_names=False, rtol=0, atol=1e-6
    )
    precision = Audit.model_validate(rough_run.record).method.precision
    assert precision is not None
    assert (precision.dtype, precision.compared) == ("bfloat16", twice.sum())
    assert precision.largest_difference == pytest.approx(apart[twice].max(), abs=1e-6)


def test_the_report_says_it_and_a_run_in_float32_does_not(rough_run: Run, small_run: Run) -> None:
    pages = [(run.folder / "report.html").read_text(encoding="utf-8") for run in (rough_run, small_run)]
    assert ["Heads were searched for in bfloat16" in page for page in pages] == [True, False]
    assert small_run.record["method"]["precision"] is None


def test_a_finding_reproduces(rough_run: Run, invoke: Invoke) -> None:
    (finding, *_) = [f for f in rough_run.record["findings"] if f["kind"] == "head"]
    result = invoke("reproduce", rough_run.folder, finding["id"])
    assert result.exit_code == 0, result.output
    assert invoke("verify", rough_run.folder).stdout.startswith("verified: ")
