"""Stage: from what was stored for the ledgers to where gaps run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from audit.batching import freed_memory_returned
from audit.evidence.bootstrap import draw_bootstrap
from audit.evidence.carried import pairs_needed
from audit.evidence.carried_parts import judge_parts
from audit.evidence.disparity import Question, primary_gaps
from audit.evidence.gap_answer import Ledgers, Pairs, answer
from audit.evidence.ledgers import gather, judge_written
from audit.evidence.read_back import Asked, Readings, gather_read, judge_read, largest_writers, maps_read
from audit.evidence.stored_rows import Rows, columns_of
from audit.evidence.trained_rows import judge_trained
from audit.patching.contributions import Contributions
from audit.pipeline.analyze import Judged, Rates, covariates_of, predictions, questions, what_is_compared
from audit.pipeline.context import Scope
from audit.pipeline.run_sweeps import Swept, head_settings
from audit.records import (
    Contrast,
    ContrastRow,
    LocalisationStatus,
    PartKind,
    WhyNoLedger,
    WhyNotRead,
    WhyNotTrained,
)

HALF = 0.5  # of the gap: a head that carries so much would show with as many donor pairs as are said


@freed_memory_returned()
def judge_writers(scope: Scope, rates: Rates, table: Rows | WhyNoLedger, judged: Judged) -> Judged:
    """Add who writes the gaps that were detected into the log-odds."""
    detected = _detected(scope, rates)
    if not detected:
        return judged
    frame = _answers(scope, rates)
    if isinstance(table, WhyNoLedger):
        given: Contributions | WhyNoLedger = table
    else:
        frame, given = _contributions(scope, frame, table)
    spec, covariates = scope.card.audit, covariates_of(scope)
    totals, rows = judge_written(
        given, frame, detected, resamples=spec.bootstrap, seed=spec.seed, covariates=covariates
    )
    return replace(judged, ledgers=totals, ledger=rows)


def _answers(scope: Scope, rates: Rates) -> pd.DataFrame:
    """Return of the images kept out of training what is compared, and the first seed's answers."""
    return predictions(scope, rates.unpatched, scope.seeds[0], what_is_compared(scope))


def _detected(scope: Scope, rates: Rates) -> list[tuple[Question, Contrast, ContrastRow]]:
    """Return the gaps that were detected, in rates, with what is compared."""
    gaps = primary_gaps(rates.contrasts)
    by_attribute = {question.attribute: question for question in questions(scope)}
    return [
        (by_attribute[contrast.attribute], contrast, gaps[f"{contrast}:{outcome}"])
        for contrast, found in rates.asked(scope.contrasts).items()
        for outcome in found
    ]


def _contributions(scope: Scope, frame: pd.DataFrame, table: Rows) -> tuple[pd.DataFrame, Contributions]:
    """Put together what was stored of the parts, with the same images' answers."""
    columns = [f"m:{name}" for name in scope.outcomes]
    recipients, given = gather(
        table, list(scope.outcomes), lambda rows: frame.loc[rows, columns].to_numpy(dtype=np.float64)
    )
    classes = len(scope.samples.labels)
    at = tuple(scope.readout.decision_at(place, classes) for place in scope.outcomes.values())
    return frame.loc[recipients], replace(given, decision=at)


def asked_to_read(scope: Scope, rates: Rates, judged: Judged) -> list[Asked]:
    """Return the gaps that are given as a sum, and the largest writers of each, where the card asks what they read."""
    if scope.card.audit.ledger.depth < 2:
        return []
    given = {(row.contrast, row.outcome) for row in judged.ledger}
    sliced = {(row.contrast, row.outcome) for row in judged.ledger if row.part == PartKind.SLICE}
    return [
        Asked(question, contrast, gap, largest_writers(judged.ledger, *key), key in sliced)
        for question, contrast, gap in _detected(scope, rates)
        if (key := (str(contrast), gap.outcome)) in given
    ]


@freed_memory_returned()
def judge_reading(
    scope: Scope,
    rates: Rates,
    written: Rows,
    table: Rows | WhyNotRead,
    maps: pd.DataFrame | None,
    judged: Judged,
) -> Judged:
    """Add what the largest writers read."""
    asked = asked_to_read(scope, rates, judged)
    frame, given = _contributions(scope, _answers(scope, rates), written)
    if isinstance(table, WhyNotRead):
        readings: Readings | WhyNotRead = table
    else:
        readings = gather_read(table, [name for name in scope.outcomes if f"m:{name}" in columns_of(table)])
    spec = scope.card.audit
    writers, rows = judge_read(readings, given, frame, asked, resamples=spec.bootstrap, seed=spec.seed)
    found = [] if maps is None else maps_read(maps)
    return replace(judged, read_writers=writers, read=rows, read_maps=found)


