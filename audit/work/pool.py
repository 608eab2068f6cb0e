"""Workers: as many processes as are wanted do the tasks of a stage, one thread each.

Workers are forked, so that they have the models and images that the stage has, without a copy. Those of several
accelerators are spawned, for a process that has used one cannot be forked: each sees its own device alone, and is
sent models and images through a pipe. A worker that is killed
takes nothing along but the task that it had, which another does again. A task that fails is tried again once the others
are done, and does not keep them from being done; where results cannot be written or memory does not suffice, no other
task is begun in vain. On one accelerator, which one process keeps busy, the
tasks are done here. Where an executor does tasks on other machines, those it leaves, and those that failed there, are
done here afterwards, so that what is wrong with them is told here.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import platform
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from audit.batching import room, share_memory
from audit.errors import AuditError, InputError, MemoryExhaustedError, UnfinishedError, is_of_machine
from audit.progress import Progress
from audit.store import clear_unfinished, let_go_of_locks
from audit.work.executors import Elsewhere, Executor
from audit.work.settings import TorchSettings, threads_of_torch
from audit.work.tasks import Task, do_task, is_done, list_hash

TRIES = 3  # of a task that fails by what may pass, or whose worker is killed while no other task is done
PAUSE = 0.2  # seconds before the second; what is in the way may pass
THREADS = 1  # of a worker; part of what results are, to the bit
AHEAD = 2  # tasks that each worker is given at once
POLL = 0.25  # seconds between two looks at how far the workers are
WATCHED = 1.0  # seconds between two looks at whether the coordinator is still there
Failures = list[tuple[Task, BaseException]]
Outcomes = Generator[tuple[Task, BaseException | None], None, None]  # None: done


@dataclass(frozen=True)
class Workers:
    """How many processes do the tasks, and on what kind of device.

    ``alone``: for each process what its environment has more than this one's, so that it sees its own device alone.
    Such processes are spawned. ``executor`` does what it can elsewhere before; ``shared`` tells that others write to
    the same folders meanwhile.
    """

    number: int = 1
    device: str = "cpu"
    alone: tuple[Mapping[str, str], ...] = ()
    executor: Executor | None = None
    shared: bool = False

    def about(self, threads: int = THREADS) -> dict[str, object]:
        """Return what is kept beside a result: on what it was computed."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {"device": self.device, "threads": threads, "versions": versions}


def run_tasks(
    tasks: Sequence[Task], folder: Path, workers: Workers, progress: Progress, *, threads: int = THREADS
) -> None:
    """Do all tasks whose results are not in ``folder``.

    Parameters
    ----------
    tasks : sequence of Task
    folder : pathlib.Path
        Where results are kept.
    workers : Workers
        Fewer work at once where memory does not suffice for all.
    progress : callable
        Called with the sizes of what is done and in all, over all workers.
    threads : int
        Of torch, for each task; as many as there are only where one task is all there is, which is done here.

    Raises
    ------
    Exception
        Of the first task that failed, with the task's name as a note, once all others are done.
    NotWrittenError
        If results cannot be written.
    UnfinishedError
        If a task ends its worker every time.
    """
    failed = try_tasks(tasks, folder, workers, progress, threads=threads)
    if failed:
        places = {task.key: place for place, task in enumerate(tasks)}
        task, error = min(failed, key=lambda of: places[of[0].key])
        error.add_note(f"in the task {task.name}" + (f", and {len(failed) - 1} more" if len(failed) > 1 else ""))
        raise error


def try_tasks(
    tasks: Sequence[Task], folder: Path, workers: Workers, progress: Progress, *, threads: int = THREADS
) -> Failures:
    """Do all tasks as :func:`run_tasks` does, and return those that failed, each with its error.

    A task that was not tried is not among them: after what all would meet, no other is begun.
    """
    list_hash(tasks)
    if threads > THREADS and len(tasks) > 1:
        raise ValueError(f"{len(tasks)} tasks of {threads} threads each")
    if not (workers.shared or workers.executor):
        clear_unfinished(folder)
    left = [task for task in tasks if not is_done(task, folder)]
    if workers.executor is not None and any(task.portable for task in left):
        elsewhere = Elsewhere([task for task in left if task.portable], folder, workers.device, threads)
        before = sum(task.size for task in tasks) - elsewhere.size
        workers.executor.do(elsewhere, lambda done, _total: progress(before + done, before + elsewhere.size))
        left = [task for task in left if not is_done(task, folder)]
    return _Stage(folder, workers, progress, sum(task.size for task in tasks), threads).do(left)


