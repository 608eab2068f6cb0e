"""What accompanies a head's mediated gap: Design C, weight transplant, attribution patching, accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audit.evidence.bootstrap import Bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import Part, Settings, StoredEffects
from audit.evidence.stats import Array
from audit.records import Estimate


def accuracy_change(part: Part, stored: StoredEffects, seed: int) -> list[float | None]:
    """Return accuracy with cross-group donors minus accuracy unpatched, for each head, confirmation split.

    Of the recipients that were patched; where these are a sample, it has the same share of every label and side.
    """
    swap = stored.swap
    rows = swap[
        (swap["seed"] == seed)
        & (swap["contrast"] == str(part.contrast))
        & (swap["split"] == "confirmation")
        & (swap["donor_kind"] == "cross")
    ]
    own = stored.unpatched[stored.unpatched["seed"] == seed].set_index("recipient")["predicted"]
    before = own.loc[rows["recipient"]].to_numpy() == rows["label"].to_numpy()
    change = (rows["predicted"] == rows["label"]).astype(np.float64) - before
    return [float(v) for v in change.groupby([rows["layer"], rows["head"]]).mean().sort_index()]


def design_c(
    part: Part, stored: StoredEffects, reference: pd.DataFrame | None, settings: Settings
) -> list[Estimate | None] | None:
    """Return how the gap changes with each head of the balanced model, minus the same with another seed's.

    ``CM_h = gap(M) - gap(M; u_h of the balanced model)`` less ``gap(M) - gap(M; u_h of another seed)``, on all audit
    images of the contrast; clusters are subjects. Positive: the head's training on this sample widened the gap. None
    for heads that Design C did not patch.
    """
    attribute, group = part.contrast.attribute, part.contrast.group
    if reference is None or attribute != stored.balanced_on:
        return None
    table = reference.pivot(
        index="recipient", columns=["donor_kind", "layer", "head"], values=f"p:{part.outcome}"
    ).sort_index(axis=1)
    frame = stored.frame.loc[table.index]
    heads = [(int(layer), int(head)) for layer, head in table["reseed"].columns]
    known = frame[attribute].isin([group, part.contrast.reference]).to_numpy()
    frame, table = frame[known], table[known]
    kinds = [k for k in table.columns.get_level_values(0).unique() if k.startswith("balanced")]
    shares = stored.label_shares(part.contrast, part.outcome)
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
        heads=heads,
        shares=by_code(shares["label_shares"], names),
        group_shares=by_code(shares["group_shares"], names),
    )
    bootstrap = Bootstrap(effects.subject, settings.bootstrap, settings.seed + 2)
    found = weighted_estimates(effects.difference, effects.gap_weights(), effects, bootstrap)
    by_head = dict(zip(heads, found, strict=True))
    return [by_head.get(head) for head in part.confirmation.heads]


def attribution(part: Part, stored: StoredEffects) -> list[float] | None:
    """Return the first-order estimate of every head's mediated gap."""
    table = stored.first_order
    if table is None:
        return None
    table = table[(table["contrast"] == str(part.contrast)) & (table["split"] == "confirmation")]
    table = table[table["seed"] == table["seed"].iloc[0]]
    kinds = {
        kind: rows.pivot(index="position", columns=["layer", "head"], values=f"own:{part.outcome}").sort_index(axis=1)
        for kind, rows in table.groupby("donor_kind")
    }
    change: Array = kinds["cross"].to_numpy(dtype=np.float64) - kinds["placebo"].to_numpy(dtype=np.float64)
    estimates: list[float] = (part.confirmation.mediated_weights() @ change).tolist()
    return estimates
