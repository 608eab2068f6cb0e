"""Audits by each executor, whose workers, nodes and coordinators are killed; for ``executors.py``."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from audit.store import WORK
from benchmarks.scale.slurm_here import NODES, Slurm, slurm
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
AFTER = 2.0  # seconds from what was done last to a kill, at most
SOON = 30.0  # seconds that a job is waited for
LONGEST = 3600.0  # seconds that an audit may take
Start = Callable[[], subprocess.Popen[bytes]]


@dataclass
class World:
    """Where audits run: a card, a cache of control models, and how a command is started."""

    folder: Path
    cache: Path = field(init=False)
    card: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cache, self.card = self.folder / "cache", self.folder / "card.yaml"
        self.card.write_text(yaml.safe_dump(CARD | SMALLER, sort_keys=False), encoding="utf-8")

    @property
    def own(self) -> dict[str, str]:
        """What every process has in its environment; control models are trained once, and measured in each audit."""
        own = {"VIT_AUDIT_CACHE": str(self.cache), "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": str(ROOT)}
        return own | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        said = (self.folder / "said.txt").open("ab")
        command = [sys.executable, "-c", COMMAND, *arguments]
        env = os.environ | self.own | more
        return subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)

    def run(self, *arguments: str, **more: str) -> int:
        return self.start(*arguments, **more).wait()

    def audit_of(self, out: Path, *options: str) -> list[str]:
        return ["run", str(self.card), "--out", str(out), "--no-report", "--workers", "1", *options]

    def laid_out(self, out: Path) -> Path:
        """Lay a run out for several machines."""
        code = self.run(*self.audit_of(out, "--shards"))
        if code != WAITING:
            raise SystemExit(f"a run was not laid out: {code}, see {self.folder}/said.txt")
        return run_in(out)

    def forget_measurements(self) -> None:
        """Let the next audit measure the control models again, as a list of tasks."""
        for path in self.cache.rglob("judged-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def run_in(out: Path) -> Path:
    """Return the one run in a folder."""
    (run,) = (path for path in out.iterdir() if path.is_dir())
    return run


@dataclass
class Kills:
    """Kills of several kinds in turn, at moments drawn at random, each once something was done since the last."""

    rng: random.Random
    wanted: int
    kinds: tuple[str, ...]
    before: int  # how many there were in other audits
    done: dict[str, int] = field(default_factory=dict)
    seen: frozenset[Path] = frozenset()

    def due(self, out: Path) -> str | None:
        """Return what is to be killed now, after some seconds; None where it is not yet time."""
        there = frozenset(out.glob(f"*/{WORK}/*/*.json"))
        if self.number >= self.wanted or not there - self.seen:
            return None
        self.seen |= there
        time.sleep(self.rng.uniform(0, AFTER))
        return self.kinds[(self.before + self.number) % len(self.kinds)]

    @property
    def number(self) -> int:
        return sum(self.done.values())

    def count(self, kind: str, *, there: bool = True) -> None:
        """Note a kill; where there was nothing to be killed, the next moment is taken."""
        if there:
            self.done[kind] = self.done.get(kind, 0) + 1


def kill(process: subprocess.Popen[bytes] | psutil.Process) -> bool:
    """Kill a process with all that it has started; tell whether it was there."""
    with suppress(psutil.Error):
        one = psutil.Process(process.pid)
        every = [*one.children(recursive=True), one]
        for each in every:
            with suppress(psutil.Error):
                each.kill()
        return True
    return False


def in_time() -> Callable[[], None]:
    """Return what ends the benchmark where an audit takes too long."""
    deadline = time.monotonic() + LONGEST

    def look() -> None:
        if time.monotonic() > deadline:
            raise SystemExit(f"an audit has taken {LONGEST:.0f} s")
        time.sleep(0.1)

    return look


def by_local(world: World, out: Path, kills: Kills) -> None:
    """Audit by two processes of one machine; kill either, or the coordinator."""
    given = [*world.audit_of(out), "--workers", "2"]
    process, look = world.start(*given), in_time()
    try:
        while process.poll() is None:
            look()
            kind = kills.due(out)
            if kind == "coordinator" and process.poll() is None:
                process.kill()  # alone: its workers end by themselves
                process.wait()
                process = world.start(*given)
                kills.count(kind)
            elif kind == "worker":
                with suppress(psutil.Error):
                    workers = [p for p in psutil.Process(process.pid).children() if p.cmdline()[:1] == [sys.executable]]
                    kills.count(kind, there=bool(workers) and kill(kills.rng.choice(workers)))
    finally:
        kill(process)
    if process.returncode not in FINISHED:
        raise SystemExit(f"an audit ended with {process.returncode}, see {world.folder}/said.txt")


def by_shards(world: World, out: Path, kills: Kills) -> None:
    """Audit by a coordinator and two machines that wait for each other; kill any of them, and start it again."""
    run, look = world.laid_out(out), in_time()
    starts: list[Start] = [
        partial(world.start, "merge", str(run), "--wait", "--workers", "1"),
        *(partial(world.start, "work", str(run), "--wait", "--shard", f"{k}/2") for k in (1, 2)),
    ]
    processes = [start() for start in starts]
    try:
        while (run / WORK).is_dir():  # until the record is made, and the run whole
            look()
            kind = kills.due(out)
            if kind is not None:
                place = 0 if kind == "coordinator" else kills.rng.choice((1, 2))
                kills.count(kind, there=processes[place].poll() is None and kill(processes[place]))
                processes[place].wait()
            for place, start in enumerate(starts):
                ended = processes[place].poll()
                if ended is not None and ended not in {-signal.SIGKILL, *FINISHED}:
                    raise SystemExit(f"a process of shards ended with {ended}, see {world.folder}/said.txt")
                if ended is not None and (run / WORK).is_dir():
                    processes[place] = start()
        codes = [process.wait() for process in processes]
        if not set(codes) <= {0, *FINISHED}:
            raise SystemExit(f"processes of shards ended with {codes}, see {world.folder}/said.txt")
    finally:
        for process in processes:
            kill(process)


def by_slurm(world: World, out: Path, kills: Kills, cluster: Slurm) -> None:
    """Audit by arrays of jobs; kill processes of jobs, nodes, or those that go on; submit again where nobody does."""
    run, look = world.laid_out(out), in_time()
    submit = ["submit", str(run), "--slurm", "--jobs", "2", "--workers", "1"]
    while not (run / "manifest.json").is_file() or _at_work(cluster):
        look()
        if not _at_work(cluster) and world.run(*submit, **cluster.own) not in FINISHED:
            raise SystemExit(f"SLURM took no job, see {world.folder}/said.txt")
        kind = kills.due(out)
        if kind == "node":
            node = kills.rng.choice(NODES)
            busy = _at_work(cluster, f"--nodelist={node}")
            if busy:
                cluster.lose(node)
            kills.count(kind, there=busy)
        elif kind is not None:
            verb = "work" if kind == "worker" else "submit"
            jobs = _jobs(verb, run)
            kills.count(kind, there=bool(jobs) and kill(kills.rng.choice(jobs)))
        time.sleep(0.3)


def _at_work(cluster: Slurm, *options: str) -> bool:
    return bool(cluster.ask("squeue", "--noheader", "--format=%i", *options).strip())


def _jobs(verb: str, run: Path) -> list[psutil.Process]:
    """Return the processes of jobs that do one thing; those that go on come once an array is over."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        every = [(process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        found = [process for process, line in every if line[1:5] == ["-c", COMMAND, verb, str(run)]]
        if found:
            return found
        time.sleep(0.2)
    return []


