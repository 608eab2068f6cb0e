"""Executors: who does the tasks of a stage that other machines may do. None is needed to read results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from audit.progress import Progress
from audit.work.tasks import Task


@dataclass(frozen=True)
class Elsewhere:
    """Tasks that other machines may do, none of which is done.

    Parameters
    ----------
    tasks : sequence of Task
    folder : pathlib.Path
        Where their results go, on a disk that all machines see.
    device : str
        The kind of device that does them.
    threads : int
        Of torch, for each task.
    """

    tasks: Sequence[Task]
    folder: Path
    device: str
    threads: int

    @property
    def size(self) -> int:
        """How much work it is, in the units of the stage's progress."""
        return sum(task.size for task in self.tasks)


class Executor(Protocol):
    """What has tasks done on other machines."""

    def do(self, what: Elsewhere, progress: Progress) -> None:
        """Have tasks done; what is not, or has failed, is done by the process that plans.

        Raises
        ------
        WaitingError
            If they are done later, and nobody waits here.
        UnfinishedError
            If those machines cannot be reached.
        """
        ...
