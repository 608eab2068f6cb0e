"""Every head's verdict: found on the discovery split, confirmed on people not used to find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as sps

from audit.data.samples import UNKNOWN
from audit.evidence.effects import (
    Bootstrap,
    PermutationResult,
    Scalar,
    SwapEffects,
    by_code,
    draw_bootstrap,
    lay_out,
    permute_donor_labels,
    resample_clusters,
    share_of_gap,
    unit_sums,
    weighted_estimates,
)
from audit.evidence.stats import Array, components, equivalence_p, holm, over_seeds, smallest_detectable
from audit.records import Agreement, Contrast, Design, Estimate, HeadRow, Stability, Verdict

SCALES: tuple[Scalar, Scalar] = ("called", "m")  # beside the probability
TOP = 10  # heads that two rankings are compared on
MIN_UNITS = 30  # clusters of donor pairs; with fewer, the bootstrap interval of a mediated gap covers less than it says


@dataclass(frozen=True)
class Settings:
    """Strictness and sizes of the localisation."""

    alpha: float
    permutations: int
    bootstrap: int
    seed: int
    min_group_size: int
    margin: float = 0.005  # of probability; a head shown to carry less is equivalent to one that carries nothing


@dataclass(frozen=True)
class StoredEffects:
    """What the sweeps left behind.

    Parameters
    ----------
    swap : pandas.DataFrame
        Design A: columns of a sweep, and ``seed``, ``contrast``, ``split``, ``unit``, ``side``, ``label``.
    reference : pandas.DataFrame or None
        Design C of the first seed: donor kinds "balanced-<k>" and "reseed", each image its own donor.
    unpatched : pandas.DataFrame
        ``seed``, ``recipient``, ``predicted``, ``p:<outcome>``.
    frame : pandas.DataFrame
        The samples.
    balanced_on : str
        The attribute on which the reference models' training sample was balanced.
    transplant : pandas.DataFrame or None
        As ``reference``, with weights transplanted.
    estimates : pandas.DataFrame or None
        Design A by attribution patching, first seed, confirmation split: ``p:<outcome>`` is the estimated change.
    """

    swap: pd.DataFrame
    reference: pd.DataFrame | None
    unpatched: pd.DataFrame
    frame: pd.DataFrame
    balanced_on: str = ""
    transplant: pd.DataFrame | None = None
    estimates: pd.DataFrame | None = None

    def label_shares(self, attribute: str) -> dict[str, float]:
        """Return the weights of the labels in the audited gap: their shares among audited images of known group."""
        audited = self.frame.loc[self.unpatched["recipient"].unique()]
        shares = audited.loc[audited[attribute] != UNKNOWN, "label"].value_counts(normalize=True)
        return {str(label): float(share) for label, share in shares.items()}

    def patched_in_both_splits(self, contrasts: Sequence[Contrast]) -> list[Contrast]:
        """Return those of ``contrasts`` that found recipients and donors in both splits."""
        splits = self.swap.drop_duplicates(["contrast", "split"]).groupby("contrast")["split"].nunique()
        return [c for c in contrasts if splits.get(str(c), 0) == 2]

    def of(self, seed: int, contrast: Contrast, split: str, outcome: str, *, scalar: Scalar = "p") -> SwapEffects:
        """Lay out Design A of one seed, contrast, split and outcome."""
        swap = self.swap
        rows = swap[(swap["seed"] == seed) & (swap["contrast"] == str(contrast)) & (swap["split"] == split)]
        own = self.unpatched[self.unpatched["seed"] == seed]
        shares = self.label_shares(contrast.attribute)
        return lay_out(rows, own, self.frame["subject"], outcome, scalar=scalar, label_shares=shares)


@dataclass(frozen=True)
class Part:
    """One contrast and outcome on both splits, primary seed."""

    contrast: Contrast
    outcome: str
    discovery: SwapEffects
    confirmation: SwapEffects

    @property
    def key(self) -> str:
        """Name of the question in ``Audit.localisation``."""
        return f"{self.contrast}:{self.outcome}"

    def enough(self, least: int) -> bool:
        """Tell whether both splits have enough subjects on both sides, and enough donor pairs."""
        return all(
            len(np.unique(components(e.subject, e.unit))) >= MIN_UNITS
            and min(len(np.unique(e.subject[e.is_group])), len(np.unique(e.subject[~e.is_group]))) >= least
            for e in (self.discovery, self.confirmation)
        )


def localise(
    stored: StoredEffects,
    contrasts: Sequence[Contrast],
    outcomes: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
) -> tuple[list[HeadRow], list[Stability]]:
    """Grade every head for every contrast and outcome.

    Discovery: swaps of donor labels, adjusted by max-|T| over heads x outcomes x contrasts. Confirmation: the same
    swaps on the other split for the found heads only, Holm over those, same sign asked for.

    Returns
    -------
    tuple of (list of HeadRow, list of Stability)
    """
    parts = [
        Part(c, o, stored.of(seeds[0], c, "discovery", o), stored.of(seeds[0], c, "confirmation", o))
        for c in contrasts
        for o in outcomes
    ]
    discovered = _permute(parts, "discovery", settings, settings.seed)
    repeated = _permute(parts, "confirmation", settings, settings.seed + 1)
    found = {part.key: _found(part, result, settings) for part, result in zip(parts, discovered, strict=True)}
    confirmed_p = _confirm(parts, repeated, found)
    family = sum(len(part.discovery.heads) for part in parts)
    rows: list[HeadRow] = []
    for part, first, again in zip(parts, discovered, repeated, strict=True):
        rows += _rows_of(
            part, first, found[part.key], confirmed_p, stored, seeds, settings, family=family, critical=again.critical
        )
    return rows, [_stability(part, stored, seeds) for part in parts]


def _permute(parts: Sequence[Part], split: str, settings: Settings, seed: int) -> list[PermutationResult]:
    """Swap donor labels with outcomes of one contrast side by side, so that they share the swaps."""
    by_contrast: dict[Contrast, list[int]] = {}
    for i, part in enumerate(parts):
        by_contrast.setdefault(part.contrast, []).append(i)
    families = [np.hstack([unit_sums(getattr(parts[i], split)) for i in ids]) for ids in by_contrast.values()]
    results = permute_donor_labels(families, permutations=settings.permutations, seed=seed, alpha=settings.alpha)
    out: dict[int, PermutationResult] = {}
    for ids, result in zip(by_contrast.values(), results, strict=True):
        cuts = len(ids)
        columns = (np.split(a, cuts) for a in (result.statistic, result.raw, result.adjusted))
        for i, (statistic, raw, adjusted) in zip(ids, zip(*columns, strict=True), strict=True):
            out[i] = PermutationResult(statistic, raw, adjusted, result.critical)
    return [out[i] for i in range(len(parts))]


def _found(part: Part, result: PermutationResult, settings: Settings) -> list[int]:
    if not part.enough(settings.min_group_size):
        return []
    return [int(k) for k in np.flatnonzero(result.adjusted <= settings.alpha)]


def _confirm(
    parts: Sequence[Part], repeated: Sequence[PermutationResult], found: Mapping[str, list[int]]
) -> dict[tuple[str, int], tuple[float, float]]:
    """Return raw and Holm-adjusted p of each found head on the confirmation split."""
    asked = [
        (part.key, k, float(result.raw[k]))
        for part, result in zip(parts, repeated, strict=True)
        for k in found[part.key]
    ]
    adjusted = holm([p for _, _, p in asked])
    return {(key, k): (p, q) for (key, k, p), q in zip(asked, adjusted, strict=True)}


def _rows_of(
    part: Part,
    first: PermutationResult,
    found: list[int],
    confirmed_p: Mapping[tuple[str, int], tuple[float, float]],
    stored: StoredEffects,
    seeds: Sequence[int],
    settings: Settings,
    *,
    family: int,
    critical: float,
) -> list[HeadRow]:
    """Make the rows of all heads of one contrast and outcome.

    ``family`` tests are adjusted for in discovery; ``critical`` bounds |T| over them all on the confirmation split.
    """
    measured = _estimates(part, settings)
    called, log_odds = (_on_scale(part, stored, seeds[0], settings, scalar) for scalar in SCALES)
    accuracy = _accuracy_change(part, stored, seeds[0])
    design_c = _design_c(part, stored, stored.reference, settings)
    transplant = _design_c(part, stored, stored.transplant, settings)
    attribution = _attribution(part, stored)
    by_seed = np.array([_mediated(stored.of(s, part.contrast, "confirmation", part.outcome)) for s in seeds])
    # To be confirmed a head must first be found among all, on the less certain of the two splits.
    errors = np.max([np.sqrt((unit_sums(e) ** 2).sum(axis=0)) for e in (part.discovery, part.confirmation)], axis=0)
    percentile = _percentiles(part.confirmation)
    spread = np.sqrt((unit_sums(part.confirmation) ** 2).sum(axis=0))
    rows = []
    for k, (layer, head) in enumerate(part.confirmation.heads):
        p, q = confirmed_p.get((part.key, k), (None, None))
        row = HeadRow(
            contrast=str(part.contrast),
            outcome=part.outcome,
            layer=layer,
            head=head,
            name=f"L{layer}H{head}",
            discovery=measured.discovery[k],
            confirmation=measured.confirmation[k],
            iie_forward=measured.iie_forward[k],
            iie_backward=measured.iie_backward[k],
            confirmation_rate=called[k],
            confirmation_log_odds=log_odds[k],
            null_bound=critical * float(spread[k]),
            placebo=measured.placebo[k],
            share_of_gap=measured.share_of_gap[k],
            discovery_p=float(first.raw[k]),
            discovery_p_adjusted=float(first.adjusted[k]),
            confirmation_p=p,
            confirmation_p_adjusted=q,
            percentile_in_layer=percentile[k],
            accuracy_change=accuracy[k],
            design_c=None if design_c is None else design_c[k],
            transplant=None if transplant is None else transplant[k],
            attribution=None if attribution is None else float(attribution[k]),
            by_seed=[float(v) for v in by_seed[:, k]],
            **_over_seeds(by_seed[:, k]),
            equivalence_margin=settings.margin,
            equivalence_p=(
                small := equivalence_p(measured.confirmation[k].value or 0.0, float(spread[k]), settings.margin)
            ),
            within_margin=small <= settings.alpha,
            n_group=int(part.confirmation.is_group.sum()),
            n_reference=int((~part.confirmation.is_group).sum()),
            verdict="too little data",
            smallest_detectable=smallest_detectable(float(errors[k]), alpha=settings.alpha, family=family),
        )
        if part.enough(settings.min_group_size):
            row = row.model_copy(update={"verdict": _verdict(row, found=k in found, alpha=settings.alpha)})
        rows.append(row)
    return rows


def _over_seeds(values: Array) -> dict[str, Any]:
    together = over_seeds(values.tolist())
    return {"over_seeds": together.estimate, "p_over_seeds": together.p} if together else {}


@dataclass(frozen=True)
class Measured:
    """Every head's estimates, in the order of the heads; names as in HeadRow."""

    discovery: list[Estimate]
    confirmation: list[Estimate]
    iie_forward: list[Estimate]
    iie_backward: list[Estimate]
    placebo: list[Estimate]
    share_of_gap: list[Estimate]


