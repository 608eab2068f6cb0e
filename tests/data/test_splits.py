"""Splits: by subject, stratified, the same whatever the order of the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.card.schema import DataSpec, Plant
from audit.data.samples import SPLITS
from audit.data.splits import assign_splits, assign_subjects, balanced_training, thin_training
from audit.errors import DataError
from tests.strategies import split_shares, subject_tables

pytestmark = [pytest.mark.unit, pytest.mark.property]

ATTRIBUTES = ("gender", "tone")


def spec(**changes: object) -> DataSpec:
    return DataSpec.model_validate({"path": "x.csv", **changes})


@settings(max_examples=60, deadline=None)
@given(table=subject_tables(min_subjects=12), shares=split_shares(), seed=st.integers(0, 9))
def test_no_subject_stands_in_two_splits_and_shares_hold(
    table: pd.DataFrame, shares: tuple[float, float, float], seed: int
) -> None:
    splits = assign_splits(table, spec(shares=shares, seed=seed), ATTRIBUTES)
    of_subject = splits.groupby(table["subject"]).nunique()
    assert (of_subject == 1).all()
    subjects = splits.groupby(table["subject"]).first()
    for split, share in zip(SPLITS, shares, strict=False):
        assert abs((subjects == split).sum() - share * len(subjects)) < 1


@settings(max_examples=40, deadline=None)
@given(table=subject_tables(min_subjects=12), seed=st.integers(0, 9))
def test_the_order_of_rows_does_not_matter(table: pd.DataFrame, seed: int) -> None:
    shuffled = table.sample(frac=1, random_state=seed)
    one = assign_splits(table, spec(seed=seed), ATTRIBUTES)
    other = assign_splits(shuffled, spec(seed=seed), ATTRIBUTES)
    pd.testing.assert_series_equal(one, other.sort_index())


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), shares=split_shares())
def test_shares_nearly_hold_in_each_stratum(sizes: list[int], shares: tuple[float, float, float]) -> None:
    names = [f"{stratum}" for stratum, size in enumerate(sizes) for _ in range(size)]
    strata = pd.Series(names, index=[f"s{n:03d}" for n in range(len(names))])
    assigned = assign_subjects(strata, np.array(shares), seed=1)
    for stratum, size in enumerate(sizes):
        inside = assigned[strata.index[strata == str(stratum)]]
        for split, share in zip(SPLITS, shares, strict=False):
            assert abs((inside == split).sum() - share * size) < 2


def test_a_known_deal() -> None:
    strata = pd.Series(["a"] * 8 + ["b"] * 4, index=[f"s{n}" for n in range(12)])
    assigned = assign_subjects(strata, np.array([0.5, 0.25, 0.25]), seed=0)
    counts = pd.crosstab(strata, assigned)[list(SPLITS[:3])]
    assert counts.loc["a"].tolist() == [4, 2, 2]
    assert counts.loc["b"].tolist() == [2, 1, 1]
    assert not assigned.equals(assign_subjects(strata, np.array([0.5, 0.25, 0.25]), seed=1))


def test_a_new_stratum_leaves_the_strata_before_it_as_they_were() -> None:
    strata = pd.Series(["a"] * 20, index=[f"s{n}" for n in range(20)])
    more = pd.concat([strata, pd.Series(["b"] * 5, index=[f"t{n}" for n in range(5)])])
    shares = np.array([0.5, 0.25, 0.25])
    pd.testing.assert_series_equal(assign_subjects(strata, shares, 0), assign_subjects(more, shares, 0)[: len(strata)])


def table_of(cells: dict[tuple[str, str], int]) -> pd.DataFrame:
    """Return a training table with so many images a (gender, label) cell."""
    rows = [(g, y) for (g, y), count in cells.items() for _ in range(count)]
    frame = pd.DataFrame(rows, columns=["gender", "label"])
    names = [f"{n:03d}.png" for n in range(len(frame))]
    return frame.assign(image=names, subject=names, split="train")


CELLS = {("female", "happiness"): 40, ("female", "neutral"): 20, ("male", "happiness"): 10, ("unknown", "neutral"): 5}
GROUPS = {"gender": ["female", "male"]}


def test_a_planted_cell_is_thinned_to_its_share_and_the_audit_splits_are_not() -> None:
    frame = table_of(CELLS)
    audit = table_of(CELLS).assign(split="discovery", image=lambda f: "d" + f["image"])
    both = pd.concat([frame, audit], ignore_index=True)
    plant = [Plant(attribute="gender", group="female", label="happiness", keep=0.1)]
    left, rows = thin_training(both, spec(plant=plant), GROUPS)
    assert left.groupby(["split", "gender", "label"]).size().to_dict() == {
        **{("discovery", *cell): count for cell, count in CELLS.items()},
        **{("train", *cell): count for cell, count in CELLS.items()},
        ("train", "female", "happiness"): 4,
    }
    assert [(row.reason, row.images, len(row.examples)) for row in rows] == [
        ("thinned from training on purpose: gender=female x happiness, 10% kept", 36, 5)
    ]


def test_balanced_training_has_equal_cells_and_no_unknown() -> None:
    frame = table_of(CELLS | {("male", "neutral"): 12})
    left, rows = thin_training(frame, spec(balance_training=True), GROUPS)
    assert left.groupby(["gender", "label"]).size().to_dict() == dict.fromkeys(
        [("female", "happiness"), ("female", "neutral"), ("male", "happiness"), ("male", "neutral")], 10
    )
    assert sum(row.images for row in rows) == len(frame) - 40
    kept = balanced_training(frame, "gender", GROUPS["gender"], seed=0)
    assert kept.tolist() == left.index.tolist()


def test_an_empty_cell_cannot_be_balanced() -> None:
    with pytest.raises(DataError, match="no training image of male x neutral, so no balanced sample"):
        balanced_training(table_of(CELLS), "gender", GROUPS["gender"], seed=0)


def test_given_splits_are_kept_and_the_rest_is_dealt() -> None:
    frame = table_of({("female", "a"): 12, ("male", "b"): 12})
    frame["given_split"] = ["train", "discovery", "confirmation", "test", "val", "test"] * 4
    splits = assign_splits(frame, spec(split="part"), ["gender"])
    named = frame["given_split"].isin(SPLITS)
    assert (splits[named] == frame.loc[named, "given_split"]).all()
    assert splits[~named].value_counts().to_dict() == {"discovery": 6, "confirmation": 6}
