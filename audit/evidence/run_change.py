"""Whether a number changed between two runs, where both measured the same images: image by image, person by person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audit.evidence.bootstrap import draw_bootstrap, weighted_estimates
from audit.evidence.effects import SwapEffects, permute_donor_labels
from audit.evidence.stats import Array, components
from audit.records import Estimate

RESAMPLES, PERMUTATIONS, SEED = 2000, 5000, 0


@dataclass(frozen=True)
class Change:
    """The second run's number minus the first's, and how often chance alone would do as much."""

    estimate: Estimate
    p: float
    images: int


def paired_change(effects: SwapEffects, weights: Array) -> Change:
    """Compare two runs.

    Parameters
    ----------
    effects : SwapEffects
        ``cross`` holds what the second run measured of each image, ``placebo`` what the first did (R, 1).
    weights : numpy.ndarray (R,)
        Whose product with either is the run's number.

    Returns
    -------
    Change
        Its interval resamples whole clusters of linked subjects and donor pairs; its p-value swaps the two runs within
        clusters, which changes nothing on average if they do not differ.
    """
    bootstrap = draw_bootstrap(effects, resamples=RESAMPLES, seed=SEED)
    (estimate,) = weighted_estimates(effects.difference, weights, effects, bootstrap)
    clusters = components(effects.subject, effects.unit)
    sums = np.zeros((int(clusters.max()) + 1, 1))
    np.add.at(sums, clusters, weights[:, None] * effects.difference)
    (result,) = permute_donor_labels([sums], permutations=PERMUTATIONS, seed=SEED)
    return Change(estimate, float(result.raw[0]), len(weights))
