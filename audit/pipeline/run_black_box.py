"""The audit of a model whose inside is not given: rates and what they say, and no heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from audit.controls.verdict import numbers_table
from audit.evidence.power import gaps_can_be_tested
from audit.pipeline.analyze import EMPTY, judge_answers, judge_rates
from audit.pipeline.build_record import record_audit
from audit.pipeline.context import BlackBoxRun
from audit.pipeline.run_controls import CONTROL_NUMBERS
from audit.pipeline.run_sweeps import UNPATCHED, audit_rows, with_class_names, with_image_keys
from audit.records import Audit, ControlReport, NotRun, NotRunCode
from audit.report import answers
from audit.store import write_table

WITHOUT_INSIDE = NotRun(code=NotRunCode.NO_INSIDE, design="all")


def measure_black_box(context: BlackBoxRun) -> Audit:
    """Ask the model, and compare the groups; nothing is said about groups where it fails a control."""
    legal = answers(context.card.legal, context.card.task)
    nothing = ControlReport(valid=True, controls=[], grids=[], not_run=[WITHOUT_INSIDE])
    if not gaps_can_be_tested(context.samples, context.card):
        return record_audit(context, legal, nothing, None, None, EMPTY)
    first = [] if context.served is None else [context.served]
    if first:
        write_table(context.run / CONTROL_NUMBERS, numbers_table(first))
    if not all(control.passed for control in first):
        failed = nothing.model_copy(update={"valid": False, "controls": first})
        return record_audit(context, legal, failed, None, None, EMPTY)
    with context.stage("rates"):
        rates = judge_rates(context, ask_black_box(context))
    write_table(context.run / UNPATCHED, rates.unpatched)
    controls = nothing.model_copy(update={"valid": rates.labels.passed, "controls": [*first, rates.labels]})
    hashes = {"data": context.samples.fingerprint, "model": context.weights}
    judged = judge_answers(context, rates, hashes) if controls.valid else replace(EMPTY, accuracy=rates.accuracy)
    return record_audit(context, legal, controls, None, None, judged)


def ask_black_box(context: BlackBoxRun) -> pd.DataFrame:
    """Return the answers to all images of the audit splits, in the form of a model's predictions."""
    rows = audit_rows(context)
    found = context.box.answer(context.samples, rows, context.step("rates: answers of the model"))
    table = pd.DataFrame({"recipient": rows, "predicted": found.predicted.astype(np.int16), "seed": context.seeds[0]})
    if found.probabilities is not None:
        table = table.assign(**{f"p:{name}": found.probabilities[:, k] for name, k in context.outcomes.items()})
    if found.called is not None:
        table = table.assign(**{f"called:{name}": found.called[:, k] for name, k in context.outcomes.items()})
    return with_image_keys(context, with_class_names(table, context.samples.labels))
