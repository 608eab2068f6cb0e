"""Which methods are judged on sealed images: by the gap that they leave on people whom they were not fitted on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audit.card.repair_spec import RepairSpec
from audit.pipeline.repair_images import cell_changes, loss_shown
from audit.pipeline.repair_methods import candidates
from audit.records import Estimate
from audit.records.repair_methods import Method
from audit.records.repair_run import CellChange, Figures, RepairRow

pytestmark = pytest.mark.unit
BEFORE = Figures(images=90, gap=Estimate(value=-0.2), accuracy=Estimate(value=0.9), worst=None)


def row(
    method: Method, gap: float | None, change: float = 0.0, *, half: float = 0.0, weights: bool = True
) -> RepairRow:
    """Return a method that leaves a gap, and changes the accuracy of one cell by so much, give or take ``half``."""
    worst = CellChange(group="a", label="b", change=Estimate(value=change, low=change - half, high=change + half))
    return RepairRow(
        method=method, group_at_training=True, group_at_prediction=False, weights="weights/x" if weights else None,
        ranked=Figures(
            images=90, gap=Estimate(value=gap), accuracy=Estimate(value=0.9), worst=worst,
            loss_shown=loss_shown([worst]),
        ),
    )  # fmt: skip


def chosen(*rows: RepairRow, **spec: object) -> list[Method]:
    return candidates(RepairSpec.model_validate({"candidates": 5, "accuracy_margin": 0.02, **spec}), rows, BEFORE)


def test_the_smallest_gap_comes_first_whichever_its_sign_and_of_equals_the_first() -> None:
    rows = [row(Method.DFR, -0.1), row(Method.LEACE, 0.05), row(Method.OXONFAIR, -0.05)]
    assert chosen(*rows) == [Method.LEACE, Method.OXONFAIR, Method.DFR]
    assert chosen(*rows, candidates=1) == [Method.LEACE]


def test_what_leaves_as_much_as_there_was_or_has_no_weights_or_no_gap_is_none() -> None:
    rule = row(Method.THRESHOLD_OPTIMIZER, 0.0, weights=False)
    assert chosen(row(Method.UNTOUCHED, -0.2), row(Method.DFR, 0.2), row(Method.LEACE, None), rule) == []


def test_a_method_is_left_out_where_it_is_shown_to_cost_a_cell_more_than_the_margin() -> None:
    shown = row(Method.DFR, 0.0, -0.08, half=0.05)  # at best three points are lost
    unsure = row(Method.LEACE, 0.01, -0.04, half=0.05)
    just = row(Method.OXONFAIR, 0.02, -0.02)
    assert chosen(shown, unsure, just) == [Method.LEACE, Method.OXONFAIR]


def test_a_large_cell_that_loses_for_sure_counts_beside_a_small_one_that_seems_to_lose_more() -> None:
    frame = pd.DataFrame({"tone": ["a"] * 3 + ["b"] * 300 + ["unknown"] * 5, "label": "y", "subject": range(308)})
    before, after = np.ones(308, dtype=bool), np.ones(308, dtype=bool)
    after[[0, *range(3, 63), *range(303, 308)]] = False
    cells = cell_changes(frame, after, before, "tone")
    assert [(cell.group, cell.change.value) for cell in cells] == [("a", pytest.approx(-1 / 3)), ("b", -0.2)]
    assert loss_shown(cells[:1]) < 0.1
    assert 0.1 < loss_shown(cells) < 0.2
    assert loss_shown([]) == 0
