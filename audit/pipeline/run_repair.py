"""A repair as a straight line: plan, methods, random heads, candidates, sealed images, certificate, audit again."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

from audit.card.load import load_card
from audit.data.samples import Samples
from audit.errors import InputError
from audit.exit_codes import ExitCode
from audit.models.build import Backbone
from audit.models.checkpoint import hash_state
from audit.models.device import CPU
from audit.pipeline.context import RunContext
from audit.pipeline.prepare import Options, prepare
from audit.pipeline.reopen import audited_name, reopen, weights_of
from audit.pipeline.repair_aim import aimed_gap
from audit.pipeline.repair_certificate import audit_again, judge
from audit.pipeline.repair_methods import at_random, candidates, ranked, run_methods
from audit.pipeline.repair_setup import REFERENCE, REGISTERED, RepairOptions, Setup
from audit.pipeline.train_models import weights_name
from audit.process_state import run_state
from audit.progress import Step
from audit.records import Audit
from audit.records.repair_json import CertificateState
from audit.records.repair_run import (
    Judged,
    Reaudit,
    Repair,
    RepairState,
    SealedFrom,
    best_of,
    state_of_repair,
    states_of,
)
from audit.report import load_audit
from audit.report.manifest import MANIFEST, check_kept, manifest_rows
from audit.report.names import names_of
from audit.report.repair_page import add_repair, write_repair_pages
from audit.store import check_writable, file_hash, locked, run_around, write_text

RECORD = "repair.json"
EXITS = {
    RepairState.CERTIFIED: ExitCode.DONE,
    RepairState.NOTHING_TO_REPAIR: ExitCode.DONE,
    RepairState.FAILED: ExitCode.REPAIR_FAILED,
    RepairState.NOT_SHOWN: ExitCode.TOO_LITTLE_DATA,
    RepairState.NOT_CERTIFIABLE: ExitCode.TOO_LITTLE_DATA,
    RepairState.NO_METHOD_HELPS: ExitCode.TOO_LITTLE_DATA,
}


def repair_run(
    run: Path,
    options: RepairOptions,
    step: Step,
    *,
    samples: Samples | None = None,
    backbone: Backbone | None = None,
) -> Path:
    """Repair the model of a finished run; an interrupted repair resumes.

    Parameters
    ----------
    run : Path
    options : RepairOptions
    step : callable
        Given the name of a step, returns a callback (done, total).
    samples, backbone : optional
        What was given in Python.

    Returns
    -------
    pathlib.Path
        The folder of the repair.

    Raises
    ------
    InputError
        If there is no valid audit of a model whose inside is given, its weights or data have changed since, or the
        folder holds another repair.
    """
    audit, card = load_audit(run / "audit.json"), load_card(run / "card.yaml")
    _refuse(run, audit, options)
    check_kept(run)
    spec = options.spec or card.to_repair
    gap = aimed_gap(audit, spec, run)
    check_writable(options.out)
    if gap is None:
        if (options.out / REGISTERED).is_file():
            raise InputError(str(options.out), "holds a repair that was planned otherwise", "name another --out")
        with locked(options.out):
            return _written(_nothing(audit, options), run, audit, options)
    inputs = reopen(
        run,
        audit,
        options.data_root,
        step=step,
        samples=samples,
        backbone=backbone,
        again="vit_audit.repair(..., net=...)",
    )
    with run_state(fail_in_time=options.device == CPU), tempfile.TemporaryDirectory() as work:
        opened = Options("vit-audit repair", run.parent, run=run, device=options.device, work=Path(work))
        context = prepare(inputs, opened, step)
        _check_weights(context, run, audit)
        check_writable(run, "counts of openings", "--out")
        with locked(options.out):
            return _written(_repaired(Setup(audit, gap, spec, context, inputs, options, step)), run, audit, options)


def _refuse(run: Path, audit: Audit, options: RepairOptions) -> None:
    if audit.is_invalid:
        raise InputError(str(run), "is INVALID, so nothing is known that could be repaired", "see its failed controls")
    if not audit.model.has_inside:
        raise InputError(str(run), "audits predictions, not a model", "repair a run whose model was given")
    around = run_around(options.out)
    if around is not None:
        raise InputError(str(options.out), f"is in the run directory {around.name}", "name another folder with --out")
    if options.sealed is not None and not options.sealed.is_file():
        raise InputError(str(options.sealed), "no such table", "correct --sealed")


def _check_weights(context: RunContext, run: Path, audit: Audit) -> None:
    """Refuse weights that are not those that were audited, and a reference that is not the one beside them."""
    for seed in context.seeds:
        path = weights_of(run, audited_name(context, seed))
        if hash_state(load_file(path)) != audit.provenance.hashes[weights_name(seed)]:
            raise InputError(str(path), "has changed since the run", "restore it, or audit again")
    path = run / REFERENCE
    listed = manifest_rows((run / MANIFEST).read_bytes()) if path.is_file() else {}
    if path.is_file() and file_hash(path) != listed.get(REFERENCE):
        raise InputError(str(path), "has changed since the run", "restore it, or audit again")


def _repaired(setup: Setup) -> Repair:
    """Do everything, in order."""
    _ = setup.others  # what is wrong with that table shows before anything is done
    plan, seconds = setup.plan, dict[str, float]()
    before = ranked(setup)
    if before.gap.value is None:
        what = "has too few images for a repair: those that methods are ranked on lack a group or a label"
        raise InputError(str(setup.context.run), what, "audit with a larger data.shares.repair")
    with _timed(seconds, "methods"):
        rows = run_methods(setup)
    chosen = candidates(setup.spec, rows, before)
    with _timed(seconds, "random heads"):
        random = at_random(setup, rows)
    recommended, judged = chosen[0] if chosen else None, Judged(certificates=[], sealed={})
    reaudit: Reaudit | None = None
    state = RepairState.NOT_CERTIFIABLE if chosen else RepairState.NO_METHOD_HELPS
    if chosen and plan.sealed_from != SealedFrom.NONE:
        with _timed(seconds, "certificates"):
            judged = judge(setup, chosen, rows)
        rows = [row.model_copy(update={"sealed": judged.sealed.get(row.method)}) for row in rows]
        best = best_of(judged.certificates)
        recommended = best.method
        if plan.reaudit and states_of(best.certificate) == {CertificateState.CERTIFIED}:
            with _timed(seconds, "audit of the repaired model"):
                reaudit = audit_again(setup, next(row for row in rows if row.method == best.method))
        state = state_of_repair(best.certificate, reaudit)
    return Repair(
        name=setup.audit.name,
        state=state,
        exit_code=EXITS[state],
        plan=plan,
        audited=before,
        audited_sealed=judged.audited,
        rows=rows,
        random=random,
        recommended=recommended,
        certificates=judged.certificates,
        reaudit=reaudit,
        started_from={weights_name(seed): setup.hash_of(seed) for seed in setup.context.seeds},
        stages=seconds,
        versions=_versions(),
        command=setup.options.command,
        started=plan.registered,
    )


def _nothing(audit: Audit, options: RepairOptions) -> Repair:
    """Return the record of a run in which no gap was detected."""
    state = RepairState.NOTHING_TO_REPAIR
    return Repair(
        name=audit.name,
        state=state,
        exit_code=EXITS[state],
        plan=None,
        audited=None,
        stages={},
        versions=_versions(),
        command=options.command,
        started=audit.provenance.started,
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begun, 1)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("vit-audit", "torch", "timm", "scikit-learn")}


def _written(record: Repair, run: Path, audit: Audit, options: RepairOptions) -> Path:
    """Write the record, the pages that are printed from it, and its chapter in the report of the run."""
    write_text(options.out / RECORD, json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    if options.report:
        write_repair_pages(options.out, record, names_of(audit))
        if record.plan is not None:
            add_repair(run, (options.out / RECORD).read_bytes())
    return options.out
