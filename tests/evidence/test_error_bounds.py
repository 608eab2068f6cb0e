from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.error_bounds import (
    Cells,
    count_cells,
    gap_with_random_groups,
    gap_with_random_labels,
    group_bounds,
    label_bounds,
    sampling_bounds,
)
from audit.records import Metric
from tests.evidence.simulate import predictions

pytestmark = pytest.mark.unit

Image = tuple[str, bool]  # its label, and whether it is called the outcome
SHARES = st.sampled_from([0.0, 0.2, 0.25, 0.34, 0.5])


def table(
    called: list[list[float]],
    images: list[list[float]],
    *,
    weights: list[float] | None = None,
    metric: Metric = Metric.STANDARDISED_GAP,
) -> Cells:
    """Return counts of the labels a (the outcome), b, ... in the group and in the reference."""
    counts = np.array(images, dtype=np.float64)
    shares = counts.sum(axis=0) / counts.sum() if weights is None else np.array(weights)
    return Cells(list("abcd"[: counts.shape[1]]), shares, np.array(called, dtype=np.float64), counts, "a", metric)


@st.composite
def tables(draw: st.DrawFn, *, most: int, labels: int = 3) -> Cells:
    """Draw counts of few images, every label in either group."""
    k = draw(st.integers(2, labels))
    images = [[draw(st.integers(1, most)) for _ in range(k)] for _ in range(2)]
    called = [[float(draw(st.integers(0, n))) for n in row] for row in images]
    raw = np.array([draw(st.integers(1, 5)) for _ in range(k)], dtype=np.float64)
    metric = draw(st.sampled_from(list(Metric)))
    counts = [[float(n) for n in row] for row in images]
    return table(called, counts, weights=list(raw / raw.sum()), metric=metric)


def images_of(cells: Cells, side: int) -> list[Image]:
    return [
        (label, k < cells.called[side, j])
        for j, label in enumerate(cells.labels)
        for k in range(int(cells.images[side, j]))
    ]


def rate_if(cells: Cells, images: list[Image], wrong: tuple[bool, ...]) -> float:
    """Return a group's rate if some of its labels are wrong about the outcome, image by image."""
    shares = dict(zip(cells.labels, cells.weights, strict=True))
    if cells.metric == Metric.STANDARDISED_GAP:
        others = [label for label, _ in images if label != "a"]
        weight = shares["a"]
        factor = {k: shares[k] / (1 - weight) / (others.count(k) / len(others)) for k in set(others)}
    else:
        weight, factor = float(cells.metric == Metric.TPR_GAP), dict.fromkeys(cells.labels, 1.0)
    own = [called for (label, called), w in zip(images, wrong, strict=True) if (label == "a") != w]
    rest = [(factor.get(label, 1.0), c) for (label, c), w in zip(images, wrong, strict=True) if (label == "a") == w]
    parts = [weight * np.mean(own)] if weight > 0 else []
    if weight < 1:
        parts.append((1 - weight) * np.average([c for _, c in rest], weights=[f if f else 1.0 for f, _ in rest]))
    return float(sum(parts))


def by_trying_all_labels(cells: Cells, share: float) -> tuple[float, float]:
    ends = []
    for side in (0, 1):
        images = images_of(cells, side)
        is_own = np.array([label == "a" for label, _ in images])
        rates = [
            rate_if(cells, images, wrong)
            for wrong in itertools.product([False, True], repeat=len(images))
            if all(np.array(wrong)[part].sum() <= share * part.sum() + 1e-9 for part in (is_own, ~is_own))
        ]
        ends.append((min(rates), max(rates)))
    return ends[0][0] - ends[1][1], ends[0][1] - ends[1][0]