def _estimates(part: Part, settings: Settings) -> Measured:
    """Estimate everything that has an interval."""
    a, b = part.discovery, part.confirmation
    boot_a = draw_bootstrap(a, resamples=settings.bootstrap, seed=settings.seed)
    boot_b = draw_bootstrap(b, resamples=settings.bootstrap, seed=settings.seed + 1)
    group, reference = b.side_weights(group=True), b.side_weights(group=False)
    return Measured(
        discovery=weighted_estimates(a.difference, a.mediated_weights(), a, boot_a),
        confirmation=weighted_estimates(b.difference, b.mediated_weights(), b, boot_b),
        iie_forward=weighted_estimates(b.difference, reference, b, boot_b),
        iie_backward=weighted_estimates(b.difference, group, b, boot_b),
        placebo=weighted_estimates(b.placebo - b.unpatched[:, None], (group + reference) / 2, b, boot_b),
        share_of_gap=share_of_gap(b, boot_b),
    )


def _on_scale(part: Part, stored: StoredEffects, seed: int, settings: Settings, scalar: Scalar) -> list[Estimate]:
    """Estimate the mediated gaps of the confirmation split on another scale, with the same resamples."""
    effects = stored.of(seed, part.contrast, "confirmation", part.outcome, scalar=scalar)
    bootstrap = draw_bootstrap(effects, resamples=settings.bootstrap, seed=settings.seed + 1)
    return weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)


