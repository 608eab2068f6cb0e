"""Stage: from stored effects to rates, contrasts, heads and findings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from audit.batching import freed_memory_returned
from audit.card.schema import Card
from audit.controls.verdict import judge
from audit.data.covariates import Covariates
from audit.data.samples import UNKNOWN
from audit.evidence.accuracy import LikelyReason, accuracy, chance, is_above_chance, likely_reason
from audit.evidence.adjusted import adjusted_gaps
from audit.evidence.agreement import agreements
from audit.evidence.disparity import (
    Question,
    Thresholds,
    contrasts,
    primary_gaps,
    ranges,
    rates_by_group,
    with_seeds,
)
from audit.evidence.findings import Context, make_findings
from audit.evidence.heads import localise
from audit.evidence.joint_patching import judge_together
from audit.evidence.outcome import KNOWS_LABELS, has_gap, localisation, main_gaps, without_gap
from audit.evidence.pairs import judge_pairs, with_natural
from audit.evidence.prompts import prompt_sensitivity
from audit.evidence.sensitivity import DeclaredErrors, sensitivities
from audit.evidence.stored_rows import Rows
from audit.pipeline.context import Scope
from audit.pipeline.run_sweeps import Swept, head_settings, localisable
from audit.records import (
    AccuracyRow,
    AdjustedRow,
    Agreement,
    AttentionMap,
    Bound,
    CarriedRow,
    ChanceReason,
    Contrast,
    ContrastRow,
    Control,
    Finding,
    GapAnswer,
    HeadGrid,
    HeadRow,
    JointRow,
    LedgerRow,
    LedgerTotal,
    Localisation,
    LocalisationStatus,
    PairRow,
    PromptSensitivity,
    RangeRow,
    RateRow,
    ReadMap,
    ReadRow,
    ReadWriter,
    SensitivityRow,
    SmallestSetRow,
    Stability,
    TrainedRow,
    TrainedTotal,
    Verdict,
)

JOINED = " x "


@dataclass(frozen=True)
class Judged:
    """Everything that the report says about groups and heads, under the names that the record has for it."""

    rates: list[RateRow]
    contrasts: list[ContrastRow]
    heads: list[HeadRow]
    stability: list[Stability]
    localisation: dict[str, Localisation]
    findings: list[Finding]
    grids: list[HeadGrid]
    joint: list[JointRow] = field(default_factory=list)
    agreement: list[Agreement] = field(default_factory=list)
    ranges: list[RangeRow] = field(default_factory=list)
    adjusted: list[AdjustedRow] = field(default_factory=list)
    prompt_sensitivity: PromptSensitivity | None = None
    pairs: list[PairRow] = field(default_factory=list)
    attention: list[AttentionMap] = field(default_factory=list)
    accuracy: list[AccuracyRow] = field(default_factory=list)
    ledgers: list[LedgerTotal] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    trained: list[TrainedTotal] = field(default_factory=list)
    trained_parts: list[TrainedRow] = field(default_factory=list)
    carried: list[CarriedRow] = field(default_factory=list)
    smallest: list[SmallestSetRow] = field(default_factory=list)
    answers: list[GapAnswer] = field(default_factory=list)
    sensitivity: list[SensitivityRow] = field(default_factory=list)
    read_writers: list[ReadWriter] = field(default_factory=list)
    read: list[ReadRow] = field(default_factory=list)
    read_maps: list[ReadMap] = field(default_factory=list)


EMPTY = Judged([], [], [], [], {}, [], [])


@dataclass(frozen=True)
class Rates:
    """What the models say of unpatched images, and the groups compared."""

    unpatched: pd.DataFrame
    rates: list[RateRow]
    contrasts: list[ContrastRow]
    ranges: list[RangeRow]
    adjusted: list[AdjustedRow]
    limits: Thresholds
    accuracy: list[AccuracyRow]
    labels: Control  # whether the model knows them
    prompts: PromptSensitivity | None  # of a zero-shot model
    sensitivity: list[SensitivityRow]
    constant: bool  # whether each model gave all images one answer, so that no group can differ from another

    @property
    def comparable(self) -> bool:
        """Tell whether there is anything to say about groups: the model may know the labels, and its answers differ."""
        return self.labels.passed and not self.constant

    def asked(self, contrasts: Sequence[Contrast]) -> dict[Contrast, list[str]]:
        """Return by contrast the outcomes in which a gap was detected: only there are heads asked for."""
        gaps = dict.fromkeys(
            (c, row.outcome)
            for c in contrasts
            for row in self.contrasts
            if (row.attribute, row.group, row.reference) == (c.attribute, c.group, c.reference) and has_gap(row)
        )
        return {c: [outcome for of, outcome in gaps if of == c] for c in contrasts if any(of == c for of, _ in gaps)}


@freed_memory_returned()
def judge_rates(scope: Scope, unpatched: pd.DataFrame, each_text: pd.DataFrame | None = None) -> Rates:
    """Compare the groups; ``each_text`` are a zero-shot model's predictions with each text of its prompts alone."""
    outcomes, asked, about = list(scope.outcomes), questions(scope), what_is_compared(scope)
    first = predictions(scope, unpatched, scope.seeds[0], about)
    limits = Thresholds(
        alpha=scope.card.audit.alpha,
        min_group_size=scope.card.audit.min_group_size,
        impact_ratio_below=scope.card.policy.impact_ratio_below,
        gap_above=scope.card.policy.gap_above,
    )
    right = accuracy(first, {name: info.groups for name, info in scope.samples.attributes.items()})
    rates = [row for question in asked for row in rates_by_group(first, question, outcomes)]
    widest = ranges(first, asked, outcomes, limits, seed=scope.card.audit.seed)
    covariates = covariates_of(scope)
    adjusted = adjusted_gaps(first, asked, outcomes, covariates, min_group_size=limits.min_group_size)
    known = _knows_labels(right[0], first, scope.samples.labels)
    compared, constant = [contrasts(first, asked, outcomes, limits)], first["predicted"].nunique() == 1
    fragile = sensitivities(first, asked, main_gaps(compared[0]).values(), _declared_errors(scope.card))
    del first  # one seed's are held at a time
    for seed in scope.seeds[1:]:
        frame = predictions(scope, unpatched, seed, about)
        compared.append(contrasts(frame, asked, outcomes, limits))
        constant = constant and frame["predicted"].nunique() == 1
    return Rates(
        unpatched,
        rates,
        with_seeds(compared[0], compared),
        widest,
        adjusted,
        limits,
        right,
        known,
        _by_text(scope, each_text, compared[0], asked, limits),
        fragile,
        bool(constant),
    )


