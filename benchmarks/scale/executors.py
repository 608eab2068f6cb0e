"""Executors: what Ray costs, and whether anything but the time depends on who does the tasks, and on who is killed.

    python benchmarks/scale/executors.py --json benchmarks/scale/results.json
    python benchmarks/scale/executors.py --only ray --kills 2                # one of them, with fewer kills
    python benchmarks/scale/executors.py --work FOLDER --json FILE           # goes on where it was ended

*Overhead*: tasks that take 5 s each, by two local workers and by a Ray cluster of two processors on this machine;
the second stage is compared, for the first one starts Ray's workers. *Records*: one small audit by one process; then
by two local workers, by shards (``merge --wait`` and two ``work --wait``), by a SLURM of two nodes (``slurm_here.py``,
where it is installed) and by a Ray of two nodes on loopback. Workers, nodes and coordinators are killed in turn, at
moments drawn at random, each once something was done since the last; counted are the audits whose ``audit.json`` is
that of one process to the byte.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # so that the script runs from anywhere

import click  # noqa: E402
import torch  # noqa: E402

from audit.progress import silent  # noqa: E402
from audit.work.on_ray import on_ray  # noqa: E402
from audit.work.pool import Workers, run_tasks  # noqa: E402
from benchmarks.pages import write_figures  # noqa: E402
from benchmarks.scale.killed import KINDS, Kills, World, executor, run_in  # noqa: E402
from benchmarks.scale.slept import tasks_of  # noqa: E402
from benchmarks.scale.slurm_here import missing  # noqa: E402
from benchmarks.scale.workers import FINISHED, ROOT  # noqa: E402

SECONDS, TASKS = 5.0, 12
AT_ONCE = 3  # kills in one audit, at most


def overhead(tasks: int) -> dict[str, float]:
    """Return seconds of two stages by two local workers and by Ray, and what Ray adds to the second."""
    taken: dict[str, list[float]] = {"local": [], "ray": []}
    os.environ["PYTHONPATH"] = str(ROOT)  # of Ray's workers
    with tempfile.TemporaryDirectory() as folder, on_ray("local", "cpu") as executor:
        for name, workers in (("local", Workers(2)), ("ray", Workers(1, executor=executor))):
            for stage in range(2):
                planned = tasks_of(stage, tasks, SECONDS)
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
class State:
    """What was found so far, in a file: whoever ends the benchmark may go on with it."""

    path: Path

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        return found

    def add(self, name: str, found: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(self.read() | {name: found}, indent=1) + "\n", encoding="utf-8")


def records(folder: Path, names: list[str], kills: int, seed: int) -> dict[str, dict[str, Any]]:
    """Audit by one process, then by each executor until so many were killed; count the records that are the same."""
    world, state, out = World(folder), State(folder / "state.json"), folder / "one"
    if not list(out.glob("*/manifest.json")) and world.run(*world.audit_of(out)) not in FINISHED:
        raise SystemExit(f"the audit by one process did not finish, see {folder}/said.txt")
    reference = (run_in(out) / "audit.json").read_bytes()
    for name in names:
        share = kills // len(names) + (names.index(name) < kills % len(names))
        told = state.read().get(name, {"audits": 0, "identical": 0, "kills": {}, "seconds": []})
        while told["audits"] == 0 or sum(told["kills"].values()) < share:
            with executor(name, folder) as audited:
                told = one_more(world, audited, name, told, reference, share, seed)
            state.add(name, told)
            click.echo(f"{datetime.now(UTC):%H:%M:%S} {name}: {told}")
    return {name: state.read()[name] for name in names}


def one_more(
    world: World,
    audited: Callable[[World, Path, Kills], None],
    name: str,
    told: dict[str, Any],
    reference: bytes,
    share: int,
    seed: int,
) -> dict[str, Any]:
    """Audit once more by an executor; return what was found by it so far."""
    out, before = world.folder / f"{name}-{told['audits']}", sum(told["kills"].values())
    shutil.rmtree(out, ignore_errors=True)
    world.forget_measurements()
    rng, begun = random.Random(f"{seed} {name} {told['audits']}"), time.monotonic()
    kills = Kills(rng, min(AT_ONCE, share - before), KINDS[name], before)
    audited(world, out, kills)
    same = (run_in(out) / "audit.json").read_bytes() == reference
    if same:
        shutil.rmtree(out)
    every = {kind: told["kills"].get(kind, 0) + kills.done.get(kind, 0) for kind in KINDS[name]}
    return {
        "audits": told["audits"] + 1,
        "identical": told["identical"] + same,
        "kills": every,
        "seconds": [*told["seconds"], round(time.monotonic() - begun)],
    }


def tables(results: dict[str, Any]) -> str:
    """Return what was found, for README.md: each kill counts, and so does each record that differs."""
    found, ray, lines = results.get("executors", {}), results.get("ray"), list[str]()
    kinds = ("worker", "node", "coordinator")
    if found:
        about = found["about"]
        lines += [
            "| executor | audits | workers killed | nodes | coordinators | records that are one process's to the byte |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for name in (name for name in KINDS if name in found):
            told = found[name]
            killed = " | ".join(str(told["kills"].get(kind, "-")) for kind in kinds)
            lines.append(f"| {name} | {told['audits']} | {killed} | {told['identical']} |")
        lines += ["", f"Seed {about['seed']}; {_made_with(about)}."]
    if ray is not None:
        taken = (
            f"{ray['local_s']} s by two local workers, {ray['ray_s']} s by Ray ({100 * ray['ray_overhead']:.1f}% more)"
        )
        first = f"{ray['ray_first_stage_s']} s where Ray starts its workers"
        lines += ["", f"{ray['tasks']} tasks of {ray['task_s']:g} s: {taken}, {first}; {_made_with(ray)}."]
    return "\n".join(lines).strip("\n")


def _made_with(about: dict[str, Any]) -> str:
    return (
        f"{about['date']}, {about['hardware']}, load {about['load_average']} before, torch {about['torch']}, "
        f"code of commit {about['code']}"
    )


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results into this file.")
@click.option("--only", multiple=True, type=click.Choice([*KINDS, "overhead"]), help="Only these.")
@click.option("--kills", default=20, show_default=True, help="In all.")
@click.option("--seed", default=28, show_default=True)
@click.option("--tasks", default=TASKS, show_default=True, help="Of 5 s each, for the overhead.")
@click.option("--work", type=click.Path(path_type=Path), help="Where audits run; a folder that is kept, to go on with.")
def main(target: Path | None, only: tuple[str, ...], kills: int, seed: int, tasks: int, work: Path | None) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = [name for name in KINDS if not only or name in only]
    names = [name for name in names if name != "slurm" or not missing()]
    result: dict[str, Any] = {}
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "code": _commit(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    if not only or "overhead" in only:
        measured = overhead(tasks)
        click.echo(str(measured))
        result |= {"ray_overhead": measured["ray_overhead"], "ray": {**measured, **about}}
    if names:
        with tempfile.TemporaryDirectory() as folder:
            place = (work or Path(folder)).absolute()
            place.mkdir(parents=True, exist_ok=True)
            result |= {"executors": {**records(place, names, kills, seed), "about": {**about, "seed": seed}}}
    if target is not None:
        before = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        together = {**before.get("executors", {}), **result.get("executors", {})}
        results = before | result | ({"executors": together} if together else {})
        target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if target.absolute() == HERE / "results.json":
            write_figures(HERE / "README.md", tables(results))


def _commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
