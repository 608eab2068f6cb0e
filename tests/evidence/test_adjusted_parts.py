"""Gaps of parts at equal covariates: what goes with a covariate, sums that close, intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from audit.data.covariates import Covariates
from audit.evidence.adjusted_parts import at_equal_covariates
from audit.evidence.disparity import Question
from audit.evidence.effects import SwapEffects
from audit.evidence.ledgers import laid_out
from audit.evidence.trained import compare
from audit.records import Contrast, Metric

pytestmark = pytest.mark.unit
Array = npt.NDArray[np.float64]
QUESTION = Question("gender", "male", ["female", "male"])
CONTRAST = Contrast("gender", "female", "male")
SHARES = {"old": 0.5, "young": 0.5}


def people(n: int = 600, *, seed: int = 0, older: float = 4.0) -> tuple[pd.DataFrame, Array]:
    """Return n images of n / 2 people, women of each label ``older`` than men, and their ages (n, 1)."""
    rng = np.random.default_rng(seed)
    female, old = rng.random(n // 2) < 0.5, rng.random(n // 2) < 0.5
    age = np.where(old, 58.0, 29.0) + older * female + rng.normal(0, 5, n // 2)
    frame = pd.DataFrame(
        {
            "label": np.where(old, "old", "young"),
            "gender": np.where(female, "female", "male"),
            "subject": [f"s{i}" for i in range(n // 2)],
            "age": age.astype(str),
        }
    )
    return frame.loc[np.arange(n // 2).repeat(2)].reset_index(drop=True), age.repeat(2)[:, None]


def effects_of(frame: pd.DataFrame) -> SwapEffects:
    return laid_out(frame, QUESTION, "female", SHARES)


def test_what_follows_a_covariate_has_no_gap_at_equal_covariates_and_what_does_not_keeps_its_own() -> None:
    frame, age = people()
    female = (frame["gender"] == "female").to_numpy()
    of_age, of_group = at_equal_covariates([0.1 * age[:, 0], 2.0 * female], effects_of(frame), age)
    assert of_age.value == pytest.approx(0.0, abs=1e-9)
    assert of_group.value == pytest.approx(2.0)


def test_parts_sum_to_the_whole() -> None:
    frame, age = people(200)
    parts = np.random.default_rng(1).normal(size=(len(frame), 40)) + 0.05 * age
    found = at_equal_covariates([*parts.T, parts.sum(axis=1)], effects_of(frame), age)
    assert sum(row.value or np.nan for row in found[:-1]) == pytest.approx(found[-1].value, abs=1e-10)


def test_groups_exchanged_flip_the_sign_and_nothing_else() -> None:
    frame, age = people(200)
    values = np.random.default_rng(2).normal(size=(len(frame), 1))
    turned = laid_out(frame, Question("gender", "female", ["female", "male"]), "male", SHARES)
    (one,), (other,) = (at_equal_covariates(values.T, e, age) for e in (effects_of(frame), turned))
    assert one.value == pytest.approx(-(other.value or np.nan))
    assert one.low == pytest.approx(-(other.high or np.nan))


def test_images_without_a_covariate_are_left_out() -> None:
    frame, age = people(400)
    values = np.random.default_rng(3).normal(size=(len(frame), 2))
    known = np.arange(len(frame)) >= 40
    wild = np.where(known[:, None], values, 1e6)
    unknown = np.where(known[:, None], age, np.nan)
    with_unknown = at_equal_covariates(wild.T, effects_of(frame), unknown)
    without = at_equal_covariates(values[known].T, effects_of(frame[known]), age[known])
    assert [row.value for row in with_unknown] == pytest.approx([row.value for row in without])


def test_no_value_where_a_label_has_nobody_with_a_covariate_in_a_group() -> None:
    frame, age = people(200)
    lacking = ((frame["gender"] == "female") & (frame["label"] == "old")).to_numpy()
    (found,) = at_equal_covariates([np.ones(len(frame))], effects_of(frame), np.where(lacking[:, None], np.nan, age))
    assert found.value is None


def test_labels_that_sides_weigh_differently_are_taken_as_one() -> None:
    frame, age = people(600)
    compared = compare(
        frame, CONTRAST, "other", metric=Metric.FPR_GAP, covariates=Covariates.of(frame, {"age": 5.0}, ())
    )
    assert compared.covariates is not None
    (found,) = at_equal_covariates(0.1 * age.T, compared.effects, compared.covariates)
    assert found.value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("number", [80, 150, 500])
def test_intervals_hold_the_truth(number: int) -> None:
    """Two images a person, errors that they share, a curve that a spline follows: near 95 of 100, and not by width."""
    held, widths = [], []
    for seed in range(200):
        frame, age = people(2 * number, seed=seed)
        rng = np.random.default_rng([seed, 1])
        female = (frame["gender"] == "female").to_numpy()
        shared = rng.normal(size=len(frame) // 2).repeat(2)
        values = 0.5 * female + 0.05 * age[:, 0] + shared + rng.normal(size=len(frame))
        (found,) = at_equal_covariates([values], effects_of(frame), age)
        assert found.low is not None and found.high is not None
        held.append(found.low < 0.5 < found.high)
        widths.append(found.high - found.low)
    assert 0.92 <= np.mean(held) <= 0.985
    assert np.median(widths) < 12 / np.sqrt(number)
