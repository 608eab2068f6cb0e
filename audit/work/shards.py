"""Shares of posted task lists: the plain form, for any scheduler."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import audit
from audit.errors import (
    AuditError,
    InputError,
    MemoryExhaustedError,
    UnfinishedError,
    WaitingError,
    is_of_machine,
    is_refused,
    one_line_of,
)
from audit.progress import Progress, Step
from audit.store import WORK, not_written
from audit.work.executors import Elsewhere
from audit.work.pool import Failures, Workers, try_tasks
from audit.work.posted import LIST, Posted, lists_of, note_failures, open_list, post, take_failures
from audit.work.tasks import Task, is_done

POLL = 0.5  # seconds between two looks at what others have done
BEAT = 5.0  # seconds between two signs of a machine that it is doing tasks
PATIENCE = 3600  # seconds without a result or a sign, before who waits gives up
AT_WORK = ".at-work"  # in ``work``: how the files end that machines change while they do tasks
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
    """Leaves tasks to whoever takes a share of the list.

    Parameters
    ----------
    wait : bool
        Until they are done, else for the next call.
    patience : float
        Seconds to wait while nobody does any.
    """

    wait: bool = False
    patience: float = PATIENCE

    def do(self, what: Elsewhere, progress: Progress) -> None:
        """Post the tasks, but those that failed elsewhere."""
        failed = take_failures(what.tasks, what.folder)
        asked = replace(what, tasks=[task for task in what.tasks if task.key not in failed])
        if not asked.tasks:
            return
        posted = post(asked, again=False)
        run = what.folder.parents[1]
        where, how = (
            f"{run.name}, {posted.stage}",
            f"vit-audit work {run} --shard I/N for every I, then vit-audit merge",
        )
        if not self.wait:
            raise WaitingError(where, f"{len(posted.left)} tasks are to be done", f"{how} {run}")
        if not wait_for(asked, posted, progress, self.patience):
            missing = f"{len(posted.left)} tasks are to be done, and for {self.patience:g} s nobody has done any"
            raise WaitingError(where, missing, f"look whether the workers live, then {how} {run} --wait again")


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


def wait_for(what: Elsewhere, posted: Posted, progress: Progress, patience: float) -> bool:
    """Wait until every task of a list is done or has failed, take the list away, and return True.

    Return False where for ``patience`` seconds of this machine's own clock no task was done, and no machine has changed
    the sign that it does some: times that files bear are compared with nothing.
    """
    sizes, work = {task.key: task.size for task in what.tasks}, what.folder.parent
    before, since = None, time.monotonic()
    while left := [key for key in posted.left if key in sizes]:
        progress(what.size - sum(sizes[key] for key in left), what.size)
        if (seen := (left, _signs(work))) != before:
            before, since = seen, time.monotonic()
        elif time.monotonic() - since > patience:
            return False
        time.sleep(POLL)
    take_failures(what.tasks, what.folder)
    posted.path.unlink(missing_ok=True)
    return True


def _signs(work: Path) -> dict[str, bytes]:
    """Return what machines that do tasks have written last."""
    found = {}
    for path in work.glob(f"*{AT_WORK}"):
        with suppress(OSError):
            found[path.name] = path.read_bytes()
    return found


@contextmanager
def _at_work(work: Path, shard: Shard) -> Iterator[None]:
    """Change a file every few seconds, for the length of a block, so that whoever waits knows that tasks are done."""
    sign, over = work / f"{shard.number}-of-{shard.of}{AT_WORK}", threading.Event()

    def tell() -> None:
        while True:
            with suppress(OSError):  # the folder goes where the run is over meanwhile; nothing depends on it
                sign.write_text(uuid.uuid4().hex, encoding="ascii")
            if over.wait(BEAT):
                return

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        with suppress(OSError):
            sign.unlink(missing_ok=True)


def work_on(run: Path, shard: Shard, workers: Workers, step: Step, *, wait: bool) -> int:
    """Do a share of every list that is posted; return how many tasks were done.

    A machine proves itself with the first tasks: where all of these fail, it leaves the others to other machines.

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
        If a task failed; whoever plans tries it again. Or if results cannot be written.
    """
    if is_finished(run):
        return 0
    check_clock(run)
    done, tried, failed = 0, set[Path](), None
    while True:
        lists = [posted for posted in lists_of(run) if wait or posted.path not in tried]
        for posted in lists:
            tried.add(posted.path)
            number, error = _do_share(posted, shard, workers, step, proven=done > 0)
            done, failed = done + number, error or failed
        if is_over(run):
            clear_work(run)  # what was done twice
            return done
        if not wait and not lists:
            break
        if wait:
            time.sleep(POLL)
    if failed is not None:
        raise failed
    return done


def is_over(run: Path) -> bool:
    """Tell whether nothing is planned in a run any more."""
    return not (run / WORK / PLAN).is_file()


def is_finished(run: Path) -> bool:
    """Tell whether nothing is planned in a run since its record is made."""
    return is_over(run) and (run / "audit.json").is_file()


def _do_share(
    posted: Posted, shard: Shard, workers: Workers, step: Step, *, proven: bool
) -> tuple[int, UnfinishedError | None]:
    """Do what is left of a share of a list; return how many tasks were done, and what to say of those that failed."""
    mine = set(posted.keys[shard.number - 1 :: shard.of]) & set(posted.left)
    if not mine:
        return 0, None
    if posted.device != workers.device:
        what = f"the run was planned for {posted.device}, and this works on {workers.device}"
        raise InputError("--device", what, f"give --device {posted.device}")
    try:
        tasks = [task for task in open_list(posted) if task.key in mine]
    except FileNotFoundError:  # taken away meanwhile
        return 0, None
    folder, share = posted.path.parent, f"share {shard.number} of {shard.of}"
    with posted.settings.taken(), _at_work(folder.parent, shard):
        failed = _try_some_first(tasks, posted, workers, step(f"{posted.stage}: {share}"), proven=proven)
    done = sum(is_done(task, folder) for task in tasks)
    if not failed:
        return done, None
    where, said = f"{posted.stage}, {share}", one_line_of(failed[0][1])
    if not done and len(failed) < len(tasks):
        what = f"of {len(tasks)} tasks {len(failed)} failed on this machine, and the others were not tried ({said})"
        raise UnfinishedError(where, what, "look at the machine, and give the command again")
    return done, UnfinishedError(where, said)


def _try_some_first(
    tasks: Sequence[Task], posted: Posted, workers: Workers, progress: Progress, *, proven: bool
) -> Failures:
    """Try tasks, and note those that failed; where a machine has done none so far, no others if all of some fail."""
    folder, total = posted.path.parent, sum(task.size for task in tasks)
    first = len(tasks) if proven else workers.number
    failed, before = Failures(), 0
    for some in filter(None, (tasks[:first], tasks[first:])):
        told = partial(_beyond, progress, before, total)
        new = try_tasks(some, folder, replace(workers, shared=True), told, threads=posted.threads)
        note_failures(new, folder)
        failed, before = failed + new, before + sum(task.size for task in some)
        _refuse_machine(new)
        if len(new) == len(some):
            break
    return failed


def _beyond(progress: Progress, before: int, total: int, done: int, _total: int) -> None:
    progress(before + done, total)


def _refuse_machine(failed: Failures) -> None:
    """Raise what no task is at fault for: here, all others would meet it, too."""
    for _, error in failed:
        if isinstance(error, MemoryExhaustedError) or (is_of_machine(error) and isinstance(error, AuditError)):
            raise error
        if isinstance(error, OSError) and is_refused(error):
            raise not_written(Path(error.filename or tempfile.gettempdir()), error) from error
        if isinstance(error, ImportError):
            what = f"cannot import what tasks need ({one_line_of(error)})"
            raise InputError(socket.gethostname(), what, "install what the run was planned with") from error


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
