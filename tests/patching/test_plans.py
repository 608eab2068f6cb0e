"""Who donates to whom: known answers, and properties that hold for any table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.effects import SwapEffects, unit_sums
from audit.evidence.stats import components
from audit.patching.plans import PLAN_COLUMNS, draw_evenly, find_twins, plan_group_swap
from audit.records import Contrast
from tests.strategies import subject_tables

GENDER = Contrast("gender", "female", "male")


def people(*rows: tuple[str, str, str]) -> pd.DataFrame:
    """Return images of (label, subject, gender)."""
    return pd.DataFrame(rows, columns=["label", "subject", "gender"])


def check_plan(frame: pd.DataFrame, plan: pd.DataFrame, contrast: Contrast, nuisance: list[str]) -> None:
    """Assert all that every plan owes."""
    groups = {"group": contrast.group, "reference": contrast.reference}
    other = {"group": "reference", "reference": "group"}
    for row in plan.itertuples():
        image, cross, placebo = (frame.loc[k] for k in (row.recipient, row.cross, row.placebo))
        assert image[contrast.attribute] == placebo[contrast.attribute] == groups[row.side]
        assert cross[contrast.attribute] == groups[other[row.side]]
        assert row.label == image["label"]
        for column in ["label", *nuisance]:
            assert image[column] == cross[column] == placebo[column]
        assert image["subject"] not in (cross["subject"], placebo["subject"])
    assert not plan["recipient"].duplicated().any()
    pairs = (
        plan.apply(lambda r: frozenset([r["cross"], r["placebo"]]), axis=1) if len(plan) else pd.Series(dtype=object)
    )
    assert (pairs.groupby(plan["unit"]).nunique() <= 1).all()  # a unit is one pair of images
    units_of: dict[str, set[int]] = {}
    for row in plan.itertuples():
        for donor in (row.cross, row.placebo):
            units_of.setdefault(frame.loc[donor, "subject"], set()).add(row.unit)
    assert all(len(units) == 1 for units in units_of.values())


@pytest.mark.unit
def test_two_people_of_each_group() -> None:
    """Nobody can donate to oneself, so each pair serves the other pair's people."""
    frame = people(("happy", "a", "female"), ("happy", "b", "female"), ("happy", "c", "male"), ("happy", "d", "male"))
    plan = plan_group_swap(frame, GENDER, [], seed=0)
    check_plan(frame, plan.rows, GENDER, [])
    assert list(plan.rows.columns) == PLAN_COLUMNS
    assert plan.without_donor == 0
    assert plan.rows["recipient"].tolist() == [0, 1, 2, 3]
    assert plan.rows["side"].tolist() == ["group", "group", "reference", "reference"]
    assert plan.rows["unit"].nunique() == 2


@pytest.mark.unit
def test_one_person_of_each_group_has_no_donor() -> None:
    plan = plan_group_swap(people(("happy", "a", "female"), ("happy", "b", "male")), GENDER, [], seed=0)
    assert len(plan.rows) == 0
    assert plan.without_donor == 2


@pytest.mark.unit
def test_a_label_seen_in_one_group_only_has_no_donor() -> None:
    frame = people(
        *[("happy", f"f{i}", "female") for i in range(3)],
        *[("happy", f"m{i}", "male") for i in range(3)],
        *[("sad", f"x{i}", "female") for i in range(4)],
    )
    plan = plan_group_swap(frame, GENDER, [], seed=0)
    assert plan.without_donor == 4
    assert set(plan.rows["label"]) == {"happy"}


@pytest.mark.unit
def test_nobody_at_all() -> None:
    plan = plan_group_swap(people(("happy", "a", "unknown")), GENDER, [], seed=0)
    assert len(plan.rows) == 0
    assert plan.without_donor == 0
    assert list(plan.rows.columns) == PLAN_COLUMNS


@pytest.mark.unit
def test_other_groups_neither_receive_nor_donate() -> None:
    frame = people(
        *[("happy", f"f{i}", "female") for i in range(3)],
        *[("happy", f"m{i}", "male") for i in range(3)],
        *[("happy", f"u{i}", "unknown") for i in range(3)],
    )
    plan = plan_group_swap(frame, GENDER, [], seed=0).rows
    assert set(frame.loc[plan[["recipient", "cross", "placebo"]].to_numpy().ravel(), "gender"]) == {"female", "male"}


