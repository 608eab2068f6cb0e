"""Every head's verdict: found on the discovery split, confirmed on people not used to find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats as sps

from audit.evidence.agreement import stability
from audit.evidence.bootstrap import Bootstrap, draw_bootstrap, share_of_gap, tost_p_values, weighted_estimates
from audit.evidence.effects import (
    PermutationResult,
    SwapEffects,
    mediated_gaps,
    permute_donor_labels,
    unit_sums,
)
from audit.evidence.effects_store import Part, Settings, StoredEffects
from audit.evidence.sampled import Sampled
from audit.evidence.secondary_metrics import accuracy_change, attribution, design_c
from audit.evidence.stats import Array, excludes_zero, holm, is_at_most, over_seeds, smallest_detectable
from audit.evidence.stored_rows import columns_of
from audit.records import Contrast, ContrastRow, Direction, Estimate, HeadRow, Stability, State, Verdict
from audit.units import name_of

FIRST_LOOK = 0.2  # share of alpha that is spent on the first of two looks
HOPELESS = 0.1  # conditional power below which a head is not patched further


def localise(
    stored: StoredEffects,
    contrasts: Sequence[Contrast],
    outcomes: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
) -> tuple[list[HeadRow], list[Stability]]:
    """Grade every head for every contrast and outcome, in the metric of its question (``stored.gaps``).

    Tests are made on mean probability, which sees more than the few images whose class changes; what a head does to the
    audited gap is its effect on the rate, with an interval of its own.

    Discovery: swaps of donor labels, adjusted by max-|T| over heads x outcomes x contrasts; where heads were looked at
    twice, alpha is spent on both looks. Confirmation: the same swaps on the other split for the found heads only, Holm
    over those, same sign asked for.
    """
    if not contrasts:
        return [], []
    parts = parts_of(stored, contrasts, outcomes, seeds[0])
    discovered = discover(parts, settings)
    repeated = _permute(parts, "confirmation", settings, settings.seed + 1)
    found = {part.key: found_heads(part, result, settings) for part, result in zip(parts, discovered, strict=True)}
    confirmed_p = _confirm(parts, repeated, found)
    family = sum(len(part.discovery.heads) for part in parts)
    rows: list[HeadRow] = []
    for part, first, again in zip(parts, discovered, repeated, strict=True):
        rows += _rows_of(
            part, first, found[part.key], confirmed_p, stored, seeds, settings, family=family, critical=again.critical
        )
    return rows, [stability(part, stored, seeds) for part in parts]


def parts_of(
    stored: StoredEffects,
    contrasts: Sequence[Contrast],
    outcomes: Sequence[str],
    seed: int,
) -> list[Part]:
    """Return both splits of every contrast and outcome, and the first look at discovery where there were two."""
    twice = "look" in columns_of(stored.swap)
    return [
        Part(
            c,
            o,
            stored.of(seed, c, "discovery", o),
            stored.of(seed, c, "confirmation", o),
            stored.of(seed, c, "discovery", o, first_look=True) if twice else None,
        )
        for c in contrasts
        for o in outcomes
    ]


def discover(parts: Sequence[Part], settings: Settings) -> list[PermutationResult]:
    """Test every head of every part on the discovery split, adjusted over them all.

    Where the split was looked at twice, the shares ``FIRST_LOOK`` and ``1 - FIRST_LOOK`` of alpha are spent on the two
    looks (alpha spending, Lan & DeMets 1983; the shares are fixed, and add up by Bonferroni's inequality): a p-value is
    the smaller of those of the looks, each divided by its share. A head that was patched no further after the first
    look stays in the second look's family as it was.
    """
    last = _permute(parts, "discovery", settings, settings.seed)
    if all(part.first_look is None for part in parts):
        return last
    first = _permute(parts, "first_look", settings, settings.seed)
    return [
        replace(b, raw=_spend(a.raw, b.raw), adjusted=_spend(a.adjusted, b.adjusted))
        for a, b in zip(first, last, strict=True)
    ]


def _spend(first: Array, last: Array) -> Array:
    """Return the smaller of the p-values of two looks, each divided by its share of alpha."""
    return np.minimum(np.minimum(first / FIRST_LOOK, last / (1 - FIRST_LOOK)), 1.0)


@dataclass(frozen=True)
class Decided:
    """Which heads of a part (K,) need no further patches for discovery: found already, or without hope."""

    found: npt.NDArray[np.bool_]
    hopeless: npt.NDArray[np.bool_]


def decide_early(parts: Sequence[Part], further: Sequence[Array], settings: Settings) -> list[Decided]:
    """Look at the discovery split for the first time.

    Parameters
    ----------
    parts : sequence of Part
        As they are now.
    further : sequence of numpy.ndarray (K,)
        For each part and head, the variance that is expected after all patches that are still to come, as a share of
        that at the first look.
    settings : Settings

    Returns
    -------
    list of Decided
        Found: significant at the first look's share of alpha. Hopeless: if the effect is as large as it looks, the
        second look would find it with a probability (conditional power, Lan & Wittes 1988) under ``HOPELESS``. To give
        up can only lose findings, never make any.
    """
    decided = []
    for result, left in zip(_permute(parts, "discovery", settings, settings.seed), further, strict=True):
        found = result.adjusted <= FIRST_LOOK * settings.alpha
        remaining = left.clip(1e-9, 1 - 1e-9)
        expected = np.abs(result.statistic) / np.sqrt(remaining)
        power = sps.norm.sf((result.critical - expected) / np.sqrt(1 - remaining))
        decided.append(Decided(found, ~found & (power < HOPELESS)))
    return decided


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


def found_heads(part: Part, result: PermutationResult, settings: Settings) -> list[int]:
    """Return the columns of the heads that discovery found; none where there is too little data."""
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
    columns = _columns(part, first, stored, seeds, settings, family=family, critical=critical)
    counted = part.confirmation.weighted
    rows = []
    for k, (layer, head) in enumerate(part.confirmation.heads):
        p, q = confirmed_p.get((part.key, k), (None, None))
        values = {name: column[k] for name, column in columns.items()}
        row = HeadRow(
            contrast=str(part.contrast),
            outcome=part.outcome,
            layer=layer,
            head=head,
            name=name_of(settings.unit, layer, head),
            confirmation_p=p,
            confirmation_p_adjusted=q,
            metric=stored.metric(part.contrast, part.outcome),
            direction=direction_of(values["confirmation_rate"], stored.gaps.get(part.key)),
            **_over_seeds(values["by_seed"]),
            equivalence_margin=settings.margin,
            within_margin=is_at_most(values["equivalence_p"], settings.alpha),
            n_group=int(counted[part.confirmation.is_group].sum()),
            n_reference=int(counted[~part.confirmation.is_group].sum()),
            verdict=Verdict.TOO_LITTLE_DATA,
            **values,
        )
        if part.enough(settings.min_group_size):
            row = row.model_copy(update={"verdict": _verdict(row, found=k in found, alpha=settings.alpha)})
        rows.append(row)
    return rows


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    together = over_seeds(values)
    return {"over_seeds": together.estimate, "p_over_seeds": together.p} if together else {}


def _columns(
    part: Part,
    first: PermutationResult,
    stored: StoredEffects,
    seeds: Sequence[int],
    settings: Settings,
    *,
    family: int,
    critical: float,
) -> dict[str, Sequence[Any]]:
    """Return what is known of every head, in the order of the heads, by the names of HeadRow's fields."""
    spread, of_discovery = (np.sqrt((unit_sums(e) ** 2).sum(axis=0)) for e in (part.confirmation, part.discovery))
    # To be confirmed a head must first be found among all, on the less certain of the two splits.
    errors = np.maximum(spread, of_discovery)
    by_seed = np.array([mediated_gaps(stored.of(s, part.contrast, "confirmation", part.outcome)) for s in seeds])
    resamples = draw_bootstrap(part.confirmation, resamples=settings.bootstrap, seed=settings.seed + 1)
    estimates = _estimates(part, settings, resamples) | _on_other_scales(part, stored, seeds[0], resamples)
    beside = {
        "design_c": design_c(part, stored, stored.reference, settings),
        "transplant": design_c(part, stored, stored.transplant, settings),
        "attribution": attribution(part, stored),
    }
    return {
        **estimates,
        "null_bound": (critical * spread).tolist(),
        "discovery_p": first.raw.tolist(),
        "discovery_p_adjusted": first.adjusted.tolist(),
        "percentile_in_layer": _percentiles(part.confirmation),
        "accuracy_change": accuracy_change(part, stored, seeds[0]),
        "by_seed": by_seed.T.tolist(),
        "equivalence_p": tost_p_values(part.confirmation, resamples, settings.margin),
        "smallest_detectable": [
            smallest_detectable(e, alpha=settings.alpha, family=family) if e > 0 else None for e in errors.tolist()
        ],
        **{name: values or [None] * len(spread) for name, values in beside.items()},
        **_effort(stored.sampled(seeds[0], part.contrast, "confirmation", part.outcome), len(spread)),
    }


def _effort(patched: Sampled | SwapEffects, heads: int) -> dict[str, Sequence[Any]]:
    """Return for each head what share of the recipients was patched, and what made it suffice."""
    if isinstance(patched, SwapEffects):
        return {"patched_share": [1.0] * heads}
    exact, first_order = patched.where_patched()
    return {
        "exact_where_patched": exact.tolist(),
        "attribution_where_patched": first_order.tolist(),
        "patched_share": patched.chosen.mean(axis=0).tolist(),
        "first_order_correlation": patched.correlation.tolist(),
    }


def _estimates(part: Part, settings: Settings, boot_b: Bootstrap) -> dict[str, list[Estimate]]:
    """Estimate everything that has an interval; ``boot_b`` resamples the confirmation split."""
    a, b = part.discovery, part.confirmation
    boot_a = draw_bootstrap(a, resamples=settings.bootstrap, seed=settings.seed)
    group, reference = b.side_weights(group=True), b.side_weights(group=False)
    return {
        "discovery": _mediated(a, boot_a),
        "confirmation": _mediated(b, boot_b),
        "iie_forward": weighted_estimates(b.difference, reference, b, boot_b),
        "iie_backward": weighted_estimates(b.difference, group, b, boot_b),
        "placebo": weighted_estimates(b.placebo - b.unpatched[:, None], (group + reference) / 2, b, boot_b),
    }


def _on_other_scales(part: Part, stored: StoredEffects, seed: int, resamples: Bootstrap) -> dict[str, list[Estimate]]:
    """Estimate in the rate of being called the outcome and in log-odds; the effects of one scale are held at a time."""
    called = stored.of(seed, part.contrast, "confirmation", part.outcome, scalar="called")
    rates = {"confirmation_rate": _mediated(called, resamples), "share_of_gap": share_of_gap(called, resamples)}
    del called
    log_odds = stored.of(seed, part.contrast, "confirmation", part.outcome, scalar="m")
    return rates | {"confirmation_log_odds": _mediated(log_odds, resamples)}


def _mediated(effects: SwapEffects, bootstrap: Bootstrap) -> list[Estimate]:
    """Estimate the mediated gap of every head."""
    return weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)