@dataclass(frozen=True)
class _Stage:
    """Where the results of a stage go, who does its tasks, and whom to tell."""

    folder: Path
    workers: Workers
    progress: Progress
    total: int
    threads: int

    def do(self, tasks: Sequence[Task]) -> Failures:
        """Do tasks, and return those that failed for good: at once, or ``TRIES`` times."""
        number = min(self.workers.number, len(tasks))
        here, tries = number <= 1, Counter[str]()
        if not self.workers.alone:  # whose memory is their devices'
            number = max(1, min(number, room() // max((task.memory for task in tasks), default=1)))
        left, failed, suspects = list(tasks), Failures(), list[Task]()
        self.progress(self._without(left), self.total)
        while left:
            over, troubles = self._round(left, number, here=here)
            # A worker that is ended ends all: a task counts as tried where nothing else came of it.
            tries.update(task.key for task, error in troubles if not (over and isinstance(error, BrokenProcessPool)))
            for task, error in troubles:
                if tries[task.key] < TRIES and _may_pass(error, number):
                    continue
                if isinstance(error, BrokenProcessPool):  # by its own fault, or that of others
                    suspects.append(task)
                else:
                    failed.append((task, error))
                if _is_common(error):
                    return failed
                over.add(task.key)
            left = [task for task in left if task.key not in over and not is_done(task, self.folder)]
            if any(isinstance(error, MemoryExhaustedError) for _, error in troubles):
                number = max(1, number // 2)
            if left:
                time.sleep(PAUSE * max(tries.values(), default=1))
        return failed + [trouble for task in suspects for trouble in self._by_itself(task)]

    def _round(self, tasks: Sequence[Task], number: int, *, here: bool) -> tuple[set[str], Failures]:
        """Try each task once, but begin none after what all would meet; return the keys of what is done, and errors."""
        done, troubles = set[str](), Failures()
        with closing(self._here(tasks) if here else self._elsewhere(tasks, number)) as outcomes:
            for task, error in outcomes:
                if error is None or (isinstance(error, BrokenProcessPool) and is_done(task, self.folder)):
                    done.add(task.key)
                else:
                    troubles.append((task, error))
                if error is not None and _is_common(error):
                    break
        return done, troubles

    def _by_itself(self, task: Task) -> Failures:
        """Do a task in a process of its own."""
        done, troubles = self._round([task], 1, here=False)
        if done or not isinstance(troubles[0][1], BrokenProcessPool):
            return troubles
        fix = "look at the machine's memory, and run again with fewer --workers: what is done is kept"
        return [(task, UnfinishedError(task.name, "its worker was ended every time", fix))]

    def _without(self, left: Sequence[Task]) -> int:
        """Return the size of all but some tasks."""
        return self.total - sum(task.size for task in left)

    def _here(self, tasks: Sequence[Task]) -> Outcomes:
        """Do tasks in this process, one after the other, with as many threads as are planned."""
        done = self._without(tasks)
        for task in tasks:
            try:
                with threads_of_torch(self.threads):
                    do_task(task, self.folder, self._beyond(done), about=self.workers.about(self.threads))
            except Exception as error:
                yield task, error
                continue
            done += task.size
            self.progress(done, self.total)
            yield task, None

    def _beyond(self, before: int) -> Progress:
        return lambda done, _total: self.progress(min(before + done, self.total), self.total)

    def _elsewhere(self, tasks: Sequence[Task], number: int) -> Outcomes:
        """Do tasks in other processes, in whatever order they are over."""
        global _given
        context = multiprocessing.get_context("spawn" if self.workers.alone else "fork")
        counter: Synchronized[int] = context.Value("q", 0)
        before, waiting = self._without(tasks), iter(enumerate(tasks))
        pending: dict[Future[None], Task] = {}
        _given = _Given(tasks, self.folder, self.workers, counter)
        number = min(number, len(tasks))
        sent = _sent(_given, context) if self.workers.alone else (_begin, (os.getpid(), number))
        try:
            with warnings.catch_warnings(), _pool(number, context, *sent) as pool:
                # Python warns of threads beside a fork. Those of torch and of the progress bar hold nothing that a
                # worker needs, which computes in one thread and shows nothing.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                while True:
                    with _starting():  # with the first task
                        for place, task in itertools.islice(waiting, AHEAD * number - len(pending)):
                            pending[pool.submit(_work, place)] = task
                    if not pending:
                        return
                    done, _ = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                    self.progress(min(before + counter.value, self.total), self.total)
                    try:
                        for future in done:
                            yield pending.pop(future), future.exception()
                    except GeneratorExit:  # no more are wanted; what is begun is finished
                        pool.shutdown(cancel_futures=True)
                        raise
        except BrokenProcessPool as error:  # a worker was ended before all were given out
            yield from ((task, future.exception() if future.done() else error) for future, task in pending.items())
        finally:
            _given = None


@contextmanager
def _starting() -> Iterator[None]:
    """Say so where the system starts no more processes."""
    try:
        yield
    except OSError as error:
        what = f"cannot be started ({error.strerror})"
        raise UnfinishedError("workers", what, "run again with fewer --workers: what is done is kept") from error


def _is_common(error: BaseException) -> bool:
    """Tell whether an error is no task's own fault: others would meet it, too."""
    return isinstance(error, MemoryExhaustedError) or is_of_machine(error)


def _may_pass(error: BaseException, number: int) -> bool:
    """Tell whether a task that failed beside so many others may succeed when it is tried again."""
    if isinstance(error, MemoryExhaustedError):
        return number > 1
    if isinstance(error, ImportError):
        return False
    return not isinstance(error, AuditError) or error.may_pass


@contextmanager
def _pool(
    number: int, context: BaseContext, begin: Callable[..., None], given: tuple[object, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Hold processes for the length of a block; they are ended where it ends by an exception."""
    with _starting():
        pool = ProcessPoolExecutor(number, context, initializer=begin, initargs=given)
    try:
        yield pool
    except BaseException:
        processes = list((pool._processes or {}).values())  # until Python 3.14, which has kill_workers()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        raise
    pool.shutdown()


@dataclass(frozen=True)
class _Given:
    """What workers have from the process that starts them."""

    tasks: Sequence[Task]
    folder: Path
    workers: Workers
    done: Synchronized[int]  # over all workers


_given: _Given | None = None


def _begin(coordinator: int, number: int) -> None:
    """Prepare a worker: one thread, a share of the memory, no lock of the coordinator, no life without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a keyboard it reaches all; the coordinator ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(THREADS)
    share_memory(number)
    let_go_of_locks()
    threading.Thread(target=_end_with, args=(coordinator,), daemon=True).start()


def _sent(given: _Given, context: BaseContext) -> tuple[Callable[..., None], tuple[object, ...]]:
    """Return what spawned processes begin with; tensors on a device go to that which each of them sees.

    Raises
    ------
    InputError
        If what is computed cannot be sent.
    """
    content = io.BytesIO()
    try:
        torch.save(given.tasks, content)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        what = f"what is computed cannot be sent to other processes ({error})"
        raise InputError("--device", what, "name one device, or define models and data in a module") from error
    turns = context.Value("q", 0)
    return _begin_alone, (
        os.getpid(),
        content.getvalue(),
        given.folder,
        given.workers,
        given.done,
        turns,
        TorchSettings.here(),
    )


def _begin_alone(
    coordinator: int,
    content: bytes,
    folder: Path,
    workers: Workers,
    done: Synchronized[int],
    turns: Synchronized[int],
    settings: TorchSettings,
) -> None:
    """Prepare a spawned worker: its own device, before any is used, and the tasks."""
    global _given
    with turns.get_lock():
        turn, turns.value = turns.value, turns.value + 1
    os.environ.update(workers.alone[turn % len(workers.alone)])
    _begin(coordinator, 1)
    settings.take()
    torch.set_num_threads(THREADS)
    # Of our own making a moment ago, and whole models: no file of weights.
    tasks = torch.load(io.BytesIO(content), map_location=_to_own, weights_only=False)
    _given = _Given(tasks, folder, workers, done)


def _to_own(storage: Any, where: str) -> Any:
    """Send to the device of this process what lay on one in the other."""
    return storage if where == "cpu" else storage.cuda()


def _end_with(coordinator: int) -> None:
    """End this process when its coordinator is gone: nobody waits for what it does."""
    while os.getppid() == coordinator:
        time.sleep(WATCHED)
    os._exit(1)


def _work(place: int) -> None:
    """Do one of the tasks."""
    assert _given is not None
    task, tell = _given.tasks[place], _teller(_given.done)
    do_task(task, _given.folder, tell, about=_given.workers.about())
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
