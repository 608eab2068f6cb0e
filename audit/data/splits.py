"""Who goes to which split: by subject, stratified, the same on every machine.

Chance is drawn by hashing the seed with a name, not from a stream of random numbers: so neither the order of
the rows nor images added later change where a subject is within its stratum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.card.faults import did_you_mean
from audit.card.schema import DataSpec, Shares
from audit.data.samples import AUDIT_SPLITS, EXAMPLES, HELD_BACK, SPLITS, UNKNOWN
from audit.errors import DataError
from audit.records import ExcludedRow, LeftOut

GIVEN = "given_split"  # optional column of what the table or the folders say
UNASSIGNED = ("test", "val", "validation")  # given names that leave open which of the two audit splits


def assign_splits(frame: pd.DataFrame, spec: DataSpec, attributes: Iterable[str], *, trains: bool = True) -> pd.Series:
    """Assign each image to a split, all images of a subject to the same one.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``label``, ``subject``, one per attribute, and ``given_split`` where the data say it
        (one of SPLITS, or test/val to be assigned to all of them but train).
    spec : DataSpec
        ``shares`` (of subjects) and ``seed``.
    attributes : iterable of str
        Strata are the subject's commonest label x its commonest group of each of these.
    trains : bool
        False where no model is trained (``training: none``): what train would get goes to the audit splits.

    Returns
    -------
    pandas.Series
        One of SPLITS for each row, on the frame's index.

    Raises
    ------
    DataError
        If a given split has another name, a subject is in two, or a split stays empty.
    """
    shares = split_shares(spec.shares, trains=trains)
    if GIVEN in frame:
        splits = frame["subject"].map(_given_splits(frame, spec, list(attributes), shares)).rename("split")
    else:
        number, subjects = pd.factorize(frame["subject"], sort=True)
        strata = pd.Series(_strata(number, frame, list(attributes)), index=subjects, dtype=object)
        assigned = assign_subjects(strata, shares, spec.seed).to_numpy()[number]
        splits = pd.Series(assigned, index=frame.index, name="split", dtype=object)
    _check_none_empty(splits, frame, shares)
    return splits


def split_shares(shares: Shares, *, trains: bool = True) -> npt.NDArray[np.float64]:
    """Return the share of each of SPLITS; they sum to 1.

    Parameters
    ----------
    shares : Shares
        ``data.shares``.
    trains : bool
        Where False, train's share goes to the audit splits, in proportion to theirs.
    """
    each = np.array([getattr(shares, split) for split in SPLITS], dtype=float)
    if not trains:
        audited = np.isin(SPLITS, AUDIT_SPLITS)
        held_back = np.where(np.isin(SPLITS, HELD_BACK), each, 0.0)
        each = held_back + np.where(audited, each, 0.0) / each[audited].sum() * (1 - held_back.sum())
    whole: npt.NDArray[np.float64] = each / each.sum()
    return whole


def strata_of(frame: pd.DataFrame, attributes: Sequence[str]) -> pd.Series:
    """Return each subject's stratum: its commonest label and groups, joined.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``subject``, ``label`` and the attributes.
    attributes : sequence of str
        Columns besides the label.

    Returns
    -------
    pandas.Series
        Stratum by subject; of equally common values the first in the alphabet counts.
    """
    number, subjects = pd.factorize(frame["subject"], sort=True)
    return pd.Series(_strata(number, frame, attributes), index=subjects, dtype=object)


def _strata(subject: npt.NDArray[np.int64], frame: pd.DataFrame, attributes: Sequence[str]) -> npt.NDArray[np.object_]:
    """Return the stratum of each subject, from the subject's number of each image."""
    codes = np.zeros(int(subject.max(initial=-1)) + 1, dtype=np.int64)
    names = np.array([""], dtype=object)
    for column in ("label", *attributes):
        value, values = pd.factorize(frame[column], sort=True)
        of_subject = _commonest(subject, value, len(values))
        joined = [f"{before}|{after}" if before else str(after) for before in names for after in values]
        used, codes = np.unique(codes * len(values) + of_subject, return_inverse=True)
        names = np.array(joined, dtype=object)[used]
    strata: npt.NDArray[np.object_] = names[codes]
    return strata


