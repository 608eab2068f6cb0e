"""What accompanies a head's mediated gap: Design C, weight transplant, attribution patching, accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audit.evidence.bootstrap import Bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects, by_code
from audit.evidence.effects_store import Part, Settings, StoredEffects
from audit.evidence.stored_rows import Grid, Rows, read, some
from audit.records import Estimate


def accuracy_change(part: Part, stored: StoredEffects, seed: int) -> list[float | None]:
    """Return accuracy with cross-group donors minus accuracy unpatched, for each head, confirmation split.

    Of the recipients that were patched; where these are a sample, it has the same share of every label and side.
    """
    asked = some(stored.swap, seed=seed, contrast=str(part.contrast), split="confirmation", donor_kind="cross")
    own = stored.unpatched[stored.unpatched["seed"] == seed].set_index("recipient")["predicted"]
    parts = []
    for rows in read(asked, ["layer", "head", "recipient", "label", "predicted"]):
        before = own.loc[rows["recipient"]].to_numpy() == rows["label"].to_numpy()
        change = (rows["predicted"] == rows["label"]).astype(np.float64) - before
        parts.append(change.groupby([rows["layer"], rows["head"]]).agg(["sum", "count"]))
    total = pd.concat(parts).groupby(level=["layer", "head"]).sum().sort_index()  # of whole numbers: exact
    return [float(v) for v in total["sum"] / total["count"]]


def design_c(
    part: Part, stored: StoredEffects, reference: Rows | None, settings: Settings
) -> list[Estimate | None] | None:
    """Return how the gap changes with each head of the balanced model, minus the same with another seed's.

    ``CM_h = gap(M) - gap(M; u_h of the balanced model)`` less ``gap(M) - gap(M; u_h of another seed)``, on all audit
    images of the contrast; clusters are subjects. Positive: the head's training on this sample widened the gap. None
    for heads that Design C did not patch.
    """
    attribute, group = part.contrast.attribute, part.contrast.group
    if reference is None or attribute != stored.balanced_on:
        return None
    grid, value = Grid.of(reference, "recipient", ["layer", "head"], "reseed"), f"p:{part.outcome}"
    frame = stored.frame.loc[grid.index]
    heads = [(int(layer), int(head)) for layer, head in grid.patched]
    known = frame[attribute].isin([group, part.contrast.reference]).to_numpy()
    table = {kind: values[known] for kind, values in grid.fill(reference, [value], lambda rows: rows[value]).items()}
    frame = frame[known]
    kinds = sorted(k for k in table if k.startswith("balanced"))
    shares = stored.label_shares(part.contrast, part.outcome)
    label, names = pd.factorize(frame["label"], sort=True)
    balanced = np.mean([table[k] for k in kinds], axis=0)
    effects = SwapEffects(
        cross=table["reseed"],
        placebo=balanced,
        unpatched=np.zeros(len(frame)),
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
    table = some(table, contrast=str(part.contrast), split="confirmation")
    seed, value = int(next(read(table, ["seed"]))["seed"].iloc[0]), f"own:{part.outcome}"
    table = some(table, seed=seed)
    grid = Grid.of(table, "position", ["layer", "head"], "cross")
    kinds = grid.fill(table, [value], lambda rows: rows[value])
    change = kinds["cross"]
    change -= kinds.pop("placebo")
    estimates: list[float] = (part.confirmation.mediated_weights() @ change).tolist()
    return estimates
