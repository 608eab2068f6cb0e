"""Stage: from what was stored for the ledgers to where gaps run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from audit.evidence.bootstrap import draw_bootstrap
from audit.evidence.carried import pairs_needed
from audit.evidence.carried_parts import judge_parts
from audit.evidence.disparity import primary_gaps
from audit.evidence.gap_answer import Ledgers, Pairs, answer
from audit.evidence.ledgers import gather, judge_written
from audit.evidence.stored_rows import Rows
from audit.evidence.trained_rows import judge_trained
from audit.patching.contributions import Contributions
from audit.pipeline.analyze import Judged, Rates, predictions, questions
from audit.pipeline.context import Scope
from audit.pipeline.run_sweeps import Swept, head_settings
from audit.records import Contrast, WhyNoLedger

HALF = 0.5  # of the gap: a head that carries so much would show with as many donor pairs as are said


def judge_writers(scope: Scope, rates: Rates, table: Rows | WhyNoLedger, judged: Judged) -> Judged:
    """Add who writes the gaps that were detected into the log-odds."""
    detected = rates.asked(scope.contrasts)
    if not detected:
        return judged
    frame, gaps = predictions(scope, rates.unpatched, scope.seeds[0]), primary_gaps(rates.contrasts)
    by_attribute = {question.attribute: question for question in questions(scope)}
    asked = [
        (by_attribute[contrast.attribute], contrast, gaps[f"{contrast}:{outcome}"])
        for contrast, found in detected.items()
        for outcome in found
    ]
    outcomes = list(scope.outcomes)
    if isinstance(table, WhyNoLedger):
        given: Contributions | WhyNoLedger = table
    else:
        columns = [f"m:{name}" for name in outcomes]
        recipients, given = gather(table, outcomes, lambda rows: frame.loc[rows, columns].to_numpy(dtype=np.float64))
        frame = frame.loc[recipients]
    totals, rows = judge_written(given, frame, asked, resamples=scope.card.audit.bootstrap, seed=scope.card.audit.seed)
    return replace(judged, ledgers=totals, ledger=rows)


def judge_training(scope: Scope, rates: Rates, table: Rows, balanced_on: str, judged: Judged) -> Judged:
    """Add which trained weights put the gaps there, of the attribute on which the reference models are balanced."""
    frame, gaps = predictions(scope, rates.unpatched, scope.seeds[0]), primary_gaps(rates.contrasts)
    asked = [
        (contrast, outcome, gaps[f"{contrast}:{outcome}"].metric)
        for contrast, found in rates.asked(scope.contrasts).items()
        for outcome in found
        if contrast.attribute == balanced_on
    ]
    spec = scope.card.audit
    totals, rows = judge_trained(table, frame, asked, resamples=spec.bootstrap, seed=spec.seed)
    return replace(judged, trained=totals, trained_parts=rows)


def questions_of_heads(scope: Scope, swept: Swept, judged: Judged) -> list[tuple[Contrast, str]]:
    """Return the questions, as contrast and outcome, whose gap was detected and whose heads were patched."""
    return [
        (contrast, outcome)
        for contrast in swept.effects.patched_in_both_splits(scope.contrasts)
        for outcome in scope.outcomes
        if judged.localisation[f"{contrast}:{outcome}"].was_asked
    ]


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
    """Add where each gap runs."""
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
    found = [
        answer(known, f"{contrast}:{outcome}", str(contrast), outcome, _pairs(scope, swept, contrast, outcome))
        for contrast, outcome in questions_of_heads(scope, swept, judged)
    ]
    return replace(judged, answers=found)


def _pairs(scope: Scope, swept: Swept, contrast: Contrast, outcome: str) -> Pairs:
    """Count donor pairs, and how many would do."""
    effects = swept.effects.of(scope.seeds[0], contrast, "discovery", outcome)
    bootstrap = draw_bootstrap(effects, resamples=0, seed=0)
    here = len(np.unique(effects.unit[effects.weighted]))
    return Pairs(here, pairs_needed(effects, bootstrap, scope.card.audit.alpha, HALF))
