"""Who donates what to whom in Design A: pairs of donors, one of each group, each donor subject used once.

The unit of the randomisation is the *donor pair*: one image of the group and one of the reference, of equal label
and equal nuisance values, their covariates within the calipers. For a recipient of either group one of the two is the
cross-group donor and the other the same-group placebo. Swapping the two group labels inside a pair is the permutation
of donor labels within strata under which the null hypothesis is tested, so pairs must not share subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.patching.nearest import Near
from audit.records import Contrast

PLAN_COLUMNS = ["recipient", "cross", "placebo", "unit", "side", "label", "stratum"]


@dataclass(frozen=True)
class GroupSwapPlan:
    """Recipients with their two donors."""

    # ``recipient``, ``cross``, ``placebo``: index values of the samples; ``unit``: the donor pair; ``side``: "group"
    # or "reference", the recipient's; ``label``: the recipient's and both donors'
    rows: pd.DataFrame
    without_donor: int  # recipients that no donor pair matches


def plan_group_swap(
    frame: pd.DataFrame,
    contrast: Contrast,
    nuisance: Sequence[str],
    *,
    seed: int,
    max_images: int | None = None,
    calipers: Mapping[str, float] | None = None,
) -> GroupSwapPlan:
    """Match every recipient with a pair of donors.

    Parameters
    ----------
    frame : pandas.DataFrame
        Samples of one split; columns ``label``, ``subject``, the attribute and the nuisance columns.
    contrast : Contrast
        Which two groups.
    nuisance : sequence of str
        Columns on which recipient and donors agree, besides the label.
    seed : int
        Of the pairing.
    max_images : int, optional
        At most so many recipients, drawn evenly over label x group.
    calipers : mapping of str to float, optional
        Columns of numbers, each with how far apart a recipient and its donors, and these two, may be. Pairs are made of
        the nearest that are free, recipients given to the nearest pair; images that lack a number neither donate nor
        receive.
    """
    calipers = calipers or {}
    rng = np.random.default_rng(seed)
    sides = {contrast.group: "group", contrast.reference: "reference"}
    known = frame[frame[contrast.attribute].isin(list(sides))].sort_index()
    known = known.assign(side=known[contrast.attribute].map(sides), row=known.index)
    recipients = draw_evenly(known, ["label", "side"], max_images, rng)
    near = Near.of(known, calipers) if calipers else None
    used: set[str] = set()
    parts: list[pd.DataFrame] = []
    units = 0
    for number, (_, stratum) in enumerate(known.groupby(["label", *nuisance], sort=True)):
        pairs = _donor_pairs(stratum, used, rng, near)
        chosen = recipients[recipients["row"].isin(stratum["row"])]
        parts.append(_assign(chosen, pairs, rng, near, first_unit=units).assign(stratum=number))
        units += len(pairs)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=PLAN_COLUMNS)
    return GroupSwapPlan(table.sort_values("recipient", ignore_index=True), len(recipients) - len(table))


def draw_evenly(
    frame: pd.DataFrame, cells: Sequence[str], at_most: int | None, rng: np.random.Generator
) -> pd.DataFrame:
    """Draw at most ``at_most`` rows, evenly over the cells; small cells are taken whole."""
    if at_most is None or len(frame) <= at_most:
        return frame
    shuffled = frame.iloc[rng.permutation(len(frame))]
    place = shuffled.groupby(list(cells)).cumcount()
    return shuffled.loc[place.sort_values(kind="stable").index[:at_most]].sort_index()


def find_twins(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Find for each image its exact pair: the image of the other side with the same pair name and label.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``side``, ``label`` and ``column``, which is empty for images that are of no pair.

    Returns
    -------
    pandas.DataFrame
        The images that have a twin, with ``row`` and ``row_twin``. Of several images alike the first counts.
    """
    named = frame[frame[column] != ""].assign(row=lambda f: f.index)
    keys = [column, "label", "side"]
    once = named.drop_duplicates(keys)
    other = {"group": "reference", "reference": "group"}
    twins = once[[*keys, "row"]].assign(side=once["side"].map(other))
    return once.merge(twins, on=keys, suffixes=("", "_twin")).set_index("row", drop=False).sort_index()


