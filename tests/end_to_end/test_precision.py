"""The small audit with its heads searched for in bfloat16, beside the one in float32."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from audit.records import Audit
from tests.end_to_end.conftest import Invoke, Run
from tests.small_world import without_pdf, write_card

pytestmark = [pytest.mark.end_to_end, pytest.mark.long]


@pytest.fixture(scope="module")
def audit_own(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, small_run: Run) -> Callable[..., Run]:
    """Audit the model of the small audit as it is; all runs share a folder, and nothing of each other."""
    place = tmp_path_factory.mktemp("own")
    own = {"weights": str(small_run.folder / "models" / "seed-0.safetensors"), "classes": ["neutral", "smiling"]}
    card = write_card(place / "card.yaml", training="none", model=own)

    def audited(*options: str) -> Run:
        before = set(place.glob("out/*"))
        with without_pdf():
            result = invoke("run", card, "--out", place / "out", *options)
        assert result.exit_code in (0, 1), result.output
        (folder,) = set(place.glob("out/*")) - before
        return Run(card, place / "out", folder, result)

    return audited


@pytest.fixture(scope="module")
def exact_run(audit_own: Callable[..., Run]) -> Run:
    return audit_own("--no-report")


@pytest.fixture(scope="module")
def rough_run(audit_own: Callable[..., Run], exact_run: Run) -> Run:
    run = audit_own("--precision", "bf16")
    assert run.result.exit_code == exact_run.result.exit_code
    return run


def swaps(run: Run, split: str) -> pd.DataFrame:
    table = pd.read_parquet(run.folder / "effects" / "swap-seed-0.parquet")
    return table[table["split"] == split].reset_index(drop=True)


def test_confirmation_is_that_of_float32_to_the_last_bit(rough_run: Run, exact_run: Run) -> None:
    here, there = swaps(rough_run, "confirmation"), swaps(exact_run, "confirmation")
    pd.testing.assert_frame_equal(here[there.columns], there, rtol=0, atol=0)
    assert here["float32:smiling"].isna().all()
    for rough, exact in zip(rough_run.record["heads"], exact_run.record["heads"], strict=True):
        assert rough["confirmation"] == exact["confirmation"]


def test_discovery_is_close_to_float32_and_the_record_says_how_close(rough_run: Run, exact_run: Run) -> None:
    here, there = swaps(rough_run, "discovery"), swaps(exact_run, "discovery")
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


def test_the_report_says_it_and_a_run_in_float32_does_not(rough_run: Run, exact_run: Run, small_run: Run) -> None:
    pages = [(run.folder / "report.html").read_text(encoding="utf-8") for run in (rough_run, small_run)]
    assert ["Heads were searched for in bfloat16" in page for page in pages] == [True, False]
    assert exact_run.record["method"]["precision"] is None


def test_patches_in_fewer_bits_are_an_identity_of_their_own(rough_run: Run, exact_run: Run) -> None:
    found = [{c["id"]: c["passed"] for c in run.record["controls"]["controls"]} for run in (rough_run, exact_run)]
    assert [f.get("precision") for f in found] == [True, None]


def test_a_finding_reproduces(rough_run: Run, invoke: Invoke) -> None:
    (finding, *_) = [f for f in rough_run.record["findings"] if f["kind"] == "head"]
    result = invoke("reproduce", rough_run.folder, finding["id"])
    assert result.exit_code == 0, result.output
    assert invoke("verify", rough_run.folder).stdout.startswith("verified: ")
