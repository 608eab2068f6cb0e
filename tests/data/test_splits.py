"""Splits: by subject, stratified, the same whatever the order of the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.card.schema import DataSpec, Plant
from audit.data.samples import SPLITS
from audit.data.splits import (
    assign_splits,
    assign_subjects,
    balanced_training,
    divide,
    split_shares,
    thin_training,
)
from audit.errors import DataError
from audit.records import LeftOut
from audit.report.text import left_out_sentence
from tests.strategies import split_shares as drawn_shares
from tests.strategies import subject_tables

pytestmark = [pytest.mark.unit, pytest.mark.property]

ATTRIBUTES = ("gender", "tone")


def spec(**changes: object) -> DataSpec:
    return DataSpec.model_validate({"path": "x.csv", **changes})


@settings(max_examples=60, deadline=None)
@given(table=subject_tables(min_subjects=12), shares=drawn_shares(), seed=st.integers(0, 9))
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
@given(table=subject_tables(min_subjects=12), share=st.floats(0.2, 0.8), seed=st.integers(0, 9))
def test_two_parts_share_no_subject_and_are_the_same_in_any_order(table: pd.DataFrame, share: float, seed: int) -> None:
    first = pd.Series(divide(table, ATTRIBUTES, share, seed), index=table.index)
    of_subject = first.groupby(table["subject"])
    assert (of_subject.nunique() == 1).all()
    subjects = of_subject.first()
    assert abs(subjects.sum() - share * len(subjects)) < 1
    shuffled = table.sample(frac=1, random_state=seed)
    again = pd.Series(divide(shuffled, ATTRIBUTES, share, seed), index=shuffled.index)
    pd.testing.assert_series_equal(first, again.sort_index())


def test_another_seed_divides_otherwise_and_cells_are_alike() -> None:
    rows = [(f"p{n}", f"y{n % 2}", f"g{n // 2 % 3}") for n in range(180)]
    table = pd.DataFrame(rows, columns=["subject", "label", "gender"])
    one, other = (divide(table, ["gender"], 2 / 3, seed) for seed in (0, 1))
    assert not np.array_equal(one, other)
    assert (table[one].groupby(["gender", "label"]).size() == 20).all()  # of 30 each


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), shares=drawn_shares())
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
    assert [(row.kind, row.of, row.names, row.kept) for row in rows] == [
        (LeftOut.PLANTED, "gender", ["female", "happiness"], 0.1)
    ]
    assert [(left_out_sentence(row), row.images, len(row.examples)) for row in rows] == [
        ("thinned from training on purpose: gender=female x happiness, 10% kept", 36, 5)
    ]


def test_balanced_training_has_equal_cells_and_no_unknown() -> None:
    frame = table_of(CELLS | {("male", "neutral"): 12})
    left, rows = thin_training(frame, spec(balance_training=True), GROUPS)
    assert left.groupby(["gender", "label"]).size().to_dict() == dict.fromkeys(
        [("female", "happiness"), ("female", "neutral"), ("male", "happiness"), ("male", "neutral")], 10
    )
    assert sum(row.images for row in rows) == len(frame) - 40
    assert [left_out_sentence(row) for row in rows] == [
        "thinned from training on purpose: every gender x label cell made equal"
    ]
    kept = balanced_training(frame, "gender", GROUPS["gender"], seed=0)
    assert kept.tolist() == left.index.tolist()


def test_an_empty_cell_cannot_be_balanced() -> None:
    with pytest.raises(DataError, match="no training image of male x neutral, so no balanced sample"):
        balanced_training(table_of(CELLS), "gender", GROUPS["gender"], seed=0)


def test_given_splits_are_kept_and_the_rest_is_split() -> None:
    frame = table_of({("female", "a"): 12, ("male", "b"): 12})
    frame["given_split"] = ["train", "discovery", "confirmation", "test", "val", "test"] * 4
    splits = assign_splits(frame, spec(split="part"), ["gender"])
    named = frame["given_split"].isin(SPLITS)
    assert (splits[named] == frame.loc[named, "given_split"]).all()
    assert splits[~named].value_counts().to_dict() == {"discovery": 6, "confirmation": 6}


def known_table() -> pd.DataFrame:
    """Return 30 subjects with two images each."""
    labels, genders = "bbababbabaaabaaaaaababbaaaabab", "xxfmmmmxmfxmxfmxffmxfxmfmxxxff"
    rows = [
        {"image": f"i{2 * k + n:02d}", "subject": f"p{k:02d}", "label": labels[k], "gender": genders[k]}
        for k in range(30)
        for n in range(2)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "trains", "expected"),
    [
        ({}, True, "tdtdttcctdtdcttdttcdcttdtdttcc"),
        ({"seed": 3, "shares": [0.34, 0.33, 0.33]}, True, "cdddddctcdccdttdccttdtttcdcctt"),
        ({"seed": 3, "shares": {"train": 0.34, "discovery": 0.33, "confirmation": 0.33}}, True,
         "cdddddctcdccdttdccttdtttcdcctt"),
        ({"seed": 1, "shares": [0.6, 0.3, 0.1]}, False, "ddddccdddcdddddddcdddcdddcdddc"),
        ({"seed": 1, "shares": [0.6, 0.3, 0.1, 0, 0]}, False, "ddddccdddcdddddddcdddcdddcdddc"),
    ],
)  # fmt: skip
def test_cards_of_before_the_splits_had_names_assign_as_they_did(
    changes: dict[str, object], trains: bool, expected: str
) -> None:
    """The assignments are those of version 0.1 with three shares."""
    found = assign_splits(known_table(), spec(**changes), ["gender"], trains=trains)
    assert "".join(split[0] for split in found[::2]) == expected


def test_given_splits_of_before_are_assigned_as_they_were() -> None:
    given = np.repeat((["train", "test", "val", "discovery", "test"] * 6), 2)
    found = assign_splits(known_table().assign(given_split=given), spec(seed=2, shares=[0.5, 0.3, 0.2]), ["gender"])
    assert "".join(split[0] for split in found[::2]) == "tdcdctcddctdcddtddddtddddtccdd"


@pytest.mark.parametrize(
    ("trains", "expected"),
    [(True, [0.4, 0.2, 0.1, 0.2, 0.1]), (False, [0, 0.7 * 2 / 3, 0.7 / 3, 0.2, 0.1])],
)
def test_what_is_held_back_keeps_its_share_without_training(trains: bool, expected: list[float]) -> None:
    shares = {"train": 0.4, "discovery": 0.2, "confirmation": 0.1, "repair": 0.2, "sealed": 0.1}
    assert split_shares(spec(shares=shares).shares, trains=trains) == pytest.approx(expected)
    names = [f"s{n:03d}" for n in range(300)]
    frame = pd.DataFrame({"image": names, "subject": names, "label": "x", "gender": "y"})
    counts = assign_splits(frame, spec(shares=shares), ["gender"], trains=trains).value_counts()
    assert [counts.get(split, 0) for split in SPLITS] == pytest.approx([300 * share for share in expected], abs=1)


def test_given_splits_may_be_held_back() -> None:
    frame = known_table()
    given = np.repeat((["train", "discovery", "confirmation", "repair", "sealed"] * 6), 2)
    found = assign_splits(frame.assign(given_split=given), spec(split="part"), ["gender"])
    assert (found == given).all()
    opened = np.where(given == "sealed", "test", given)
    shares = {"train": 0.4, "discovery": 0.1, "confirmation": 0.1, "sealed": 0.4}
    found = assign_splits(frame.assign(given_split=opened), spec(split="part", shares=shares), ["gender"])
    assert found[opened == "test"].value_counts().to_dict() == {"sealed": 8, "discovery": 2, "confirmation": 2}
