"""Gaps of two runs of the same images, compared image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from audit.evidence.gap_change import AskedGap, GapChange, paired_changes
from audit.pipeline.analyze import predictions, questions
from audit.pipeline.load_run import OpenedRun, open_run
from audit.records import ContrastRow
from audit.report.shareable import refuse_copy


def paired_gaps(run: Path, baseline: Path, tested: Sequence[ContrastRow]) -> list[GapChange | None]:
    """Compare gaps of a run with those of its baseline, of the first seed's models.

    Raises
    ------
    InputError
        If what either answered is not stored, or one is a shareable copy of another run.
    """
    after, before = open_run(run), open_run(baseline)
    if after.source.digest != before.source.digest:  # of one copy, names are the same
        for folder in (baseline, run):
            refuse_copy(folder, "name the runs themselves")
    asked = {question.attribute: question for question in questions(after.scope)}
    gaps = [AskedGap(asked[row.attribute], row.group, row.outcome, row.metric) for row in tested]
    return paired_changes(_answers(before), _answers(after), gaps)


def _answers(run: OpenedRun) -> pd.DataFrame:
    """Return by image what the first seed's model calls it, beside labels, subjects and groups."""
    return predictions(run.scope, run.effects.unpatched, run.scope.seeds[0]).set_index("image")