@pytest.mark.unit
def test_pairs_are_made_within_people_seen_in_both_groups() -> None:
    """Drawings, edited photographs: the two donors of a pair differ in the group alone."""
    frame = people(*[("happy", f"s{i}", g) for i in range(5) for g in ("female", "male")])
    plan = plan_group_swap(frame, GENDER, [], seed=0).rows
    check_plan(frame, plan, GENDER, [])
    assert len(plan) == 10
    assert (frame.loc[plan["cross"], "subject"].to_numpy() == frame.loc[plan["placebo"], "subject"].to_numpy()).all()


@pytest.mark.unit
@pytest.mark.parametrize("n", [60, 200])
def test_people_seen_in_both_groups_tie_no_pairs_together(n: int) -> None:
    """Clusters of recipients linked by a subject or a pair stay small, so that more people make more of them."""
    frame = people(*[("happy", f"s{i}", g) for i in range(n) for g in ("female", "male")])
    plan = plan_group_swap(frame, GENDER, [], seed=0).rows
    assert len(plan) == 2 * n
    subjects = pd.factorize(frame.loc[plan["recipient"], "subject"])[0]
    assert len(np.unique(components(subjects, plan["unit"].to_numpy(dtype=np.int64)))) >= n - 2


@pytest.mark.unit
def test_all_images_of_a_person_and_side_share_one_pair() -> None:
    frame = people(*[("happy", f"{g[0]}{i}", g) for i in range(4) for g in ("female", "male") for _ in range(3)])
    plan = plan_group_swap(frame, GENDER, [], seed=0).rows
    subjects = frame.loc[plan["recipient"], "subject"].to_numpy()
    assert (plan.groupby(subjects)["unit"].nunique() == 1).all()


@pytest.mark.unit
def test_donors_are_used_evenly() -> None:
    frame = people(*[("happy", f"{g[0]}{i}", g) for i in range(20) for g in ("female", "male")])
    plan = plan_group_swap(frame, GENDER, [], seed=0).rows
    assert plan["unit"].nunique() == 20
    assert plan.groupby(["side", "unit"]).size().between(1, 2).all()


@pytest.mark.unit
def test_nuisance_columns_are_matched_exactly() -> None:
    rows = [(lab, f"{g}{a}{i}", g, a) for lab in "xy" for g in ("female", "male") for a in (20, 60) for i in range(3)]
    frame = pd.DataFrame(rows, columns=["label", "subject", "gender", "age"])
    frame["subject"] += frame["label"]
    plan = plan_group_swap(frame, GENDER, ["age"], seed=0)
    check_plan(frame, plan.rows, GENDER, ["age"])
    assert plan.without_donor == 0


def aged(*rows: tuple[str, str, str, float | str]) -> pd.DataFrame:
    """Return images of (label, subject, gender, age)."""
    return pd.DataFrame(rows, columns=["label", "subject", "gender", "age"]).astype({"age": str})


def check_ages(frame: pd.DataFrame, plan: pd.DataFrame, caliper: float) -> None:
    """Assert that recipient, donor and placebo are within a caliper of each other."""
    ages = frame["age"].astype(float)
    three = np.stack([ages.loc[plan[column]].to_numpy() for column in ("recipient", "cross", "placebo")])
    assert (np.ptp(three, axis=0) <= 2 * caliper + 1e-6).all()
    for donor in three[1:]:
        assert (np.abs(donor - three[0]) <= caliper + 1e-6).all()
    assert (np.abs(three[1] - three[2]) <= caliper + 1e-6).all()


@pytest.mark.unit
def test_donors_are_the_nearest_in_a_covariate() -> None:
    ages = (20, 21, 40, 41, 60, 61)
    frame = aged(*[("happy", f"{g}{a}", g, a) for g in ("female", "male") for a in ages])
    plan = plan_group_swap(frame, GENDER, [], seed=0, calipers={"age": 5})
    check_plan(frame, plan.rows, GENDER, [])
    check_ages(frame, plan.rows, 1)  # nearer than the caliper asks, since there is one
    assert plan.without_donor == 0
    assert len(plan.rows) == 12


