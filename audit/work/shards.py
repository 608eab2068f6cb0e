"""Shares of posted task lists: the plain form, for any scheduler."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import audit
from audit.errors import InputError, UnfinishedError, WaitingError
from audit.progress import Progress, Step
from audit.store import WORK
from audit.work.executors import Elsewhere
from audit.work.pool import Workers, run_tasks
from audit.work.posted import LIST, Posted, lists_of, note_failures, open_list, post, take_failures
from audit.work.tasks import is_done

POLL = 0.5  # seconds between two looks at what others have done
CLOCKS = 300.0  # seconds that clocks may differ by: as object stores and Kerberos have it
PLAN = "plan.json"  # in ``work``: what goes on with the run
SCRIPTS = "slurm"  # likewise: scripts of jobs, and what they say


@dataclass(frozen=True)
class Shard:
    """One of so many shares.

    Parameters
    ----------
    number : int
        From 1.
    of : int
    """

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """Return the share that "2/8" names.

        Raises
        ------
        InputError
            If it names none.
        """
        first, _, second = text.partition("/")
        if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first), int(second))
        raise InputError("--shard", f"'{text}' is no share", "write I/N, the first of eight as 1/8")


@dataclass(frozen=True)
class Shards:
    """Leaves tasks to whoever takes a share of the list; ``wait``: until they are done, else for the next call."""

    wait: bool = False

    def do(self, what: Elsewhere, progress: Progress) -> None:
        """Post the tasks, but those that failed elsewhere."""
        failed = take_failures(what.tasks, what.folder)
        asked = replace(what, tasks=[task for task in what.tasks if task.key not in failed])
        if not asked.tasks:
            return
        posted = post(asked, again=False)
        if not self.wait:
            run = what.folder.parents[1]
            how = f"vit-audit work {run} --shard I/N for every I, then vit-audit merge {run}"
            raise WaitingError(f"{run.name}, {posted.stage}", f"{len(posted.left)} tasks are to be done", how)
        wait_for(asked, posted, progress)


def clear_work(run: Path) -> None:
    """Remove what a finished run has left of its tasks, but for the source that this process itself runs from.

    Whoever ends a run by SLURM runs from a copy in ``work``, and reads templates until it has said what came out.
    """
    folder, own = run / WORK, Path(audit.__file__).resolve()
    (folder / PLAN).unlink(missing_ok=True)
    from_here = own.is_relative_to(folder.resolve())
    for path in list(folder.iterdir()) if from_here else ():
        if path.name != SCRIPTS and not own.is_relative_to(path.resolve()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if not from_here:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(what: Elsewhere, posted: Posted, progress: Progress) -> None:
    """Wait until every task of a list is done or has failed, and take the list away."""
    sizes = {task.key: task.size for task in what.tasks}
    while left := [key for key in posted.left if key in sizes]:
        progress(what.size - sum(sizes[key] for key in left), what.size)
        time.sleep(POLL)
    take_failures(what.tasks, what.folder)
    posted.path.unlink(missing_ok=True)


def work_on(run: Path, shard: Shard, workers: Workers, step: Step, *, wait: bool) -> int:
    """Do a share of every list that is posted; return how many tasks were done.

    Parameters
    ----------
    run : pathlib.Path
    shard : Shard
    workers : Workers
    step : callable
        Given the name of a step, returns a callback (done, total).
    wait : bool
        Go on with later lists until the run is over.

    Raises
    ------
    InputError
        If there is no such run, or this machine has other versions, devices or another clock than its disk.
    UnfinishedError
        If a task failed; whoever plans tries it again.
    """
    check_clock(run)
    done, tried, failure = 0, set[Path](), None
    while True:
        lists = [posted for posted in lists_of(run) if wait or posted.path not in tried]
        for posted in lists:
            tried.add(posted.path)
            try:
                done += _do_share(posted, shard, workers, step(f"{posted.stage}: share {shard.number} of {shard.of}"))
            except UnfinishedError as error:
                failure = error
        if is_over(run):
            clear_work(run)  # what was done twice
            return done
        if not wait and not lists:
            break
        if wait:
            time.sleep(POLL)
    if failure is not None:
        raise failure
    return done


def is_over(run: Path) -> bool:
    """Tell whether nothing is planned in a run any more."""
    return not (run / WORK / PLAN).is_file()


def _do_share(posted: Posted, shard: Shard, workers: Workers, progress: Progress) -> int:
    mine = posted.keys[shard.number - 1 :: shard.of]
    if not set(mine) & set(posted.left):
        return 0
    if posted.device != workers.device:
        what = f"the run was planned for {posted.device}, and this works on {workers.device}"
        raise InputError("--device", what, f"give --device {posted.device}")
    try:
        tasks = [task for task in open_list(posted) if task.key in set(mine)]
    except FileNotFoundError:  # taken away meanwhile
        return 0
    folder, left = posted.path.parent, set(posted.left)
    with posted.settings.taken():
        try:
            run_tasks(tasks, folder, replace(workers, shared=True), progress, threads=posted.threads)
        except Exception as error:
            note_failures(tasks, folder, error)
            raise UnfinishedError(f"{posted.stage}, share {shard.number} of {shard.of}", str(error)) from error
    return sum(task.key in left and is_done(task, folder) for task in tasks)


def check_clock(run: Path) -> None:
    """Refuse to work where this machine's clock is another than the disk's.

    Raises
    ------
    InputError
        If it is, or nothing is planned there.
    UnfinishedError
        If the disk cannot be written to.
    """
    if not (run / WORK / PLAN).is_file():
        fix = "lay it out: vit-audit run CARD --shards"
        raise InputError(str(run), "is no run that is laid out for several machines", fix)
    probe = run / WORK / f".clock-{time.monotonic_ns()}{LIST}"
    try:
        probe.touch()
        apart = probe.stat().st_mtime - time.time()
        probe.unlink()
    except OSError as error:
        raise UnfinishedError(str(run), f"cannot be written ({error.strerror})", "mount it for writing") from error
    if abs(apart) > CLOCKS:
        what = f"this machine's clock is {abs(apart):.0f} s {'behind' if apart > 0 else 'ahead of'} its disk's"
        raise InputError(str(run), what, "set both by NTP")
