"""Tasks that take time and nothing else; in a module, for they are sent to other processes."""

from __future__ import annotations

import time
from functools import partial

import pandas as pd

from audit.progress import Progress
from audit.work.tasks import Task


def slept(number: int, seconds: float, *, progress: Progress) -> pd.DataFrame:
    """Take some seconds."""
    time.sleep(seconds)
    progress(1, 1)
    return pd.DataFrame({"number": [number]})


def tasks_of(stage: int, number: int, seconds: float) -> list[Task]:
    """Return the tasks of a stage."""
    return [
        Task(f"{i}", {"stage": stage, "i": i}, 1, 1, partial(slept, i, seconds), portable=True) for i in range(number)
    ]