def _verdict(row: HeadRow, *, found: bool, alpha: float) -> Verdict:
    """Grade a head with enough data: confirmed means found, significant again, and of the same sign."""
    if not found:
        return "no effect found"
    again = row.confirmation_p_adjusted is not None and row.confirmation_p_adjusted <= alpha
    same_sign = (row.discovery.value or 0.0) * (row.confirmation.value or 0.0) > 0
    return "confirmed" if again and same_sign else "found, not confirmed"


def _percentiles(effects: SwapEffects) -> list[float]:
    """Return each head's percentile (0 to 100) by size of its mediated gap among the heads of its layer."""
    size = np.abs(_mediated(effects))
    layers = np.array([layer for layer, _ in effects.heads])
    return [float(sps.percentileofscore(size[layers == layer], size[k], kind="mean")) for k, layer in enumerate(layers)]


def _mediated(effects: SwapEffects) -> Array:
    """Return the mediated gap of every head."""
    result: Array = effects.mediated_weights() @ effects.difference
    return result


def _accuracy_change(part: Part, stored: StoredEffects, seed: int) -> list[float | None]:
    """Return accuracy with cross-group donors minus accuracy unpatched, for each head, confirmation split."""
    swap = stored.swap
    rows = swap[
        (swap["seed"] == seed)
        & (swap["contrast"] == str(part.contrast))
        & (swap["split"] == "confirmation")
        & (swap["donor_kind"] == "cross")
    ]
    right = (rows["predicted"] == rows["label"]).groupby([rows["layer"], rows["head"]]).mean().sort_index()
    own = stored.unpatched[stored.unpatched["seed"] == seed].set_index("recipient")
    recipients = rows.drop_duplicates("position")
    base = (own.loc[recipients["recipient"], "predicted"].to_numpy() == recipients["label"].to_numpy()).mean()
    return [float(v - base) for v in right]