def _donor_pairs(stratum: pd.DataFrame, used: set[str], rng: np.random.Generator, near: Near | None) -> pd.DataFrame:
    """Pair an image of the group with one of the reference; a subject joins one pair in all, and is added to ``used``.

    Where a subject is seen in both groups (drawings, edited photographs), the pair is made within the subject, or, if
    its two images are not near, it joins none.
    """
    free = stratum[~stratum["subject"].isin(used)]
    free = free if near is None else near.known(free)
    once = free.iloc[rng.permutation(len(free))].drop_duplicates(["side", "subject"])
    group, reference = (once.loc[once["side"] == side, ["row", "subject"]] for side in ("group", "reference"))
    within = group.merge(reference, on="subject", suffixes=("_group", "_reference"))
    within["subject_group"] = within["subject_reference"] = within["subject"]
    alone = [part[~part["subject"].isin(within["subject"])].reset_index(drop=True) for part in (group, reference)]
    if near is not None:
        within = within[near.alike(within["row_group"], within["row_reference"])]
        places = near.pair_up(alone[0]["row"], alone[1]["row"], rng)
        alone = [part.iloc[own].reset_index(drop=True) for part, own in zip(alone, places, strict=True)]
    across = pd.concat([alone[0].add_suffix("_group"), alone[1].add_suffix("_reference")], axis=1, join="inner")
    pairs = pd.concat([within, across], ignore_index=True)
    used.update(pairs["subject_group"], pairs["subject_reference"])
    return pairs


def _assign(
    recipients: pd.DataFrame, pairs: pd.DataFrame, rng: np.random.Generator, near: Near | None, *, first_unit: int
) -> pd.DataFrame:
    """Assign recipients to the donor pairs, all images of a subject to one pair, never to a pair it is itself in.

    Where pairs are to be near, images of a subject that are apart may be assigned to several.
    """
    recipients = recipients if near is None else near.known(recipients)
    if not len(pairs) or not len(recipients):
        return pd.DataFrame(columns=PLAN_COLUMNS)
    if near is None:
        unit = _assign_pairs(recipients, pairs, rng)
    else:
        unit = near.nearest_pairs(recipients, _kinds(recipients), pairs, rng)
    served, unit = recipients[unit >= 0], unit[unit >= 0]
    is_group = (served["side"] == "group").to_numpy()
    group, reference = (pairs[f"row_{side}"].to_numpy()[unit] for side in ("group", "reference"))
    return pd.DataFrame(
        {
            "recipient": served["row"].to_numpy(),
            "cross": np.where(is_group, reference, group),
            "placebo": np.where(is_group, group, reference),
            "unit": first_unit + unit,
            "side": served["side"].to_numpy(),
            "label": served["label"].to_numpy(),
        },
    )


def _assign_pairs(recipients: pd.DataFrame, pairs: pd.DataFrame, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the pair (its place in ``pairs``, or -1) of each recipient; subjects of a kind use the pairs evenly.

    Subjects seen in both groups are assigned first, whole: with their two sides apart, chains of shared subjects would
    tie all pairs together.
    """
    inside = list(zip(pairs["subject_group"], pairs["subject_reference"], strict=True))
    codes, subjects = pd.factorize(recipients["subject"])
    kind = _kinds(recipients)[np.unique(codes, return_index=True)[1]]
    pair_of = np.full(len(subjects), -1, dtype=np.int64)
    for kind_of in ("both", "group", "reference"):
        turn, own = 0, np.flatnonzero(kind == kind_of)
        for k in own[rng.permutation(len(own))]:
            pair = _next_pair(inside, subjects[k], turn)
            if pair is not None:
                pair_of[k], turn = pair, pair + 1
    assigned: npt.NDArray[np.int64] = pair_of[codes]
    return assigned


def _kinds(recipients: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Return for each recipient the side that its subject is seen on, "both" where it is seen on either."""
    of_subject = recipients.groupby("subject")["side"]
    sides = of_subject.first().where(of_subject.nunique() == 1, "both")
    return sides.loc[recipients["subject"]].to_numpy(dtype=object)


def _next_pair(inside: Sequence[tuple[str, str]], subject: str, start: int) -> int | None:
    """Return the first pair from ``start`` on, counted in circles, that ``subject`` is not in."""
    turns = (i % len(inside) for i in range(start, start + len(inside)))
    return next((i for i in turns if subject not in inside[i]), None)
