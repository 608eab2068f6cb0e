from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from audit.evidence.stats import (
    combine_cells,
    components,
    equivalence_p,
    excludes_zero,
    holm,
    is_at_most,
    over_seeds,
    rate_interval,
    smallest_detectable,
)
from audit.records import Estimate
from tests.evidence.simulate import clustered_rates, plausible

pytestmark = pytest.mark.unit

HITS = st.lists(st.booleans(), min_size=2, max_size=80)


@given(HITS)
def test_rate_of_single_images_has_wilsons_interval(hits: list[bool]) -> None:
    found = rate_interval(np.array(hits), np.arange(len(hits)))
    low, high = proportion_confint(sum(hits), len(hits), method="wilson")
    assert found.value == pytest.approx(np.mean(hits))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


@given(HITS, st.integers(2, 5))
def test_duplicated_images_add_no_certainty(hits: list[bool], copies: int) -> None:
    once = rate_interval(np.array(hits), np.arange(len(hits)))
    often = rate_interval(np.repeat(hits, copies), np.repeat(np.arange(len(hits)), copies))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high), abs=1e-9)


def test_many_images_of_one_subject_count_once() -> None:
    found = rate_interval(np.array([True] * 18 + [False] * 2), np.zeros(20, dtype=np.int64))
    low, high = proportion_confint(0.9, 1, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))


def test_rate_of_no_image_has_no_value() -> None:
    assert rate_interval(np.array([], dtype=bool), np.array([], dtype=np.int64)).value is None


@pytest.mark.property
def test_rate_interval_covers_clustered_rates() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        hits, _, people = clustered_rates(rng, [0.3], subjects=60, images=4)
        found = rate_interval(hits.astype(bool), people)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.3 <= found.high
    assert plausible(held, 600, 0.93, 0.97)


def test_difference_of_two_groups_by_hand() -> None:
    # 6 of 10 against 2 of 8, each image its own subject.
    y = np.array([1.0] * 6 + [0.0] * 4 + [1.0] * 2 + [0.0] * 6)
    found = combine_cells(y, np.repeat([0, 1], [10, 8]), [1.0, -1.0], np.arange(18))
    correction = 18 / 17 * 17 / 16
    by_hand = np.sqrt(correction * (0.6 * 0.4 / 10 + 0.25 * 0.75 / 8))
    assert found.value == pytest.approx(0.35)
    assert found.error == pytest.approx(by_hand)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((0.35 - 1.959964 * by_hand, 0.35 + 1.959964 * by_hand))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans())
def test_error_is_that_of_clustered_least_squares(seed: int, cells: int, nested: bool) -> None:
    rng = np.random.default_rng(seed)
    n = 120
    people = rng.integers(0, 40, n)
    cell = people % cells if nested else rng.integers(0, cells, n)
    y = rng.random(n)
    weights = rng.normal(size=cells)
    fit = sm.OLS(y, np.eye(cells)[cell]).fit(cov_type="cluster", cov_kwds={"groups": people})
    test = fit.t_test(weights)
    found = combine_cells(y, cell, weights.tolist(), people)
    assert found.value == pytest.approx(test.effect.item())
    assert found.error == pytest.approx(test.sd.item())
    assert found.p == pytest.approx(test.pvalue.item())


@pytest.mark.parametrize(
    ("y", "cells", "subjects"),
    [
        ([1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]),
        ([1, 0], [0, 1], [0, 1]),
        ([1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]),
        ([1, 0] * 10, [0] * 10 + [1] * 10, np.repeat(np.arange(10), 2).tolist()),
        ([1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]),
    ],
    ids=[
        "no spread",
        "one image in each group",
        "one subject in each group",
        "spread within subjects only",
        "pairs alike",
    ],
)
def test_cells_without_visible_spread_are_not_certain(y: list[int], cells: list[int], subjects: list[int]) -> None:
    found = combine_cells(np.array(y, dtype=float), np.array(cells), [1.0, -1.0], np.array(subjects))
    assert found.error > 0.1
    assert found.p > 1e-3


def test_cells_without_a_miss_have_agresti_and_caffos_error() -> None:
    found = combine_cells(np.repeat([1.0, 0.0], [4, 6]), np.repeat([0, 1], [4, 6]), [1.0, -1.0], np.arange(10))
    assert found.value == 1.0
    assert found.error == pytest.approx(np.sqrt(5 / 6 * 1 / 6 / 6 + 1 / 8 * 7 / 8 / 8))


def test_many_images_do_not_make_a_cell_without_spread_certain() -> None:
    """Five subjects with forty images each are five observations, whatever their images agree on."""
    few = combine_cells(np.zeros(10), np.repeat([0, 1], 5), [1.0, -1.0], np.arange(10))
    many = combine_cells(np.zeros(400), np.repeat([0, 1], 200), [1.0, -1.0], np.repeat(np.arange(10), 40))
    assert many.error == pytest.approx(few.error)


@pytest.mark.property
@pytest.mark.parametrize(
    ("rates", "subjects", "images"),
    [((0.5, 0.3), 30, 4), ((0.2, 0.2), 100, 2), ((0.4, 0.1), 40, 1)],
)
def test_interval_of_a_difference_covers(rates: tuple[float, float], subjects: int, images: int) -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(600):
        y, cells, people = clustered_rates(rng, rates, subjects=subjects, images=images)
        interval = combine_cells(y, cells, [1.0, -1.0], people).interval()
        assert interval.low is not None and interval.high is not None
        held += interval.low <= rates[0] - rates[1] <= interval.high
    assert plausible(held, 600, 0.93, 0.97)