@freed_memory_returned()
def judge_training(scope: Scope, rates: Rates, table: Rows, balanced_on: str, judged: Judged) -> Judged:
    """Add which trained weights put the gaps there, of the attribute on which the reference models are balanced."""
    frame, gaps = _answers(scope, rates), primary_gaps(rates.contrasts)
    asked = [
        (contrast, outcome, gaps[f"{contrast}:{outcome}"].metric)
        for contrast, found in rates.asked(scope.contrasts).items()
        for outcome in found
        if contrast.attribute == balanced_on
    ]
    spec, covariates = scope.card.audit, covariates_of(scope)
    totals, rows = judge_trained(table, frame, asked, resamples=spec.bootstrap, seed=spec.seed, covariates=covariates)
    return replace(judged, trained=totals, trained_parts=rows)


def questions_of_heads(scope: Scope, swept: Swept, judged: Judged) -> list[tuple[Contrast, str]]:
    """Return the questions, as contrast and outcome, whose gap was detected and whose heads were patched."""
    return [
        (contrast, outcome)
        for contrast in swept.effects.patched_in_both_splits(scope.contrasts)
        for outcome in scope.outcomes
        if judged.localisation[f"{contrast}:{outcome}"].was_asked
    ]


@freed_memory_returned()
def judge_carriers(scope: Scope, swept: Swept, table: Rows | None, judged: Judged) -> Judged:
    """Add what whole parts carry of the gaps whose heads were asked for."""
    asked = questions_of_heads(scope, swept, judged)
    if table is None or not asked:
        return judged
    contrasts, seed = list(dict.fromkeys(contrast for contrast, _ in asked)), scope.seeds[0]
    rows = judge_parts(swept.effects, table, contrasts, list(scope.outcomes), seed, head_settings(scope))
    keys = {(str(contrast), outcome) for contrast, outcome in asked}
    return replace(judged, carried=[row for row in rows if (row.contrast, row.outcome) in keys])


def with_answers(scope: Scope, swept: Swept, judged: Judged) -> Judged:
    """Add where each detected gap runs, at least by who writes it where nothing could be patched."""
    known = Ledgers(
        localisation=judged.localisation,
        heads=judged.heads,
        joint=judged.joint,
        smallest=judged.smallest,
        carried=judged.carried,
        totals=judged.ledgers,
        written=judged.ledger,
        trained=judged.trained_parts,
    )
    patched = questions_of_heads(scope, swept, judged)
    found = [
        answer(
            known,
            f"{contrast}:{outcome}",
            str(contrast),
            outcome,
            _pairs(scope, swept, contrast, outcome) if (contrast, outcome) in patched else Pairs(),
            why_not_trained=_why_not_trained(scope, contrast),
        )
        for contrast in scope.contrasts
        for outcome in scope.outcomes
        if (contrast, outcome) in patched or _too_few_to_patch(judged, f"{contrast}:{outcome}")
    ]
    return replace(judged, answers=found)


def _too_few_to_patch(judged: Judged, key: str) -> bool:
    """Tell whether a gap was detected where too few subjects can be patched."""
    where = judged.localisation.get(key)
    return where is not None and where.metric is not None and where.status is LocalisationStatus.TOO_LITTLE_DATA


def _why_not_trained(scope: Scope, contrast: Contrast) -> WhyNotTrained:
    """Return why a gap has no ledger of what training put there, where it has none."""
    if scope.training is None:
        return WhyNotTrained.NO_TRAINING
    if not scope.training.balanced_seeds:
        return WhyNotTrained.NO_REFERENCE
    if contrast.attribute != next(iter(scope.samples.attributes)):
        return WhyNotTrained.OTHER_ATTRIBUTE
    return WhyNotTrained.NOT_COMPARED


def _pairs(scope: Scope, swept: Swept, contrast: Contrast, outcome: str) -> Pairs:
    """Count donor pairs, and how many would do."""
    effects = swept.effects.of(scope.seeds[0], contrast, "discovery", outcome)
    bootstrap = draw_bootstrap(effects, resamples=0, seed=0)
    here = len(np.unique(effects.unit[effects.weighted]))
    return Pairs(here, pairs_needed(effects, bootstrap, scope.card.audit.alpha, HALF))
