from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from audit.evidence.disparity import Question
from audit.evidence.error_bounds import Cells, group_bounds, label_bounds, sampling_bounds
from audit.evidence.sensitivity import DeclaredErrors, judge_sensitivity, sensitivities
from audit.records import ContrastRow, Estimate, Metric, SensitivityKind, SensitivityRow
from tests.evidence.rows import around, contrast_row
from tests.evidence.simulate import predictions

pytestmark = pytest.mark.unit

LABELS, RANDOM_LABELS = SensitivityKind.LABELS, SensitivityKind.LABELS_AT_RANDOM
GROUPS, SAMPLING = SensitivityKind.GROUPS, SensitivityKind.SAMPLING


def table(called: list[list[float]], images: list[list[float]], metric: Metric = Metric.STANDARDISED_GAP) -> Cells:
    counts = np.array(images, dtype=np.float64)
    labels = ["smiling", *(f"other {i}" for i in range(1, counts.shape[1]))]
    return Cells(
        labels, counts.sum(axis=0) / counts.sum(), np.array(called, dtype=np.float64), counts, "smiling", metric
    )


def judged(cells: Cells, half: float = 0.02, **declared: Any) -> dict[SensitivityKind, SensitivityRow]:
    row = contrast_row(estimate=around(cells.gap(), half), metric=cells.metric)
    return {r.kind: r for r in judge_sensitivity(cells, row, DeclaredErrors(**declared))}


GAP = table([[180, 60], [150, 10]], [[200, 200], [200, 200]])


def test_half_of_the_groups_tips_groups_of_which_all_and_none_are_called_and_no_labels_do() -> None:
    rows = judged(table([[100, 100], [0, 0]], [[100, 100], [100, 100]]))
    assert rows[GROUPS].tipping == 0.5
    assert rows[LABELS].tipping is None
    assert rows[SAMPLING].tipping is None


def test_no_gap_is_tipped_by_nothing() -> None:
    rows = judged(table([[50, 20], [50, 20]], [[100, 100], [100, 100]]))
    assert {kind: row.tipping for kind, row in rows.items() if kind != SAMPLING} == dict.fromkeys(
        (k for k in SensitivityKind if k != SAMPLING), 0.0
    )
    assert rows[SAMPLING].tipping == 1.0


@pytest.mark.parametrize(("kind", "bounds"), [(LABELS, label_bounds), (GROUPS, group_bounds)])
def test_the_tipping_point_is_the_first_share_at_which_the_bound_is_at_zero(kind: SensitivityKind, bounds: Any) -> None:
    row = judged(GAP)[kind]
    assert row.tipping is not None
    assert row.tipping_of_interval is not None
    assert 0 < row.tipping_of_interval < row.tipping
    for share, reached in ((row.tipping, 0.0), (row.tipping_of_interval, 0.02)):
        assert bounds(GAP, share)[0] <= reached + 1e-9
        assert bounds(GAP, share - 1 / 400)[0] > reached


def test_an_odds_ratio_tips_what_it_made() -> None:
    # half of either group is called so; called images are 1.5 times as likely to be in the sample of one
    row = judged(table([[60, 60], [40, 40]], [[100, 100], [100, 100]]))[SAMPLING]
    assert row.tipping == pytest.approx(1.5)
    assert sampling_bounds(table([[60, 60], [40, 40]], [[100, 100], [100, 100]]), 1.5)[0] == pytest.approx(0)


def test_a_gap_that_random_errors_of_labels_made_is_tipped_by_as_many() -> None:
    true = np.array([[800.0, 200.0], [200.0, 800.0]])
    rates = np.array([0.9, 0.1])  # the same in both groups
    q = true.sum(axis=0) / true.sum()
    seen = [0.8 * x + 0.2 * x.sum(axis=1, keepdims=True) * q for x in (true * rates, true)]
    row = judged(table(seen[0].tolist(), seen[1].tolist()), half=0.01)[RANDOM_LABELS]
    assert row.gap.value is not None
    assert row.gap.value > 0.05
    assert row.tipping == pytest.approx(0.2 * (1 - q @ q))


