"""SLURM: an array of jobs for each list of tasks, and after it the job that goes on with the run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import audit
from audit.errors import InputError, UnfinishedError, WaitingError
from audit.exit_codes import ExitCode
from audit.progress import Progress
from audit.store import WORK, write_text
from audit.work.executors import Elsewhere
from audit.work.posted import post, take_failures
from audit.work.shards import PLAN

ROUNDS = 3  # arrays that may end with none of their tasks done, before that is told
SOURCE = "source"  # in ``work``: the copy of the source that jobs run
COMMAND = "from audit.cli import entry; entry()"
OF_RESOURCES = ("templates", "datasets")  # beside the package in a checkout, inside it in a wheel
SAID = 200  # signs of what SLURM says


@dataclass(frozen=True)
class SlurmJobs:
    """Has SLURM do tasks; what is not given is as the site has it.

    Parameters
    ----------
    run : pathlib.Path
    account, partition, time : str or None
        As ``sbatch`` takes them.
    gpus, cpus : int
        Of each job.
    jobs : int
        Of an array, at most.
    further : tuple of str
        More options of ``sbatch``.
    workers : int or None
        Processes of the job that goes on.
    """

    run: Path
    account: str | None = None
    partition: str | None = None
    time: str | None = None
    gpus: int = 0
    cpus: int = 1
    jobs: int = 16
    further: tuple[str, ...] = ()
    workers: int | None = None

    def do(self, what: Elsewhere, progress: Progress) -> None:
        """Submit an array over the tasks and the job that goes on after it; few tasks are left to this process."""
        progress(0, what.size)
        failed = take_failures(what.tasks, what.folder)
        asked = replace(what, tasks=[task for task in what.tasks if task.key not in failed])
        if 2 * len(asked.tasks) < self.jobs:
            return
        posted = post(asked, again=True)
        if posted.rounds > ROUNDS:
            posted.path.unlink(missing_ok=True)
            where = f"{self.run / WORK / 'slurm'}"
            what_happened = f"{ROUNDS} arrays of jobs have done none of the {len(posted.keys)} tasks of {posted.stage}"
            raise UnfinishedError(where, what_happened, "read what the jobs wrote there, and submit again")
        shares = min(self.jobs, len(asked.tasks))
        array = self._submit(posted.stage, self._work_line(shares), f"--array=1-{shares}")
        try:
            after = self.go_on(f"--dependency=afterany:{array}")
        except UnfinishedError:
            _slurm("scancel", array)  # or what it does would never be put together
            raise
        told = f"{len(posted.keys)} tasks of {posted.stage} in {shares} jobs; job {after} goes on after them"
        raise WaitingError(f"SLURM job {array}", told, f"squeue --jobs {array},{after}")

    def go_on(self, *options: str) -> str:
        """Submit the job that goes on; return its number."""
        flags = [f"--{name}={value}" for name, value in self._given().items()]
        flags += [f"--sbatch={option}" for option in self.further]
        flags += [f"--workers={self.workers or self.cpus}"]
        line = shlex.join(["submit", str(self.run), "--slurm", "--here", *flags])
        return self._submit("merge", line, *options)

    def _given(self) -> dict[str, str]:
        named = {"account": self.account, "partition": self.partition, "time": self.time}
        numbers = {"gpus": str(self.gpus), "cpus": str(self.cpus), "jobs": str(self.jobs)}
        return {name: value for name, value in named.items() if value is not None} | numbers

    def _work_line(self, shares: int) -> str:
        kind = str(json.loads((self.run / WORK / PLAN).read_text(encoding="utf-8"))["device"]).partition(":")[0]
        device = ",".join(f"{kind}:{number}" for number in range(self.gpus)) if self.gpus > 1 else kind
        workers = self.cpus if kind == "cpu" else max(1, self.gpus)
        line = shlex.join(["work", str(self.run), f"--device={device}", f"--workers={workers}"])
        return f'{line} --shard "$SLURM_ARRAY_TASK_ID/{shares}"'

    def _submit(self, name: str, line: str, *options: str) -> str:
        """Write the script of a job, submit it, and return its number."""
        source, folder = snapshot(self.run), self.run / WORK / "slurm"
        script = folder / f"{name}.sh"
        python = f"{shlex.quote(sys.executable)} -c {shlex.quote(COMMAND)}"
        write_text(
            script,
            f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(source))} PYTHONDONTWRITEBYTECODE=1\n{python} {line}\n"
            f"code=$?\n[ $code -eq {int(ExitCode.WAITING)} ] && exit 0  # the next jobs are submitted\nexit $code\n",
        )
        said = "%A_%a" if any(option.startswith("--array") for option in options) else "%j"
        sizes = [f"--gpus={self.gpus}"] if self.gpus else []
        sizes += [
            f"--cpus-per-task={self.cpus}",
            f"--job-name=vit-audit-{name}",
            f"--output={folder}/{name}-{said}.out",
        ]
        sizes += [f"--{key}={value}" for key, value in self._given().items() if key not in ("gpus", "cpus", "jobs")]
        number = _slurm("sbatch", "--parsable", *sizes, *self.further, *options, str(script))
        return number.split(";")[0].strip()


def submit_first(asked: SlurmJobs) -> str:
    """Submit the first job of a run, which goes on with it; return its number.

    Raises
    ------
    InputError
        If ``sbatch`` is not installed.
    UnfinishedError
        If SLURM refuses, or cannot be reached.
    """
    return asked.go_on()


def snapshot(run: Path) -> Path:
    """Return the copy of the source that a run's jobs run, made where there is none: later edits change nothing."""
    target = run / WORK / SOURCE
    if target.is_dir():
        return target
    package = Path(audit.__file__).parent
    half = target.with_name(f".{SOURCE}-{os.getpid()}")
    shutil.rmtree(half, ignore_errors=True)
    for folder in (package, package.with_name("vit_audit"), *(package.with_name(name) for name in OF_RESOURCES)):
        if folder.is_dir():
            shutil.copytree(folder, half / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    half.rename(target)
    return target


def _slurm(program: str, *arguments: str) -> str:
    """Call one of SLURM's programs, and return what it says."""
    found = shutil.which(program)
    if found is None:
        fix = "submit on a machine of the cluster"
        raise InputError("--slurm", f"{program} is not installed on this machine", fix)
    # A job's own variables would be taken for options of the jobs that it submits.
    outside = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith("SLURM_")}
    # No shell is asked, and the program is SLURM's own.
    done = subprocess.run(  # noqa: S603
        [found, *arguments], env=outside, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), f"ended with {done.returncode}")[:SAID]
        raise UnfinishedError(program, said, "look at sinfo and squeue, and submit again: what is done is kept")
    return done.stdout
