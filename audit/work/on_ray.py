"""Ray: each task is a task of Ray's; models go to each node once, images are opened where they are needed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audit.errors import AuditError, InputError, UnfinishedError
from audit.extras import needs
from audit.progress import Progress
from audit.work.executors import Elsewhere
from audit.work.sending import made_with, pack, refuse_others, unpack
from audit.work.settings import TorchSettings
from audit.work.tasks import Task, do_task, is_done, list_hash

LOCAL = "local"
POLL = 0.25  # seconds between two looks at how far the tasks are
RETRIES = 3  # of a task whose worker or node is lost
AHEAD = 2  # tasks for each processor or accelerator of the cluster that are given out at once
OF_ONE_TASK = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")  # of Ray: others may still be done
NOT_IMPORTED = "failed to import on the worker"  # Ray's words where a node has no vit-audit
SAID = 200  # signs of what Ray says
SEEN = ".ray"  # how the file ends by which a node knows that it sees the run's folder
LAYOUT = "put runs and data where all nodes see them under the same path"
_opened: dict[str, list[Task]] = {}  # of this worker: the list that it has opened last


@dataclass(frozen=True)
class OnRay:
    """Has a Ray cluster do tasks.

    Parameters
    ----------
    ray : module
    device : str
        The kind that tasks are done on; one accelerator each.
    """

    ray: Any
    device: str

    def do(self, what: Elsewhere, progress: Progress) -> None:
        """Do tasks, and return when each is done or has failed."""
        digest = list_hash(what.tasks)
        what.folder.mkdir(parents=True, exist_ok=True)
        seen = what.folder / f"{digest}{SEEN}"
        seen.touch()
        try:
            self._all(what, digest, progress)
        except (self.ray.exceptions.RayError, ConnectionError) as error:
            raise _lost(error) from error
        finally:
            with suppress(OSError):
                seen.unlink()

    def _all(self, what: Elsewhere, digest: str, progress: Progress) -> None:
        ray = self.ray
        content = ray.put(np.frombuffer(pack(what.tasks), dtype=np.uint8))
        about = ray.put(
            {
                "digest": digest,
                "made_with": made_with(),
                "settings": asdict(TorchSettings.here()),
                "device": what.device,
                "threads": what.threads,
                "folder": str(what.folder.absolute()),
                "here": str(Path.cwd()),
            }
        )
        kind, gpus = ("CPU", 0) if self.device == "cpu" else ("GPU", 1)
        if not ray.cluster_resources().get(kind):
            raise InputError("--ray", f"no node of the cluster has a {kind}", "add one, or choose another --device")
        remote = ray.remote(
            num_cpus=what.threads, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="SPREAD", max_calls=0
        )(_work)
        waiting, done = list(reversed(range(len(what.tasks)))), 0
        pending: dict[Any, int] = {}
        while waiting or pending:
            most = AHEAD * max(1, int(ray.cluster_resources().get(kind, 1)))
            while waiting and len(pending) < most:
                place = waiting.pop()
                pending[remote.remote(content, about, place)] = place
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL)
            for reference in ready:
                task = what.tasks[pending.pop(reference)]
                self._look_at(reference, task, what.folder)
                done += task.size
            progress(done, what.size)

    def _look_at(self, reference: Any, task: Task, folder: Path) -> None:
        """Raise where a node cannot do any task; what has failed by itself is tried by the process that plans."""
        try:
            refused = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            _refuse_node(error.cause)
            return
        except tuple(getattr(self.ray.exceptions, name) for name in OF_ONE_TASK):
            return  # lost more often than it is tried again: who plans does it
        if refused is not None:
            raise InputError(*refused)
        if not is_done(task, folder):
            what = f"a node wrote the result of {task.name} where this machine does not see it"
            raise InputError("--ray", what, LAYOUT)


@contextmanager
def on_ray(address: str, device: str) -> Iterator[OnRay]:
    """Yield what has a Ray cluster do tasks.

    Parameters
    ----------
    address : str
        Of a cluster, or "local" for one that is started here and ends with the block.
    device : str
        The kind that tasks are done on.

    Raises
    ------
    InputError
        If Ray is not installed.
    UnfinishedError
        If no cluster answers there.
    """
    ray = needs("ray", "--ray")
    started = not ray.is_initialized()
    before = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place of whoever stops this process
    if started:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(
                    address=None if address == LOCAL else address,
                    include_dashboard=False if address == LOCAL else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({"_node_ip_address": "127.0.0.1"} if address == LOCAL else {}),
                )
        except (ConnectionError, TimeoutError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            said = " ".join(str(error).split())[:SAID]
            fix = "look at 'ray status', correct the address, or give --ray local"
            raise UnfinishedError(f"--ray {address}", f"no Ray cluster answers there ({said})", fix) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
    try:
        yield OnRay(ray, device)
    finally:
        if started:
            ray.shutdown()


def _work(content: Any, about: dict[str, Any], place: int) -> tuple[str, str, str] | None:
    """Do one of the tasks, on a node; return what is wrong with the node, where something is."""
    try:
        refuse_others(about["made_with"])
    except InputError as error:
        return error.where, error.what, error.fix
    folder = Path(about["folder"])
    if not (folder / f"{about['digest']}{SEEN}").is_file():
        return socket.gethostname(), f"does not see {folder}", LAYOUT
    if about["digest"] not in _opened:
        with suppress(OSError):
            os.chdir(about["here"])  # where relative paths start
        TorchSettings(**about["settings"] | {"tf32": tuple(about["settings"]["tf32"])}).take()
        _opened.clear()
        try:
            _opened[about["digest"]] = unpack(memoryview(content), about["device"])
        except (ImportError, AttributeError) as error:
            fix = "install what the run was planned with on all nodes"
            return socket.gethostname(), f"cannot open tasks ({error})", fix
    task = _opened[about["digest"]][place]
    _do(task, folder, about)
    return None


def _do(task: Task, folder: Path, about: dict[str, Any]) -> None:
    from audit.work.pool import Workers
    from audit.work.settings import threads_of_torch

    if is_done(task, folder):
        return
    with threads_of_torch(about["threads"]):
        known = Workers(1, about["device"]).about(about["threads"])
        do_task(task, folder, lambda _done, _total: None, about=known)


def _refuse_node(cause: BaseException) -> None:
    """Raise what no task is at fault for: on that node, all others would meet it, too."""
    if isinstance(cause, AuditError) and cause.of_machine:
        raise cause
    said = " ".join(str(cause).split())
    if isinstance(cause, ImportError) or NOT_IMPORTED in said:
        last = said[-SAID:]
        fix = "install vit-audit with the same extras on all nodes"
        raise InputError("--ray", f"a node cannot import what tasks need ({last})", fix)


def _lost(error: Exception) -> AuditError:
    said = " ".join(str(error).split())[:SAID]
    fix = "look at 'ray status', and run again: what is done is kept"
    return UnfinishedError("--ray", f"the cluster is lost ({said})", fix)