def by_trying_all_groups(cells: Cells, share: float, other: float) -> tuple[float, float]:
    weights, called, images = cells.strata()
    low = high = 0.0
    for weight, hits, counts in zip(weights, called.T, images.T, strict=True):
        seen = [(side, k < hits[side]) for side in (0, 1) for k in range(int(counts[side]))]
        sides, said = np.array([s for s, _ in seen]), np.array([c for _, c in seen], dtype=np.float64)
        gaps = []
        for wrong in itertools.product([0, 1], repeat=len(seen)):
            moved = np.array(wrong)
            if any(moved[sides == s].sum() > e * counts[s] + 1e-9 for s, e in ((0, share), (1, other))):
                continue
            true = sides ^ moved
            gaps.append(said[true == 0].mean() - said[true == 1].mean())
        low, high = low + weight * min(gaps), high + weight * max(gaps)
    return low, high


@settings(max_examples=15, deadline=None)
@given(tables(most=3), SHARES)
def test_bounds_for_wrong_labels_are_those_of_trying_all(cells: Cells, share: float) -> None:
    assert label_bounds(cells, share) == pytest.approx(by_trying_all_labels(cells, share))


def test_a_group_of_more_images_is_bounded_by_trying_all_too() -> None:
    cells = table([[3, 1], [2, 2]], [[4, 3], [3, 5]])
    for share in (0.34, 0.4):
        assert label_bounds(cells, share) == pytest.approx(by_trying_all_labels(cells, share))


@settings(max_examples=15, deadline=None)
@given(tables(most=4, labels=2), SHARES, SHARES)
def test_bounds_for_wrong_groups_are_those_of_trying_all(cells: Cells, share: float, other: float) -> None:
    if cells.strata()[2].max() <= 5:
        assert group_bounds(cells, share, other) == pytest.approx(by_trying_all_groups(cells, share, other))


@settings(max_examples=8, deadline=None)
@given(tables(most=40, labels=4))
def test_bounds_hold_the_gap_widen_and_change_sign_with_the_groups(cells: Cells) -> None:
    shares = np.linspace(0, 0.5, 6)
    for bounds, amounts in ((label_bounds, shares), (group_bounds, shares), (sampling_bounds, 1 + 4 * shares)):
        found = np.array([bounds(cells, float(amount)) for amount in amounts])
        exchanged = np.array([bounds(cells.exchanged(), float(amount)) for amount in amounts])
        assert found[0] == pytest.approx([cells.gap(), cells.gap()])
        assert (np.diff(found[:, 0]) <= 1e-12).all()
        assert (np.diff(found[:, 1]) >= -1e-12).all()
        assert exchanged == pytest.approx(-found[:, ::-1])


def test_no_labels_explain_groups_of_which_all_and_none_are_called() -> None:
    cells = table([[10, 20], [0, 0]], [[10, 20], [25, 5]])
    assert label_bounds(cells, 0.5) == pytest.approx((1.0, 1.0))


def test_half_of_the_groups_explain_groups_of_which_all_and_none_are_called() -> None:
    cells = table([[10, 20], [0, 0]], [[10, 20], [40, 8]])
    assert group_bounds(cells, 0.5)[0] == pytest.approx(0.0)
    assert group_bounds(cells, 0.4)[0] > 0


def test_many_labels_are_bounded_as_few_are() -> None:
    few = table([[180, 20], [120, 40]], [[200, 300], [150, 250]])
    many = table([[18000, 2000], [12000, 4000]], [[20000, 30000], [15000, 25000]])
    assert label_bounds(many, 0.1) == pytest.approx(label_bounds(few, 0.1), abs=1e-4)


