"""Whether designs, splits and seeds rank the heads alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import stats as sps

from audit.evidence.effects import mediated_gaps
from audit.evidence.effects_store import Part, StoredEffects
from audit.evidence.stats import Array
from audit.records import Agreement, Design, HeadRow, Stability

TOP = 10  # heads that two rankings are compared on


def agreements(rows: Sequence[HeadRow]) -> list[Agreement]:
    """Compare, question by question, Design A's ranking of the heads with those of the other designs.

    Where not all recipients were patched, Design A is corrected from attribution patching; these two are compared on
    the patched recipients alone, exact patches with estimates. Designs that tried some heads only are left out.
    """
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
        patched = [r.exact_where_patched for r in own]
        sampled = all(v is not None for v in patched)
        if sampled:
            others["attribution patching"] = [r.attribution_where_patched for r in own]
        for design, values in others.items():
            if any(v is None for v in values):
                continue
            compared = np.array(patched, dtype=np.float64) if sampled and design == "attribution patching" else exact
            other = np.array(values, dtype=np.float64)
            top, top_other = (set(np.argsort(-np.abs(x))[:TOP].tolist()) for x in (compared, other))
            same = [np.sign(compared[k]) == np.sign(other[k]) for k in top]
            found.append(
                Agreement(
                    contrast=contrast,
                    outcome=outcome,
                    design=design,
                    rank_correlation=_rank_correlation(compared, other),
                    sign_agreement=float(np.mean(same)),
                    top10_recall=len(top & top_other) / len(top),
                    top10_by_chance=len(top) / len(compared),
                )
            )
    return found


def stability(part: Part, stored: StoredEffects, seeds: Sequence[int]) -> Stability:
    """Compare the ranking of heads between the two splits, and between training seeds."""
    a, b = mediated_gaps(part.discovery), mediated_gaps(part.confirmation)
    top = min(TOP, len(a))
    shared = set(np.argsort(-np.abs(a))[:top]) & set(np.argsort(-np.abs(b))[:top])
    by_seed = [mediated_gaps(stored.of(s, part.contrast, "confirmation", part.outcome)) for s in seeds]
    pairs = [_rank_correlation(x, y) for x, y in combinations(by_seed, 2)]
    known = [r for r in pairs if r is not None]
    return Stability(
        contrast=str(part.contrast),
        outcome=part.outcome,
        split_half_rank_correlation=_rank_correlation(a, b),
        top10_overlap=len(shared) / top,
        seeds_rank_correlation=float(np.mean(known)) if known else None,
        heads=len(a),
        seeds=len(seeds),
        top=top,
    )


def _rank_correlation(x: Array, y: Array) -> float | None:
    """Spearman's correlation, or None where one side does not vary or is not known."""
    if len(x) < 3 or not np.isfinite([x, y]).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(sps.spearmanr(x, y).statistic)
