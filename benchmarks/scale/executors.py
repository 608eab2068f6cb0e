"""Executors: what Ray costs, and whether anything but the time depends on who does the tasks, and on who is killed.

    python benchmarks/scale/executors.py --json benchmarks/scale/results.json
    python benchmarks/scale/executors.py --only ray --kills 2       # one of them, with fewer kills

*Overhead*: tasks that take 5 s each, by two local workers and by a Ray cluster of two processors on this machine;
the second stage is compared, for the first one starts Ray's workers. *Records*: one small audit by one process; then
by shards (``merge --wait`` and two ``work --wait``), by SLURM (where ``sinfo`` answers) and by Ray (two nodes on
loopback), whose workers, nodes and coordinators are killed at moments drawn at random; the number of audits whose
``audit.json`` is that of one process to the byte.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import psutil
import yaml

from audit.progress import Progress, silent
from audit.store import WORK
from audit.work.on_ray import on_ray
from audit.work.pool import Workers, run_tasks
from audit.work.tasks import Task
from benchmarks.scale.workers import CARD, EPOCH, FINISHED, ROOT

SMALLER: dict[str, Any] = {  # than the other benchmarks', for it is audited many times
    "data": {"reader": "synthetic", "rendered": {"train_images": 200, "audit_images": 240, "association": 0.9}},
    "model": {
        **CARD["model"],
        "overrides": {"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
    },
}
COMMAND = "from audit.cli import entry; entry()"
WAITING = 9  # the exit code of what others are to go on with
SECONDS, TASKS = 5.0, 12
AFTER = 2.0  # seconds between two kills, at most
Start = Callable[[], subprocess.Popen[bytes]]


def slept(number: int, *, progress: Progress) -> pd.DataFrame:
    time.sleep(SECONDS)
    progress(1, 1)
    return pd.DataFrame({"number": [number]})


def overhead(tasks: int) -> dict[str, float]:
    """Return seconds of two stages by two local workers and by Ray, and what Ray adds to the second."""
    taken: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder, on_ray("local", "cpu") as executor:
        for name, workers in (("local", Workers(2)), ("ray", Workers(1, executor=executor))):
            for stage in range(2):
                planned = [
                    Task(f"{i}", {"stage": stage, "i": i}, 1, 1, partial(slept, i), portable=True) for i in range(tasks)
                ]
                begun = time.perf_counter()
                run_tasks(planned, Path(folder) / f"{name}-{stage}", workers, silent(""))
                taken[name].append(round(time.perf_counter() - begun, 2))
    return {
        "task_s": SECONDS,
        "tasks": tasks,
        "local_s": taken["local"][1],
        "ray_s": taken["ray"][1],
        "ray_first_stage_s": taken["ray"][0],
        "ray_overhead": round(taken["ray"][1] / taken["local"][1] - 1, 4),
    }


@dataclass
class World:
    """Where audits run: a card, a cache of control models, and how a command is started."""

    folder: Path
    rng: random.Random
    cache: Path = field(init=False)
    card: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cache, self.card = self.folder / "cache", self.folder / "card.yaml"
        self.card.write_text(yaml.safe_dump(CARD | SMALLER, sort_keys=False), encoding="utf-8")

    @property
    def env(self) -> dict[str, str]:
        own = {"VIT_AUDIT_CACHE": str(self.cache), "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": str(ROOT)}
        return os.environ | own | {"OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        said = (self.folder / "said.txt").open("ab")
        command = [sys.executable, "-c", COMMAND, *arguments]
        return subprocess.Popen(command, env=self.env, stdout=said, stderr=said, start_new_session=True)

    def run(self, *arguments: str) -> int:
        return self.start(*arguments).wait()

    def laid_out(self, out: Path) -> Path:
        """Lay a run out for several machines."""
        code = self.run("run", str(self.card), "--out", str(out), "--no-report", "--workers", "1", "--shards")
        if code != WAITING:
            raise SystemExit(f"a run was not laid out: {code}, see {self.folder}/said.txt")
        (run,) = (path for path in out.iterdir() if path.is_dir())
        return run


def at_work(run: Path) -> bool:
    """Tell whether pieces of some stage lie there."""
    return any((run / WORK).glob("*/*.parquet"))


def killed(process: subprocess.Popen[bytes], *, whole: bool) -> None:
    """Kill a process, or one of those that it has started."""
    with suppress(psutil.Error):
        one = psutil.Process(process.pid)
        children = one.children(recursive=True)
        if not whole and children:
            one = random.choice(children)
        one.kill()


def by_shards(world: World, out: Path, kills: int) -> tuple[Path, int]:
    """Audit by a coordinator and two workers that wait for each other; kill any of them, and start it again."""
    run, done = world.laid_out(out), 0
    starts: list[Start] = [
        partial(world.start, "merge", str(run), "--wait", "--workers", "1"),
        *(partial(world.start, "work", str(run), "--wait", "--shard", f"{k}/2") for k in (1, 2)),
    ]
    processes = [start() for start in starts]
    while (run / WORK).is_dir():  # until the record is made, and the run whole
        if done < kills and at_work(run):
            time.sleep(world.rng.uniform(0, AFTER))
            place = world.rng.randrange(len(processes))
            killed(processes[place], whole=True)
            processes[place].wait()
            done += 1
        for place, start in enumerate(starts):
            if processes[place].poll() is not None and (run / WORK).is_dir():
                processes[place] = start()
        time.sleep(0.1)
    for process in processes:
        process.wait()
    return run, done


def by_slurm(world: World, out: Path, kills: int) -> tuple[Path, int]:
    """Audit by arrays of jobs; kill jobs' processes, or those that go on, and submit again where nobody does."""
    run, done = world.laid_out(out), 0
    submit = ["submit", str(run), "--slurm", "--jobs", "2", "--workers", "1"]
    while (run / WORK).is_dir():
        queued = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True)
        if not queued.stdout.strip() and world.run(*submit) not in FINISHED:
            raise SystemExit(f"SLURM took no job, see {world.folder}/said.txt")
        if done < kills and at_work(run):
            time.sleep(world.rng.uniform(0, AFTER))
            jobs = [p for p in psutil.process_iter(["cmdline"]) if _is_job(p.info["cmdline"], run)]
            if jobs:
                with suppress(psutil.Error):
                    world.rng.choice(jobs).kill()
                    done += 1
        time.sleep(0.2)
    return run, done


