"""What stands beside a head's mediated gap: Design C, weight transplant, attribution patching, accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audit.evidence.effects import Bootstrap, SwapEffects, by_code, resample_clusters, weighted_estimates
from audit.evidence.stats import Array
from audit.evidence.stored import Part, Settings, StoredEffects
from audit.records import Estimate


def accuracy_change(part: Part, stored: StoredEffects, seed: int) -> list[float | None]:
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


def design_c(
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


def attribution(part: Part, stored: StoredEffects) -> list[float] | None:
    """Return the first-order estimate of every head's mediated gap."""
    if stored.estimates is None:
        return None
    table = stored.estimates[stored.estimates["contrast"] == str(part.contrast)]
    kinds = {
        kind: rows.pivot(index="position", columns=["layer", "head"], values=f"p:{part.outcome}").sort_index(axis=1)
        for kind, rows in table.groupby("donor_kind")
    }
    change: Array = kinds["cross"].to_numpy(dtype=np.float64) - kinds["placebo"].to_numpy(dtype=np.float64)
    estimates: list[float] = (part.confirmation.mediated_weights() @ change).tolist()
    return estimates