def what_is_compared(scope: Scope) -> pd.DataFrame:
    """Return of the samples what a comparison of groups looks at, with a number in place of each subject's name."""
    frame = scope.samples.frame
    some = frame[["label", "subject", *scope.samples.attributes, *covariates_of(scope).columns]]
    return some.assign(subject=pd.factorize(frame["subject"])[0].astype(np.int32))


def covariates_of(scope: Scope) -> Covariates:
    """Return what gaps are adjusted for: what donors are matched on."""
    return Covariates.of(scope.samples.frame, scope.samples.calipers, scope.samples.nuisance)


def _declared_errors(card: Card) -> DeclaredErrors:
    """Return what the card estimates of wrong labels and annotations of groups."""
    groups = {name: spec.error for name, spec in card.groups.items() if spec.error is not None}
    return DeclaredErrors(card.data.label_error, groups)


def _by_text(
    scope: Scope,
    table: pd.DataFrame | None,
    compared: Sequence[ContrastRow],
    asked: Sequence[Question],
    limits: Thresholds,
) -> PromptSensitivity | None:
    """Compare the groups with each text of a zero-shot model's prompts alone."""
    prompts = scope.card.model.prompts
    if prompts is None:
        return None
    parts = [] if table is None else [part.drop(columns="text") for _, part in table.groupby("text")]
    frames = (predictions(scope, part, scope.seeds[0], what_is_compared(scope)) for part in parts)
    return prompt_sensitivity(prompts, frames, compared, asked, list(scope.outcomes), limits)


