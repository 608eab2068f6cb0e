"""One audit by several workers, some of which are killed: the record of one process, to the byte."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from audit.store import WORK, locked
from tests.end_to_end.conftest import Invoke, Run
from tests.small_world import World

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.end_to_end, pytest.mark.scale]


def record_of(folder: Path) -> dict[str, Any]:
    """Return the record but for when it was made."""
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    record["provenance"].pop("started")
    record["controls"]["setup"].pop("measured_on")
    return record


def begun(card: Path, out: Path) -> psutil.Popen:
    """Begin the audit in a process of its own, by two workers; a fork of this one has what tests left of torch."""
    code = (
        "from audit.cli import main; from audit.pipeline import prepare; from tests.small_world import SMALL_BASE; "
        "prepare.rendered_base = SMALL_BASE; main()"
    )
    command = [sys.executable, "-c", code, "run", str(card), "--out", str(out)]
    with out.with_name("said").open("w", encoding="utf-8") as said:
        return psutil.Popen(
            [*command, "--no-report", "--workers", "2"], stdout=said, stderr=subprocess.STDOUT, cwd=ROOT
        )


def while_patching(process: psutil.Process, out: Path, stage: str, pieces: int) -> list[psutil.Process]:
    """Wait until so many pieces of a stage lie there, and return the workers."""
    deadline = time.monotonic() + 120
    while len(list(out.glob(f"*/{WORK}/{stage}/*.json"))) < pieces:
        assert process.status() != psutil.STATUS_ZOMBIE, out.with_name("said").read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.children()


@pytest.fixture
def controls_to_be_measured(small_run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the trained control models, and forget what was measured of them."""
    shutil.copytree(world.shared / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("judged-*"))
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("controls_to_be_measured")
def test_workers_and_a_coordinator_are_killed_and_the_record_is_that_of_one_process(
    invoke: Invoke, small_run: Run, tmp_path: Path
) -> None:
    """The coordinator and a worker are killed while controls are measured, another worker while heads are patched."""
    out = tmp_path / "out"
    first = begun(small_run.card, out)
    while_patching(first, out, "controls-patching", 2)
    first.send_signal(signal.SIGKILL)
    first.wait()

    of_other_code = next(out.glob(f"*/{WORK}/*")) / f"{64 * '0'}.json"
    of_other_code.write_text("{}", encoding="utf-8")
    with locked(of_other_code.parents[2]):  # as another coordinator would
        refused = invoke("run", small_run.card, "--out", out, "--no-report")
    assert refused.exit_code == 5
    assert refused.stderr.splitlines()[-1].endswith(": another run is at work in this folder; wait for it to end")
    assert of_other_code.is_file()

    second = begun(small_run.card, out)
    for stage, pieces in (("controls-patching", 4), ("*-seed-0", 2)):
        workers = while_patching(second, out, stage, pieces)
        if workers:
            workers[0].send_signal(signal.SIGKILL)
    code = second.wait()
    (folder,) = out.iterdir()
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert code == small_run.result.exit_code, said[-500:]
    assert not (folder / WORK).exists()
    assert record_of(folder) == record_of(small_run.folder)
    for table in ("swap-seed-0", "first-order-seed-0", "together", "reference"):
        name = f"effects/{table}.parquet"
        assert (small_run.folder / name).is_file() == (folder / name).is_file()
        if (folder / name).is_file():
            assert (folder / name).read_bytes() == (small_run.folder / name).read_bytes()
