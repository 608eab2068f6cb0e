"""How far a gap of a zero-shot model depends on the words that its classes are described by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.records import ContrastRow, Metric, PromptGap, PromptSensitivity, WhyNoSensitivity


def why_not_alone(prompts: Mapping[str, Sequence[str]]) -> WhyNoSensitivity | None:
    """Return why texts cannot be tried one by one; None where they can.

    The i-th text of every class goes together, so each class needs as many, and more than one.
    """
    numbers = {len(texts) for texts in prompts.values()}
    if len(numbers) > 1:
        return WhyNoSensitivity.UNEQUAL
    return WhyNoSensitivity.ONE_TEXT if numbers == {1} else None


def prompt_sensitivity(
    prompts: Mapping[str, Sequence[str]],
    frames: Iterable[pd.DataFrame],
    compared: Sequence[ContrastRow],
    questions: Iterable[Question],
    outcomes: Sequence[str],
    limits: Thresholds,
) -> PromptSensitivity:
    """Measure each standardised gap with each text alone.

    Parameters
    ----------
    prompts : mapping of str to sequence of str
        The card's.
    frames : iterable of pandas.DataFrame
        Audit images with the predictions of each text alone, as ``contrasts`` takes them.
    compared : sequence of ContrastRow
        The audited model's.
    questions, outcomes, limits
        As ``contrasts`` takes them.
    """
    if (reason := why_not_alone(prompts)) is not None:
        return PromptSensitivity(left_out=reason, gaps=[])
    asked = list(questions)
    alone = [{row.id: row.estimate for row in contrasts(frame, asked, outcomes, limits)} for frame in frames]
    gaps = []
    for row in compared:
        if row.metric != Metric.STANDARDISED_GAP:
            continue
        each = [found[row.id] for found in alone]
        values = [e.value for e in each if e.value is not None]
        gaps.append(
            PromptGap(
                attribute=row.attribute,
                group=row.group,
                reference=row.reference,
                outcome=row.outcome,
                together=row.estimate,
                alone=each,
                spread=max(values) - min(values) if values else None,
            )
        )
    return PromptSensitivity(left_out=None, gaps=gaps)