def _knows_labels(right: AccuracyRow, frame: pd.DataFrame, labels: Sequence[str]) -> Control:
    """Judge whether the model may know the labels at all; where it is not shown to, name the likeliest reason."""
    by_chance = chance(frame)
    guessed = LikelyReason(ChanceReason.UNRELATED)
    known = is_above_chance(right, by_chance)
    if not known:
        table = pd.crosstab(frame["label"], frame["predicted"])
        guessed = likely_reason(table.reindex(index=list(labels), columns=list(labels), fill_value=0).to_numpy())
    order = guessed.order or ()
    return judge(
        right.balanced_accuracy,
        ">",
        by_chance,
        judged=Bound.HIGH,
        id=KNOWS_LABELS,
        check=KNOWS_LABELS,
        kind="model",
        reason=None if known else guessed.reason,
        names=[labels[order.index(place)] for place in range(len(order))],
        n=right.images,
    )


@freed_memory_returned()
def judge_effects(
    scope: Scope, rates: Rates, swept: Swept, pairs: pd.DataFrame | None, hashes: dict[str, str]
) -> Judged:
    """Grade heads and write the findings; ``pairs`` are effects on exact pairs, if there are any."""
    outcomes, settings = list(scope.outcomes), head_settings(scope)
    patched = swept.effects.patched_in_both_splits(scope.contrasts)
    heads, stability = localise(swept.effects, patched, outcomes, scope.seeds, settings)
    natural = [] if pairs is None else judge_pairs(pairs, scope.contrasts, outcomes, settings, stored=swept.effects)
    heads = with_natural(heads, natural)
    able = localisable(scope, primary_gaps(rates.contrasts))
    unpatched = {
        key: key in able for c in scope.contrasts if c not in patched for key in (f"{c}:{o}" for o in outcomes)
    }
    where = localisation(heads, rates.contrasts, unpatched)
    heads = without_gap(heads, where)
    found = make_findings(rates.contrasts, heads, where, _context(scope, rates.limits, hashes))
    return Judged(
        rates.rates,
        rates.contrasts,
        heads,
        stability,
        where,
        _with_commands(scope, found),
        _grids(heads, where),
        agreement=agreements(heads),
        pairs=[n.row for n in natural],
        ranges=rates.ranges,
        adjusted=rates.adjusted,
        prompt_sensitivity=rates.prompts,
        sensitivity=rates.sensitivity,
        accuracy=rates.accuracy,
    )


def judge_answers(scope: Scope, rates: Rates, hashes: dict[str, str]) -> Judged:
    """Write the findings of a model whose inside is not given: rates alone."""
    gaps = primary_gaps(rates.contrasts)
    where = {
        key: Localisation(status=LocalisationStatus.NOT_ASKED, metric=gaps[key].metric)
        for key in (f"{contrast}:{outcome}" for contrast in scope.contrasts for outcome in scope.outcomes)
    }
    found = make_findings(rates.contrasts, [], where, _context(scope, rates.limits, hashes))
    return replace(
        EMPTY,
        rates=rates.rates,
        contrasts=rates.contrasts,
        localisation=where,
        findings=_with_commands(scope, found),
        ranges=rates.ranges,
        sensitivity=rates.sensitivity,
        adjusted=rates.adjusted,
        accuracy=rates.accuracy,
    )


MARKS: Mapping[Verdict, Literal["confirmed", "no gap", "discovered"]] = {
    Verdict.CONFIRMED: "confirmed",
    Verdict.CONFIRMED_NO_GAP: "no gap",
    Verdict.NOT_CONFIRMED: "discovered",
}


