"""Workers: as many processes as are wanted do the tasks of a stage, one thread each.

Workers are forked, so that they have the models and images that the stage has, without a copy. A worker that is killed
takes nothing along but the task that it had, which another does again. A task that fails does not keep the others from
being done. On an accelerator, which one process keeps busy, the tasks are done here.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

from audit.batching import share_memory
from audit.errors import AuditError, UnfinishedError
from audit.progress import Progress
from audit.store import clear_unfinished, let_go_of_locks
from audit.work.tasks import Task, do_task, is_done, list_hash

TRIES = 3  # of tasks whose workers are killed, and of those that fail by an error that is not the tool's
THREADS = 1  # of a worker; part of what results are, to the bit
POLL = 0.25  # seconds between two looks at how far the workers are
WATCHED = 1.0  # seconds between two looks at whether the coordinator is still there
Failures = list[tuple[Task, Exception]]


@dataclass(frozen=True)
class Workers:
    """How many processes do the tasks, and on what kind of device."""

    number: int = 1
    device: str = "cpu"

    @property
    def about(self) -> dict[str, object]:
        """What is kept beside a result: on what it was computed."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {"device": self.device, "threads": THREADS, "versions": versions}


def run_tasks(tasks: Sequence[Task], folder: Path, workers: Workers, progress: Progress) -> None:
    """Do all tasks whose results are not in ``folder``.

    Parameters
    ----------
    tasks : sequence of Task
    folder : pathlib.Path
        Where results are kept.
    workers : Workers
    progress : callable
        Called with the sizes of what is done and in all, over all workers.

    Raises
    ------
    AuditError
        Of the first task that failed, with the task's name as a note, once all others are done.
    UnfinishedError
        If a task ends its worker every time.
    """
    list_hash(tasks)
    clear_unfinished(folder)
    total = sum(task.size for task in tasks)
    stage = _Stage([task for task in tasks if not is_done(task, folder)], folder, workers, progress, total)
    progress(total - sum(task.size for task in stage.tasks), total)
    alone = workers.number == 1 or len(stage.tasks) <= 1
    failed = stage.do_here() if alone else stage.do_elsewhere()
    if failed:
        places = {task.key: place for place, task in enumerate(tasks)}
        task, error = min(failed, key=lambda of: places[of[0].key])
        error.add_note(f"in the task {task.name}" + (f", and {len(failed) - 1} more" if len(failed) > 1 else ""))
        raise error


@dataclass(frozen=True)
class _Stage:
    """What is left to do of a stage, where its results go, and whom to tell."""

    tasks: Sequence[Task]
    folder: Path
    workers: Workers
    progress: Progress
    total: int

    def do_here(self) -> Failures:
        """Do the tasks in this process, one after the other, with as many threads as a worker has."""
        failed: Failures = []
        left = sum(task.size for task in self.tasks)
        with _threads(THREADS):
            for task in self.tasks:
                try:
                    do_task(task, self.folder, self._beyond(self.total - left), about=self.workers.about)
                except AuditError as error:
                    failed.append((task, error))
                left -= task.size
                self.progress(self.total - left, self.total)
        return failed

    def _beyond(self, before: int) -> Progress:
        return lambda done, _total: self.progress(min(before + done, self.total), self.total)

    def do_elsewhere(self) -> Failures:
        """Do the tasks in other processes; where one is killed, what is left goes to new ones."""
        left, failed = list(self.tasks), []
        for attempt in range(1, TRIES + 1):
            failed += (told := self._round(left, self.workers.number, last=attempt == TRIES))
            given_up = {task.key for task, _ in told}
            left = [task for task in left if task.key not in given_up and not is_done(task, self.folder)]
            if not left:
                return failed
        for task in left:  # one of them ends its worker every time, and those of others with it
            told = self._round([task], 1, last=True)
            if not told and not is_done(task, self.folder):
                fix = "look at the machine's memory, and run again with fewer --workers: what is done is kept"
                told = [(task, UnfinishedError(task.name, f"its worker was ended {TRIES} times", fix))]
            failed += told
        return failed

    def _round(self, tasks: Sequence[Task], number: int, *, last: bool) -> Failures:
        """Give tasks to new processes, and return those that failed; not those that are to be tried again.

        An error that is not the tool's own counts where this is the last try.
        """
        global _forked
        fork = multiprocessing.get_context("fork")
        counter: Synchronized[int] = fork.Value("q", 0)
        before = self.total - sum(task.size for task in tasks)
        failed: Failures = []
        _forked = _Forked(tasks, self.folder, self.workers, counter)
        try:
            with warnings.catch_warnings(), _pool(min(number, len(tasks)), fork) as pool:
                # Python warns of threads beside a fork. Those of torch and of the progress bar hold nothing that a
                # worker needs, which computes in one thread and shows nothing.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                futures = {pool.submit(_work, place): task for place, task in enumerate(tasks)}
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                    self.progress(min(before + counter.value, self.total), self.total)
                    for future in done:
                        error = future.exception()
                        if isinstance(error, AuditError) or (last and _is_failure(error)):
                            assert isinstance(error, Exception)
                            failed.append((futures[future], error))
        finally:
            _forked = None
        return failed


def _is_failure(error: BaseException | None) -> bool:
    return isinstance(error, Exception) and not isinstance(error, BrokenProcessPool)


@contextmanager
def _pool(number: int, context: multiprocessing.context.ForkContext) -> Iterator[ProcessPoolExecutor]:
    """Hold processes for the length of a block; they are ended where it ends by an exception."""
    pool = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(os.getpid(), number))
    try:
        yield pool
    except BaseException:
        processes = list((pool._processes or {}).values())  # until Python 3.14, which has kill_workers()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        raise
    pool.shutdown()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Forked:
    """What workers have from the process that forks them."""

    tasks: Sequence[Task]
    folder: Path
    workers: Workers
    done: Synchronized[int]  # over all workers


_forked: _Forked | None = None


def _begin(coordinator: int, number: int) -> None:
    """Prepare a worker: one thread, a share of the memory, no lock of the coordinator, no life without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a keyboard it reaches all; the coordinator ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(THREADS)
    share_memory(number)
    let_go_of_locks()
    threading.Thread(target=_end_with, args=(coordinator,), daemon=True).start()


def _end_with(coordinator: int) -> None:
    """End this process when its coordinator is gone: nobody waits for what it does."""
    while os.getppid() == coordinator:
        time.sleep(WATCHED)
    os._exit(1)


def _work(place: int) -> None:
    """Do one of the tasks."""
    assert _forked is not None
    task, tell = _forked.tasks[place], _teller(_forked.done)
    do_task(task, _forked.folder, tell, about=_forked.workers.about)
    tell(task.size, task.size)


def _teller(counter: Synchronized[int]) -> Progress:
    """Return what adds a task's progress to that of all."""
    told = 0

    def tell(done: int, _total: int) -> None:
        nonlocal told
        with counter.get_lock():
            counter.value += done - told
        told = done

    return tell
