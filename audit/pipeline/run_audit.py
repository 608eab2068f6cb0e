"""The audit as a straight line: card, data, models, controls, patching, evidence, findings, report."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from audit.controls.control_images import ControlSet
from audit.controls.verdict import numbers_table
from audit.errors import InputError, WaitingError, is_internal
from audit.evidence.joint_patching import sets_to_patch
from audit.evidence.stored_rows import StoredRows
from audit.evidence.trained_rows import layer_to_part
from audit.pipeline.analyze import (
    EMPTY,
    Judged,
    Rates,
    judge_effects,
    judge_rates,
    judge_sets,
    predictions,
)
from audit.pipeline.attention_maps import look
from audit.pipeline.build_record import REGISTRATION, record_audit, register
from audit.pipeline.context import Run, RunContext
from audit.pipeline.judge_ledgers import (
    asked_to_read,
    judge_carriers,
    judge_reading,
    judge_training,
    judge_writers,
    questions_of_heads,
    with_answers,
)
from audit.pipeline.measure_texts import measure_each_text
from audit.pipeline.patch_heads import patch_heads
from audit.pipeline.prepare import Inputs, Options, prepare, prepare_black_box, still_there
from audit.pipeline.run_black_box import measure_black_box
from audit.pipeline.run_carried import find_smallest, measure_parts
from audit.pipeline.run_controls import (
    CONTROL_NUMBERS,
    add_numbers,
    check_known_effects,
    check_own_model,
    check_reference_models,
    check_round_trips,
    control_images,
    pairs_as_given,
)
from audit.pipeline.run_pairs import sweep_pairs
from audit.pipeline.run_read_back import READ_MAPS, measure_read
from audit.pipeline.run_sweeps import UNPATCHED, Swept, measure_images, sweep_sets, what_can_be_asked
from audit.pipeline.run_trained import measure_heads, measure_trained
from audit.pipeline.run_written import measure_written
from audit.pipeline.train_models import AuditedModels, train_audited
from audit.progress import Step
from audit.records import Audit, Control, ControlReport, LegalAnswer, NotRun, NotRunCode, WhyNoLedger
from audit.report import answers, load_audit, render_run
from audit.report.manifest import check_kept, write_manifest
from audit.report.render import clear_pages
from audit.report.reviews import DECISIONS
from audit.report.shareable import refuse_copy
from audit.store import (
    SAMPLES,
    UNDETECTED,
    WORK,
    check_lock,
    check_writable,
    clear_unfinished,
    locked,
    now,
    write_bytes,
    write_table,
    write_text,
)
from audit.work.shards import PLAN, clear_work

LOG = "log.jsonl"


def run_audit(inputs: Inputs, options: Options, step: Step) -> Path:
    """Run a whole audit, from opened inputs to the report; an interrupted one resumes.

    Parameters
    ----------
    inputs : Inputs
    options : Options
    step : callable
        Given the name of a step, returns a callback (done, total).

    Returns
    -------
    pathlib.Path
        The run directory.

    Raises
    ------
    AuditError
        If the input cannot be audited, or the run cannot finish; finished stages are kept.
    """
    check_writable(options.run or options.out)
    if inputs.box is not None:
        asked = prepare_black_box(inputs, inputs.box, options, step)
        return _run(asked, options, lambda: measure_black_box(asked))
    context = prepare(inputs, options, step)
    with still_there(context.samples):
        images = control_images(context)

    def measure() -> Audit:
        with still_there(context.samples):  # images that are not held are opened all along
            return _measure(context, images)

    return _run(context, options, measure)


def _run(context: Run, options: Options, measure: Callable[[], Audit]) -> Path:
    """Measure and report in the run directory, which is this run's alone meanwhile."""
    with locked(context.run), _traceback_kept(context.run):
        refuse_copy(context.run, "name another --out")
        check_kept(context.run, record=False)
        _check_question(context)
        clear_unfinished(context.run, spared=WORK)  # where others may be writing
        context.started = _begun(context)
        register(context)
        write_table(context.run / SAMPLES, context.samples.frame.drop(columns="predicted", errors="ignore"))
        if context.samples.undetected is not None:
            write_table(context.run / UNDETECTED, context.samples.undetected)
        if options.again is not None:
            _lay_out(context, options.again)
        audit = measure()
        check_lock(context.run)
        kept = _kept_record(context.run)
        if kept is None or _without_times(kept) != _without_times(audit):
            if (context.run / DECISIONS).is_file():
                raise InputError(
                    str(context.run), "was reviewed, and would now say something else", "name another --out"
                )
            _write_record(context, audit)
            if not options.report:
                clear_pages(context.run)
        if options.report:
            render_run(context.run, progress=context.step("report: HTML and PDF"))
        write_manifest(context.run)
        clear_work(context.run)  # all of it is in the run's tables
    return context.run


def _lay_out(context: Run, again: Mapping[str, object]) -> None:
    """Write what goes on with the run, and leave it to that."""
    write_bytes(context.run / WORK / "card.yaml", context.card_content)
    write_text(context.run / WORK / PLAN, json.dumps(again, indent=1) + "\n")
    raise WaitingError(str(context.run), "is laid out", f"go on: vit-audit merge {context.run}, or submit")


