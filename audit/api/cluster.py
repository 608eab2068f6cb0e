"""A run by several machines: tasks that are posted in its folder, done by whoever sees it, and put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audit.api.cards import load_card
from audit.api.options import check_options
from audit.api.plans import plan
from audit.api.progress import Callback, as_step
from audit.api.results import Result, open_run
from audit.api.running import audit_on
from audit.errors import InputError
from audit.given import as_path
from audit.models.device import CPU, first_of, numbered_devices, seen_alone
from audit.process_state import run_state
from audit.store import WORK
from audit.work.executors import Executor
from audit.work.pool import Workers
from audit.work.shards import PATIENCE, PLAN, Shard, Shards, work_on
from audit.work.slurm import SlurmJobs, submit_first

__all__ = ["merge", "submit", "work"]


def work(
    run: str | Path,
    shard: str,
    *,
    wait: bool = False,
    device: str = CPU,
    workers: int = 1,
    callback: Callback | None = None,
) -> int:
    """Do a share of the tasks that are posted in a run's folder.

    Parameters
    ----------
    run : str or pathlib.Path
        Laid out by ``vit-audit run CARD --shards``, on a disk that all machines see.
    shard : str
        Which share: "2/8" is the second of eight. Tasks go to the shares in turn.
    wait : bool
        Go on with the lists of later stages until the run is over.
    device : {"auto", "cpu", "cuda", "mps"}, or several such as "cuda:0,cuda:1"
    workers : int
        Processes, one thread each; no result depends on it.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    int
        How many tasks were done; 0 where the run is finished.

    Raises
    ------
    InputError
        If nothing is laid out there, or this machine has other versions, another kind of device or another clock, or
        lacks a package.
    UnfinishedError
        If a task failed, or results cannot be written.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.work("runs/none", "1/2")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: ...runs/none: is no run that is laid out for several machines; ...
    """
    chosen, _ = check_options(device, workers=None if device != CPU else workers)
    numbers = numbered_devices(device)
    share, folder = Shard.read(shard), as_path("run", run).absolute()
    hands = Workers(workers, chosen, seen_alone(numbers))
    with first_of(numbers):
        return work_on(folder, share, hands, as_step(callback), wait=wait)


def merge(
    run: str | Path,
    *,
    wait: bool = False,
    patience: float = PATIENCE,
    workers: int | None = None,
    callback: Callback | None = None,
) -> Result:
    """Go on with a run that was laid out: put together what is done, and post what is to be done next.

    Anything that no other machine may do, since it holds images or features of them, is done here. It can be stopped
    at any moment, and called again on any machine that sees the folder.

    Parameters
    ----------
    run : str or pathlib.Path
    wait : bool
        Wait for others to do what is posted; without it, end with the line that says what is to be done.
    patience : float
        With ``wait``, give up after so many seconds in which nobody works on what is posted.
    workers : int, optional
        Processes for what is done here.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    Result
        Once all is done.

    Raises
    ------
    WaitingError
        If tasks are to be done by others, and nobody waits, or none of them works.
    InputError
        If nothing is laid out there, or card, data, weights or versions are others than then.
    UnfinishedError
        If the run cannot finish; what is done is kept.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.merge("runs/none")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: ...runs/none: is no run that is laid out for several machines; ...
    """
    return _go_on(as_path("run", run), Shards(wait, patience), workers, callback)


def submit(
    run: str | Path,
    *,
    account: str | None = None,
    partition: str | None = None,
    time: str | None = None,
    gpus: int = 0,
    cpus: int = 1,
    jobs: int = 16,
    sbatch: tuple[str, ...] = (),
    here: bool = False,
    workers: int | None = None,
    callback: Callback | None = None,
) -> Result | str:
    """Have SLURM do a run that was laid out: an array of jobs for each list of tasks, and after it a job that goes on.

    The jobs run a copy of the source that is made now. What is not given here is as SLURM's own variables
    (``SBATCH_ACCOUNT`` and so on) or the site have it.

    Parameters
    ----------
    run : str or pathlib.Path
    account, partition, time : str, optional
        As ``sbatch`` takes them.
    gpus, cpus : int
        Of each job.
    jobs : int
        Of an array, at most; a list of fewer tasks than half of it is done by the job that goes on.
    sbatch : tuple of str
        Further options of ``sbatch``, as "--constraint=a100".
    here : bool
        Go on in this process, as the jobs do; without it the first job is submitted, and does.
    workers : int, optional
        Processes for what the job that goes on does by itself.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    Result or str
        The result where it was the last step, else the number of the first job.

    Raises
    ------
    WaitingError
        With ``here``: the next array is submitted, and the job that goes on after it.
    InputError
        If nothing is laid out there, ``sbatch`` is not installed, or accelerators are asked for though the run was laid
        out for the processor.
    UnfinishedError
        If SLURM refuses or cannot be reached.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.submit("runs/none")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: ...runs/none: is no run that is laid out for several machines; ...
    """
    folder = as_path("run", run).absolute()
    device = read_plan(folder)["device"]
    if gpus and device == CPU:
        fix = "leave it out, or lay the run out with --device cuda"
        raise InputError("--gpus", f"is {gpus}, and the run was laid out for the {CPU}", fix)
    asked = SlurmJobs(folder, account, partition, time, gpus, cpus, jobs, tuple(sbatch), workers)
    return _go_on(folder, asked, workers, callback) if here else submit_first(asked)


def read_plan(run: Path) -> dict[str, Any]:
    """Return how a run is gone on with.

    Raises
    ------
    InputError
        If it was not laid out, or is over.
    """
    path = run / WORK / PLAN
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fix = "lay it out: vit-audit run CARD --shards"
        raise InputError(str(run), "is no run that is laid out for several machines", fix) from None
    return found


def _go_on(run: Path, executor: Executor, workers: int | None, callback: Callback | None) -> Result:
    """Run the audit's line from where it is."""
    if (run / "audit.json").is_file() and not (run / WORK / PLAN).is_file():
        return open_run(run)
    folder = run.absolute()
    asked = read_plan(run)
    card = load_card(folder / WORK / "card.yaml")
    card._path = Path(asked["card"])
    data_root = None if asked["data_root"] is None else Path(asked["data_root"])
    with run_state(threads=asked["threads"], fail_in_time=False):  # as when it was laid out
        planned = plan(card, data_root=data_root, callback=callback)
        return audit_on(planned, folder, executor, asked, workers=workers, callback=callback)