def direction_of(effect: Estimate, gap: ContrastRow | None) -> Direction:
    """Tell what a head does to a detected gap.

    Parameters
    ----------
    effect : Estimate
        Mediated gap in the rate, in the gap's metric.
    gap : ContrastRow or None
        The gap of the question.

    Returns
    -------
    Direction
        Not determined where no gap was detected, or the effect's interval holds 0.
    """
    if gap is None or gap.state != State.DISPARITY or gap.estimate.value is None or effect.value is None:
        return Direction.NOT_DETERMINED
    if not excludes_zero(effect):
        return Direction.NOT_DETERMINED
    return Direction.WIDENS if effect.value * gap.estimate.value > 0 else Direction.NARROWS


def _verdict(row: HeadRow, *, found: bool, alpha: float) -> Verdict:
    """Grade a head with enough data: confirmed means found, significant again, and of the same sign."""
    if not found:
        return Verdict.NOT_FOUND
    again = is_at_most(row.confirmation_p_adjusted, alpha)
    same_sign = (row.discovery.value or 0.0) * (row.confirmation.value or 0.0) > 0
    return Verdict.CONFIRMED if again and same_sign else Verdict.NOT_CONFIRMED


def _percentiles(effects: SwapEffects) -> list[float]:
    """Return each head's percentile (0 to 100) by size of its mediated gap among the heads of its layer."""
    size = np.abs(mediated_gaps(effects))
    layers = np.array([layer for layer, _ in effects.heads])
    return [float(sps.percentileofscore(size[layers == layer], size[k], kind="mean")) for k, layer in enumerate(layers)]
