"""Data whose truth is known: clustered predictions, and patching effects with planted heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from audit.evidence.effects import SwapEffects

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def plausible(hits: int, trials: int, low: float, high: float) -> bool:
    """Tell whether ``hits`` of ``trials`` could come from some probability in [low, high], at the 0.1% level."""
    too_few = stats.binom.cdf(hits, trials, low) < 0.001
    too_many = stats.binom.sf(hits - 1, trials, high) < 0.001
    return not (too_few or too_many)


def predictions(rows: Sequence[tuple[str, str, str, int]]) -> pd.DataFrame:
    """Return audit images of a 'smile' question: (group, label, predicted, how many), each its own subject."""
    parts = [(g, label, predicted) for g, label, predicted, n in rows for _ in range(n)]
    frame = pd.DataFrame(parts, columns=["group", "label", "predicted"])
    frame["subject"] = [f"s{i}" for i in range(len(frame))]
    return with_probabilities(frame, ["smile", "frown"])


def with_probabilities(frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Give the predicted label probability 0.9 and share out the rest."""
    rest = 0.1 / (len(labels) - 1)
    return frame.assign(**{f"p:{name}": np.where(frame["predicted"] == name, 0.9, rest) for name in labels})


def clustered_rates(
    rng: np.random.Generator, rates: Sequence[float], *, subjects: int, images: int, concentration: float = 4.0
) -> tuple[Floats, Codes, Codes]:
    """Draw hits of two groups: each subject has a rate of its own around its group's.

    Returns
    -------
    tuple of arrays (N,)
        Hits as 0.0 or 1.0, the group's number, the subject's number.
    """
    cells = np.repeat(np.arange(len(rates)), subjects * images)
    people = np.repeat(np.arange(len(rates) * subjects), images)
    own = np.concatenate([rng.beta(concentration * r, concentration * (1 - r), subjects) for r in rates])
    return (rng.random(len(people)) < own[people]).astype(np.float64), cells, people


def swap_effects(
    rng: np.random.Generator,
    *,
    units: int = 40,
    per_unit: int = 2,
    heads: int = 6,
    planted: Sequence[float] = (),
    noise: float = 0.05,
    donor_noise: float = 0.05,
    gap: float = 0.2,
    labels: int = 2,
) -> SwapEffects:
    """Draw effects of donor pairs, each of which serves ``per_unit`` recipients of either side.

    A pair's two donors differ from each other by chance (``donor_noise``, shared by all recipients of the pair) and
    by their group: with donors of the other group instead of their own, recipients of the reference gain
    ``planted[k]`` and recipients of the group lose it, so that the mediated gap of head k is ``planted[k]``.
    """
    effect = np.zeros(heads)
    effect[: len(planted)] = planted
    unit = np.repeat(np.arange(units), 2 * per_unit)
    is_group = np.tile(np.repeat([True, False], per_unit), units)
    label = (unit % labels).astype(np.int64)
    pair = rng.normal(0, donor_noise, (units, heads))
    sign = np.where(is_group, -1.0, 1.0)[:, None]  # the other group's donor is the reference's for recipients of it
    unpatched = 0.4 + 0.1 * label + gap * is_group + rng.normal(0, 0.02, len(unit))
    placebo = unpatched[:, None] + rng.normal(0, noise, (len(unit), heads))
    cross = placebo + sign * (effect + pair[unit]) + rng.normal(0, noise, (len(unit), heads))
    return SwapEffects(
        cross=cross,
        placebo=placebo,
        unpatched=unpatched,
        is_group=is_group,
        label=label,
        subject=np.arange(len(unit)),
        unit=unit,
        heads=[(k // 3, k % 3) for k in range(heads)],
    )
