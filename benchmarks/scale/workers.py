"""Several workers: how much faster, and whether anything but the time depends on them.

    python benchmarks/scale/workers.py --json benchmarks/scale/results.json
    python benchmarks/scale/workers.py --only records --seed 33    # efficiency wants a quiet machine, records do not

*Efficiency*: one sweep, by one process whose torch has two threads, and by two workers of one thread each; in turns,
the medians are compared. *Records*: one small audit by 1, 2 and 7 workers, and by 2 whose coordinator or one of them is
killed at moments drawn at random while they train or patch; the number of audits whose ``audit.json`` is that of one
worker to the byte.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import psutil
import timm
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

from audit.patching.sweep import DonorKind, side_by_side, sweep  # noqa: E402
from audit.progress import Progress, silent  # noqa: E402
from audit.store import WORK  # noqa: E402
from audit.work.pool import Workers, run_tasks  # noqa: E402
from audit.work.tasks import Task  # noqa: E402
from benchmarks.commits import commit_here  # noqa: E402

CARD: dict[str, Any] = {
    "name": "Scaled",
    "task": "emotion",
    "data": {"reader": "synthetic", "rendered": {"train_images": 200, "audit_images": 400, "association": 0.9}},
    "groups": {"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 64,
        "overrides": {"patch_size": 16, "depth": 3, "embed_dim": 96, "num_heads": 4},
    },
    "training": {"seeds": [0], "epochs": 8, "learning_rate": 2e-3},
    "controls": {
        "card": "rendered",
        "train_images": 400,
        "eval_images": 96,
        "base_epochs": 12,
        "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200, "min_group_size": 10, "patches": "all"},
}
EPOCH = "1790000000"  # SOURCE_DATE_EPOCH: all audits begin at one moment
FINISHED = {0, 1, 3, 4}
RECIPIENTS = 256
TURNS = 3


def efficiency(turns: int, recipients: int) -> dict[str, float]:
    """Return seconds of one process of two threads and of two workers, and their ratio."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", img_size=96, num_classes=7, depth=6).eval().requires_grad_(False)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * recipients, 96, 96, 3), dtype=np.uint8)
    rows = np.arange(recipients, dtype=np.int64)
    donors = [DonorKind(name, model, rows + recipients) for name in ("cross", "placebo")]
    outcomes, layers = {"happy": 3}, range(3, 6)

    def by_one() -> None:
        torch.set_num_threads(2)
        sweep(model, pixels, rows, donors, layers=layers, outcomes=outcomes)

    def block(positions: np.ndarray[Any, np.dtype[np.int64]], progress: Progress) -> pd.DataFrame:
        given = [DonorKind(d.name, model, d.rows[positions]) for d in donors]
        return sweep(model, pixels, rows[positions], given, layers=layers, outcomes=outcomes, progress=progress)

    def by_two() -> None:
        patches = 32 * 2 * 3 * 6
        tasks = [
            Task(f"block {i}", {"i": i}, patches, patches, partial(block, positions))
            for i, positions in enumerate(side_by_side(32, recipients, None))
        ]
        with tempfile.TemporaryDirectory() as folder:
            run_tasks(tasks, Path(folder), Workers(2), silent(""))

    taken: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(turns):
        for name, work in (("one", by_one), ("two", by_two)):
            begun = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun)
    one, two = (statistics.median(taken[name]) for name in ("one", "two"))
    return {"one_process_2_threads_s": round(one, 2), "two_workers_s": round(two, 2), "ratio": round(one / two, 3)}


def command(card: Path, out: Path, workers: int) -> list[str]:
    code = "from audit.cli import main; main()"
    given = ["run", str(card), "--out", str(out), "--no-report", "--workers", str(workers)]
    return [sys.executable, "-c", code, *given]


def started(card: Path, out: Path, workers: int, cache: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"VIT_AUDIT_CACHE": str(cache), "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(card, out, workers), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def record(out: Path) -> bytes:
    (folder,) = (p for p in out.iterdir() if p.is_dir())
    return (folder / "audit.json").read_bytes()


def killed_at_work(card: Path, out: Path, cache: Path, rng: random.Random, wanted: int) -> tuple[bytes, int]:
    """Kill a coordinator or one of its workers, up to ``wanted`` times; return the record, and how often."""
    kills = 0
    process = started(card, out, 2, cache)
    while process.poll() is None:
        pieces = list(out.glob(f"*/{WORK}/*/*.json"))
        if kills < wanted and pieces:
            time.sleep(rng.uniform(0.0, 1.0))
            workers = _children(process.pid)
            if process.poll() is not None:
                break
            if rng.random() < 0.5 and workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
            else:
                process.kill()
                process.wait()
                process = started(card, out, 2, cache)
            kills += 1
        time.sleep(0.02)
    if process.returncode not in FINISHED:
        raise SystemExit(f"an audit that was disturbed ended with {process.returncode}")
    return record(out), kills


def _children(process: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(process).children()]
    except psutil.Error:
        return []


def records(work: Path, kills: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Audit by 1, 2 and 7 workers, then with kills; count the records that are that of one worker."""
    card, rng = work / "card.yaml", random.Random(seed)
    card.write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
    reference, same, audits, done = b"", 0, 0, 0
    for workers in (1, 2, 7):
        out = work / f"workers-{workers}"  # and a cache for each: control models are trained by as many
        if started(card, out, workers, work / f"cache-{workers}").wait() not in FINISHED:
            raise SystemExit(f"the audit by {workers} workers did not finish")
        reference = reference or record(out)
        audits, same = audits + 1, same + (record(out) == reference)
        tell(f"{workers} workers: {'the same' if record(out) == reference else 'another'} record")
    while done < kills:
        out = work / f"killed-{done}"
        found, times = killed_at_work(card, out, work / "cache-1", rng, min(4, kills - done))
        done, audits, same = done + times, audits + 1, same + (found == reference)
        tell(f"{done} kills: {'the same' if found == reference else 'another'} record")
        shutil.rmtree(out)
    return {"kills": done, "audits": audits, "identical_records": same}


@click.command()
@click.option(
    "--json", "target", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "scale" / "results.json"
)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=31, show_default=True)
@click.option("--quick", is_flag=True, help="Two kills, one turn.")
@click.option("--only", type=click.Choice(["efficiency", "records"]), help="Measure this; the other's figures stay.")
def main(target: Path, kills: int, seed: int, quick: bool, only: str | None) -> None:
    """Measure, and write what came out beside what the file holds."""
    results = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    about = made_with()
    if only != "records":
        measured = efficiency(1, 64) if quick else efficiency(TURNS, RECIPIENTS)
        click.echo(str(measured))
        results |= {"efficiency_2_workers": measured["ratio"], "workers": {**measured, **about}}
    if only != "efficiency":
        with tempfile.TemporaryDirectory() as work:
            found = records(Path(work), 2 if quick else kills, seed, click.echo)
        results |= found | {"records": {**about, "seed": seed}}
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def made_with() -> dict[str, Any]:
    """Return when, where and with what code it is measured."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "code": commit_here(),
        "load_average": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
