"""A whole audit by shares, through the command line: the record of one process, to the byte."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Invoke, Run
from tests.end_to_end.test_workers import ROOT, controls_to_be_measured

__all__ = ["controls_to_be_measured"]
pytestmark = [pytest.mark.end_to_end, pytest.mark.cluster]


@pytest.fixture
def laid_out(invoke: Invoke, small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay the small audit out for several machines, as begun at the second at which one process began it."""
    begun = datetime.fromisoformat(small_run.record["provenance"]["started"])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", f"{begun.timestamp():.0f}")
    told = invoke("run", small_run.card, "--out", tmp_path / "out", "--no-report", "--shards")
    assert told.exit_code == 9, told.output
    (run,) = (tmp_path / "out").iterdir()
    return run


def test_two_that_work_and_one_that_merges_give_the_record_of_one_process(
    invoke: Invoke, small_run: Run, laid_out: Path
) -> None:
    """They wait for each other; who works is a process of its own, and one more comes when all is over."""
    command = [sys.executable, "-c", "from audit.cli import entry; entry()", "work", str(laid_out), "--wait", "--shard"]
    at_work = [
        subprocess.Popen([*command, share], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for share in ("1/2", "2/2")
    ]
    try:
        merged = invoke("merge", laid_out, "--wait", "--patience", 120)
        told = [process.communicate(timeout=120) for process in at_work]
    finally:
        for process in at_work:
            process.kill()
    assert merged.exit_code == small_run.result.exit_code, (merged.output, told)
    assert (laid_out / "audit.json").read_bytes() == (small_run.folder / "audit.json").read_bytes()
    assert not (laid_out / "work").exists()
    for process, (said, _) in zip(at_work, told, strict=True):
        done, _, rest = said.partition(" ")
        assert (process.returncode, int(done) > 3, rest) == (0, True, "tasks done; the run is finished\n")
    late = invoke("work", laid_out, "--wait", "--shard", "1/2")
    assert (late.exit_code, late.stdout) == (0, "0 tasks done; the run is finished\n")


@pytest.mark.long
@pytest.mark.usefixtures("controls_to_be_measured")
def test_shares_one_after_the_other_give_the_record_of_one_process(
    invoke: Invoke, small_run: Run, laid_out: Path
) -> None:
    stages = set()
    while (merged := invoke("merge", laid_out)).exit_code == 9:
        stages |= {path.parent.name for path in laid_out.glob("work/*/*.tasks")}
        for share in ("1/2", "2/2"):
            worked = invoke("work", laid_out, "--shard", share)
            assert worked.exit_code == 0, worked.output
    assert merged.exit_code == small_run.result.exit_code, merged.output
    assert (laid_out / "audit.json").read_bytes() == (small_run.folder / "audit.json").read_bytes()
    assert "controls-patching" in stages
