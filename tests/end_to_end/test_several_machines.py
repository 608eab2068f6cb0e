"""A whole audit by shares, through the command line: the record of one process, to the byte."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Invoke, Run
from tests.end_to_end.test_workers import controls_to_be_measured

__all__ = ["controls_to_be_measured"]
pytestmark = [pytest.mark.end_to_end, pytest.mark.cluster]


def by_shares(invoke: Invoke, one: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Audit as ``one`` was, begun at the same second, and compare the records; return the stages done by shares."""
    begun = datetime.fromisoformat(one.record["provenance"]["started"])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", f"{begun.timestamp():.0f}")
    laid_out = invoke("run", one.card, "--out", out, "--no-report", "--shards")
    assert laid_out.exit_code == 9, laid_out.output
    (run,) = out.iterdir()
    stages = set()
    while (merged := invoke("merge", run)).exit_code == 9:
        stages |= {path.parent.name for path in run.glob("work/*/*.tasks")}
        for share in ("1/2", "2/2"):
            worked = invoke("work", run, "--shard", share)
            assert worked.exit_code == 0, worked.output
    assert merged.exit_code == one.result.exit_code, merged.output
    assert (run / "audit.json").read_bytes() == (one.folder / "audit.json").read_bytes()
    assert not (run / "work").exists()
    late = invoke("work", run, "--wait", "--shard", "1/2")
    assert (late.exit_code, late.stdout) == (0, "0 tasks done; the run is finished\n")
    return stages


def test_shares_of_an_audit_give_the_record_of_one_process(
    invoke: Invoke, small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(by_shares(invoke, small_run, tmp_path / "out", monkeypatch)) > 3


@pytest.mark.long
@pytest.mark.usefixtures("controls_to_be_measured")
def test_shares_that_measure_controls_too_give_the_record_of_one_process(
    invoke: Invoke, small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "controls-patching" in by_shares(invoke, small_run, tmp_path / "out", monkeypatch)
