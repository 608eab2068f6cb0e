"""Task lists on a disk that several machines see: written by the process that plans, done by any that sees them.

``work/STAGE/HASH.tasks`` holds a line of JSON, what is to be known before a task is opened, and the tasks. A worker
leaves results under their keys, as every other does, or, of a task that failed, a line that says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from audit.errors import InputError, UnfinishedError, is_of_machine, one_line_of
from audit.store import WORK, write_bytes, write_text
from audit.work.executors import Elsewhere
from audit.work.sending import made_with, pack, refuse_others, unpack
from audit.work.settings import TorchSettings
from audit.work.tasks import Task, is_done, list_hash, result_files

FORMAT = 1
LIST, FAILED = ".tasks", ".failed"


@dataclass(frozen=True)
class Posted:
    """What is known of a list before its tasks are opened."""

    path: Path
    keys: tuple[str, ...]
    device: str
    threads: int
    rounds: int  # how often these tasks were posted, and none of them done since
    made_with: dict[str, str]
    settings: TorchSettings
    sha256: str  # of the tasks as bytes

    @property
    def stage(self) -> str:
        """The stage, for messages."""
        return self.path.parent.name

    @property
    def left(self) -> list[str]:
        """Keys of tasks of which nothing lies there, neither a result nor why there is none."""
        there = self.path.parent.iterdir() if self.path.parent.is_dir() else ()
        names = {path.name for path in there}
        return [key for key in self.keys if f"{key}.json" not in names and f"{key}{FAILED}" not in names]


def post(what: Elsewhere, *, again: bool) -> Posted:
    """Write the list of tasks that are not done; a list that is there and names them all is kept, unless ``again``.

    What is left of damaged results goes, so that it is taken for none.
    """
    what.folder.mkdir(parents=True, exist_ok=True)
    keys = [task.key for task in what.tasks]
    for known in (result_files(what.folder, key)[1] for key in keys):
        known.unlink(missing_ok=True)
    earlier = [posted for path in sorted(what.folder.glob(f"*{LIST}")) if (posted := read_list(path)) is not None]
    for posted in earlier:
        if not again and set(keys) <= set(posted.keys) and posted.made_with == made_with():
            return posted
    rounds = max((posted.rounds for posted in earlier if set(posted.keys) == set(keys)), default=0)
    for path in what.folder.parent.glob(f"*/*{LIST}"):  # their tasks are done, or posted again below
        if path.parent == what.folder or not (old := read_list(path)) or not old.left:
            path.unlink(missing_ok=True)
    content = pack(what.tasks)
    header = {
        "format": FORMAT,
        "keys": keys,
        "device": what.device,
        "threads": what.threads,
        "rounds": rounds + 1,
        "made_with": made_with(),
        "settings": asdict(TorchSettings.here()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    path = what.folder / f"{list_hash(what.tasks)}{LIST}"
    write_bytes(path, json.dumps(header).encode() + b"\n" + content, mode=0o600)
    found = read_list(path)
    assert found is not None
    return found


def read_list(path: Path) -> Posted | None:
    """Return what is known of a list; None where it is gone meanwhile, or cannot be read."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
        if header["format"] != FORMAT:
            return None
        settings = TorchSettings(**header["settings"] | {"tf32": tuple(header["settings"]["tf32"])})
        return Posted(
            path,
            tuple(header["keys"]),
            header["device"],
            header["threads"],
            header["rounds"],
            header["made_with"],
            settings,
            header["sha256"],
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def open_list(posted: Posted) -> list[Task]:
    """Return the tasks of a list.

    Raises
    ------
    InputError
        If it is another user's, or others may write it, for tasks are programs; or it was planned with other versions.
    UnfinishedError
        If it is damaged.
    """
    refuse_others(posted.made_with)
    with posted.path.open("rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid():
            what = "belongs to another user, and tasks are programs"
            raise InputError(str(posted.path), what, "work as the user who planned the run")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            what = "may be written by others, and tasks are programs"
            raise InputError(str(posted.path), what, "chmod 600 it, if nobody has")
        file.readline()
        content = file.read()
    if hashlib.sha256(content).hexdigest() != posted.sha256:
        raise UnfinishedError(str(posted.path), "is damaged", "plan again: vit-audit merge RUN")
    try:
        return unpack(content, posted.device)
    except (ImportError, AttributeError, pickle.UnpicklingError) as error:
        what = f"cannot be opened here ({' '.join(str(error).split())[:200]})"
        raise InputError(str(posted.path), what, "install what the run was planned with on all machines") from error


def note_failures(failed: Sequence[tuple[Task, BaseException]], folder: Path) -> None:
    """Say of tasks that they were tried here and failed; whoever plans tries them again.

    What any task would have met on this machine is no task's failure: another machine may do it.
    """
    for task, error in failed:
        if not is_of_machine(error) and not is_done(task, folder):
            line = json.dumps({"host": socket.gethostname(), "error": one_line_of(error)})
            with suppress(UnfinishedError):
                write_text(folder / f"{task.key}{FAILED}", line + "\n")


def take_failures(tasks: Sequence[Task], folder: Path) -> set[str]:
    """Return the keys of tasks that failed elsewhere, and forget that they did."""
    marked = {task.key for task in tasks if (folder / f"{task.key}{FAILED}").exists()}
    for key in marked:
        (folder / f"{key}{FAILED}").unlink(missing_ok=True)
    return marked


def lists_of(run: Path) -> list[Posted]:
    """Return the lists of a run of which something is left to do."""
    found = [read_list(path) for path in sorted((run / WORK).glob(f"*/*{LIST}"))]
    return [posted for posted in found if posted is not None and posted.left]