@pytest.mark.unit
def test_a_recipient_without_a_donor_within_the_caliper_is_counted() -> None:
    frame = aged(
        *[("happy", f"{g}{i}", g, 30) for g in ("female", "male") for i in range(3)],
        ("happy", "old", "female", 36),
        ("happy", "edge", "female", 35),
        ("happy", "unknown", "female", "unknown"),
    )
    frame["age"] = frame["age"].replace("unknown", "nan")
    plan = plan_group_swap(frame, GENDER, [], seed=0, calipers={"age": 5})
    check_plan(frame, plan.rows, GENDER, [])
    assert plan.without_donor == 2
    assert set(frame.index) - set(plan.rows["recipient"]) == {6, 8}
    assert plan_group_swap(frame, GENDER, [], seed=0).without_donor == 0


@pytest.mark.unit
def test_two_covariates_and_a_category_all_count() -> None:
    rng = np.random.default_rng(0)
    n = 120
    frame = pd.DataFrame(
        {
            "label": rng.choice(["happy", "sad"], n),
            "subject": [f"s{i}" for i in range(n)],
            "gender": rng.choice(["female", "male"], n),
            "source": rng.choice(["a", "b"], n),
            "age": rng.uniform(20, 60, n),
            "pose": rng.uniform(-1, 1, n),
        }
    )
    plan = plan_group_swap(frame, GENDER, ["source"], seed=0, calipers={"age": 8, "pose": 0.5})
    check_plan(frame, plan.rows, GENDER, ["source"])
    check_ages(frame, plan.rows, 8)
    check_ages(frame.assign(age=frame["pose"]), plan.rows, 0.5)
    assert 30 < len(plan.rows) < n
    assert len(plan.rows) + plan.without_donor == n


@pytest.mark.unit
def test_donors_within_the_caliper_are_used_evenly() -> None:
    """Most are of one age, and no few pairs nearby serve all of them."""
    ages = [30] * 30 + [*range(24, 34)]
    frame = aged(*[("happy", f"{g[0]}{i}", g, age) for i, age in enumerate(ages) for g in ("female", "male")])
    plan = plan_group_swap(frame, GENDER, [], seed=0, calipers={"age": 10}).rows
    assert len(plan) == 80
    assert plan["unit"].nunique() >= 36
    assert plan.groupby(["side", "unit"]).size().max() <= 2


@pytest.mark.unit
def test_equally_near_donors_are_used_evenly() -> None:
    frame = aged(*[("happy", f"{g[0]}{i}", g, 30) for i in range(20) for g in ("female", "male")])
    plan = plan_group_swap(frame, GENDER, [], seed=0, calipers={"age": 5}).rows
    assert plan["unit"].nunique() == 20
    assert plan.groupby(["side", "unit"]).size().between(1, 2).all()


@pytest.mark.unit
def test_the_seed_draws_again() -> None:
    frame = people(*[("happy", f"{g[0]}{i}", g) for i in range(20) for g in ("female", "male")])
    first, second = (plan_group_swap(frame, GENDER, [], seed=s).rows for s in (0, 1))
    assert not first["cross"].equals(second["cross"])


@pytest.mark.unit
def test_at_most_so_many_recipients_evenly_over_the_cells() -> None:
    frame = people(
        *[("happy", f"f{i}", "female") for i in range(50)],
        *[("happy", f"m{i}", "male") for i in range(30)],
        *[("sad", f"g{i}", "female") for i in range(20)],
        *[("sad", f"n{i}", "male") for i in range(3)],
    )
    plan = plan_group_swap(frame, GENDER, [], seed=0, max_images=33)
    assert plan.without_donor == 0
    cells = plan.rows.groupby(["label", "side"]).size()
    assert cells.sum() == 33
    assert cells["sad", "reference"] == 3  # taken whole
    assert cells.drop(("sad", "reference")).tolist() == [10, 10, 10]


