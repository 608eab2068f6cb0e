"""ThresholdOptimizer: a ceiling that needs the group of each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from audit.card.repair_spec import HarmfulError
from audit.errors import InputError
from audit.records.repair_methods import Method, WhyNotOffered
from audit.repair.choice import called, cell_of, gap_of
from audit.repair.registry import repair, why_not
from tests.repair.planted import planted_world

pytestmark = pytest.mark.unit
WORLD = planted_world(legal_basis="Article 157(4) TFEU")


@pytest.mark.parametrize("stated", ["", "  "])
def test_it_is_off_unless_the_card_states_a_legal_basis(stated: str) -> None:
    given = replace(WORLD.given, legal_basis=stated)
    assert why_not(Method.THRESHOLD_OPTIMIZER, given) is WhyNotOffered.NO_LEGAL_BASIS
    with pytest.raises(InputError, match=r"threshold_optimizer is not offered \(no legal basis\)"):
        repair(Method.THRESHOLD_OPTIMIZER, given)
    assert why_not(Method.THRESHOLD_OPTIMIZER, WORLD.given) is None


@pytest.mark.parametrize(("harmful", "label"), [("missed", 1), ("false_alarm", 0)])
def test_it_levels_the_rate_of_the_harmful_error(harmful: HarmfulError, label: int) -> None:
    given = replace(WORLD.given, aim=replace(WORLD.given.aim, harmful_error=harmful))
    made = repair(Method.THRESHOLD_OPTIMIZER, given)
    decisions = [
        called(given.readout, logits, 1)
        for logits in (given.seen.logits, made.answer(given.seen, given.data.repair.groups))
    ]
    before, after = (
        abs(np.subtract(*(found[cell_of(given.data.repair, group, label)].mean() for group in (0, 1))))
        for found in decisions
    )
    assert before > 0.2
    assert after < 0.08


def test_images_of_unknown_group_are_answered_as_before() -> None:
    made = repair(Method.THRESHOLD_OPTIMIZER, WORLD.given)
    seen = WORLD.given.see(WORLD.pixels)
    groups = WORLD.split.groups.copy()
    groups[::2] = -1
    answered = made.answer(seen, groups)
    assert np.array_equal(answered[::2], seen.logits[::2])
    assert not np.array_equal(answered, seen.logits)
    assert np.array_equal(made.answer(seen, np.full(len(groups), -1)), seen.logits)


def test_it_has_no_weights_and_asks_for_groups() -> None:
    made = repair(Method.THRESHOLD_OPTIMIZER, WORLD.given)
    assert made.state is None
    with pytest.raises(ValueError, match="needs the group"):
        made.answer(WORLD.given.seen)


def test_the_gap_on_new_images_is_small_and_repeats() -> None:
    made = repair(Method.THRESHOLD_OPTIMIZER, WORLD.given)
    seen = WORLD.given.see(WORLD.pixels)
    first, again = (made.answer(seen, WORLD.split.groups) for _ in range(2))
    assert np.array_equal(first, again)
    assert abs(gap_of(called(WORLD.given.readout, first, 1), WORLD.split, WORLD.given.aim)) < 0.1
