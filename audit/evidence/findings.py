"""Graded claims that a reviewer can accept or reject, as data; the report has their sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from audit.evidence.confidence import confidence_of
from audit.evidence.outcome import main_gaps, question_of
from audit.evidence.stats import excludes_zero
from audit.records import Confidence, ContrastRow, Estimate, Finding, HeadRow, Localisation, Verdict

ALTERNATIVES = ["label quality", "correlates", "audit images"]  # keys of templates/text/finding.j2
HEAD_ALTERNATIVES = ["redundant heads", "passed on", *ALTERNATIVES]
MAX_TOLERANCE = 1e-4
Grade = Literal["high", "medium", "low"]
RANK: Mapping[str, int] = {"high": 0, "medium": 1, "low": 2}


@dataclass(frozen=True)
class Context:
    """What every finding of a run shares."""

    name: str
    model: str
    matched_on: Sequence[str]
    calipers: Mapping[str, float]
    unknown: Mapping[str, int]  # images of unknown group, by attribute
    alpha: float
    gap_above: float
    head_share_above: float
    hashes: Mapping[str, str]


def stable_id(context: Context, *question: str) -> str:
    """Return an id that is the same whenever the same question is asked of the same card and model."""
    text = "|".join((context.name, context.model, *question))
    return f"F-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def make_findings(
    contrasts: Sequence[ContrastRow],
    heads: Sequence[HeadRow],
    localisation: Mapping[str, Localisation],
    context: Context,
) -> list[Finding]:
    """Return a finding for each contrast and outcome with a disparity, and one for each confirmed head that matters.

    Both are of the question's own metric (:func:`audit.evidence.outcome.main_gaps`). Disparities before heads, severe
    before light, larger before smaller, of equal ones attributes before intersections.
    """
    gaps = main_gaps(contrasts)
    above = [row for row in contrasts if row.above_policy]
    found = [
        _disparity(gap, [r for r in above if question_of(r) == key], localisation.get(key), context)
        for key, gap in gaps.items()
    ]
    tested = sum(row.confirmation_p is not None for row in heads)
    found += [
        _head(row, gaps[f"{row.contrast}:{row.outcome}"], context, family=tested)
        for row in heads
        if f"{row.contrast}:{row.outcome}" in gaps and _is_worth_a_card(row, context)
    ]
    return sorted(
        found, key=lambda f: (f.kind != "disparity", RANK[f.severity], -round(abs(f.estimate.value or 0.0), 4))
    )


def _is_worth_a_card(row: HeadRow, context: Context) -> bool:
    """Tell whether a head is confirmed and carries enough of the gap; the table of heads names the others."""
    share = row.share_of_gap.value
    return row.verdict == Verdict.CONFIRMED and (share is None or abs(share) >= context.head_share_above)


def _confidence(
    estimate: Estimate | None,
    p: float | None,
    by_seed: Sequence[float],
    tested: float,
    alpha: float,
    *,
    sampled: bool = False,
) -> Confidence:
    """Grade a finding by its interval in its own metric, and by the number that was tested under every seed."""
    return confidence_of(
        excludes_zero=estimate is not None and excludes_zero(estimate),
        p_adjusted=p,
        seeds_agreeing=sum(v * tested > 0 for v in by_seed),
        seeds=len(by_seed),
        sampled=sampled,
        alpha=alpha,
    )


def _size(row: ContrastRow) -> float:
    return abs(row.estimate.value or 0.0)


def _of_question(gap: ContrastRow, context: Context) -> dict[str, Any]:
    """Return the fields of a finding that are its question's, or the run's."""
    asked = {name: getattr(gap, name) for name in ("attribute", "group", "reference", "outcome", "metric")}
    unknown, hashes = context.unknown.get(gap.attribute, 0), dict(context.hashes)
    return {**asked, "unknown": unknown, "hashes": hashes, "reproduce": "", "tolerance": MAX_TOLERANCE}


def _disparity(row: ContrastRow, above: Sequence[ContrastRow], where: Localisation | None, context: Context) -> Finding:
    """Write up one group against its reference; ``above`` are the question's gaps above policy, in any metric."""
    value = row.estimate.value or 0.0
    worst = max(above, key=_size, default=row)
    severity: Grade = "low"
    if above:
        severity = "high" if _size(worst) > 2 * context.gap_above else "medium"
    return Finding(
        id=stable_id(context, "disparity", row.attribute, row.group, row.reference, row.outcome),
        kind="disparity",
        severity=severity,
        confidence=_confidence(row.estimate, row.p_adjusted, row.by_seed, value, context.alpha),
        **_of_question(row, context),
        n_group=row.n_group,
        n_reference=row.n_reference,
        estimate=row.estimate,
        by_seed=row.by_seed,
        p_raw=row.p_raw,
        p_adjusted=row.p_adjusted,
        family_size=row.family_size,
        heads=[] if where is None else where.heads,
        alternatives=ALTERNATIVES,
        expected=value,
        worst_metric=worst.metric,
        worst=worst.estimate.value,
        ratio=worst.ratio,
        above_policy=bool(above),
        localisation=None if where is None else where.status,
    )


def _head(row: HeadRow, gap: ContrastRow, context: Context, *, family: int) -> Finding:
    """Write up one confirmed head, in the metric of the gap that it is a part of."""
    share = row.share_of_gap.value
    return Finding(
        id=stable_id(context, "head", row.contrast, row.outcome, row.name),
        kind="head",
        severity="low" if share is None or abs(share) < 0.1 else "medium" if abs(share) < 0.5 else "high",
        confidence=_confidence(
            row.confirmation_rate,
            row.confirmation_p_adjusted,
            row.by_seed,
            row.confirmation.value or 0.0,
            context.alpha,
            sampled=row.patched_share < 1,
        ),
        **_of_question(gap, context),
        n_group=row.n_group,
        n_reference=row.n_reference,
        estimate=row.confirmation_rate or Estimate(value=None),
        by_seed=row.by_seed,
        p_raw=row.confirmation_p,
        p_adjusted=row.confirmation_p_adjusted,
        family_size=family,
        heads=[row.name],
        alternatives=HEAD_ALTERNATIVES,
        expected=row.confirmation.value or 0.0,
        direction=row.direction,
        probability=row.confirmation,
        discovery=row.discovery,
        discovery_p_adjusted=row.discovery_p_adjusted,
        placebo=row.placebo,
        share_of_gap=share,
        matched_on=list(context.matched_on),
        calipers=dict(context.calipers),
        patched_share=row.patched_share,
        percentile_in_layer=row.percentile_in_layer,
        accuracy_change=row.accuracy_change,
    )