@pytest.mark.property
@given(frame=subject_tables(), at_most=st.integers(1, 60), seed=st.integers(0, 9))
def test_an_even_draw(frame: pd.DataFrame, at_most: int, seed: int) -> None:
    drawn = draw_evenly(frame, ["label", "gender"], at_most, np.random.default_rng(seed))
    assert len(drawn) == min(at_most, len(frame))
    assert drawn.index.is_unique
    pd.testing.assert_frame_equal(drawn, frame.loc[drawn.index])
    sizes = frame.groupby(["label", "gender"]).size()
    got = drawn.groupby(["label", "gender"]).size().reindex(sizes.index, fill_value=0)
    part = got[got < sizes]  # cells that are not exhausted
    if len(part):
        assert got.max() <= part.min() + 1


@pytest.mark.property
@settings(deadline=None, max_examples=25)
@given(
    frame=subject_tables(max_subjects=16),
    nuisance=st.sampled_from([[], ["tone"]]),
    seed=st.integers(0, 3),
    at_most=st.sampled_from([None, 7]),
    caliper=st.sampled_from([None, 0.5, 3.0]),
)
def test_what_every_plan_owes(
    frame: pd.DataFrame, nuisance: list[str], seed: int, at_most: int | None, caliper: float | None
) -> None:
    ages = np.random.default_rng(seed).integers(20, 30, len(frame))
    frame = frame.assign(age=np.where(ages == 29, np.nan, ages))
    asked: dict[str, Any] = {
        "seed": seed, "max_images": at_most, "calipers": {} if caliper is None else {"age": caliper},
    }  # fmt: skip
    plan = plan_group_swap(frame, GENDER, nuisance, **asked)
    check_plan(frame, plan.rows, GENDER, nuisance)
    if caliper is not None:
        check_ages(frame, plan.rows, caliper)
    wanted = len(frame) if at_most is None else min(at_most, len(frame))
    assert len(plan.rows) + plan.without_donor == wanted
    again = plan_group_swap(frame.sample(frac=1, random_state=seed), GENDER, nuisance, **asked)
    pd.testing.assert_frame_equal(again.rows, plan.rows)


@pytest.mark.property
@settings(deadline=None, max_examples=50)
@given(frame=subject_tables(max_subjects=16), seed=st.integers(0, 3))
def test_groups_within_a_person(frame: pd.DataFrame, seed: int) -> None:
    """The attribute may vary within a subject, as tone does when it is drawn again for each image."""
    tones = np.random.default_rng(seed).choice(["light", "dark", "unknown"], len(frame))
    frame = frame.assign(tone=tones)
    contrast = Contrast("tone", "dark", "light")
    plan = plan_group_swap(frame, contrast, [], seed=seed)
    check_plan(frame, plan.rows, contrast, [])


@pytest.mark.property
@settings(max_examples=50)
@given(seed=st.integers(0, 50))
def test_relabelling_the_groups_turns_the_sign_of_every_mediated_gap(seed: int) -> None:
    """The plan's rows serve both ways round: only the sides' names change, and with them the sign."""
    rng = np.random.default_rng(seed)
    n = 24
    effects = SwapEffects(
        cross=rng.random((n, 5)),
        placebo=rng.random((n, 5)),
        unpatched=rng.random(n),
        is_group=np.arange(n) % 2 == 0,
        label=rng.permutation(np.repeat([0, 1], n // 2)),
        subject=np.arange(n),
        unit=rng.integers(0, 6, n),
        heads=[(0, h) for h in range(5)],
    )
    turned = dataclasses.replace(effects, is_group=~effects.is_group)
    np.testing.assert_allclose(unit_sums(turned), -unit_sums(effects), atol=1e-12)
    np.testing.assert_allclose(turned.gap_weights() @ effects.unpatched, -(effects.gap_weights() @ effects.unpatched))


def test_twins_share_pair_and_label_and_stand_on_the_other_side() -> None:
    frame = pd.DataFrame(
        [
            ("run/1", "sport", "group"),
            ("run/1", "sport", "reference"),
            ("run/2", "sport", "group"),  # no twin
            ("wave/1", "gesture", "group"),
            ("wave/1", "role", "reference"),  # another label
            ("", "sport", "group"),
            ("", "sport", "reference"),  # of no pair
            ("run/1", "sport", "reference"),  # a second one like row 1
        ],
        columns=["pair:gender", "label", "side"],
        index=range(10, 18),
    )
    found = find_twins(frame, "pair:gender")
    assert list(zip(found["row"], found["row_twin"], strict=True)) == [(10, 11), (11, 10)]
