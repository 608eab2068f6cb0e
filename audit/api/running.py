"""Running an audit."""

from __future__ import annotations

from pathlib import Path

from audit.api.options import check_cache_dir, check_options
from audit.api.plans import Plan
from audit.api.progress import Callback, as_step
from audit.api.results import RUNS, Result, open_run
from audit.given import as_path, check_kind
from audit.models.device import CPU, first_of, numbered_devices
from audit.pipeline.prepare import Options
from audit.pipeline.run_audit import run_audit
from audit.process_state import run_state

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
    report: bool = True,
    command: str = "vit_audit.audit(plan)",
    callback: Callback | None = None,
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
    report : bool
        Whether HTML, PDF and tables are made.
    command : str
        What repeats the run, for the record.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all. Steps are also logged to
        ``logging.getLogger("vit_audit")``.

    Returns
    -------
    Result
        What :func:`vit_audit.open_run` gives for the folder.

    Raises
    ------
    InputError
        If the folder holds an audit of another question.
    UnfinishedError
        If the run cannot finish; finished stages are kept.

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
    )
    with run_state(memory=limit, fail_in_time=options.device == CPU), first_of(numbers):
        folder = run_audit(plan.inputs, options, as_step(callback))
    return open_run(folder)