def _check_question(context: Run) -> None:
    """Refuse a folder that holds an audit of another question."""
    path = context.run / REGISTRATION
    if path.is_file() and json.loads(path.read_bytes()).get("question") != context.question:
        what = "holds an audit of another card, model, data or version of the tool"
        raise InputError(str(context.run), what, "name another folder")


@contextmanager
def _traceback_kept(run: Path) -> Iterator[None]:
    """Add the traceback of an internal error to the log."""
    try:
        yield
    except Exception as error:
        if is_internal(error):
            text = "".join(traceback.format_exception(error))
            with suppress(OSError), (run / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"at": now().isoformat(), "error": repr(error), "traceback": text}) + "\n")
        raise


def _write_record(context: Run, audit: Audit) -> None:
    """Write card, log and record; the record last, for what lies with one is not written again."""
    write_bytes(context.run / "card.yaml", context.card_content)
    write_text(context.run / LOG, _log(context))
    write_text(context.run / "audit.json", audit.model_dump_json(indent=1) + "\n")


def _kept_record(run: Path) -> Audit | None:
    """Return the record that a run directory holds already, if it can be read."""
    try:
        return load_audit(run / "audit.json")
    except InputError:
        return None


def _without_times(audit: Audit) -> dict[str, object]:
    """Return a record but for when it was made, when control models were measured, and openings of sealed images."""
    plain = audit.model_dump()
    plain["provenance"].pop("started")
    plain["controls"].pop("setup")
    plain["data"].pop("sealed_opened")  # certificates since then are not the audit's
    return plain


def _begun(context: Run) -> str:
    """Return when the run was first started: a run that resumes after an interruption keeps that time."""
    path = context.run / LOG
    try:
        return str(json.loads(path.read_text(encoding="utf-8").splitlines()[0])["started"])
    except (OSError, ValueError, LookupError):
        write_text(path, json.dumps({"started": context.started}) + "\n")
        return context.started


def _measure(context: RunContext, images: ControlSet) -> Audit:
    """Run the stages in order; a failed known effect ends the audit before anything is said about groups."""
    legal = answers(context.card.legal, context.card.task)
    if all(question.gap is not None for question in what_can_be_asked(context)):
        nothing = ControlReport(valid=True, controls=[], grids=[])
        return record_audit(context, legal, nothing, None, None, EMPTY)  # nothing is trained for an answer known before
    models = rates = None
    if context.training is None:  # what is wrong with the user's own model shows before anything is trained
        models = _models(context)
        if context.served is not None and not context.served.passed:
            write_table(context.run / CONTROL_NUMBERS, numbers_table([context.served]))
            failed = ControlReport(valid=False, controls=[context.served], grids=[])
            return record_audit(context, legal, failed, models, None, EMPTY)
        rates = _rates(context, models)
        if not rates.comparable:
            return _without_groups(context, legal, models, rates, None)
    with context.stage("known effects (colour and blur controls)"):
        controls = check_known_effects(context, images)
    if not controls.valid:
        return record_audit(context, legal, controls, models, None, EMPTY)
    models = models or _models(context)
    with context.stage("identities"), models.on(context.compute.device):
        controls, design_c = _with_own(controls, context, models)
    if not controls.valid:
        return record_audit(context, legal, controls, models, None, EMPTY)
    rates = rates or _rates(context, models)
    if not rates.comparable:
        return _without_groups(context, legal, models, rates, controls)
    write_table(context.run / UNPATCHED, rates.unpatched)
    controls = controls.model_copy(update={"controls": [*_first(context, rates), *controls.controls]})
    with context.stage("patching"), models.on(context.compute.device):
        swept = patch_heads(context, models, rates, design_c=design_c)
        controls, pairs = _with_round_trips(controls, sweep_pairs(context, models, swept))
    with context.stage("evidence"):
        context.step("evidence: permutations and intervals")(0, 1)
        judged = judge_effects(context, rates, swept, pairs, {"data": context.samples.fingerprint, **models.hashes()})
    with context.stage("heads together"), models.on(context.compute.device):
        together = sweep_sets(context, models, swept, sets_to_patch(judged.heads, judged.localisation))
        judged = judge_sets(context, swept, together, judged)
        judged = replace(judged, attention=look(context, models, judged.findings))
    with context.stage("ledgers"), models.on(context.compute.device):
        if rates.asked(context.contrasts):
            judged = _with_writers(context, models, rates, judged)
            if design_c and (hybrids := measure_trained(context, models)) is not None:
                judged = judge_training(context, rates, hybrids, models.balanced_on, judged)
                layer = layer_to_part(judged.trained_parts)
                if layer is not None:
                    both = StoredRows([*hybrids.files, *measure_heads(context, models, layer).files])
                    judged = judge_training(context, rates, both, models.balanced_on, judged)
            judged = _with_carriers(context, models, swept, judged)
    return record_audit(context, legal, controls, models, swept, judged)


