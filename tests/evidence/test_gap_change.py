"""Gaps of two runs: the change is the difference of the gaps, chance is found no more often, and size counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from audit.evidence.gap_cells import Question
from audit.evidence.gap_change import (
    AskedGap,
    GapChange,
    detectable_change,
    is_larger,
    paired_changes,
    unpaired_changes,
)
from audit.records import Estimate, Metric
from tests.evidence.simulate import plausible

unit_test, property_test = pytest.mark.unit, pytest.mark.property
QUESTION = Question("gender", "m", ["f", "m"])
ASKED = [AskedGap(QUESTION, "f", "yes", metric) for metric in Metric]


def people(rng: np.random.Generator, count: int = 600) -> pd.DataFrame:
    """Two images each of some people, half of them of either group, with labels of unequal shares."""
    person = np.arange(count) // 2
    return pd.DataFrame(
        {
            "subject": person.astype(str),
            "gender": np.where(person % 2, "f", "m"),
            "label": rng.choice(["no", "yes"], count, p=[0.7, 0.3]),
        },
        index=pd.Index([f"{i}.png" for i in range(count)], name="image"),
    )


def called(frame: pd.DataFrame, rng: np.random.Generator, share: float, of_women: float) -> pd.DataFrame:
    """Call some of the images "yes", women more or less often."""
    rate = share + of_women * (frame["gender"] == "f")
    return frame.assign(predicted=np.where(rng.random(len(frame)) < rate, "yes", "no"))


def gap_of(frame: pd.DataFrame, metric: Metric) -> float:
    """Compute a gap by hand."""
    yes = (frame["predicted"] == "yes").astype(float)
    means = yes.groupby([frame["gender"], frame["label"]]).mean()
    shares = frame["label"].value_counts(normalize=True)
    if metric == Metric.STANDARDISED_GAP:
        return float(sum(share * (means["f", label] - means["m", label]) for label, share in shares.items()))
    label = "yes" if metric == Metric.TPR_GAP else "no"
    return float(means["f", label] - means["m", label])


@unit_test
def test_the_change_is_the_difference_of_the_gaps_whatever_the_order_of_the_images() -> None:
    rng = np.random.default_rng(0)
    frame = people(rng)
    before, after = called(frame, rng, 0.4, 0.0), called(frame, rng, 0.4, 0.3)
    found = paired_changes(before.sample(frac=1, random_state=1), after, ASKED)
    for metric, change in zip(Metric, found, strict=True):
        assert change is not None
        assert change.estimate.value == pytest.approx(gap_of(after, metric) - gap_of(before, metric))
    first = found[0]
    assert first is not None
    assert (first.images, first.p_adjusted) == (600, pytest.approx(1 / 5001))
    assert first.estimate.low is not None and first.estimate.high is not None
    assert 0 < first.estimate.low < 0.3 < first.estimate.high


@unit_test
def test_a_run_beside_itself_has_not_changed_and_only_images_of_both_count() -> None:
    rng = np.random.default_rng(1)
    run = called(people(rng), rng, 0.4, 0.2)
    for change in paired_changes(run, run.iloc[:400], ASKED):
        assert change is not None
        assert (change.estimate.value, change.p, change.p_adjusted) == (0.0, 1.0, 1.0)
        assert change.images is not None and change.images <= 400
        assert change.estimate.low is not None and change.estimate.low < 0
    assert paired_changes(run, run[run["gender"] == "m"], ASKED) == [None] * 3


@property_test
def test_chance_is_taken_for_a_change_no_more_often_than_it_says() -> None:
    rng, runs, small = np.random.default_rng(2), 60, 0
    for _ in range(runs):
        frame = people(rng, 200)
        found = paired_changes(called(frame, rng, 0.4, 0.1), called(frame, rng, 0.4, 0.1), ASKED)
        small += min(change.p_adjusted for change in found if change is not None) <= 0.1
    assert plausible(small, runs, 0.03, 0.14)


def estimate(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


@unit_test
def test_different_images_are_compared_by_their_estimates() -> None:
    (alike, apart) = unpaired_changes([(estimate(0.1), estimate(0.1)), (estimate(0.1), estimate(0.2))])
    assert (alike.estimate.value, alike.p, alike.images) == (0.0, 1.0, None)
    assert apart.estimate.low == pytest.approx(0.1 - np.hypot(0.02, 0.02))
    assert apart.p == pytest.approx(2 * norm.sf(0.1 * norm.ppf(0.975) / np.hypot(0.02, 0.02)))
    (unknown,) = unpaired_changes([(Estimate(value=0.1), estimate(0.2))])
    assert (unknown.estimate.low, unknown.p) == (None, 1.0)
    assert detectable_change(unknown, alpha=0.05, family=1) is None


@pytest.mark.parametrize(
    ("before", "after", "larger"),
    [
        (0.10, 0.20, True),
        (-0.10, -0.20, True),  # the other group
        (0.20, 0.10, False),  # smaller
        (-0.20, 0.10, False),  # turned, and smaller
        (-0.05, 0.20, True),  # turned, and larger
        (0.10, 0.13, False),  # within noise
    ],
)
@unit_test
def test_larger_is_the_size_of_a_gap_beyond_noise_and_tolerance(before: float, after: float, larger: bool) -> None:
    pair = estimate(before), estimate(after)
    (change,) = unpaired_changes([pair])
    assert is_larger(*pair, change, alpha=0.01) is larger
    assert not is_larger(*pair, change, alpha=0.01, tolerance=0.4)


@unit_test
def test_what_could_have_been_seen_is_from_the_interval() -> None:
    change = GapChange(estimate(0.0, half=1.959964 * 0.01), 1.0, 1.0, 100)
    assert detectable_change(change, alpha=0.05, family=1) == pytest.approx((1.959964 + 0.841621) * 0.01)
