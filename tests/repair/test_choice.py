"""The rule by which every method chooses its strength, and what it is computed from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from audit.models.predict import Floats
from audit.records import Metric
from audit.repair.base import Aim, Codes, RepairInput, Split
from audit.repair.choice import balanced_rows, called, cell_of, cells_of, choose, gap_of, halves, label_weights
from tests.models_for_tests import tiny
from tests.repair.planted import planted_images, planted_world

pytestmark = pytest.mark.unit
AIM = Aim("kind", group=1, reference=0, outcome=1)
# Eight images: of each group three of label 1 and one of label 0.
TARGETS, GROUPS = np.array([1, 1, 1, 0, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
EIGHT = Split(np.zeros((8, 1, 1, 3), np.uint8), TARGETS, GROUPS, np.arange(8))


def answering(classes: Codes) -> Floats:
    """Return logits that are called these classes."""
    return np.eye(2, dtype=np.float32)[classes]


def asked(margin: float) -> RepairInput:
    return replace(planted_world(8).given, accuracy_margin=margin)


def test_a_gap_worked_by_hand() -> None:
    # called 1: of the reference all three of label 1 and none of label 0; of the group one of three, and the one.
    decisions = np.array([1, 1, 1, 0, 1, 0, 0, 1], dtype=bool)
    assert label_weights(EIGHT, AIM) == {0: 0.25, 1: 0.75}
    assert gap_of(decisions, EIGHT, AIM) == pytest.approx(0.75 * (1 / 3 - 1) + 0.25 * (1 - 0))
    assert gap_of(decisions, EIGHT, replace(AIM, metric=Metric.TPR_GAP)) == pytest.approx(1 / 3 - 1)
    assert gap_of(decisions, EIGHT, replace(AIM, metric=Metric.FPR_GAP)) == pytest.approx(1)


def test_images_of_unknown_group_and_labels_of_one_group_do_not_count() -> None:
    split = replace(EIGHT, groups=np.array([0, 0, -1, 0, 1, 1, 1, -1]))
    assert label_weights(split, AIM) == {1: 1.0}
    decisions = np.array([1, 0, 1, 1, 1, 1, 1, 0], dtype=bool)
    assert gap_of(decisions, split, AIM) == pytest.approx(0.5)


def test_the_smallest_gap_is_chosen_of_those_that_keep_every_cell() -> None:
    before = answering(np.array([1, 1, 1, 0, 1, 1, 0, 0]))  # gap -1/4, one of the group missed
    level_down = answering(np.array([1, 1, 0, 0, 1, 1, 0, 0]))  # gap 0, one more missed
    fair = answering(np.array([1, 1, 1, 0, 1, 1, 1, 0]))  # gap 0, nobody wrong
    for margin, candidates, place in [
        (0.05, [before, level_down], 0),
        (0.5, [before, level_down], 1),
        (0.5, [before, level_down, fair], 2),
        (0.05, [before, fair], 1),
    ]:
        choice = choose(candidates, before, EIGHT, asked(margin))
        assert choice.place == place
        assert choice.gap_before == pytest.approx(-0.25)
    assert choose([before, level_down], before, EIGHT, asked(0.5)).largest_loss == pytest.approx(1 / 3)


def test_what_half_of_the_gap_would_cost_is_told_whatever_the_margin_is() -> None:
    before = answering(np.array([1, 1, 1, 0, 1, 1, 0, 0]))
    level_down = answering(np.array([1, 1, 0, 0, 1, 1, 0, 0]))  # gap 0, a third of a cell lost
    nobody = answering(np.zeros(8, dtype=np.int64))  # gap 0, a whole cell lost
    for margin in (0.05, 0.5):
        told = choose([before, nobody, level_down], before, EIGHT, asked(margin)).told()
        assert told["largest_loss_at_half_the_gap"] == pytest.approx(1 / 3)
        assert told["smallest_cell"] == 1
    assert "largest_loss_at_half_the_gap" not in choose([before], before, EIGHT, asked(0.05)).told()


def test_of_equals_the_weaker_is_chosen() -> None:
    before = answering(TARGETS)
    assert choose([before, before.copy(), before.copy()], before, EIGHT, asked(0.1)).place == 0


def test_nothing_is_chosen_that_costs_a_cell_more_than_the_margin() -> None:
    before, all_wrong = answering(TARGETS), answering(1 - TARGETS)
    with pytest.raises(ValueError, match="no candidate"):
        choose([all_wrong], before, EIGHT, asked(0.5))


def test_what_is_called_follows_the_readout() -> None:
    model = tiny(classes=2)
    given = replace(planted_world(8).given, model=model)
    assert called(given.readout, answering(TARGETS), 1).tolist() == (TARGETS == 1).tolist()


def test_halves_share_no_subject_and_are_alike_in_cells() -> None:
    _, split = planted_images(240, seed=0)
    split = replace(split, subjects=np.arange(240) // 3 * 7)
    fit, held = halves(split, seed=3)
    assert sorted([*fit, *held]) == list(range(240))
    assert not set(split.subjects[fit]) & set(split.subjects[held])
    assert len(fit) == len(held)
    assert not np.array_equal(fit, halves(split, seed=4)[0])
    assert np.array_equal(fit, halves(split, seed=3)[0])


def test_balanced_rows_are_as_many_of_every_cell() -> None:
    _, split = planted_images(200, seed=0)
    groups = split.groups.copy()
    groups[:40] = -1
    split = replace(split, groups=groups)
    uneven = np.flatnonzero((split.groups != 1) | (split.targets != 1) | (np.arange(200) % 3 == 0)).astype(np.int64)
    rows = balanced_rows(split, uneven, np.random.default_rng(0))
    some = split.take(rows)
    sizes = {int(cell_of(some, *cell).sum()) for cell in cells_of(some)}
    assert len(sizes) == 1
    assert len(rows) == 4 * sizes.pop()
    assert set(rows) <= set(uneven[split.groups[uneven] >= 0])
    assert len(set(rows)) == len(rows)