def _with_writers(context: RunContext, models: AuditedModels, rates: Rates, judged: Judged) -> Judged:
    """Add who writes the gaps and, where the card asks, what the largest writers read."""
    written = measure_written(context, models)
    judged = judge_writers(context, rates, written, judged)
    asked = asked_to_read(context, rates, judged)
    if not asked or isinstance(written, WhyNoLedger):
        return judged
    frame = predictions(context, rates.unpatched, context.seeds[0])
    read = measure_read(context, models, asked, frame, written)
    maps = context.run / READ_MAPS
    return judge_reading(context, rates, written, read, pd.read_parquet(maps) if maps.is_file() else None, judged)


def _with_carriers(context: RunContext, models: AuditedModels, swept: Swept, judged: Judged) -> Judged:
    """Add what carries the gaps, and where they run."""
    asked = questions_of_heads(context, swept, judged)
    contrasts = list(dict.fromkeys(contrast for contrast, _ in asked))
    judged = judge_carriers(context, swept, measure_parts(context, models, swept, contrasts), judged)
    judged = replace(judged, smallest=find_smallest(context, models, swept, asked))
    return with_answers(context, swept, judged)


def _models(context: RunContext) -> AuditedModels:
    """Train or load the audited models."""
    with context.stage("models"):
        return train_audited(context)


def _rates(context: RunContext, models: AuditedModels) -> Rates:
    """Compare the groups in what the models answer."""
    with context.stage("rates"), models.on(context.compute.device):
        return judge_rates(context, measure_images(context, models), measure_each_text(context, models))


def _without_groups(
    context: RunContext,
    legal: Sequence[LegalAnswer],
    models: AuditedModels,
    rates: Rates,
    controls: ControlReport | None,
) -> Audit:
    """Record an audit of a model that does not know the labels, or has one answer: nothing is said about groups."""
    write_table(context.run / UNPATCHED, rates.unpatched)
    before = controls or ControlReport(valid=True, controls=[], grids=[])
    update = {"valid": rates.labels.passed, "controls": [rates.labels, *before.controls]}
    accuracy = replace(EMPTY, accuracy=rates.accuracy)
    return record_audit(context, legal, before.model_copy(update=update), models, None, accuracy)


def _first(context: RunContext, rates: Rates) -> list[Control]:
    """Return the controls of the audited model as a whole: it answers as deployed, and knows the labels."""
    if context.served is None:
        return [rates.labels]
    add_numbers(context, [context.served])
    return [context.served, rates.labels]


def _with_own(controls: ControlReport, context: RunContext, models: AuditedModels) -> tuple[ControlReport, bool]:
    """Add the identities on the audit's own model, and tell whether Design C may run."""
    own = check_own_model(context, models)
    reference = [c.model_copy(update={"gates": "Design C"}) for c in check_reference_models(context, models)]
    add_numbers(context, [*own, *reference])
    failed = [c for c in reference if not c.passed]
    not_run = [*controls.not_run]
    if not reference:
        not_run.append(NotRun(code=NotRunCode.NEEDS_TRAINING, design="Design C"))
    if failed:
        not_run.append(_checks_failed("Design C", failed, reference))
    together = ControlReport(
        valid=controls.valid and all(c.passed for c in own),
        controls=[*own, *controls.controls, *reference],
        grids=controls.grids,
        setup=controls.setup,
        not_run=not_run,
    )
    return together, bool(reference) and not failed


def _with_round_trips(controls: ControlReport, pairs: pd.DataFrame | None) -> tuple[ControlReport, pd.DataFrame | None]:
    """Add the check of the edited pictures, and return the exact pairs, or None where it failed."""
    trips = [c.model_copy(update={"gates": "Design B"}) for c in check_round_trips(pairs)]
    failed = [c for c in trips if not c.passed]
    not_run = [_checks_failed("Design B", failed, trips)] if failed else []
    not_run += [
        NotRun(code=NotRunCode.PAIRS_AS_GIVEN, design="Design B", contrast=contrast)
        for contrast in pairs_as_given(pairs)
    ]
    update = {"controls": [*controls.controls, *trips], "not_run": [*controls.not_run, *not_run]}
    return controls.model_copy(update=update), None if failed else pairs


def _checks_failed(
    design: Literal["Design B", "Design C"], failed: Sequence[Control], every: Sequence[Control]
) -> NotRun:
    return NotRun(code=NotRunCode.CHECKS_FAILED, design=design, failed=len(failed), of=len(every))


def _log(context: Run) -> str:
    """Return the start, the control models that were used, then the stages and their seconds, a JSON object a line."""
    begun = json.dumps({"started": context.started}) + "\n"
    if isinstance(context, RunContext) and context.instruments:
        begun += json.dumps(context.instruments) + "\n"
    return (
        begun
        + "".join(_errors(context.run / LOG))
        + "".join(json.dumps({"stage": name, "seconds": seconds}) + "\n" for name, seconds in context.stages)
    )


def _errors(log: Path) -> list[str]:
    """Return the lines of a log that hold tracebacks of earlier attempts."""
    with suppress(OSError):
        return [line + "\n" for line in log.read_text(encoding="utf-8").splitlines() if '"traceback"' in line]
    return []