def _is_job(command: list[str] | None, run: Path) -> bool:
    return command is not None and COMMAND in command and str(run) in command


def by_ray(world: World, out: Path, kills: int) -> tuple[Path, int]:
    """Audit by a cluster of two nodes on loopback; kill workers, the second node, or the coordinator."""
    from ray.cluster_utils import Cluster

    done = 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    os.environ.update(environment)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    given = ["run", str(world.card), "--out", str(out), "--no-report", "--workers", "1", "--ray", cluster.address]
    try:
        process = world.start(*given)
        while process.poll() is None:
            if done < kills and any(out.glob(f"*/{WORK}/*/*.parquet")):
                time.sleep(world.rng.uniform(0, AFTER))
                what = world.rng.choice(["worker", "node", "coordinator"])
                if what == "worker":
                    workers = [
                        p for p in psutil.process_iter(["cmdline"]) if "ray::" in " ".join(p.info["cmdline"] or [])
                    ]
                    for worker in world.rng.sample(workers, min(1, len(workers))):
                        worker.kill()
                elif what == "node":
                    cluster.remove_node(second, allow_graceful=False)
                    second = cluster.add_node(num_cpus=1)
                else:
                    process.kill()
                    process.wait()
                    process = world.start(*given)
                done += 1
            time.sleep(0.1)
        if process.returncode not in FINISHED:
            raise SystemExit(f"an audit by Ray ended with {process.returncode}, see {world.folder}/said.txt")
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    (run,) = (path for path in out.iterdir() if path.is_dir())
    return run, done


def by_local(world: World, out: Path, kills: int) -> tuple[Path, int]:
    """Audit by two processes of one machine; kill either, or the coordinator."""
    given = ["run", str(world.card), "--out", str(out), "--no-report", "--workers", "2"]
    process, done = world.start(*given), 0
    while process.poll() is None:
        if done < kills and any(out.glob(f"*/{WORK}/*/*.parquet")):
            time.sleep(world.rng.uniform(0, AFTER))
            whole = world.rng.random() < 0.5
            killed(process, whole=whole)
            done += 1
            if whole:
                process.wait()
                process = world.start(*given)
        time.sleep(0.1)
    if process.returncode not in FINISHED:
        raise SystemExit(f"an audit ended with {process.returncode}, see {world.folder}/said.txt")
    (run,) = (path for path in out.iterdir() if path.is_dir())
    return run, done


EXECUTORS = {"local": by_local, "shards": by_shards, "slurm": by_slurm, "ray": by_ray}


def records(folder: Path, names: list[str], kills: int, seed: int) -> dict[str, dict[str, int]]:
    """Audit by one process, then by each executor until so many were killed; count the records that are the same."""
    world = World(folder, random.Random(seed))
    out = folder / "one"
    if world.run("run", str(world.card), "--out", str(out), "--no-report", "--workers", "1") not in FINISHED:
        raise SystemExit(f"the audit by one process did not finish, see {folder}/said.txt")
    (one,) = (path for path in out.iterdir() if path.is_dir())
    reference, found = (one / "audit.json").read_bytes(), dict[str, dict[str, int]]()
    for name in names:
        told = found[name] = {"audits": 0, "identical": 0, "kills": 0}
        share = -(-kills // len(names))
        while told["audits"] == 0 or told["kills"] < share:
            out = folder / f"{name}-{told['audits']}"
            run, times = EXECUTORS[name](world, out, share - told["kills"])
            told["audits"] += 1
            told["kills"] += times
            told["identical"] += (run / "audit.json").read_bytes() == reference
            click.echo(f"{name}: {told}")
            shutil.rmtree(out)
            if not times:
                break
    return found


def _slurm_answers() -> bool:
    found = shutil.which("sinfo")
    return found is not None and subprocess.run([found], capture_output=True, check=False).returncode == 0


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results into this file.")
@click.option("--only", multiple=True, type=click.Choice([*EXECUTORS, "overhead"]), help="Only these.")
@click.option("--kills", default=20, show_default=True, help="In all.")
@click.option("--seed", default=28, show_default=True)
@click.option("--tasks", default=TASKS, show_default=True, help="Of 5 s each, for the overhead.")
@click.option("--work", type=click.Path(path_type=Path), help="Where audits run; a folder that is kept.")
def main(target: Path | None, only: tuple[str, ...], kills: int, seed: int, tasks: int, work: Path | None) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = [name for name in EXECUTORS if not only or name in only]
    names = [name for name in names if name != "slurm" or _slurm_answers()]
    result: dict[str, Any] = {}
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "seed": seed,
    }
    if not only or "overhead" in only:
        measured = overhead(tasks)
        click.echo(str(measured))
        result |= {"ray_overhead": measured["ray_overhead"], "ray": {**measured, **about}}
    if names:
        with tempfile.TemporaryDirectory() as folder:
            place = work or Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            result |= {"executors": {**records(place, names, kills, seed), "about": about}}
    if target is not None:
        before = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        together = {**before.get("executors", {}), **result.get("executors", {})}
        results = before | result | ({"executors": together} if together else {})
        target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
