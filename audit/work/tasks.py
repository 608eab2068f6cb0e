"""Tasks: pieces of a stage that are fixed before it starts, each with a key, and their results on the disk.

A task's key is the hash of all that its result depends on. Its result is written under the key, first the table, then
what is known of it; a task whose two files are there and agree is done, whoever did it. Nothing is random but what the
key fixes, so it does not matter who does a task, when, or beside how many others.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch

from audit.batching import as_planned
from audit.errors import MemoryExhaustedError, UnfinishedError, is_exhausted
from audit.progress import Progress
from audit.store import file_hash, patiently, write_table, write_text

FORMAT = 2  # of the files of a result


class Perform(Protocol):
    """What does the work of a task."""

    def __call__(self, *, progress: Progress) -> pd.DataFrame:
        """Return the task's result."""
        ...


@dataclass(frozen=True)
class Task:
    """A piece of a stage."""

    name: str  # for messages: "skin_tone:darker, discovery, block 3 of 12"
    made_of: Mapping[str, object]  # all that the result depends on, as JSON takes it; the key is its hash
    size: int  # how much work it is, in the units of the stage's progress
    rows: int  # how many rows its result has
    # does the work; as ``progress`` it is given what to call with the units done and in all
    perform: Perform = field(compare=False)
    memory: int = 1  # bytes that the work holds, about; as many processes work at once as there is room for
    # what to change where memory does not suffice, for the message
    smaller: str = "take a smaller model or image_size, or a larger machine"
    leaves: Path | None = None  # a file that the work writes beside its table; without it there is no whole result
    # whether other machines may do it: it holds no image and no feature of one, and opens images by itself
    portable: bool = False

    @cached_property
    def key(self) -> str:
        """The SHA-256 of what the result depends on."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()


def list_hash(tasks: Sequence[Task]) -> str:
    """Return the SHA-256 of a task list; it is fixed before a stage starts.

    Raises
    ------
    ValueError
        If two tasks are one.
    """
    keys = [task.key for task in tasks]
    if len(set(keys)) != len(keys):
        raise ValueError("two tasks of a stage have one key")
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def result_files(folder: Path, key: str) -> tuple[Path, Path]:
    """Return where the table of a task lies, and what is known of it."""
    return folder / f"{key}.parquet", folder / f"{key}.json"


def do_task(task: Task, folder: Path, progress: Progress, *, about: Mapping[str, object]) -> None:
    """Do a task and keep its result; ``about`` says on what it was computed.

    Raises
    ------
    MemoryExhaustedError
        If memory does not suffice: nothing is cut to fit, for then the last bits would depend on what is free.
    UnfinishedError
        If the result has another number of rows than planned, or cannot be written.
    """
    table_file, known_file = result_files(folder, task.key)
    begun = time.monotonic()
    table = _performed(task, progress)
    if len(table) != task.rows:
        raise UnfinishedError(task.name, f"gave {len(table)} rows in place of {task.rows}", "please report this")
    patiently(lambda: write_table(table_file, table))
    known = {
        "format": FORMAT,
        "sha256": file_hash(table_file),
        "leaves": None if task.leaves is None else file_hash(task.leaves),
        "rows": len(table),
        "seconds": round(time.monotonic() - begun, 3),
        **about,
    }
    patiently(lambda: write_text(known_file, json.dumps(known, indent=1) + "\n"))


def _performed(task: Task, progress: Progress) -> pd.DataFrame:
    try:
        with as_planned(), torch.random.fork_rng(devices=()):
            torch.manual_seed(int(task.key[:15], 16))  # what is drawn does not depend on who draws
            return task.perform(progress=progress)
    except (MemoryError, RuntimeError, MemoryExhaustedError) as error:
        if not is_exhausted(error):
            raise
    gc.collect()  # outside of the handler, whose traceback would hold on to what was computed so far
    raise MemoryExhaustedError(task.name, "memory does not suffice", task.smaller)


def is_done(task: Task, folder: Path) -> bool:
    """Tell whether a whole result of a task lies in a folder; one that is damaged is none."""
    return _whole_result(task, folder) is not None


def _whole_result(task: Task, folder: Path) -> bytes | None:
    """Return the file of a task's table, or None where there is no whole result."""
    table_file, known_file = result_files(folder, task.key)
    try:
        known = json.loads(known_file.read_text(encoding="utf-8"))
        content = table_file.read_bytes()
        left = None if task.leaves is None else file_hash(task.leaves)
        found = (known["format"], known["rows"], known["sha256"], known["leaves"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return content if found == (FORMAT, task.rows, hashlib.sha256(content).hexdigest(), left) else None


def read_results(tasks: Sequence[Task], folder: Path) -> Iterator[pd.DataFrame]:
    """Yield the results of all tasks, one after the other in the order of the list.

    Raises
    ------
    UnfinishedError
        If a result is missing or damaged.
    """
    for task in tasks:
        content = _whole_result(task, folder)
        if content is None:
            raise UnfinishedError(str(folder / task.key), f"the result of {task.name} is missing", "run again")
        yield pd.read_parquet(io.BytesIO(content))


def merge(tasks: Sequence[Task], folder: Path, by: Sequence[str]) -> pd.DataFrame:
    """Put the results of all tasks together, sorted.

    Parameters
    ----------
    tasks : sequence of Task
    folder : pathlib.Path
    by : sequence of str
        Columns that tell the rows apart, by which they are sorted.

    Raises
    ------
    UnfinishedError
        If a result is missing or damaged, or two rows are alike in ``by``.
    """
    merged = pd.concat(read_results(tasks, folder), ignore_index=True).sort_values(
        list(by), kind="stable", ignore_index=True
    )
    if merged.duplicated(list(by)).any():
        raise UnfinishedError(str(folder), f"two results have the same {', '.join(by)}", "please report this")
    return merged
