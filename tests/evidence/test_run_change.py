"""Two runs on the same images: no change is no change, a known change is found, and chance is found no more often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from audit.evidence.effects import SwapEffects
from audit.evidence.run_change import paired_change
from tests.evidence.simulate import plausible, swap_effects

unit_test, property_test = pytest.mark.unit, pytest.mark.property


def two_runs(rng: np.random.Generator, change: float, noise: float = 0.02) -> SwapEffects:
    """Measure one head twice: the second run adds ``change`` to the mediated gap, and noise to every image."""
    one = swap_effects(rng, planted=[0.05], noise=0.01, donor_noise=0.01)
    first = one.difference[:, :1]
    towards = np.where(one.is_group, -1.0, 1.0)[:, None]
    second = first + change * towards + rng.normal(0, noise, first.shape)
    return replace(one, cross=second, placebo=first, heads=[(0, 0)])


@unit_test
def test_a_run_beside_itself_has_not_changed() -> None:
    effects = two_runs(np.random.default_rng(0), 0.0, noise=0.0)
    found = paired_change(effects, effects.mediated_weights())
    assert (found.estimate.value, found.p, found.images) == (0.0, 1.0, len(effects.label))


@unit_test
def test_a_change_is_measured_and_found() -> None:
    effects = two_runs(np.random.default_rng(1), 0.03)
    found = paired_change(effects, effects.mediated_weights())
    assert found.estimate.value == pytest.approx(0.03, abs=0.005)
    assert found.estimate.low is not None and found.estimate.high is not None
    assert found.estimate.low < 0.03 < found.estimate.high
    assert found.p < 0.001
    turned = replace(effects, cross=effects.placebo, placebo=effects.cross)
    assert paired_change(turned, effects.mediated_weights()).estimate.value == pytest.approx(-found.estimate.value)


@property_test
def test_chance_is_taken_for_a_change_no_more_often_than_it_says() -> None:
    rng, runs = np.random.default_rng(2), 120
    small = 0
    for _ in range(runs):
        effects = two_runs(rng, 0.0)
        small += paired_change(effects, effects.mediated_weights()).p <= 0.1
    assert plausible(small, runs, 0.06, 0.14)


@unit_test
def test_no_changed_prediction_among_few_is_no_certainty() -> None:
    effects = two_runs(np.random.default_rng(3), 0.0)
    called = (effects.placebo > 0).astype(np.float64)
    alike = replace(effects, cross=called, placebo=called, counts=True)
    found = paired_change(alike, alike.gap_weights()).estimate
    assert found.value == 0.0
    assert found.low is not None and found.high is not None
    assert found.low < -0.01 < 0.01 < found.high
