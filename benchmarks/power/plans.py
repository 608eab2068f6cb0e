"""Who donates to whom: one donor pair a recipient as audits have it, and several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.evidence.effects import SwapEffects
from audit.evidence.stats import Array, Codes, components
from audit.patching.plans import draw_evenly, plan_group_swap
from benchmarks.power.effects import GROUPS

SIDES = ("group", "reference")


def one_pair(half: pd.DataFrame, seed: int, at_most: int | None = None) -> pd.DataFrame:
    """Return the plan of today: a pair serves as many recipients of the group as of the reference."""
    return plan_group_swap(half, GROUPS, [], seed=seed, max_images=at_most).rows


def several_pairs(
    half: pd.DataFrame, donors: int, seed: int, at_most: int | None = None, *, shared: bool = True
) -> pd.DataFrame:
    """Return a plan in which each recipient has ``donors`` pairs, rows in their order.

    The pairs of today are put into blocks, and a recipient takes its pairs from one block that it is in no pair of: so
    blocks do not mix, and clusters are blocks. With ``shared`` a block serves recipients of both groups, as a pair does
    today; without, those of the one come after those of the other, so that a block serves twice only where it must.
    """
    rng = np.random.default_rng([seed, donors])
    pairs = _pairs(one_pair(half, seed))
    known = half.assign(side=np.where(half["group"] == GROUPS.group, *SIDES), row=half.index)
    chosen = draw_evenly(known, ["label", "side"], at_most, rng)
    parts = []
    for label, own in chosen.groupby("label", sort=True):
        of_label = pairs[pairs["label"] == label].sample(frac=1, random_state=rng)
        blocks = np.array_split(np.arange(len(of_label)), max(1, len(of_label) // donors))
        parts += _deal(own, of_label, blocks, donors, half["subject"], shared=shared)
    return pd.concat(parts, ignore_index=True)


def _pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the donor pairs of a plan in which everyone receives: ``unit``, ``label``, ``group``, ``reference``."""
    once = rows.drop_duplicates("unit")
    is_group = once["side"] == "group"
    return pd.DataFrame(
        {
            "unit": once["unit"],
            "label": once["label"],
            "group": once["placebo"].where(is_group, once["cross"]),
            "reference": once["cross"].where(is_group, once["placebo"]),
        }
    ).reset_index(drop=True)


def _deal(
    recipients: pd.DataFrame,
    pairs: pd.DataFrame,
    blocks: Sequence[npt.NDArray[np.int64]],
    donors: int,
    subject_of: pd.Series,
    *,
    shared: bool,
) -> list[pd.DataFrame]:
    """Give the recipients of a label, all images of a subject alike, pairs of one block."""
    inside = [set(subject_of.loc[pairs.iloc[b][list(SIDES)].to_numpy().ravel()]) for b in blocks]
    parts, turn = [], 0
    for side, other in (SIDES, SIDES[::-1]):
        turn = 0 if shared else turn
        given: list[tuple[int, int]] = []
        images_of: dict[str, list[int]] = {}
        for subject, image in recipients.loc[recipients["side"] == side, ["subject", "row"]].itertuples(index=False):
            images_of.setdefault(subject, []).append(image)
        for subject, images in images_of.items():
            turns = (i % len(blocks) for i in range(turn, turn + len(blocks)))
            block = next(i for i in turns if subject not in inside[i])
            lap, turn = turn // len(blocks), turn + 1
            own = np.roll(blocks[block], -lap)[:donors]
            given += [(image, pair) for image in images for pair in own]
        recipient, pair = np.array(given, dtype=np.int64).reshape(-1, 2).T
        donor = pairs.iloc[pair].reset_index(drop=True)
        columns = {"recipient": recipient, "cross": donor[other], "placebo": donor[side], "unit": donor["unit"]}
        parts.append(pd.DataFrame(columns).assign(side=side, label=donor["label"]))
    return parts


def more_where_answers_move(rows: pd.DataFrame, own_p: Array, mean: float) -> npt.NDArray[np.bool_]:
    """Return which rows (N,) of a plan with several pairs are patched, so that a recipient has ``mean`` on average.

    One pair each; the others go one by one to where p (1 - p) is largest for the pairs that a recipient has already
    (Neyman's allocation).

    Parameters
    ----------
    rows : pandas.DataFrame
        Of `several_pairs`.
    own_p : numpy.ndarray (N,)
        Of each row's recipient as it is.
    mean : float
    """
    place = rows.groupby("recipient").cumcount().to_numpy()
    gain = np.where(place == 0, np.inf, (own_p * (1 - own_p)) ** 2 / np.maximum(place * (place + 1), 1))
    kept = np.zeros(len(rows), dtype=bool)
    kept[np.argsort(-gain, kind="stable")[: round(mean * rows["recipient"].nunique())]] = True
    return kept


def by_recipient(effects: SwapEffects, recipient: Codes) -> SwapEffects:
    """Return the means over the pairs of each recipient (N,); what is swapped are blocks, the clusters of its pairs."""
    _, first, codes = np.unique(recipient, return_index=True, return_inverse=True)
    count = np.bincount(codes)[:, None]

    def mean(values: Array) -> Array:
        total = np.zeros((len(first), values.shape[1]))
        np.add.at(total, codes, values)
        averaged: Array = total / count
        return averaged

    blocks = components(effects.subject, effects.unit)
    together = replace(effects, unit=blocks).take(first)
    return replace(together, cross=mean(effects.cross), placebo=mean(effects.placebo))
