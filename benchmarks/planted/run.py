"""Measure the tool itself: models whose truth is known, audited from card to ``audit.json``.

    python benchmarks/planted/run.py --quick --json out.json
    python benchmarks/planted/run.py                            # the published run

Every model leaves a row in the work folder as soon as it is done; the same command resumes after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import torch  # noqa: E402

from audit import __version__  # noqa: E402
from audit.store import cache_folder, write_text  # noqa: E402
from benchmarks.planted import measure, models, rivals, summary, truth  # noqa: E402
from benchmarks.planted.measure import Job, Size  # noqa: E402

PUBLISHED_SEED = 11
FULL = Size(8, 25, 4000, 1000, 8000, 5000, 2000, models.START_STEPS, models.STEPS)
QUICK = Size(1, 1, 400, 240, 1000, 500, 500, 60, 30)


def rows_of(jobs: list[Job], workers: int, until: float) -> Iterator[dict[str, Any]]:
    """Yield every model's row: those that are stored, then the others, each stored as soon as it is made.

    No model is begun after ``until``, a time of ``time.monotonic``.
    """
    todo = []
    for job in jobs:
        path = job.work / "rows" / f"{job.plan.name}.json"
        if path.is_file():
            yield json.loads(path.read_text(encoding="utf-8"))
        else:
            todo.append(job)
    if not todo:
        return
    models.backbone(cache_folder())  # trained here, if it has never been
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        try:
            controls = pool.submit(measure.prepare_controls, todo[0])
            pool.submit(measure.prepare_faces, todo[0]).result()
            for ahead in todo:  # one worker trains models until the other has the controls, which every audit needs
                if controls.done():
                    break
                pool.submit(_make_ahead, ahead).result()
            controls.result()
            for future in as_completed([pool.submit(measure_and_store, job, until) for job in todo]):
                if (row := future.result()) is not None:
                    yield row
        except BaseException:  # a model that cannot be made, or a worker that was killed; what is stored stays
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make_ahead(job: Job) -> None:
    measure.make(job)


def measure_and_store(job: Job, until: float) -> dict[str, Any] | None:
    """Measure a model and store its row as soon as it is there; None where the time is over."""
    if time.monotonic() > until:
        return None
    row = measure.measure(job)
    write_text(job.work / "rows" / f"{job.plan.name}.json", json.dumps(row, indent=1))
    return row


def code_hash(size: Size, *, of: Sequence[ModuleType] = (measure, models, rivals, truth), rooms: str = "*") -> str:
    """SHA-256 over the code that makes the rows, and the sizes: rows of other code are not mixed in.

    How rows are scheduled and summed up (this file, ``summary``) has no part in them. The models themselves are made
    of less: ``rooms`` of the package, and the modules ``of`` this benchmark.
    """
    digest = hashlib.sha256(repr((size, torch.__version__)).encode())
    makers = [Path(str(module.__file__)) for module in of]
    for source in [*sorted((ROOT / "audit").glob(f"{rooms}/**/*.py")), *makers]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


@click.command()
@click.option("--quick", is_flag=True, help="A few small models, in minutes; the figures mean little.")
@click.option(
    "--json",
    "out",
    type=click.Path(path_type=Path),
    help="Where results go; default: results.json here for the published run, else in the work folder.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Where models, runs and rows are kept.")
@click.option("--seed", default=PUBLISHED_SEED, show_default=True, help="Of everything; the published run has 11.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Models at once.")
@click.option("--minutes", type=float, help="Begin no model after so long; figures are of those that are done.")
def main(*, quick: bool, out: Path | None, work: Path | None, seed: int, workers: int, minutes: float | None) -> None:
    """Make the models, audit them, and write the figures."""
    begun = time.monotonic()
    size = QUICK if quick else FULL
    here = Path(__file__).resolve().parent
    made_by = code_hash(size)
    named = f"{'quick' if quick else 'full'}-{seed}"
    made = (work or here / "work") / f"models-{named}-{code_hash(size, of=(models, truth), rooms='models')[:8]}"
    work = (work or here / "work") / f"{named}-{made_by[:8]}"
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # of the workers
    torch.set_num_threads(1)
    plans = models.plans(per_dose=size.per_dose, per_null=size.per_null, seed=seed)
    plans.sort(key=lambda plan: plan.name.rsplit("-", 1)[1])  # one of every kind, then the next
    jobs = [Job(plan, work, made, size, seed) for plan in plans]
    rows: list[dict[str, Any]] = []
    until = math.inf if minutes is None else begun + 60 * minutes
    for row in rows_of(jobs, workers, until):
        rows.append(row)
        spent = time.monotonic() - begun
        found = row["outcome"] if "localised" not in row else ", ".join(row["localised"]) or "no head"
        click.echo(f"{len(rows)}/{len(jobs)} {row['name']}: {found} ({spent / 60:.1f} min)", err=True)
    results = summary.summarise(sorted(rows, key=lambda row: str(row["name"])))
    results["made_with"] = {
        "command": " ".join(["python", "benchmarks/planted/run.py", *sys.argv[1:]]),
        "models_planned": len(jobs),
        "minutes_of_this_call": round((time.monotonic() - begun) / 60, 1),  # rows of earlier ones were taken up
        "minutes_of_models": round(sum(row["seconds"] for row in rows) / 60, 1),
        "code": made_by,
        "seed": seed,
        "size": asdict(size),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {workers} workers",
        "versions": {"vit-audit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    published = not quick and seed == PUBLISHED_SEED
    write_text(out or (here if published else work) / "results.json", json.dumps(results, indent=1) + "\n")
    click.echo(summary.table(results))


if __name__ == "__main__":
    main()
