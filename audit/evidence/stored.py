"""What the sweeps left behind, and the questions that are asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audit.data.samples import UNKNOWN
from audit.evidence.effects import Scalar, SwapEffects, lay_out
from audit.evidence.stats import components
from audit.records import Contrast

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