def test_exchanging_the_groups_changes_the_sign_and_no_tipping_point() -> None:
    rows, exchanged = judged(GAP), judged(GAP.exchanged())
    for kind, row in rows.items():
        other = exchanged[kind]
        assert other.tipping == pytest.approx(row.tipping) if row.tipping is not None else other.tipping is None
        assert other.low == pytest.approx([-v for v in row.high])
        assert other.high == pytest.approx([-v for v in row.low])


def test_bounds_begin_at_the_gap_and_pass_the_tipping_point() -> None:
    for row in judged(GAP).values():
        assert row.low[0] == pytest.approx(row.gap.value)
        assert row.high[0] == pytest.approx(row.gap.value)
        assert len(row.amounts) == len(row.low) == len(row.high)
        if row.kind in (LABELS, GROUPS):
            assert row.tipping is not None
            assert row.amounts[-1] > row.tipping


@pytest.mark.parametrize(("share", "survives"), [(0.01, True), (0.3, False)])
def test_declared_errors_bound_the_gap_and_say_whether_it_survives(share: float, survives: bool) -> None:
    rows = judged(GAP, labels=share, groups={"tone": {"dark": share, "light": share / 2}})
    assert (rows[LABELS].low_at_declared, rows[LABELS].high_at_declared) == label_bounds(GAP, share)
    assert rows[LABELS].survives is survives
    of_groups = rows[GROUPS]
    assert (of_groups.declared, of_groups.declared_reference) == (share, share / 2)
    assert (of_groups.low_at_declared, of_groups.high_at_declared) == group_bounds(GAP, share, share / 2)
    assert of_groups.survives is survives
    assert rows[SAMPLING].declared is None


def test_nothing_declared_leaves_survival_open() -> None:
    assert {row.survives for row in judged(GAP).values()} == {None}
    assert {row.declared for row in judged(GAP, groups={"age": 0.1}).values()} == {None}


def test_either_part_of_an_intersection_may_be_wrong() -> None:
    row = contrast_row(attribute="tone x hair", group="dark x long", reference="light x short")
    declared = DeclaredErrors(groups={"tone": 0.1, "hair": {"long": 0.05}})
    assert declared.of_groups(row) == pytest.approx((0.15, 0.1))
    assert DeclaredErrors(groups={"tone": 0.4, "hair": 0.4}).of_groups(row) == (0.5, 0.5)


def test_a_gap_without_an_interval_has_no_tipping_point_of_it() -> None:
    row = contrast_row(estimate=Estimate(value=GAP.gap()))
    for found in judge_sensitivity(GAP, row, DeclaredErrors(labels=0.01)):
        assert found.tipping_of_interval is None
        assert found.survives is None


def asked() -> tuple[pd.DataFrame, Question, ContrastRow]:
    frame = predictions(
        [("a", "smile", "smile", 90), ("a", "smile", "frown", 10), ("a", "frown", "smile", 30),
         ("a", "frown", "frown", 70), ("b", "smile", "smile", 70), ("b", "smile", "frown", 30),
         ("b", "frown", "smile", 10), ("b", "frown", "frown", 90)]
    )  # fmt: skip
    gap = contrast_row(attribute="group", group="a", reference="b", outcome="smile", estimate=around(0.2))
    return frame, Question("group", "b", ["a", "b"]), gap


def test_every_gap_has_a_row_of_each_kind_and_no_gap_has_none() -> None:
    frame, question, gap = asked()
    rows = sensitivities(frame, [question], [gap])
    assert [row.kind for row in rows] == list(SensitivityKind)
    assert {(row.contrast, row.outcome) for row in rows} == {("group:a-b", "smile")}
    assert sensitivities(frame, [question], []) == []


def test_many_images_take_little_time() -> None:
    cells = table([[3600, 50, 250, 500], [2400, 60, 90, 480]], [[4000, 1000, 2500, 2500], [3000, 2000, 1800, 3200]])
    begun = time.process_time()
    judged(cells)
    assert time.process_time() - begun < 2
