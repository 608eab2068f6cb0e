"""Repairs where there are three groups: two are aimed at, and the third keeps what it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.models.predict import Floats
from audit.records.repair_methods import AT_HEADS, Method
from audit.repair.base import Repaired, Split
from audit.repair.choice import balanced_rows, called, cells_of, choose, gap_of
from audit.repair.last_layer import balanced_for_erasure, erased
from audit.repair.registry import repair
from tests.repair.planted import planted_world

pytestmark = pytest.mark.unit
WORLD = planted_world(480, groups=3, accuracy_margin=0.15, legal_basis="stated")


def gap_after(made: Repaired) -> float:
    """Return the aimed gap on images that no repair has seen."""
    logits = made.answer(WORLD.given.see(WORLD.pixels))
    return float(gap_of(called(WORLD.given.readout, logits, 1), WORLD.split, WORLD.given.aim))


@pytest.mark.parametrize("method", [Method.DFR, Method.OXONFAIR, Method.LEACE, *AT_HEADS])
def test_the_gap_of_the_two_that_are_aimed_at_is_halved(method: Method) -> None:
    before = gap_after(repair(Method.UNTOUCHED, WORLD.given))
    assert before > 0.3
    assert abs(gap_after(repair(method, WORLD.given))) < before / 2


def test_all_six_cells_are_balanced() -> None:
    split = WORLD.given.data.repair
    uneven = np.flatnonzero((split.groups != 2) | (np.arange(len(split)) % 5 == 0)).astype(np.int64)
    some = split.take(balanced_rows(split, uneven, np.random.default_rng(0)))
    assert cells_of(some) == [(group, label) for group in (0, 1, 2) for label in (0, 1)]
    assert len({int(((some.groups == g) & (some.targets == y)).sum()) for g, y in cells_of(some)}) == 1


def test_erasing_makes_all_three_alike() -> None:
    given = WORLD.given
    rows = np.arange(len(given.data.repair))
    some = balanced_for_erasure(given, rows)
    logits = erased(given, rows).logits(given.seen.features[torch.from_numpy(some)]).double().numpy()
    means = [logits[given.data.repair.groups[some] == group].mean(0) for group in (0, 1, 2)]
    assert np.allclose(means[0], means[1], atol=1e-5)
    assert np.allclose(means[0], means[2], atol=1e-5)


def test_group_dro_has_six_cells() -> None:
    assert repair(Method.GROUP_DRO, WORLD.given).settings["cells"] == 6


def test_thresholds_by_group_leave_the_third_as_it_was() -> None:
    given = WORLD.given
    made = repair(Method.THRESHOLD_OPTIMIZER, given)
    answered = made.answer(given.seen, given.data.repair.groups)
    third = given.data.repair.groups == 2
    assert np.array_equal(answered[third], given.seen.logits[third])
    assert not np.array_equal(answered[~third], given.seen.logits[~third])


def test_a_gap_is_not_closed_at_the_cost_of_the_third() -> None:
    """Four images a group, two of either label; the group of the aim misses one, the repair gives it to the third."""
    targets, groups = np.tile([0, 0, 1, 1], 3), np.repeat([0, 1, 2], 4)
    split = Split(np.zeros((12, 1, 1, 3), np.uint8), targets, groups, np.arange(12))

    def answering(wrong: int | None) -> Floats:
        said = targets.copy()
        if wrong is not None:
            said[wrong] = 1 - said[wrong]
        return np.eye(2, dtype=np.float32)[said]

    before, third_pays, nobody_pays = answering(6), answering(10), answering(None)
    for margin, candidates, place in [
        (0.1, [before, third_pays], 0),
        (0.6, [before, third_pays], 1),
        (0.1, [before, third_pays, nobody_pays], 2),
    ]:
        asked = replace(WORLD.given, accuracy_margin=margin)
        assert choose(candidates, before, split, asked).place == place