def _design_c(
    part: Part, stored: StoredEffects, reference: pd.DataFrame | None, settings: Settings
) -> list[Estimate] | None:
    """Return how the gap changes with each head of the balanced model, minus the same with another seed's.

    ``CM_h = gap(M) - gap(M; u_h of the balanced model)`` less ``gap(M) - gap(M; u_h of another seed)``, on all audit
    images of the contrast; clusters are subjects. Positive: the head's training on this sample widened the gap.
    """
    attribute, group = part.contrast.attribute, part.contrast.group
    if reference is None or attribute != stored.balanced_on:
        return None
    table = reference.pivot(
        index="recipient", columns=["donor_kind", "layer", "head"], values=f"p:{part.outcome}"
    ).sort_index(axis=1)
    frame = stored.frame.loc[table.index]
    known = frame[attribute].isin([group, part.contrast.reference]).to_numpy()
    frame, table = frame[known], table[known]
    kinds = [k for k in table.columns.get_level_values(0).unique() if k.startswith("balanced")]
    label, names = pd.factorize(frame["label"], sort=True)
    balanced = np.mean([table[k].to_numpy(dtype=np.float64) for k in kinds], axis=0)
    effects = SwapEffects(
        cross=table["reseed"].to_numpy(dtype=np.float64),
        placebo=balanced,
        unpatched=np.zeros(len(table)),
        is_group=(frame[attribute] == group).to_numpy(),
        label=label.astype(np.int64),
        subject=pd.factorize(frame["subject"])[0].astype(np.int64),
        unit=np.arange(len(frame)),
        heads=part.confirmation.heads,
        shares=by_code(stored.label_shares(attribute), names),
    )
    bootstrap: Bootstrap = resample_clusters(effects.subject, resamples=settings.bootstrap, seed=settings.seed + 2)
    return weighted_estimates(effects.difference, effects.gap_weights(), effects, bootstrap)