def _commonest(subject: npt.NDArray[np.int64], value: npt.NDArray[np.int64], values: int) -> npt.NDArray[np.int64]:
    """Return each subject's commonest value, of codes; of equally common ones the first."""
    each, count = np.unique(subject.astype(np.int64) * values + value, return_counts=True)
    order = np.lexsort((each % values, -count, each // values))
    first = np.unique(each[order] // values, return_index=True)[1]
    found: npt.NDArray[np.int64] = each[order][first] % values
    return found


def assign_subjects(strata: pd.Series, shares: np.ndarray, seed: int) -> pd.Series:
    """Assign subjects to splits so that the shares hold overall and nearly so in each stratum.

    Parameters
    ----------
    strata : pandas.Series
        Stratum by subject.
    shares : numpy.ndarray, shape (n <= 5,)
        Of the first ``n`` of SPLITS; they sum to 1.
    seed : int
        Of the shuffle within strata.

    Returns
    -------
    pandas.Series
        Split by subject. Each goes to the split that is furthest behind its quota, so the counts differ from
        the shares by less than one subject overall.
    """
    drawn = (bytes.fromhex(_chance(seed, subject)) for subject in strata.index)
    chance = np.fromiter(drawn, dtype="S32", count=len(strata))
    order = np.lexsort((chance, pd.factorize(strata, sort=True)[0]))
    assigned = np.zeros(len(shares))
    answer = np.empty(len(strata), dtype=np.int8)
    for position, place in enumerate(order, start=1):
        behind = shares * position - assigned
        behind[shares == 0] = -np.inf
        chosen = int(np.argmax(np.round(behind, 9)))  # rounded, so that equal arrears tie on every machine
        assigned[chosen] += 1
        answer[place] = chosen
    return pd.Series(np.array(SPLITS, dtype=object)[answer], index=strata.index, dtype=object)


def divide(frame: pd.DataFrame, attributes: Sequence[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Divide images in two, all of a subject to the same part, strata as alike as those of splits are.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``subject``, ``label`` and the attributes.
    attributes : sequence of str
        Columns besides the label, the one whose groups shall be most alike first.
    share : float
        Of subjects that the first part gets, 0 to 1.
    seed : int
        Of the shuffle within strata.

    Returns
    -------
    numpy.ndarray (N,) of bool
        Whether an image is in the first part.
    """
    parts = assign_subjects(strata_of(frame, attributes), np.array([share, 1 - share]), seed)
    first: npt.NDArray[np.bool_] = (frame["subject"].map(parts) == SPLITS[0]).to_numpy(dtype=bool)
    return first


def thin_training(
    frame: pd.DataFrame, spec: DataSpec, attributes: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, list[ExcludedRow]]:
    """Drop training images as the card asks: planted cells first, then balancing.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``image``, ``label``, ``split`` and the attributes.
    spec : DataSpec
        ``plant``, ``balance_training`` and ``seed``.
    attributes : mapping of str to sequence of str
        The groups of each attribute; balancing uses the first attribute.

    Returns
    -------
    frame : pandas.DataFrame
        What is left.
    excluded : list of ExcludedRow
        What was dropped, one row per cause.

    Raises
    ------
    DataError
        If a planted group or label is not in the data, or a cell to balance is empty.
    """
    excluded: list[ExcludedRow] = []
    for plant in spec.plant:
        groups = attributes[plant.attribute]
        if plant.group not in groups:
            what = f"no group '{plant.group}' in '{plant.attribute}'"
            raise DataError("data.plant", what, did_you_mean(plant.group, groups))
        cell = _training_cell(frame, plant.attribute, plant.group, plant.label)
        if cell.empty:
            what = f"no training image of {plant.group} x {plant.label}"
            raise DataError("data.plant", what, did_you_mean(plant.label, set(frame["label"])))
        dropped = _fewest(cell, round(plant.keep * len(cell)), spec.seed)
        if len(dropped):
            row = _excluded(frame.loc[dropped], attributes, LeftOut.PLANTED, plant.attribute)
            excluded.append(row.model_copy(update={"names": [plant.group, plant.label], "kept": plant.keep}))
        frame = frame.drop(index=dropped)
    if spec.balance_training:
        attribute = next(iter(attributes))
        kept = balanced_training(frame, attribute, attributes[attribute], spec.seed)
        dropped = frame.index[frame["split"] == "train"].difference(kept)
        if len(dropped):
            excluded.append(_excluded(frame.loc[dropped], attributes, LeftOut.BALANCED, attribute))
        frame = frame.drop(index=dropped)
    return frame, excluded


def balanced_training(frame: pd.DataFrame, attribute: str, groups: Sequence[str], seed: int) -> pd.Index:
    """Choose training images so that every group x label cell has as many as the smallest.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``image``, ``label``, ``split`` and ``attribute``.
    attribute : str
        A column of groups; images whose group is unknown are not chosen.
    groups : sequence of str
        The groups to balance; those without an image in any split are passed over.
    seed : int
        Of the choice.

    Returns
    -------
    pandas.Index
        Rows of the chosen images, in the frame's order.

    Raises
    ------
    DataError
        If a cell is empty.
    """
    labels = sorted(set(frame.loc[frame["split"] == "train", "label"]))
    present = [group for group in groups if group != UNKNOWN and (frame[attribute] == group).any()]
    cells = {(g, y): _training_cell(frame, attribute, g, y) for g in present for y in labels}
    empty = [f"{group} x {label}" for (group, label), cell in cells.items() if cell.empty]
    if empty:
        what = f"no training image of {empty[0]}, so no balanced sample can be drawn"
        raise DataError(
            f"groups.{attribute}",
            what,
            "add images, name the groups to keep under 'values', or balance nothing (training.balanced_seeds: 0)",
        )
    size = min(len(cell) for cell in cells.values())
    dropped = [row for cell in cells.values() for row in _fewest(cell, size, seed)]
    chosen = [row for cell in cells.values() for row in cell.index]
    return frame.index[frame.index.isin(chosen) & ~frame.index.isin(dropped)]


def _training_cell(frame: pd.DataFrame, attribute: str, group: str, label: str) -> pd.Series:
    """Return the image keys of a training cell."""
    chosen = (frame["split"] == "train") & (frame[attribute] == group) & (frame["label"] == label)
    return frame.loc[chosen, "image"]


def _fewest(cell: pd.Series, keep: int, seed: int) -> pd.Index:
    """Return the rows to drop so that ``keep`` are left."""
    return cell.index[np.argsort([_chance(seed, image) for image in cell], kind="stable")[keep:]]


def _excluded(dropped: pd.DataFrame, attributes: Iterable[str], kind: LeftOut, of: str) -> ExcludedRow:
    """Count training images that the card asks to drop."""
    counts = {name: {str(g): int(n) for g, n in dropped[name].value_counts().items()} for name in attributes}
    return ExcludedRow(
        kind=kind, of=of, images=len(dropped), examples=sorted(dropped["image"])[:EXAMPLES], by_group=counts
    )


def _chance(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def _given_splits(frame: pd.DataFrame, spec: DataSpec, attributes: list[str], shares: np.ndarray) -> pd.Series:
    where = f"split column '{spec.split}'" if spec.split else "split folders"
    allowed = (*SPLITS, *UNASSIGNED)
    for value in sorted(frame[GIVEN].dropna().unique()):
        if value not in allowed:
            raise DataError(where, f"'{value}' is no split", did_you_mean(value, allowed))
    if frame[GIVEN].isna().any():
        example = frame.loc[frame[GIVEN].isna(), "image"].iloc[0]
        raise DataError(where, f"'{example}' has no split", f"write one of {', '.join(allowed)}")
    given = frame[GIVEN].where(~frame[GIVEN].isin(UNASSIGNED), "test")
    several = given.groupby(frame["subject"]).nunique()
    torn = sorted(several.index[several > 1])
    if torn:
        raise DataError(
            where,
            f"{len(torn)} subjects are in two splits (e.g. {', '.join(torn[:3])})",
            "put all images of a subject in one split",
        )
    of_subject = given.groupby(frame["subject"]).first()
    open_subjects = of_subject.index[of_subject == "test"]
    if len(open_subjects):
        untrained = np.array([0.0, *shares[1:]]) / shares[1:].sum()
        strata = strata_of(frame[frame["subject"].isin(open_subjects)], attributes)
        of_subject[open_subjects] = assign_subjects(strata, untrained, spec.seed)[open_subjects]
    return of_subject


def _check_none_empty(splits: pd.Series, frame: pd.DataFrame, shares: npt.NDArray[np.float64]) -> None:
    for split, share in zip(SPLITS, shares, strict=True):
        asked = share > 0 and (split not in HELD_BACK or GIVEN not in frame)
        if asked and not (splits == split).any():
            raise DataError(
                "data.shares",
                f"no image falls into '{split}' ({frame['subject'].nunique()} subjects in all)",
                "add subjects, or change data.shares or the split column",
            )
