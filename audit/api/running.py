"""Running an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from audit.api.options import check_cache_dir, check_options
from audit.api.plans import Plan
from audit.api.progress import Callback, as_step
from audit.api.results import RUNS, Result, open_run
from audit.api.tracking import Tracker, check_trackers, track
from audit.errors import InputError
from audit.given import as_path, check_kind
from audit.models.device import CPU, first_of, numbered_devices
from audit.pipeline.prepare import Options
from audit.pipeline.run_audit import run_audit
from audit.process_state import run_state
from audit.work.executors import Executor
from audit.work.on_ray import on_ray

__all__ = ["audit"]


def audit(
    plan: Plan,
    out: str | Path | None = None,
    *,
    runs: str | Path = RUNS,
    device: str = CPU,
    precision: str = "float32",
    memory: str | None = None,
    workers: int | None = None,
    cache_dir: str | Path | None = None,
    shards: bool = False,
    ray: str | None = None,
    report: bool = True,
    command: str = "vit_audit.audit(plan)",
    callback: Callback | None = None,
    trackers: Sequence[Tracker] = (),
) -> Result:
    """Run a whole audit: controls, models, patching, evidence, report. An interrupted one resumes where it stopped.

    Parameters
    ----------
    plan : Plan
        From :func:`vit_audit.plan`.
    out : str or pathlib.Path, optional
        The run's own folder; by default one in ``runs`` that is named by card, date and hash.
    runs : str or pathlib.Path
    device : {"auto", "cpu", "cuda", "mps"}, or several such as "cuda:0,cuda:1"
        Where models are trained, asked and patched; "auto" takes an accelerator where there is one. Of several, a
        process trains and patches on each, spawned: a script that calls this needs ``if __name__ == "__main__"``.
    precision : {"float32", "bf16", "fp16"}
        In what models are trained and heads searched for; findings are computed in float32. On "mps" nothing else is.
    memory : str, optional
        Keep the sweeps within so much memory, as "4G".
    workers : int, optional
        How many processes train models (four at most) and patch, one thread each; no result depends on it. By default
        as many as torch would use threads; on an accelerator one.
    cache_dir : str or pathlib.Path, optional
        Keep decoded images, people's too, in this folder outside any run, for this run and for later ones that see
        images in the same way; no result depends on it. Nothing else reads it, and nothing removes it.
    shards : bool
        Lay the run out for several machines only: :func:`vit_audit.merge` and :func:`vit_audit.work`, or
        :func:`vit_audit.submit`, go on. Card, model and data must be files.
    ray : str, optional
        Have a Ray cluster do tasks: its address, or "local" for one that is started here. Needs ``vit-audit[ray]``.
    report : bool
        Whether HTML, PDF and tables are made.
    command : str
        What repeats the run, for the record.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all. Steps are also logged to
        ``logging.getLogger("vit_audit")``.
    trackers : sequence of Tracker
        Where the finished run is logged, as ``[va.MLflowTracker(...)]``; whether each can be reached is asked before
        anything is done.

    Returns
    -------
    Result
        What :func:`vit_audit.open_run` gives for the folder.

    Raises
    ------
    InputError
        If the folder holds an audit of another question, or a tracker cannot log.
    UnfinishedError
        If the run cannot finish, or is finished and could not be logged; finished stages are kept.
    WaitingError
        With ``shards``, once it is laid out.

    Examples
    --------
    >>> import pandas as pd, vit_audit as va
    >>> people = pd.DataFrame({"image": range(400), "smiles": ["no", "yes"] * 200, "sex": ["f", "f", "m", "m"] * 100})
    >>> data = va.Data.from_frame(people, images="image", label="smiles", groups={"gender": "sex"})
    >>> answers = people[["image"]].assign(predicted=["no", "no", "no", "yes"] * 100)  # women are never seen to smile
    >>> plan = va.plan({"name": "Smiles"}, va.predictions(answers, classes=["no", "yes"]), data)
    >>> va.audit(plan, out="runs/smiles", report=False).outcome
    <Outcome.DISPARITY_FOUND: 'DISPARITY FOUND'>
    """
    check_kind("plan", plan, Plan, "give what vit_audit.plan returned")
    check_trackers(trackers)
    chosen, limit = check_options(device, precision, memory, workers)
    numbers = numbered_devices(device)
    own, inputs = None if out is None else as_path("out", out), plan.inputs
    kept = check_cache_dir(
        cache_dir,
        own or as_path("runs", runs),
        inputs.card,
        card_path=inputs.card_path,
        data_root=inputs.data_root,
        source=inputs.samples.source,
    )
    again = None
    if shards and trackers:
        fix = "log the run once it is finished: result.track(...)"
        raise InputError("trackers", "are not handed to those who go on with a run that is laid out", fix)
    if shards:
        meant = chosen if device == "auto" else device  # what there is where the run is laid out
        again = _how_to_go_on(plan, meant, precision, memory, report=report, command=command)
    options = Options(
        command,
        as_path("runs", runs),
        run=own,
        report=report,
        device=chosen,
        precision=precision,
        workers=workers,
        devices=numbers,
        cache_dir=kept,
        again=again,
    )
    with ExitStack() as stack:
        if ray is not None:
            options = replace(options, executor=stack.enter_context(on_ray(ray, chosen)))
        stack.enter_context(run_state(memory=limit, fail_in_time=options.device == CPU and ray is None))
        stack.enter_context(first_of(numbers))
        folder = run_audit(plan.inputs, options, as_step(callback))
    result = open_run(folder)
    track(result, trackers)
    return result


def _how_to_go_on(
    plan: Plan, device: str, precision: str, memory: str | None, *, report: bool, command: str
) -> dict[str, object]:
    """Return what another process needs to know to go on with a run.

    Raises
    ------
    InputError
        If card or model were given in Python.
    """
    inputs = plan.inputs
    given = [
        ("card", not inputs.card_path.is_file()),
        ("model", inputs.backbone is not None),
        ("data", inputs.card.data.reader == "frame"),
    ]
    for name, in_python in given:
        if in_python:
            raise InputError("--shards", f"the {name} was given in Python", "give files, which other machines can open")
    return {
        "card": str(inputs.card_path.absolute()),
        "data_root": None if inputs.data_root is None else str(inputs.data_root.absolute()),
        "device": device,
        "precision": precision,
        "memory": memory,
        "threads": torch.get_num_threads(),
        "report": report,
        "command": command,
    }


def audit_on(
    plan: Plan,
    run: Path,
    executor: Executor,
    asked: Mapping[str, Any],
    *,
    workers: int | None,
    callback: Callback | None,
) -> Result:
    """Go on with a run that was laid out, as it was asked for then.

    Parameters
    ----------
    plan : Plan
    run : pathlib.Path
    executor : Executor
    asked : mapping
        What was kept of it.
    workers : int, optional
    callback : callable, optional

    Returns
    -------
    Result
    """
    device, precision = asked["device"], asked["precision"]
    chosen, limit = check_options(device, precision, asked["memory"], workers)
    numbers = numbered_devices(device)
    options = Options(
        asked["command"],
        run.parent,
        run=run,
        report=asked["report"],
        device=chosen,
        precision=precision,
        workers=workers,
        devices=numbers,
        executor=executor,
    )
    lasting = run_state(memory=limit, threads=asked["threads"], fail_in_time=chosen == CPU)
    with lasting, first_of(numbers):
        return open_run(run_audit(plan.inputs, options, as_step(callback)))