@pytest.mark.property
def test_rare_outcomes_are_not_called_different_too_often() -> None:
    """At 2% of 60 subjects many groups hold no hit at all."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(600):
        y, cells, people = clustered_rates(rng, (0.02, 0.02), subjects=60, images=3)
        wrong += combine_cells(y, cells, [1.0, -1.0], people).p <= 0.05
    assert plausible(wrong, 600, 0.0, 0.06)


@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=12))
def test_holm_is_the_step_down_of_its_definition(p_values: list[float]) -> None:
    """Rejected at a level are those before the first sorted p above level / (tests left)."""
    order, adjusted = sorted(range(len(p_values)), key=lambda i: p_values[i]), holm(p_values)
    for level in (0.001, 0.01, 0.05, 0.2, 0.7):
        rejected: set[int] = set()
        for left, i in zip(range(len(p_values), 0, -1), order, strict=True):
            if p_values[i] * left > level + 1e-12:
                break
            rejected.add(i)
        assert {i for i, q in enumerate(adjusted) if q <= level + 1e-12} == rejected


def test_holm_is_that_of_statsmodels() -> None:
    """On a few families, with ties, nought and one among them: statsmodels collects garbage in every call."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5, 8, 12, 20):
        p_values = (rng.integers(0, 21, size) / 20).tolist()
        assert holm(p_values) == multipletests(p_values, method="holm")[1].tolist()


def test_holm_by_hand_and_of_nothing() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("family", [1, 5, 36])
@pytest.mark.parametrize("n", [40, 250])
def test_smallest_detectable_has_eighty_percent_power(n: int, family: int) -> None:
    error = 0.5 * np.sqrt(2 / n)  # two groups of n with standard deviation 0.5
    difference = smallest_detectable(error, alpha=0.05, family=family)
    power = NormalIndPower().power(difference / 0.5, n, 0.05 / family)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_components_join_what_shares_a_subject_or_a_pair() -> None:
    subject = np.array([7, 7, 8, 9, 10])
    pair = np.array([1, 2, 2, 3, 3])
    assert components(subject, pair).tolist() == [0, 0, 0, 1, 1]
    assert components(np.arange(3), np.arange(3)).tolist() == [0, 1, 2]
    assert components(np.arange(3), np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("margin", [0.05, 0.2])
@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.03])
def test_equivalence_is_that_of_statsmodels(shift: float, margin: float) -> None:
    sample = np.random.default_rng(0).normal(0, 0.3, 80)
    sample += shift - sample.mean()
    described = DescrStatsW(sample)
    expected = described.ztost_mean(-margin, margin)[0]
    assert equivalence_p(shift, float(described.std_mean), margin) == pytest.approx(expected)


def test_equivalence_without_spread() -> None:
    assert equivalence_p(0.01, 0.0, 0.05) == 0.0
    assert equivalence_p(0.06, 0.0, 0.05) == 1.0


def test_a_true_effect_of_the_margins_size_is_called_equivalent_five_percent_of_the_time() -> None:
    rng = np.random.default_rng(1)
    hits = sum(equivalence_p(float(v), 0.02, 0.05) <= 0.05 for v in rng.normal(0.05, 0.02, 4000))
    assert plausible(hits, 4000, 0.045, 0.055)


def test_six_seeds_of_one_sign_are_the_fewest_that_can_tell() -> None:
    assert over_seeds([0.1] * 5) is None
    six = over_seeds([0.1, 0.2, 0.15, 0.12, 0.18, 0.2])
    assert six is not None
    assert six.p == pytest.approx(2 / 64)
    low, high = DescrStatsW([0.1, 0.2, 0.15, 0.12, 0.18, 0.2]).tconfint_mean()
    assert (six.estimate.low, six.estimate.high) == pytest.approx((low, high))
    mixed = over_seeds([0.1, -0.1, 0.2, -0.2, 0.3, -0.3])
    assert mixed is not None and mixed.p == pytest.approx(1.0)


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=10))
def test_few_seeds_have_scipys_exact_p(values: list[float]) -> None:
    sample = np.round(values, 3)  # floats whose sums tie only where they are equal
    exact = stats.permutation_test((sample,), np.sum, permutation_type="samples", n_resamples=np.inf)
    found = over_seeds(sample.tolist())
    assert found is not None and found.p == pytest.approx(exact.pvalue)


def test_many_seeds_cost_no_more_than_few() -> None:
    values = np.random.default_rng(3).normal(0.5, 1, 22)
    tracemalloc.start()
    begun = time.process_time()
    found = over_seeds(values.tolist())
    seconds, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 20e6
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, abs=0.02)
    clear = over_seeds([0.1 + 0.01 * k for k in range(22)])
    assert clear is not None and clear.p == pytest.approx(1 / 10_000)


def test_a_seed_without_a_number_is_no_answer() -> None:
    assert over_seeds([0.1] * 6 + [np.nan]) is None


def test_missing_numbers_show_nothing() -> None:
    assert [is_at_most(v, 0.05) for v in (None, np.nan, np.inf, -np.inf, 0.06, 0.05)] == [False] * 5 + [True]
    assert equivalence_p(np.nan, 0.1, 1.0) == equivalence_p(0.0, np.nan, 1.0) == 1.0
    found = (Estimate(value=1.0, low=low, high=high) for low, high in ((None, 2), (0.5, np.inf), (-0.1, 2), (0.1, 2)))
    assert [excludes_zero(e) for e in found] == [False, False, False, True]


def test_seeds_without_an_effect_are_told_apart_no_more_often_than_alpha_allows() -> None:
    rng = np.random.default_rng(2)
    found = [over_seeds(v.tolist()) for v in rng.normal(size=(600, 7))]
    hits = sum(f is not None and f.p <= 0.05 for f in found)
    assert plausible(hits, 600, 0.03, 0.05)