def _attribution(part: Part, stored: StoredEffects) -> Array | None:
    """Return the first-order estimate of every head's mediated gap."""
    if stored.estimates is None:
        return None
    table = stored.estimates[stored.estimates["contrast"] == str(part.contrast)]
    kinds = {
        kind: rows.pivot(index="position", columns=["layer", "head"], values=f"p:{part.outcome}").sort_index(axis=1)
        for kind, rows in table.groupby("donor_kind")
    }
    change: Array = kinds["cross"].to_numpy(dtype=np.float64) - kinds["placebo"].to_numpy(dtype=np.float64)
    return part.confirmation.mediated_weights() @ change


def agreements(rows: Sequence[HeadRow]) -> list[Agreement]:
    """Compare, question by question, Design A's exact ranking of the heads with those of the other designs."""
    found = []
    for contrast, outcome in dict.fromkeys((r.contrast, r.outcome) for r in rows):
        own = [r for r in rows if (r.contrast, r.outcome) == (contrast, outcome)]
        exact = np.array([r.confirmation.value for r in own], dtype=np.float64)
        others: dict[Design, list[float | None]] = {
            "attribution patching": [r.attribution for r in own],
            "Design B": [r.natural_indirect.value if r.natural_indirect else None for r in own],
            "Design C": [r.design_c.value if r.design_c else None for r in own],
            "weight transplant": [r.transplant.value if r.transplant else None for r in own],
        }
        for design, values in others.items():
            if any(v is None for v in values):
                continue
            other = np.array(values, dtype=np.float64)
            top, top_other = (set(np.argsort(-np.abs(x))[:TOP].tolist()) for x in (exact, other))
            same = [np.sign(exact[k]) == np.sign(other[k]) for k in top]
            found.append(
                Agreement(
                    contrast=contrast,
                    outcome=outcome,
                    design=design,
                    rank_correlation=_rank_correlation(exact, other),
                    sign_agreement=float(np.mean(same)),
                    top10_recall=len(top & top_other) / len(top),
                )
            )
    return found


def _stability(part: Part, stored: StoredEffects, seeds: Sequence[int]) -> Stability:
    """Compare the ranking of heads between the two splits, and between training seeds."""
    a, b = _mediated(part.discovery), _mediated(part.confirmation)
    top = min(TOP, len(a))
    shared = set(np.argsort(-np.abs(a))[:top]) & set(np.argsort(-np.abs(b))[:top])
    by_seed = [_mediated(stored.of(s, part.contrast, "confirmation", part.outcome)) for s in seeds]
    pairs = [_rank_correlation(x, y) for x, y in combinations(by_seed, 2)]
    known = [r for r in pairs if r is not None]
    return Stability(
        contrast=str(part.contrast),
        outcome=part.outcome,
        split_half_rank_correlation=_rank_correlation(a, b),
        top10_overlap=len(shared) / top,
        seeds_rank_correlation=float(np.mean(known)) if known else None,
        note=f"{len(a)} heads, {len(seeds)} seed(s); overlap of the top {top}, {top / len(a):.0%} expected by chance",
    )


def _rank_correlation(x: Array, y: Array) -> float | None:
    """Spearman's correlation, or None where one side does not vary."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(sps.spearmanr(x, y).statistic)