def _context(scope: Scope, limits: Thresholds, hashes: dict[str, str]) -> Context:
    return Context(
        name=scope.card.name,
        model=scope.card.model.name,
        matched_on=scope.samples.nuisance,
        calipers=scope.samples.calipers,
        unknown={a: info.unknown_images for a, info in scope.samples.attributes.items()},
        alpha=limits.alpha,
        gap_above=limits.gap_above,
        head_share_above=scope.card.policy.head_share_above,
        hashes=hashes,
    )


def _with_commands(scope: Scope, findings: Sequence[Finding]) -> list[Finding]:
    """Give each finding its command; where the data lie on this machine is nobody else's business."""
    data = "" if scope.card.data.reader == "synthetic" else " --data FOLDER"
    run = shlex.quote(scope.run.name)
    return [f.model_copy(update={"reproduce": f"vit-audit reproduce {run} {f.id}{data}"}) for f in findings]


@freed_memory_returned()
def judge_sets(scope: Scope, swept: Swept, table: Rows, judged: Judged) -> Judged:
    """Add what sets of heads do together."""
    contrasts = swept.effects.patched_in_both_splits(scope.contrasts)
    rows = judge_together(swept.effects, table, contrasts, list(scope.outcomes), scope.seeds[0], head_settings(scope))
    asked = [r for r in rows if judged.localisation[f"{r.contrast}:{r.outcome}"].was_asked]
    return replace(judged, joint=asked)


def predictions(scope: Scope, unpatched: pd.DataFrame, seed: int, samples: pd.DataFrame | None = None) -> pd.DataFrame:
    """Join samples, or columns of theirs, with one seed's predictions; intersections get columns of their own."""
    own = unpatched[unpatched["seed"] == seed].set_index("recipient").drop(columns=["seed", "image"], errors="ignore")
    every = scope.samples.frame if samples is None else samples
    return with_intersections(scope, every.drop(columns="predicted", errors="ignore").join(own, how="inner"))


def with_intersections(scope: Scope, frame: pd.DataFrame) -> pd.DataFrame:
    """Return samples with a column for each intersection of the card."""
    columns = {}
    for combination in scope.card.intersections:
        known = (frame[combination] != UNKNOWN).all(axis=1)
        columns[JOINED.join(combination)] = frame[combination].agg(JOINED.join, axis=1).where(known, UNKNOWN)
    return frame.assign(**columns)


def questions(scope: Scope) -> list[Question]:
    """Return what is compared: every attribute, then every intersection, each with its reference."""
    asked = [Question(name, info.reference, info.groups) for name, info in scope.samples.attributes.items()]
    for combination in scope.card.intersections:
        infos = [scope.samples.attributes[name] for name in combination]
        reference = JOINED.join(info.reference for info in infos)
        grid = np.array(np.meshgrid(*[info.groups for info in infos], indexing="ij")).reshape(len(infos), -1).T
        asked.append(Question(JOINED.join(combination), reference, [JOINED.join(map(str, g)) for g in grid]))
    return asked


def _grids(heads: Sequence[HeadRow], where: Mapping[str, Localisation]) -> list[HeadGrid]:
    """Lay the mediated gaps out layer by layer, a grid for each contrast and outcome."""
    grids = []
    for contrast, outcome in dict.fromkeys((h.contrast, h.outcome) for h in heads):
        rows = [h for h in heads if (h.contrast, h.outcome) == (contrast, outcome)]
        layers = sorted({h.layer for h in rows})
        by_layer = [sorted((h for h in rows if h.layer == i), key=lambda h: h.head) for i in layers]
        grids.append(
            HeadGrid(
                id=f"bias:{contrast}:{outcome}",
                kind="gap" if where[f"{contrast}:{outcome}"].was_asked else "no gap",
                contrast=contrast,
                outcome=outcome,
                unit="probability",
                values=[[h.confirmation.value for h in layer] for layer in by_layer],
                marks=[[MARKS.get(h.verdict, "") for h in layer] for layer in by_layer],
                layers=layers,
            )
        )
    return grids
