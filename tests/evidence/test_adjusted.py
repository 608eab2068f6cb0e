"""Gaps before and after groups are alike in covariates: known answers, and how often intervals hold the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.special import expit

from audit.data.covariates import Covariates
from audit.evidence.adjusted import adjusted_gaps
from audit.evidence.curves import plain_difference, standardised_difference
from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.records import AdjustedRow, Metric, Shortfall

QUESTION = Question("gender", "male", ["female", "male"])
TURNED = Question("gender", "female", ["female", "male"])
AGE = {"age": 5.0}
LABELS = ["over 40", "under 40"]
LIMITS = Thresholds(alpha=0.05, min_group_size=30, impact_ratio_below=0.8, gap_above=0.1)
Array = npt.NDArray[np.float64]
Rate = Callable[[Array, npt.NDArray[np.bool_]], Array]  # of age and being female


def drawn(rate: Rate, n: int = 4000, seed: int = 0, older: float = 4.0) -> pd.DataFrame:
    """Draw images of both labels; among "over 40" women are ``older`` than men, among "under 40" younger by as much."""
    rng = np.random.default_rng(seed)
    female, over = rng.random(n) < 0.5, rng.random(n) < 0.4
    age = np.where(over, 58.0, 29.0) + np.where(over, 1, -1) * older * (female - 0.5) + rng.normal(0, 6, n)
    called = rng.random(n) < rate(age, female)
    return pd.DataFrame(
        {
            "label": np.where(over, *LABELS),
            "predicted": np.where(called, *LABELS),
            "subject": np.arange(n),
            "gender": np.where(female, "female", "male"),
            "age": age.round(3).astype(str),
        }
    )


def rows_of(frame: pd.DataFrame, question: Question = QUESTION) -> dict[str, AdjustedRow]:
    """Return the rows of "over 40", by label."""
    rows = adjusted_gaps(frame, [question], ["over 40"], Covariates.of(frame, AGE, ()), min_group_size=30)
    return {row.label: row for row in rows}


def holds(row: AdjustedRow, **values: float) -> None:
    """Assert that intervals hold these values, each less than 12 points wide."""
    for name, value in values.items():
        found = getattr(row, name)
        assert found.low is not None
        assert found.low - 0.01 < value < found.high + 0.01
        assert found.high - found.low < 0.12


def young(age: Array, _: npt.NDArray[np.bool_]) -> Array:
    return expit((age - 44) / 8)


@pytest.mark.unit
def test_nothing_goes_with_a_covariate_on_which_answers_do_not_depend() -> None:
    row = rows_of(drawn(lambda _, female: np.where(female, 0.3, 0.5)))[""]
    holds(row, before=-0.2, after=-0.2, part=0.0)
    assert abs(row.part.value or 1) < 0.01


@pytest.mark.unit
def test_all_of_a_gap_goes_with_a_covariate_that_is_all_that_answers_depend_on() -> None:
    found = rows_of(drawn(young))
    for label, sign in (("over 40", 1), ("under 40", -1)):
        row = found[label]
        holds(row, after=0.0)
        assert row.before.value is not None
        assert sign * row.before.value > 0.02
        assert row.part.value == pytest.approx(row.before.value - (row.after.value or 0))
        assert row.mean_group["age"] - row.mean_reference["age"] == pytest.approx(sign * 4, abs=1)


@pytest.mark.unit
def test_a_covariate_that_differs_the_other_way_hides_a_part_of_the_gap() -> None:
    """Women over 40 are older, which is in their favour, and are called so less often all the same."""
    row = rows_of(drawn(lambda age, female: expit((age - 50) / 8 - 1.2 * female)))["over 40"]
    assert row.before.value is not None
    assert row.after.value is not None
    assert row.after.value < row.before.value < 0
    assert row.part.low is not None
    assert row.part.low > 0  # the part has the other sign than the gap


@pytest.mark.unit
def test_turning_the_groups_round_turns_every_sign() -> None:
    frame = drawn(lambda age, female: expit((age - 44) / 8 - 0.8 * female), n=800)
    one, other = rows_of(frame)[""], rows_of(frame, TURNED)[""]
    for name in ("before", "after", "part"):
        own, turned = getattr(one, name), getattr(other, name)
        assert (turned.value, turned.low, turned.high) == pytest.approx((-own.value, -own.high, -own.low), abs=1e-9)
    assert one.mean_group == other.mean_reference


@pytest.mark.unit
def test_the_gap_before_is_that_of_the_contrast_where_every_image_has_the_covariate() -> None:
    frame = drawn(young, n=600)
    (gap,) = [r for r in contrasts(frame, [QUESTION], ["over 40"], LIMITS) if r.metric == Metric.STANDARDISED_GAP]
    row = rows_of(frame)[""]
    assert row.before == gap.estimate
    assert (row.n_group, row.n_reference) == (gap.n_group, gap.n_reference)


@pytest.mark.unit
def test_images_without_the_covariate_are_counted_and_left_out_of_both() -> None:
    frame = drawn(young, n=1200)
    lacking = np.arange(len(frame)) % 3 == 0
    row = rows_of(frame.assign(age=frame["age"].where(~lacking, "unknown")))[""]
    kept = rows_of(frame[~lacking])[""]
    assert row.without_covariate == lacking.sum()
    assert row.n_group + row.n_reference == (~lacking).sum()
    assert row.after.value == pytest.approx(kept.after.value, abs=0.01)  # labels are weighted as in all images


@pytest.mark.unit
def test_images_that_are_like_none_of_the_other_group_are_counted() -> None:
    frame = drawn(young, n=600)
    frame.loc[0, ["label", "gender", "age"]] = ["over 40", "female", "99"]
    far = (frame["age"].astype(float) == 99).sum()
    found = rows_of(frame)
    assert found["over 40"].without_counterpart >= far
    assert found[""].without_counterpart == found["over 40"].without_counterpart + found["under 40"].without_counterpart
    frame["age"] = frame["gender"].map({"female": "30", "male": "35"})  # exactly one caliper apart
    assert rows_of(frame)[""].without_counterpart == 0


@pytest.mark.unit
def test_too_few_subjects_and_a_label_of_one_group_alone() -> None:
    frame = drawn(young, n=600)
    few = pd.concat([frame[frame["gender"] == "male"], frame[frame["gender"] == "female"].head(20)])
    assert {row.shortfall for row in rows_of(few).values()} == {Shortfall.SUBJECTS}
    one = frame[(frame["gender"] == "male") | (frame["label"] == "under 40")]
    found = rows_of(one)
    assert found[""].shortfall == found["over 40"].shortfall == Shortfall.LABELS
    assert found["over 40"].mean_group == {}
    assert found["under 40"].shortfall is None
    assert found[""].before.value is None


@pytest.mark.unit
def test_answers_that_are_all_alike_are_not_certain() -> None:
    frame = drawn(lambda age, _: (age > 0).astype(float), n=400)
    row = rows_of(frame)["over 40"]
    assert row.after.value == 0
    assert row.after.low is not None
    assert row.after.low < -0.005
    assert row.part.value == 0
    assert row.part.low is None


@pytest.mark.unit
def test_a_step_that_separates_answers_has_a_curve_all_the_same() -> None:
    row = rows_of(drawn(lambda age, _: (age > 58).astype(float), n=600))["over 40"]
    assert row.after.value is not None
    assert abs(row.after.value) < 0.08
    assert row.before.value is not None
    assert row.before.value > 0.15


@pytest.mark.unit
def test_a_covariate_that_is_given_twice_counts_once() -> None:
    frame = drawn(young, n=600)
    twice = frame.assign(months=(frame["age"].astype(float) * 12).astype(str))
    one = rows_of(frame)[""]
    (both, *_) = adjusted_gaps(
        twice, [QUESTION], ["over 40"], Covariates.of(twice, {**AGE, "months": 60.0}, ()), min_group_size=30
    )
    assert both.after.value == pytest.approx(one.after.value, abs=0.01)
    assert both.covariates == ["age", "months"]


@pytest.mark.unit
def test_no_covariate_no_rows() -> None:
    assert adjusted_gaps(drawn(young, n=80), [QUESTION], ["over 40"], Covariates(), min_group_size=30) == []


@pytest.mark.unit
def test_copies_of_images_add_no_certainty() -> None:
    frame = drawn(young, n=600)
    one, copied = rows_of(frame)[""], rows_of(pd.concat([frame] * 3, ignore_index=True))[""]
    for name in ("before", "after", "part"):
        own, other = getattr(one, name), getattr(copied, name)
        assert other.value == pytest.approx(own.value, abs=2e-3)
        assert other.high - other.low == pytest.approx(own.high - own.low, rel=0.05)


@pytest.mark.property
def test_intervals_hold_the_truth() -> None:
    """Of 300 samples of 150 subjects with two images each."""
    ages = np.linspace(-30, 30, 4001)
    share = [np.exp(-(((ages - mean) / 8) ** 2) / 2) for mean in (3, -3)]
    either = (share[0] + share[1]) / (share[0] + share[1]).sum()
    curves = [expit(ages / 8 - gap) for gap in (0.8, 0.0)]
    after = float(either @ (curves[0] - curves[1]))
    before = float(share[0] @ curves[0] / share[0].sum() - share[1] @ curves[1] / share[1].sum())
    held = np.zeros((300, 2), dtype=bool)
    subjects = np.repeat(np.arange(150), 2)
    for sample in range(300):
        rng = np.random.default_rng(sample)
        group = np.repeat(rng.random(150) < 0.5, 2)
        age = np.where(group, 3, -3) + np.repeat(rng.normal(0, 8, 150), 2)
        called = (np.repeat(rng.random(150), 2) < expit(age / 8 - 0.8 * group)).astype(float)  # both alike
        made = standardised_difference(called, group, age[:, None], subjects)
        plain = plain_difference(called, group)
        parts = ((made.value - after, made.influence), (plain.value - made.value - before + after, None))
        for column, (miss, influence) in enumerate(parts):
            moved = plain.influence - made.influence if influence is None else influence
            error = np.sqrt((np.bincount(subjects, weights=moved) ** 2).sum() * 150 / 149)
            held[sample, column] = abs(miss) < 1.96 * error
    assert ((held.mean(axis=0) > 0.92) & (held.mean(axis=0) < 0.98)).all()


@pytest.mark.unit
def test_a_gap_that_is_all_a_categorys_goes_with_it() -> None:
    """Half of the children and a tenth of the adults are called so; more women than men are children."""
    rng, n = np.random.default_rng(0), 6000
    female = rng.random(n) < 0.5
    child = rng.random(n) < np.where(female, 0.5, 0.3)
    called = rng.random(n) < np.where(child, 0.5, 0.1)
    frame = pd.DataFrame(
        {
            "label": LABELS[0],
            "predicted": np.where(called, *LABELS),
            "subject": np.arange(n),
            "gender": np.where(female, "female", "male"),
            "stage": np.where(child, "child", "adult"),
        }
    )
    whole, _ = adjusted_gaps(frame, [QUESTION], LABELS[:1], Covariates.of(frame, {}, ["stage"]), min_group_size=30)
    holds(whole, before=0.08, after=0.0, part=0.08)
    assert (whole.covariates, whole.mean_group, whole.without_counterpart) == (["stage"], {}, 0)
    assert whole.before.value is not None and whole.after.value is not None
    assert whole.before.value > 0.04 > abs(whole.after.value)


@pytest.mark.unit
def test_where_categories_find_no_room_numbers_are_adjusted_for_all_the_same() -> None:
    frame = drawn(young, n=400)
    crowded = frame.assign(who=[f"annotator {i % 12}" for i in range(len(frame))])
    asked = Covariates.of(crowded, AGE, ["who"])
    _, row, _ = adjusted_gaps(crowded, [QUESTION], ["over 40"], asked, min_group_size=30)
    _, alone, _ = adjusted_gaps(frame, [QUESTION], ["over 40"], Covariates.of(frame, AGE, ()), min_group_size=30)
    assert (row.covariates, row.no_room, alone.no_room) == (["age", "who"], ["who"], [])
    assert row.after.value == pytest.approx(alone.after.value, abs=0.02)
    assert row.before.value != pytest.approx(row.after.value, abs=0.005)