def by_ray(world: World, out: Path, kills: Kills) -> None:
    """Audit by a cluster of two nodes on loopback; kill workers, the second node, or the coordinator."""
    from ray.cluster_utils import Cluster

    os.environ.update(
        world.own | {"RAY_worker_niceness": "0"}
    )  # of nodes, too; Ray's own is 15, and others are at work
    look = in_time()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    given = world.audit_of(out, "--ray", cluster.address)
    process = world.start(*given)
    try:
        while process.poll() is None:
            look()
            kind = kills.due(out)
            if kind == "worker":
                workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::" in " ".join(p.info["cmdline"] or [])]
                workers = [p for p in workers if "_work" in " ".join(p.info["cmdline"])]
                kills.count(kind, there=bool(workers) and kill(kills.rng.choice(workers)))
            elif kind == "node":
                cluster.remove_node(second, allow_graceful=False)
                second = cluster.add_node(num_cpus=1)
                kills.count(kind)
            elif kind == "coordinator" and process.poll() is None:
                kill(process)
                process.wait()
                process = world.start(*given)
                kills.count(kind)
    finally:
        kill(process)
        cluster.shutdown()  # type: ignore[no-untyped-call]
    if process.returncode not in FINISHED:
        raise SystemExit(f"an audit by Ray ended with {process.returncode}, see {world.folder}/said.txt")


KINDS = {
    "local": ("worker", "coordinator"),
    "shards": ("node", "coordinator"),
    "slurm": ("worker", "node", "coordinator"),
    "ray": ("node", "worker", "coordinator"),
}


@contextmanager
def executor(name: str, folder: Path) -> Iterator[Callable[[World, Path, Kills], None]]:
    """Yield what audits by an executor."""
    if name == "slurm":
        with slurm(folder / "slurm") as cluster:
            yield partial(by_slurm, cluster=cluster)
        return
    yield {"local": by_local, "shards": by_shards, "ray": by_ray}[name]
