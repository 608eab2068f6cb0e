"""Section "Findings": one card per finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audit.records import AttentionMap, Audit, Decision, Finding
from audit.report import figures, formats, view_data, wording
from audit.report.svg import Badge, Column, Fact, Picture, Table, header_cell, number_cell, places
from audit.report.view_heads import estimate_text, forest, points_text
from audit.units import Unit, said_of

TOP_FINDINGS = 3
DOWN, ACROSS = ("top", "middle", "bottom"), ("left", "centre", "right")
DRAWN = 24  # findings with a picture of their own; all of them stand in the forest plots and tables
_SEVERITY_ORDER = {"high": 0, "medium": 1, "low": 2}


ABOUT_RATES = "none: this finding is about rates, not about heads"


@dataclass(frozen=True)
class Decided:
    """One decision of a reviewer; the last one of a finding stands."""

    badge: Badge
    by: str  # name, role and day
    reason: str


@dataclass(frozen=True)
class FindingCard:
    """One finding, ready to print."""

    anchor: str
    id: str
    title: str
    wording: str
    severity: Badge
    severity_reason: str
    confidence: Badge
    confidence_reason: str
    picture: Picture | None
    argument: tuple[Fact, ...]  # criterion, condition, cause, effect, recommendation
    numbers: tuple[Fact, ...]
    patching: tuple[Fact, ...]
    repeat: tuple[Fact, ...]
    other_explanations: tuple[str, ...]
    figure_text: str  # the estimate in one line, for page one
    decisions: tuple[Decided, ...] = ()  # oldest first
    looks: tuple[Picture, ...] = ()  # where the head looks, one picture per group
    regions: Table | None = None  # the same in numbers
    source: str = ""  # where it stands in audit.json


def ordered_findings(audit: Audit) -> list[Finding]:
    """Return the findings, most severe and largest first; equal ones stay in the record's order."""
    return sorted(
        audit.findings,
        key=lambda f: (_SEVERITY_ORDER[f.severity], f.kind != "disparity", -round(abs(f.estimate.value or 0.0), 4)),
    )


def top_findings(audit: Audit) -> list[Finding]:
    """Return the two or three findings of page one: the largest of each question, one head at least."""
    seen: set[tuple[str, ...]] = set()
    chosen = []
    for finding in ordered_findings(audit):
        question = (finding.kind, finding.attribute, finding.group, finding.outcome)
        if question not in seen:
            seen.add(question)
            chosen.append(finding)
    heads = [finding for finding in chosen if finding.kind == "head"][:1]
    disparities = [finding for finding in chosen if finding.kind == "disparity"][: TOP_FINDINGS - len(heads)]
    return (disparities + heads)[:TOP_FINDINGS]


def finding_card(
    audit: Audit,
    finding: Finding,
    *,
    compact: bool = False,
    drawn: bool = True,
    decisions: Sequence[Decision] = (),
) -> FindingCard:
    """Write one finding as a card; ``compact`` draws the small picture of page one, not ``drawn`` means none."""
    source = places({"/findings": audit.findings})(finding)
    return FindingCard(
        anchor=f"finding-{formats.slug(finding.id)}",
        id=finding.id,
        title=finding.title,
        wording=finding.wording,
        severity=wording.SEVERITIES[finding.severity],
        severity_reason=finding.severity_reason,
        confidence=wording.CONFIDENCES[finding.confidence],
        confidence_reason=finding.confidence_reason,
        picture=_picture(audit, finding, compact) if drawn else None,
        argument=(
            Fact("Criterion", finding.criterion),
            Fact("Condition", finding.condition),
            Fact("Cause", finding.cause),
            Fact("Effect", finding.effect),
            Fact("Recommendation", finding.recommendation),
        ),
        numbers=_numbers(finding),
        patching=_patching(audit.model.unit, finding),
        repeat=_repeat(finding, source),
        other_explanations=tuple(finding.other_explanations),
        figure_text=estimate_text(finding.estimate),
        looks=() if compact else _looks(audit, finding),
        regions=None if compact else _regions(audit, finding),
        source=source,
        decisions=tuple(Decided(wording.DECISIONS[d.decision], decided_by(d), d.reason) for d in decisions),
    )


def _maps(audit: Audit, finding: Finding) -> list[AttentionMap]:
    contrast = f"{finding.attribute}:{finding.group}-{finding.reference}"
    return [m for m in audit.attention if (m.contrast, [m.name]) == (contrast, finding.heads)]


def _looks(audit: Audit, finding: Finding) -> tuple[Picture, ...]:
    """Draw where the finding's head looks in the images of either group, on one scale."""
    maps = _maps(audit, finding)
    largest = max((v for seen in maps for row in seen.weights for v in row), default=0.0)
    return tuple(
        figures.attention_picture(
            seen.weights,
            largest,
            f"{formats.label(seen.group)}: mean over {formats.plural(seen.images, 'image')}",
            f"Where {seen.name} looks in images of {formats.label(seen.group)}: {_in_words(seen)}.",
        )
        for seen in maps
    )


