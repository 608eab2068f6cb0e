"""What an audit of these images could say about heads, before anything is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audit.card.schema import AuditSpec
from audit.data.samples import Samples
from audit.evidence.effects_store import MIN_UNITS
from audit.evidence.stats import components
from audit.patching.plans import plan_group_swap
from audit.units import UNITS, Unit

SPLITS = ("discovery", "confirmation")


def detectable_head_effects(samples: Samples, spec: AuditSpec, unit: Unit) -> list[str]:
    """Say for each contrast whether heads can be localised, by pairing donors as the audit will.

    Parameters
    ----------
    samples : Samples
    spec : AuditSpec
        Its seed and limits.
    unit : {"head", "slice"}
        What is patched.

    Returns
    -------
    list of str
        One sentence a contrast.
    """
    lines = []
    for contrast in samples.contrasts:
        counts = [
            independent_units(
                plan_group_swap(
                    samples.of_split(split), contrast, samples.nuisance, seed=spec.seed + k, max_images=spec.max_images
                ).rows,
                samples.frame["subject"],
            )
            for k, split in enumerate(SPLITS)
        ]
        answer = "can be localised" if min(counts) >= MIN_UNITS else "cannot be localised: too little data"
        where = f"{contrast.attribute} {contrast.group} against {contrast.reference}"
        lines.append(
            f"{where}: {UNITS[unit].plural} {answer}; {counts[0]} and {counts[1]} independent groups of donor "
            f"pairs and recipients in discovery and confirmation, {MIN_UNITS} needed in each"
        )
    return lines


def independent_units(plan: pd.DataFrame, subjects: pd.Series) -> int:
    """Count the clusters of recipients that share neither a subject nor a donor pair."""
    if not len(plan):
        return 0
    codes = pd.factorize(subjects.loc[plan["recipient"]])[0].astype(np.int64)
    return len(np.unique(components(codes, plan["unit"].to_numpy(dtype=np.int64))))
