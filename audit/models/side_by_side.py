"""Several models trained at once, each on its own share of the processor's cores.

A step of a small model is over in milliseconds, and threads that share one wait for each other longer than they work.
Models that do not depend on each other are better trained side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from torch import nn

from audit.models.blocks import drops_at_random
from audit.models.device import CPU, ON_CPU
from audit.progress import Progress

AT_ONCE = 4  # models; bounds memory on machines of many cores
Job = Callable[[Progress], None]  # trains one model, telling its steps done and in all


class _StoppedError(Exception):
    """Ends a training because another one failed or the run was stopped."""


def train_side_by_side(
    jobs: Sequence[Job],
    models: Sequence[nn.Module],
    steps: Sequence[int],
    *,
    progress: Progress,
    device: torch.device = ON_CPU.device,
) -> None:
    """Run trainings that share nothing but what they read, a few at a time.

    Threads are assigned by the number of jobs, those included that find their model stored: so a model does not
    depend, to the bit, on what was stored before. Models with randomness in training (dropout) share one generator,
    and are trained one after the other; so are all on an accelerator, which one model keeps busy.

    Parameters
    ----------
    jobs : sequence of callable
    models : sequence of torch.nn.Module
        What the jobs train.
    steps : sequence of int
        Steps of each job; 0 where nothing is left to do.
    progress : callable
        Called with the steps done and in all, over all jobs, from any thread.
    device : torch.device
        Where the models are trained.
    """
    threads = torch.get_num_threads()
    one_by_one = device.type != CPU or any(map(drops_at_random, models))
    at_once = 1 if one_by_one else max(1, min(len(jobs), threads, AT_ONCE))
    tally = _Tally(steps, progress)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(max(1, threads // at_once),))
    try:
        running = [pool.submit(job, tally.of(number)) for number, job in enumerate(jobs)]
        wait(running, return_when=FIRST_EXCEPTION)
        for future in running:
            if future.done():
                future.result()
    finally:
        tally.stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class _Tally:
    """Adds up the progress of jobs, and ends those that are still at work when the run is stopped."""

    def __init__(self, steps: Sequence[int], progress: Progress) -> None:
        self.stopped = threading.Event()
        self._done, self._total = [0] * len(steps), sum(steps)
        self._progress, self._lock = progress, threading.Lock()

    def of(self, number: int) -> Progress:
        """Return the progress callback of one job."""

        def update(done: int, _steps: int) -> None:
            if self.stopped.is_set():
                raise _StoppedError
            with self._lock:
                self._done[number] = done
                self._progress(sum(self._done), self._total)

        return update
