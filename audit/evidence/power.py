"""What an audit of these images can say at all, from the table of samples, before anything is trained or patched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from audit.card.schema import AuditSpec, Card
from audit.data.samples import AUDIT_SPLITS, UNKNOWN, Samples
from audit.data.summary import audited_outcomes, detectable_difference, gaps_tested
from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import MIN_UNITS, LabelShares, label_shares_of, shortfall
from audit.evidence.stats import components
from audit.patching.plans import GroupSwapPlan, plan_group_swap
from audit.records import Contrast, HeadLimit, Metric, Shortfall
from audit.units import Unit

HALF = 0.5  # the rate at which a difference is hardest to see


@dataclass(frozen=True)
class Feasibility:
    """What of one question in one metric can be estimated."""

    contrast: Contrast
    outcome: str
    metric: Metric
    gap: Shortfall | None  # what is too little to test the gap; None where there is enough
    heads: Shortfall | None  # what is too little to ask which heads carry it; never None where ``gap`` is not
    # independent groups of donor pairs and recipients on the discovery and the confirmation split
    clusters: tuple[int, int]

    @property
    def key(self) -> str:
        """Name of the question, as in ``disparity.primary_gaps``."""
        return f"{self.contrast}:{self.outcome}"


def plan_contrast(
    frame: pd.DataFrame,
    contrast: Contrast,
    nuisance: Sequence[str],
    spec: AuditSpec,
    calipers: Mapping[str, float],
) -> dict[str, GroupSwapPlan]:
    """Match recipients and donors on both audit splits, as every stage of the audit does.

    Parameters
    ----------
    frame : pandas.DataFrame
        The samples: ``label``, ``subject``, ``split``, the contrast's attribute, the nuisance columns and covariates.
    contrast : Contrast
    nuisance : sequence of str
        Categories of the card's ``match_on``.
    spec : AuditSpec
        Its seed and ``max_images``.
    calipers : mapping of str to float
        Numbers of the card's ``match_on``.
    """
    columns = list(dict.fromkeys(["label", "subject", contrast.attribute, *nuisance, *calipers]))
    plans = {}
    for number, split in enumerate(AUDIT_SPLITS):
        part = frame.loc[frame["split"] == split, columns]
        numbered = part.assign(subject=pd.factorize(part["subject"])[0].astype(np.int32))  # names take more memory
        plans[split] = plan_group_swap(
            numbered, contrast, nuisance, seed=spec.seed + number, max_images=spec.max_images, calipers=calipers
        )
    return plans


def feasibility(
    frame: pd.DataFrame,
    contrasts_asked: Sequence[Contrast],
    outcomes: Sequence[str],
    nuisance: Sequence[str],
    spec: AuditSpec,
    calipers: Mapping[str, float],
) -> list[Feasibility]:
    """Tell of every contrast, outcome and metric whether its gap can be tested and its heads be asked for.

    Parameters
    ----------
    frame : pandas.DataFrame
        The samples: ``label``, ``subject``, ``split``, attributes, nuisance columns and covariates; no prediction is
        needed.
    contrasts_asked : sequence of Contrast
    outcomes : sequence of str
        Audited labels.
    nuisance : sequence of str
        Categories of the card's ``match_on``.
    spec : AuditSpec
        Its seed and limits.
    calipers : mapping of str to float
        Numbers of the card's ``match_on``.

    Returns
    -------
    list of Feasibility
        A gap needs ``min_group_size`` subjects in both groups, and every label that it weighs in both. Heads need that
        on either split among the recipients that found donors, and thirty independent clusters of them.
    """
    attributes = list(dict.fromkeys(contrast.attribute for contrast in contrasts_asked))
    audited = frame.loc[frame["split"].isin(AUDIT_SPLITS), ["label", "subject", *attributes]]
    audited = audited.assign(subject=pd.factorize(audited["subject"])[0].astype(np.int32))
    gaps = _gaps(audited, contrasts_asked, outcomes, spec)
    found: list[Feasibility] = []
    for contrast in contrasts_asked:
        plans = plan_contrast(frame, contrast, nuisance, spec, calipers)
        known: dict[
            str, tuple[Shortfall | None, tuple[int, int]]
        ] = {}  # the standardised gap's is that of all outcomes
        for outcome, metric in product(outcomes, Metric):
            shares = label_shares_of(audited, contrast, outcome, metric)
            if str(shares) not in known:
                known[str(shares)] = _heads(
                    [_laid_out(p.rows, audited["subject"], shares) for p in plans.values()], spec
                )
            heads, clusters = known[str(shares)]
            gap = gaps[contrast, outcome, metric]
            found.append(Feasibility(contrast, outcome, metric, gap, gap or heads, clusters))
    return found


def gaps_can_be_tested(samples: Samples, card: Card) -> bool:
    """Tell whether any gap can be tested at all, from the samples and the card alone."""
    audited = samples.of_split(*AUDIT_SPLITS)
    outcomes = audited_outcomes(card, samples.labels)
    return any(gap is None for gap in _gaps(audited, samples.contrasts, outcomes, card.audit).values())


def _heads(parts: Sequence[SwapEffects], spec: AuditSpec) -> tuple[Shortfall | None, tuple[int, int]]:
    """Return what is too little on either split, and the clusters on both."""
    short = [s for part in parts if (s := shortfall(part, spec.min_group_size)) is not None]
    discovery, confirmation = (_clusters(part) for part in parts)
    return (short[0] if short else None), (discovery, confirmation)


def detectable_gaps(samples: Samples, card: Card) -> pd.DataFrame:
    """Return for each group, outcome and metric the smallest gap that these sizes let the audit detect.

    Parameters
    ----------
    samples : Samples
    card : Card

    Returns
    -------
    pandas.DataFrame
        ``attribute``, ``group``, ``reference``, ``outcome``, ``metric``, ``subjects_group``, ``subjects_reference``
        (those that the metric looks at), ``detectable_gap`` (in [0, 1]: at 80% power, at the level of all gaps tested,
        for rates around one half; missing where none could be detected) and ``estimable``.
    """
    audited = samples.of_split(*AUDIT_SPLITS)
    outcomes = audited_outcomes(card, samples.labels)
    level = card.audit.alpha / gaps_tested(samples, card)
    rows = []
    asked = feasibility(samples.frame, samples.contrasts, outcomes, samples.nuisance, card.audit, samples.calipers)
    for found in asked:
        contrast = found.contrast
        is_outcome = audited["label"] == found.outcome
        kept = {Metric.TPR_GAP: is_outcome, Metric.FPR_GAP: ~is_outcome}.get(found.metric, is_outcome | True)
        subjects = audited[kept].groupby(contrast.attribute)["subject"].nunique()
        sizes = [int(subjects.get(group, 0)) for group in (contrast.group, contrast.reference)]
        gap = None if found.gap is not None else detectable_difference(HALF, sizes[0], sizes[1], level)
        rows.append(
            {
                "attribute": contrast.attribute,
                "group": contrast.group,
                "reference": contrast.reference,
                "outcome": found.outcome,
                "metric": str(found.metric),
                "subjects_group": sizes[0],
                "subjects_reference": sizes[1],
                "detectable_gap": gap,
                "estimable": found.gap is None,
            }
        )
    return pd.DataFrame(rows).astype({"detectable_gap": float})


def _gaps(
    audited: pd.DataFrame, contrasts_asked: Sequence[Contrast], outcomes: Sequence[str], spec: AuditSpec
) -> dict[tuple[Contrast, str, Metric], Shortfall | None]:
    """Ask the comparison itself, of a model that is always right: whether it can answer does not depend on answers."""
    limits = Thresholds(spec.alpha, spec.min_group_size, impact_ratio_below=0.0, gap_above=1.0)
    questions = []
    for attribute, reference in dict.fromkeys((c.attribute, c.reference) for c in contrasts_asked):
        seen = set(audited.loc[audited[attribute] != UNKNOWN, attribute])
        asked = {c.group for c in contrasts_asked if (c.attribute, c.reference) == (attribute, reference)}
        questions.append(Question(attribute, reference, sorted({*seen, *asked, reference})))
    rows = contrasts(audited.assign(predicted=audited["label"]), questions, outcomes, limits)
    return {(Contrast(r.attribute, r.group, r.reference), r.outcome, r.metric): r.shortfall for r in rows}


def _laid_out(plan: pd.DataFrame, subjects: pd.Series, shares: LabelShares) -> SwapEffects:
    """Lay out the recipients of a plan as their effects will be, without any."""
    label, names = pd.factorize(plan["label"], sort=True)
    nothing = np.zeros((len(plan), 0))
    return SwapEffects(
        cross=nothing,
        placebo=nothing,
        unpatched=np.zeros(len(plan)),
        is_group=(plan["side"] == "group").to_numpy(dtype=bool),
        label=label.astype(np.int64),
        subject=pd.factorize(subjects.loc[plan["recipient"]])[0].astype(np.int64),
        unit=plan["unit"].to_numpy(dtype=np.int64),
        heads=[],
        shares=by_code(shares["label_shares"], names),
        group_shares=by_code(shares["group_shares"], names),
    )


def _clusters(effects: SwapEffects) -> int:
    """Count the clusters of recipients that share neither a subject nor a donor pair."""
    used = effects.weighted
    return len(np.unique(components(effects.subject[used], effects.unit[used]))) if used.any() else 0


def detectable_head_effects(samples: Samples, spec: AuditSpec, unit: Unit) -> list[HeadLimit]:
    """Tell for each contrast whether heads can be localised, by pairing donors as the audit will.

    Parameters
    ----------
    samples : Samples
    spec : AuditSpec
        Its seed and limits.
    unit : {"head", "slice"}
        What is patched.

    Returns
    -------
    list of HeadLimit
        One per contrast, of its label-standardised gap.
    """
    outcomes = samples.labels[:1]
    asked = feasibility(samples.frame, samples.contrasts, outcomes, samples.nuisance, spec, samples.calipers)
    return [
        HeadLimit(
            attribute=found.contrast.attribute,
            group=found.contrast.group,
            reference=found.contrast.reference,
            unit=unit,
            shortfall=found.heads,
            clusters=found.clusters,
            clusters_needed=MIN_UNITS,
        )
        for found in asked
        if found.metric == Metric.STANDARDISED_GAP
    ]