def noisy(counts: npt.NDArray[np.float64], replaced: float, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (1 - replaced) * counts + replaced * counts.sum(axis=1, keepdims=True) * q


@pytest.mark.parametrize("metric", list(Metric))
def test_labels_wrong_at_random_are_corrected_to_the_true_gap(metric: Metric) -> None:
    images = np.array([[400.0, 300.0, 300.0], [100.0, 500.0, 400.0]])
    called = images * [[0.9, 0.2, 0.3], [0.8, 0.15, 0.3]]
    q = images.sum(axis=0) / images.sum()
    weights = list(q)
    seen = table(noisy(called, 0.1, q).tolist(), noisy(images, 0.1, q).tolist(), weights=weights, metric=metric)
    true = table(called.tolist(), images.tolist(), weights=weights, metric=metric)
    wrong = 0.1 * (1 - q @ q)
    assert gap_with_random_labels(seen, wrong) == pytest.approx(true.gap())
    assert seen.gap() != pytest.approx(true.gap(), abs=1e-3)


@pytest.mark.parametrize("metric", list(Metric))
def test_groups_wrong_at_random_are_corrected_to_the_true_gap(metric: Metric) -> None:
    images = np.array([[400.0, 300.0], [100.0, 500.0]])
    called = images * [[0.9, 0.2], [0.8, 0.1]]
    mixed = np.array([[0.95, 0.1], [0.05, 0.9]])  # of the group 5% are annotated wrongly, of the reference 10%
    weights = list(images.sum(axis=0) / images.sum())
    seen = table((mixed @ called).tolist(), (mixed @ images).tolist(), weights=weights, metric=metric)
    true = table(called.tolist(), images.tolist(), weights=weights, metric=metric)
    assert gap_with_random_groups(seen, 0.05, 0.1) == pytest.approx(true.gap())
    assert abs(seen.gap()) < abs(true.gap())


def test_annotations_that_cannot_be_so_wrong_have_no_corrected_gap() -> None:
    cells = table([[90, 1], [80, 1]], [[100, 100], [100, 100]])
    assert gap_with_random_labels(cells, 0.3) is None
    assert gap_with_random_groups(table([[0, 0], [80, 9]], [[100, 100], [100, 100]]), 0.3) is None
    assert gap_with_random_groups(cells, 0.5) is None


def test_called_images_that_are_sampled_twice_as_often_are_within_an_odds_ratio_of_two() -> None:
    # half of either group is called so; of the group twice as many of these are in the sample, of the reference half
    cells = table([[20, 40], [10, 15]], [[30, 60], [30, 45]])
    low, high = sampling_bounds(cells, 2.0)
    assert low == pytest.approx(0.0)
    assert high == pytest.approx(4 / 5 - 1 / 5)


def test_sampling_explains_no_rate_of_all_or_none() -> None:
    assert sampling_bounds(table([[10, 20], [0, 0]], [[10, 20], [10, 20]]), 100.0) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("metric", list(Metric))
def test_the_gap_of_the_counts_is_that_of_the_comparison(metric: Metric) -> None:
    answers = [("smile", "smile"), ("smile", "frown"), ("frown", "smile"), ("frown", "frown")]
    sizes = [40, 10, 12, 30, 25, 20, 6, 50]
    said = [(group, *answer) for group in "ab" for answer in answers]
    frame = predictions([(*cell, n) for cell, n in zip(said, sizes, strict=True)])
    question = Question("group", "b", ["a", "b"])
    rows = contrasts(frame, [question], ["smile"], Thresholds(0.05, 10, 0.8, 0.1))
    row = next(r for r in rows if r.metric == metric)
    assert count_cells(frame, question, row).gap() == pytest.approx(row.estimate.value)
    unknown = frame.assign(group=frame["group"].where(frame.index % 7 > 0, "unknown"))
    again = next(r for r in contrasts(unknown, [question], ["smile"], Thresholds(0.05, 10, 0.8, 0.1)) if r.id == row.id)
    assert count_cells(unknown, question, again).gap() == pytest.approx(again.estimate.value)


def test_labels_that_are_seen_in_no_known_group_count_nowhere() -> None:
    frame = pd.DataFrame(
        {
            "group": ["a", "a", "b", "b", "unknown"],
            "label": ["smile", "frown", "smile", "frown", "stare"],
            "predicted": ["smile", "frown", "frown", "frown", "smile"],
            "subject": list("vwxyz"),
        }
    )
    question = Question("group", "b", ["a", "b"])
    row = contrasts(frame, [question], ["smile"], Thresholds(0.05, 1, 0.8, 0.1))[0]
    cells = count_cells(frame, question, row)
    assert list(cells.labels) == ["frown", "smile"]
    assert cells.gap() == pytest.approx(0.5)