def _in_words(seen: AttentionMap) -> str:
    """Name the region that gets the most attention."""
    shares = region_shares(seen.weights)
    name, share = max(shares.items(), key=lambda item: item[1])
    return f"most on the {name} ninth, {formats.percent(share, 0)} of its attention"


def region_shares(weights: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return what share of a head's attention falls on each ninth of the image; no patch is in two of them."""
    grid = np.array(weights, dtype=np.float64)
    names = [f"{down} {across}" for down in DOWN for across in ACROSS]
    parts = [part for rows in np.array_split(grid, 3, axis=0) for part in np.array_split(rows, 3, axis=1)]
    return {name: float(part.sum()) for name, part in zip(names, parts, strict=True)}


def _regions(audit: Audit, finding: Finding) -> Table | None:
    """Return the attention on each ninth of the image, three columns a group; None where it was not measured."""
    maps = _maps(audit, finding)
    if not maps:
        return None
    shares, place = [region_shares(seen.weights) for seen in maps], places({"/attention": audit.attention})
    return Table(
        id=f"regions-{formats.slug(finding.id)}",
        caption=f"Where {maps[0].name} looks: share of its attention on each ninth of the image",
        columns=(
            Column("Region"),
            *(Column(formats.label(seen.group), across, True) for seen in maps for across in ACROSS),
        ),
        rows=tuple(
            (
                header_cell(down, source=" ".join(place(seen) for seen in maps)),
                *(number_cell(formats.percent(share[f"{down} {across}"], 0)) for share in shares for across in ACROSS),
            )
            for down in DOWN
        ),
        note=wording.ATTENTION,
        kind="dense",
    )


def decided_by(decision: Decision) -> str:
    """Write who decided, and on which day."""
    return f"{formats.label(decision.name)}, {formats.label(decision.role)}, {decision.decided[:10]}"


def _numbers(finding: Finding) -> tuple[Fact, ...]:
    metric = wording.METRICS.get(finding.metric, (finding.metric.replace("_", " ").capitalize(), ""))[0]
    return (
        Fact(
            "Groups",
            f"{formats.label(finding.group)} against {formats.label(finding.reference)} "
            f"({formats.label(finding.attribute)})",
        ),
        Fact("Outcome", formats.label(finding.outcome)),
        Fact("Measure", metric),
        Fact("Estimate", estimate_text(finding.estimate)),
        Fact(
            "n",
            f"{formats.count(finding.n_group)} and {formats.count(finding.n_reference)}; unknown "
            f"{formats.count(finding.unknown)}",
        ),
        Fact("p, raw", formats.p_value(finding.p_raw)),
        Fact(
            "p, adjusted",
            f"{formats.p_value(finding.p_adjusted)} over {formats.count(finding.family_size)} tests",
        ),
    )


def _patching(unit: Unit, finding: Finding) -> tuple[Fact, ...]:
    percentile, accuracy = finding.percentile_in_layer, finding.accuracy_change
    of_head = []
    if percentile is not None:
        among = said_of(unit, "Among random heads of its layer")
        of_head.append(Fact(among, f"percentile {formats.decimal(percentile, 0)}"))
    if accuracy is not None:
        of_head.append(Fact("Accuracy change under the patch", points_text(accuracy)))
    return (
        Fact(said_of(unit, "Heads"), ", ".join(finding.heads) or said_of(unit, ABOUT_RATES)),
        Fact("Intervention", finding.intervention or "none"),
        Fact("Placebo", finding.placebo or "none"),
        *of_head,
        Fact("Agreement over seeds", finding.agreement_over_seeds),
        Fact("Replication on the confirmation split", finding.replication),
    )


def _repeat(finding: Finding, source: str) -> tuple[Fact, ...]:
    return (
        Fact("In audit.json", source, mono=True),
        Fact("Command", finding.reproduce, mono=True),
        Fact("Value to expect", f"{finding.expected!r} ({points_text(finding.expected)})"),
        Fact(
            "Tolerance",
            f"± {finding.tolerance!r} ({formats.points(finding.tolerance, 3, signed=False)} points)",
        ),
        *(Fact(f"SHA-256 of {name}", digest, mono=True) for name, digest in finding.hashes.items()),
    )


def _picture(audit: Audit, finding: Finding, compact: bool) -> Picture | None:
    if finding.kind == "disparity":
        rate = view_data.RATE_OF.get(finding.metric)
        return rate and view_data.group_picture(audit, finding.attribute, finding.outcome, rate, compact)
    contrast = f"{finding.attribute}:{finding.group}-{finding.reference}"
    rows = [
        row
        for row in audit.heads
        if row.name in finding.heads and row.contrast == contrast and row.outcome == finding.outcome
    ]
    return forest(rows, f"Effect of {', '.join(finding.heads)} beside the placebo", compact)
