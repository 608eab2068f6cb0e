"""Graded claims: what a reviewer can accept or reject, in sentences that say no more than was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from audit.records import ContrastRow, Estimate, Finding, HeadRow, Metric, State, Verdict
from audit.units import Unit, said_of

OUTCOME_UNCERTAINTY = "A predicted label is not what a person feels or does."
METRIC_WORDS: Mapping[Metric, str] = {
    Metric.STANDARDISED_GAP: "rate of being called '{outcome}', at equal labels",
    Metric.TPR_GAP: "rate of being called '{outcome}' among images labelled so",
    Metric.FPR_GAP: "rate of being called '{outcome}' among images labelled otherwise",
}
ALTERNATIVES = (
    "The labels themselves may differ in quality between groups (label noise, annotators' own leanings).",
    (
        "Something that goes with the group in these images (hair, make-up, light, source, image quality) may be what "
        "the model reads, unless donors were matched on it."
    ),
    "The audit images may not represent the images the model will meet.",
)
HEAD_ALTERNATIVES = (
    "Other heads may carry the same information: heads are redundant, so single shares do not add up.",
    "The head may pass on what an earlier part of the model produced, rather than be its origin.",
    *ALTERNATIVES,
)
MAX_TOLERANCE = 1e-4
Grade = Literal["high", "medium", "low"]


DISPARITY_ADVICE = (
    "Do not rely on this output for decisions about the groups named until the gap has been reduced and re-measured; "
    "begin with the balance of labels over groups in the training data."
)
HEAD_ADVICE = (
    "Use it to look further (which images move most, what the head attends to); do not switch the head off without "
    "measuring both groups' rates and accuracy again."
)
BOUNDED = (
    "This shows that the head's activation affects this output under this intervention; it does not show that the head "
    "encodes the attribute, is the only route, or that removing it would make the system treat the groups alike."
)
AS_IT_IS = "none: rates of the model as it is"
LOCALISED = "localised: "


@dataclass(frozen=True)
class Words:
    """The sentences of one finding."""

    title: str
    criterion: str
    condition: str
    cause: str
    effect: str
    wording: str


@dataclass(frozen=True)
class Context:
    """What every finding of a run shares."""

    name: str
    model: str
    matched_on: Sequence[str]
    unknown: Mapping[str, int]  # images of unknown group, by attribute
    alpha: float
    gap_above: float
    impact_ratio_below: float
    head_share_above: float
    hashes: Mapping[str, str]
    seeds: Sequence[int]
    unit: Unit = "head"


def stable_id(context: Context, *question: str) -> str:
    """Return an id that is the same whenever the same question is asked of the same card and model."""
    text = "|".join((context.name, context.model, *question))
    return f"F-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def points(value: float | None) -> str:
    """Return a fraction as percentage points with a sign."""
    return "n/a" if value is None else f"{100 * value:+.1f} points"


def spread(estimate: Estimate) -> str:
    """Return "+3.1 points [+1.2, +4.9]"."""
    if estimate.low is None or estimate.high is None:
        return points(estimate.value)
    return f"{points(estimate.value)} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def make_findings(
    contrasts: Sequence[ContrastRow], heads: Sequence[HeadRow], localisation: Mapping[str, str], context: Context
) -> list[Finding]:
    """Return a finding for each contrast and outcome with a disparity, and one for each confirmed head that matters.

    Disparities before heads, severe before light, larger before smaller, of equal ones attributes before intersections.
    """
    found: list[Finding] = []
    by_question: dict[tuple[str, str, str, str], list[ContrastRow]] = {}
    for row in contrasts:
        if row.state == State.DISPARITY:
            by_question.setdefault((row.attribute, row.group, row.reference, row.outcome), []).append(row)
    for rows in by_question.values():
        worst = max(rows, key=lambda r: (r.above_policy, abs(r.estimate.value or 0.0)))
        found.append(_disparity(worst, rows, localisation, context))
    tested = sum(row.confirmation_p is not None for row in heads)
    found += [_head(row, contrasts, context, family=tested) for row in heads if _is_worth_a_card(row, context)]
    rank = {"high": 0, "medium": 1, "low": 2}
    return sorted(
        found, key=lambda f: (f.kind != "disparity", rank[f.severity], -round(abs(f.estimate.value or 0.0), 4))
    )


def _is_worth_a_card(row: HeadRow, context: Context) -> bool:
    """Tell whether a head is confirmed and carries enough of the gap; the table of heads names the others."""
    share = row.share_of_gap.value
    return row.verdict == Verdict.CONFIRMED and (share is None or abs(share) >= context.head_share_above)


def _seeds_agree(values: Sequence[float], value: float) -> str:
    if len(values) < 2:
        return "one training seed only; agreement over seeds was not measured"
    same = sum(v * value > 0 for v in values)
    spelled = ", ".join(f"{100 * v:+.1f}" for v in values)
    return f"same direction in {same} of {len(values)} training seeds ({spelled} points)"


def _disparity(
    row: ContrastRow, rows: Sequence[ContrastRow], localisation: Mapping[str, str], context: Context
) -> Finding:
    """Write up one group against its reference: the metric that is furthest off, the others named."""
    value = row.estimate.value or 0.0
    where = localisation.get(f"{row.attribute}:{row.group}-{row.reference}:{row.outcome}", "not examined")
    words = _disparity_words(row, rows, where, context)
    severity: Grade = "low"
    if row.above_policy:
        severity = "high" if abs(value) > 2 * context.gap_above else "medium"
    sure = _is_consistent(row.by_seed, value) and (row.p_adjusted or 1) <= context.alpha / 5
    agreement = _seeds_agree(row.by_seed, value)
    return Finding(
        id=stable_id(context, "disparity", row.attribute, row.group, row.reference, row.outcome),
        kind="disparity",
        title=words.title,
        severity=severity,
        severity_reason=_severity_reason(row, context),
        confidence="high" if sure else "moderate",
        confidence_reason=f"adjusted p {_p(row.p_adjusted)} among {row.family_size} comparisons; {agreement}",
        criterion=words.criterion,
        condition=words.condition,
        cause=words.cause,
        effect=words.effect,
        recommendation=DISPARITY_ADVICE,
        attribute=row.attribute,
        group=row.group,
        reference=row.reference,
        outcome=row.outcome,
        metric=row.metric,
        n_group=row.n_group,
        n_reference=row.n_reference,
        unknown=context.unknown.get(row.attribute, 0),
        estimate=row.estimate,
        p_raw=row.p_raw,
        p_adjusted=row.p_adjusted,
        family_size=row.family_size,
        heads=where.removeprefix(LOCALISED).split(", ") if where.startswith(LOCALISED) else [],
        intervention=AS_IT_IS,
        placebo=AS_IT_IS,
        percentile_in_layer=None,
        accuracy_change=None,
        agreement_over_seeds=agreement,
        replication="estimated once, on all people kept out of training; the widest of the tested gaps is quoted",
        other_explanations=list(ALTERNATIVES),
        hashes=dict(context.hashes),
        reproduce="",
        expected=value,
        tolerance=MAX_TOLERANCE,
        wording=words.wording,
    )


def _disparity_words(row: ContrastRow, rows: Sequence[ContrastRow], where: str, context: Context) -> Words:
    value = row.estimate.value or 0.0
    rate = METRIC_WORDS[row.metric].format(outcome=row.outcome)
    more = "more" if value > 0 else "less"
    others = "; ".join(f"{r.metric.replace('_', ' ')} {spread(r.estimate)}" for r in rows if r is not row)
    return Words(
        title=f"{row.attribute}: '{row.group}' is called '{row.outcome}' {more} often than '{row.reference}'",
        criterion=(
            f"Policy of this audit: a gap above {100 * context.gap_above:.0f} points, or a ratio of rates below "
            f"{context.impact_ratio_below:.2f}, that is unlikely to be chance (adjusted p at most {context.alpha:g})."
        ),
        condition=f"Difference in {rate}: {spread(row.estimate)}" + (f"; {others}" if others else "") + ".",
        cause=f"Where in the model: {where}.",
        effect=(
            f"At the same label, people or images of '{row.group}' would be called '{row.outcome}' {more} often than "
            f"those of '{row.reference}'. {OUTCOME_UNCERTAINTY}"
        ),
        wording=(
            f"On this data, '{row.group}' differs from '{row.reference}' in the {rate} by {spread(row.estimate)}. "
            f"Group labels are as annotated. {OUTCOME_UNCERTAINTY}"
        ),
    )


def _is_consistent(values: Sequence[float], value: float) -> bool:
    """Tell whether two or more training seeds agree on the direction."""
    return len(values) > 1 and all(v * value > 0 for v in values)


def _severity_reason(row: ContrastRow, context: Context) -> str:
    ratio = "" if row.ratio is None else f", ratio of rates {row.ratio:.2f}"
    found, limit = f"{points(row.estimate.value)}{ratio}", f"{100 * context.gap_above:.0f} points"
    if not row.above_policy:
        return f"{found}: within the policy of {limit}"
    if abs(row.estimate.value or 0.0) > context.gap_above:
        return f"{found}: above the policy of {limit}"
    return f"{found}: the ratio is beyond the policy of {context.impact_ratio_below:.2f}, either way round"


def _p(value: float | None) -> str:
    if value is None:
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _head(row: HeadRow, contrasts: Sequence[ContrastRow], context: Context, *, family: int) -> Finding:
    """Write up one confirmed head."""
    gap = next(
        c
        for c in contrasts
        if (f"{c.attribute}:{c.group}-{c.reference}", c.outcome, c.metric)
        == (row.contrast, row.outcome, "standardised_gap")
    )
    value, share = row.confirmation.value or 0.0, row.share_of_gap.value
    words = _head_words(row, gap, context)
    matched = ", ".join(("label", *context.matched_on))
    agreement = _seeds_agree(row.by_seed, value)
    return Finding(
        id=stable_id(context, "head", row.contrast, row.outcome, row.name),
        kind="head",
        title=words.title,
        severity="low" if share is None or share < 0.1 else "medium" if share < 0.5 else "high",
        severity_reason="share of the gap in mean probability, on the same images: "
        + ("not estimable, the gap itself may be zero" if share is None else f"{100 * share:.0f}%"),
        confidence="high" if _is_consistent(row.by_seed, value) else "moderate",
        confidence_reason=(
            f"found on one set of people (adjusted p {_p(row.discovery_p_adjusted)}), confirmed on another "
            f"(adjusted p {_p(row.confirmation_p_adjusted)}); {agreement}"
        ),
        criterion=words.criterion,
        condition=words.condition,
        cause=words.cause,
        effect=words.effect,
        recommendation=said_of(context.unit, HEAD_ADVICE),
        attribute=gap.attribute,
        group=gap.group,
        reference=gap.reference,
        outcome=row.outcome,
        metric="mediated_gap",
        n_group=row.n_group,
        n_reference=row.n_reference,
        unknown=context.unknown.get(gap.attribute, 0),
        estimate=row.confirmation,
        p_raw=row.confirmation_p,
        p_adjusted=row.confirmation_p_adjusted,
        family_size=family,
        heads=[row.name],
        intervention=said_of(context.unit, "the head writes what it writes for an image of the other group, ")
        + f"same {matched}{said_of(context.unit, _sample(row))}",
        placebo=f"the same with an image of the same group, same {matched}: {spread(row.placebo)} by itself",
        percentile_in_layer=row.percentile_in_layer,
        accuracy_change=row.accuracy_change,
        agreement_over_seeds=agreement,
        replication=f"discovery {spread(row.discovery)}; confirmation, on other people, {spread(row.confirmation)}",
        other_explanations=[said_of(context.unit, sentence) for sentence in HEAD_ALTERNATIVES],
        hashes=dict(context.hashes),
        reproduce="",
        expected=value,
        tolerance=MAX_TOLERANCE,
        wording=words.wording,
    )


def _sample(row: HeadRow) -> str:
    """Say for which images the head was patched, where it was not for all."""
    if row.patched_share == 1:
        return ""
    return (
        f"; for {100 * row.patched_share:.0f}% of the images, drawn at random, the others being estimated to first "
        "order and corrected by these"
    )


def _opposite(estimate: Estimate) -> Estimate:
    """Turn the sign: what a head mediates is what the gap loses when the head no longer tells the groups apart."""
    turned = {"value": estimate.value, "low": estimate.high, "high": estimate.low}
    return estimate.model_copy(update={k: None if v is None else -v for k, v in turned.items()})


def _head_words(row: HeadRow, gap: ContrastRow, context: Context) -> Words:
    verb = "widens" if (row.confirmation.value or 0.0) * (gap.estimate.value or 0.0) > 0 else "narrows"
    found, change = spread(row.confirmation), spread(_opposite(row.confirmation))
    shift, unit = "narrows" if verb == "widens" else "widens", context.unit
    return Words(
        title=f"{said_of(unit, 'Head')} {row.name} {verb} the gap in '{row.outcome}' "
        f"between '{gap.group}' and '{gap.reference}'",
        criterion=said_of(
            unit,
            f"Mediated gap different from zero: adjusted p at most {context.alpha:g} over all heads, outcomes and "
            "contrasts on the discovery split, and again over the found heads on the confirmation split.",
        ),
        condition=f"Mediated gap {found} in the mean probability of '{row.outcome}'.",
        cause=said_of(
            unit,
            f"What head {row.head} of layer {row.layer} writes differs between images of the two groups, and the "
            "difference reaches this output.",
        ),
        effect=f"With donors from both groups alike, the gap changes by {change}: it {shift}.",
        wording=(
            f"Patching {row.name} with donors from both groups alike changed the gap in the mean probability of "
            f"'{row.outcome}' by {change} on this data. {said_of(unit, BOUNDED)}"
        ),
    )
