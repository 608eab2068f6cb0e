"""What the sweeps left behind, and the questions that are asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audit.data.samples import UNKNOWN
from audit.evidence.effects import Scalar, SwapEffects, lay_out
from audit.evidence.sampled import FirstOrder, Sampled
from audit.evidence.stats import Array, components
from audit.records import Contrast
from audit.units import Unit

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
    unit: Unit = "head"  # what is patched


@dataclass(frozen=True)
class StoredEffects:
    """What the sweeps left behind.

    Parameters
    ----------
    swap : pandas.DataFrame
        Design A: columns of a sweep, and ``seed``, ``contrast``, ``split``, ``unit``, ``side``, ``label``; where not
        every head of every recipient is patched, ``look`` (1 or 2) says when it was.
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
    first_order : pandas.DataFrame or None
        Design A by attribution patching: ``seed``, ``contrast``, ``split``, ``position``, ``recipient``, ``unit``,
        ``side``, ``label``, ``donor_kind``, ``layer``, ``head``, and ``own:``, ``pair:`` and ``both:<outcome>``,
        estimated changes of p. The first seed's confirmation split at least; all that is patched in part.
    """

    swap: pd.DataFrame
    reference: pd.DataFrame | None
    unpatched: pd.DataFrame
    frame: pd.DataFrame
    balanced_on: str = ""
    transplant: pd.DataFrame | None = None
    first_order: pd.DataFrame | None = None

    def label_shares(self, attribute: str) -> dict[str, float]:
        """Return the weights of the labels in the audited gap: their shares among audited images of known group."""
        audited = self.frame.loc[self.unpatched["recipient"].unique()]
        shares = audited.loc[audited[attribute] != UNKNOWN, "label"].value_counts(normalize=True)
        return {str(label): float(share) for label, share in shares.items()}

    def patched_in_both_splits(self, contrasts: Sequence[Contrast]) -> list[Contrast]:
        """Return those of ``contrasts`` that found recipients and donors in both splits."""
        splits = self.swap.drop_duplicates(["contrast", "split"]).groupby("contrast")["split"].nunique()
        return [c for c in contrasts if splits.get(str(c), 0) == 2]

    def of(
        self, seed: int, contrast: Contrast, split: str, outcome: str, *, scalar: Scalar = "p", first_look: bool = False
    ) -> SwapEffects:
        """Lay out Design A of one seed, contrast, split and outcome; what was not patched is estimated.

        With ``first_look`` only what was patched by then is used.
        """
        part = self.sampled(seed, contrast, split, outcome, scalar=scalar, first_look=first_look)
        return part.combined() if isinstance(part, Sampled) else part

    def sampled(
        self, seed: int, contrast: Contrast, split: str, outcome: str, *, scalar: Scalar = "p", first_look: bool = False
    ) -> Sampled | SwapEffects:
        """Lay out the patches of one seed, contrast, split and outcome, with first-order estimates if some are left."""
        rows = _part(self.swap, seed, contrast, split)
        if first_look:
            rows = rows[rows["look"] == 1]
        own, subjects = self.unpatched[self.unpatched["seed"] == seed], self.frame["subject"]
        shares = self.label_shares(contrast.attribute)
        estimates = None if self.first_order is None else _part(self.first_order, seed, contrast, split)
        if estimates is None or len(estimates) <= len(rows):
            return lay_out(rows, own, subjects, outcome, scalar=scalar, label_shares=shares)
        patched = lay_out(rows, own, subjects, outcome, scalar=scalar, label_shares=shares, everyone=estimates)
        return Sampled(patched, first_order_of(estimates, outcome))


def _part(table: pd.DataFrame, seed: int, contrast: Contrast, split: str) -> pd.DataFrame:
    return table[(table["seed"] == seed) & (table["contrast"] == str(contrast)) & (table["split"] == split)]


def first_order_of(estimates: pd.DataFrame, outcome: str) -> FirstOrder:
    """Lay out the first-order estimates of one contrast, split and outcome."""
    return FirstOrder(*(_by_kind(estimates, f"{average}:{outcome}") for average in ("own", "pair", "both")))


def _by_kind(estimates: pd.DataFrame, value: str) -> Array:
    """Return a column as an array (2, R, K): with the cross-group donor, and with the placebo."""
    wide = estimates.pivot(index="position", columns=["donor_kind", "layer", "head"], values=value).sort_index(axis=1)
    return np.stack([wide[kind].to_numpy(dtype=np.float64) for kind in ("cross", "placebo")])


@dataclass(frozen=True)
class Part:
    """One contrast and outcome on both splits, primary seed."""

    contrast: Contrast
    outcome: str
    discovery: SwapEffects
    confirmation: SwapEffects
    first_look: SwapEffects | None = None  # at the discovery split, where it is looked at twice

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
