"""Design B: effects on exact pairs, the same picture in two groups with everything else equal.

For a picture x and its twin x' of the other group: total effect ``TE = p(x') - p(x)``; natural indirect effect of head
h, ``NIE_h = p(x; u_h <- u_h(x')) - p(x)``; natural direct effect, ``NDE_h = p(x'; u_h <- u_h(x)) - p(x)`` (Pearl 2001;
Vig 2020 for models). Signed and averaged as a mediated gap is: from the reference to the group positive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audit.evidence.bootstrap import Bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.stats import Array, Codes
from audit.records import Contrast, Estimate, HeadRow, PairRow

Head = tuple[int, int]


@dataclass(frozen=True)
class Natural:
    """Design B of one contrast and outcome: the pairs together, and every head's indirect and direct effect."""

    row: PairRow
    indirect: Mapping[Head, Estimate]
    direct: Mapping[Head, Estimate]


def judge_pairs(
    table: pd.DataFrame,
    contrasts: Sequence[Contrast],
    outcomes: Sequence[str],
    settings: Settings,
    *,
    stored: StoredEffects | None = None,
) -> list[Natural]:
    """Estimate total, indirect and direct effects with intervals over subjects.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of the sweep of exact pairs: ``contrast``, ``pair``, ``version``, ``side``, ``label``, ``subject``,
        ``layer`` and ``head`` (-1 where nothing was patched), ``p:<outcome>``.
    contrasts, outcomes
        The questions.
    settings : Settings
    stored : StoredEffects, optional
        The audit's other effects: the labels are then weighted as in the audited gap.
    """
    found = []
    for contrast in contrasts:
        part = table[table["contrast"] == str(contrast)]
        labels = part.groupby("label")["side"].nunique() if len(part) else pd.Series(dtype=int)
        if (labels == 2).any():
            found += [_judge(part, contrast, outcome, settings, stored) for outcome in outcomes]
    return [natural for natural in found if natural.row.total.value is not None]


def _judge(
    part: pd.DataFrame, contrast: Contrast, outcome: str, settings: Settings, stored: StoredEffects | None
) -> Natural:
    shares = None if stored is None else stored.label_shares(contrast, outcome)
    value = f"p:{outcome}"
    about = part[part["version"] == "own"].drop_duplicates("pair").set_index("pair").sort_index()
    wide = part.pivot(index="pair", columns=["version", "layer", "head"], values=value).sort_index(axis=1)
    own, edited = (wide[v].loc[about.index] for v in ("own", "edited"))
    before, after = (w[(-1, -1)].to_numpy(dtype=np.float64) for w in (own, edited))
    heads: list[Head] = [(int(layer), int(head)) for layer, head in own.columns if layer >= 0]
    # Clusters are subjects: a pair is one picture twice, and all pictures of a subject are together.
    label, names = pd.factorize(about["label"], sort=True)
    subjects: Codes = pd.factorize(about["subject"])[0].astype(np.int64)
    effects = SwapEffects(
        cross=own[heads].to_numpy(dtype=np.float64),
        placebo=before[:, None],
        unpatched=before,
        is_group=(about["side"] == "group").to_numpy(),
        label=label.astype(np.int64),
        subject=subjects,
        unit=subjects,
        heads=heads,
        shares=None if shares is None else by_code(shares["label_shares"], names),
        group_shares=None if shares is None else by_code(shares["group_shares"], names),
    )
    bootstrap = Bootstrap(subjects, settings.bootstrap, settings.seed + 3)
    weights = effects.mediated_weights()

    def estimate(change: Array) -> list[Estimate]:
        return weighted_estimates(change, weights, effects, bootstrap)

    direct = edited[heads].to_numpy(dtype=np.float64) - before[:, None]
    return Natural(
        row=PairRow(
            contrast=str(contrast),
            outcome=outcome,
            pairs=len(about),
            subjects=int(subjects.max()) + 1,
            total=estimate((after - before)[:, None])[0],
        ),
        indirect=dict(zip(heads, estimate(effects.difference), strict=True)),
        direct=dict(zip(heads, estimate(direct), strict=True)),
    )


def with_natural(rows: Sequence[HeadRow], found: Sequence[Natural]) -> list[HeadRow]:
    """Add Design B to the rows of the heads."""
    by_question = {(n.row.contrast, n.row.outcome): n for n in found}
    updated = []
    for row in rows:
        natural, head = by_question.get((row.contrast, row.outcome)), (row.layer, row.head)
        update = (
            {}
            if natural is None
            else {"natural_indirect": natural.indirect.get(head), "natural_direct": natural.direct.get(head)}
        )
        updated.append(row.model_copy(update=update))
    return updated
