"""The multiplier bootstrap: no draw is lost, cells may be small or weightless, and few events are not certainty."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from audit.evidence.bootstrap import (
    Bootstrap,
    draw_bootstrap,
    influences,
    share_of_gap,
    tost_p_values,
    weighted_estimates,
)
from audit.evidence.effects import SwapEffects
from audit.records import Estimate
from benchmarks.bootstrap.worlds import ONE_IMAGE_A_CELL, RARE, Flips, Labels, sizes_of_forty_labels
from tests.evidence.simulate import plausible, swap_effects

unit_test, property_test = pytest.mark.unit, pytest.mark.property
FORTY = sizes_of_forty_labels(np.random.default_rng(0))
WORLDS = {
    "40 labels": Labels(FORTY),
    "40 labels, skewed": Labels(FORTY, skewed=True),
    "subjects with several labels": Labels(FORTY, several=0.6),
    "labels without weight": Labels(FORTY, weightless=range(0, 40, 3)),
    "rare labels": Labels(RARE, skewed=True),
    "one image per cell": Labels(ONE_IMAGE_A_CELL),
}
LONG = ("40 labels", "labels without weight")  # others hold these, and more
CASES = [pytest.param(WORLDS[name], marks=[pytest.mark.long] if name in LONG else [], id=name) for name in WORLDS]


def mediated(effects: SwapEffects, *, resamples: int = 400, seed: int = 0) -> list[Estimate]:
    bootstrap = draw_bootstrap(effects, resamples=resamples, seed=seed)
    return weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


@property_test
@pytest.mark.parametrize("world", CASES)
def test_intervals_cover_whatever_the_cells(world: Labels) -> None:
    rng, runs, held = np.random.default_rng(11), 300, 0
    for seed in range(runs):
        effects = world.draw(rng)
        low, high = ends(mediated(effects, seed=seed)[0])
        held += low <= world.true(effects) <= high
    assert plausible(held, runs, 0.93, 0.97)


FLIPS = [
    pytest.param(
        Flips(patched, towards, away, share), marks=[] if share == 1.0 or patched == 100 else [pytest.mark.long]
    )
    for patched in (30, 100, 300)
    for towards, away in ((0.002, 0.0), (0.01, 0.0), (0.05, 0.0), (0.03, 0.02))
    for share in (1.0, 0.1)
]


@property_test
@pytest.mark.parametrize("world", FLIPS, ids=str)
def test_intervals_cover_where_images_seldom_change_their_class(world: Flips) -> None:
    rng, runs, held = np.random.default_rng(12), 100, 0
    for seed in range(runs):
        low, high = ends(mediated(world.draw(rng), seed=seed)[0])
        assert high > low
        held += low <= world.true <= high
    assert plausible(held, runs, 0.93, 1.0)


@unit_test
@pytest.mark.parametrize(("patched", "widest"), [(30, 0.1), (100, 0.03), (300, 0.0101)])
@pytest.mark.parametrize("share", [1.0, 0.04])
def test_no_change_among_few_says_as_much_as_the_rule_of_three(patched: int, widest: float, share: float) -> None:
    """None of n: up to about 3 in n may change. How many are not patched says nothing."""
    (found,) = mediated(Flips(patched, 0.0, share=share).draw(np.random.default_rng(0)), resamples=4000)
    low, high = ends(found)
    assert found.value == 0.0
    assert high == pytest.approx(-low, rel=0.1)
    assert 0.8 * widest < high < 1.05 * widest


@unit_test
def test_a_label_without_weight_changes_nothing() -> None:
    effects = swap_effects(np.random.default_rng(1), labels=3, planted=[0.1])
    effects = replace(effects, shares={0: 0.5, 1: 0.5, 2: 0.0})
    without = effects.take(np.flatnonzero(effects.label != 2))
    (some,), (every,) = (mediated(e, resamples=20_000)[:1] for e in (without, effects))
    assert every.value == pytest.approx(some.value)
    assert ends(every) == pytest.approx(ends(some), abs=0.002)


@unit_test
def test_a_cluster_alone_in_its_cell_is_not_certain() -> None:
    """One image of a second label on either side, with half the weight: it makes the interval wider, not narrower."""
    label = np.array([0] * 40 + [1, 1])
    is_group = np.arange(42) % 2 == 0
    values = np.where(is_group, -1, 1) * 0.1 + np.random.default_rng(2).normal(0, 0.05, 42)
    effects = SwapEffects(
        cross=values[:, None], placebo=np.zeros((42, 1)), unpatched=np.zeros(42), is_group=is_group, label=label,
        subject=np.arange(42), unit=np.arange(42), heads=[(0, 0)], shares={0: 0.5, 1: 0.5},
    )  # fmt: skip
    alone = effects.take(np.arange(40))
    (wide,), (narrow,) = (mediated(e) for e in (effects, alone))
    assert np.subtract(*ends(wide)[::-1]) > 2 * np.subtract(*ends(narrow)[::-1])


@unit_test
def test_what_no_spread_can_be_seen_of_has_no_interval() -> None:
    effects = swap_effects(np.random.default_rng(3), heads=2)
    one_subject = replace(effects, subject=np.where(effects.is_group, 0, effects.subject), unit=effects.subject)
    for found in mediated(one_subject):
        assert found.value is not None
        assert (found.low, found.high) == (None, None)
    assert tost_p_values(one_subject, draw_bootstrap(one_subject, resamples=99, seed=0), 1.0) == [None, None]
    assert [s.value for s in share_of_gap(one_subject, draw_bootstrap(one_subject, resamples=99, seed=0))] == [None] * 2
    nobody = replace(effects, shares={0: 0.0, 1: 0.0})
    assert [e.value for e in mediated(nobody)] == [None, None]


@unit_test
def test_what_is_not_a_number_is_no_estimate_and_never_shown_to_be_small() -> None:
    effects = swap_effects(np.random.default_rng(4), heads=2)
    effects.cross[3, 1] = np.nan
    good, bad = mediated(effects)
    assert good.value is not None and good.low is not None
    assert (bad.value, bad.low, bad.high) == (None, None, None)
    assert tost_p_values(effects, draw_bootstrap(effects, resamples=99, seed=0), 1.0) == [0.01, 1.0]


@unit_test
def test_draws_do_not_depend_on_how_many_are_made_at_once() -> None:
    rng, clusters = np.random.default_rng(5), 6000
    influence = rng.normal(0, 0.01, (clusters, 3))
    bootstrap = Bootstrap(np.arange(clusters), 1500, 7)
    draws = bootstrap.draw(influence)
    multipliers = np.random.default_rng(7).standard_normal((1500, clusters), dtype=np.float32)
    np.testing.assert_allclose(draws, multipliers @ influence, atol=1e-5)
    np.testing.assert_allclose(bootstrap.draw(influence[:, 1:2]), draws[:, 1:2], atol=1e-5)
    np.testing.assert_array_equal(bootstrap.draw(influence), draws)
    assert np.abs(replace(bootstrap, seed=8).draw(influence) - draws).max() > 0.1
    assert [b.stop - b.start for b in Bootstrap(np.arange(2), 1_000_000, 0).blocks(40)] == [33, 33]


@unit_test
def test_influences_sum_to_nothing_and_their_squares_to_the_cluster_robust_variance() -> None:
    """Without the correction for small cells, by hand."""
    effects = swap_effects(np.random.default_rng(6), units=50, per_unit=3, heads=2)
    weights, clusters = effects.mediated_weights(), np.unique(effects.unit, return_inverse=True)[1]
    found = influences(effects.difference, weights, effects, clusters)
    assert found is not None
    assert found.sum(axis=0) == pytest.approx(0.0, abs=1e-12)
    by_hand = np.zeros((50, 2))
    for y in (0, 1):
        for side in (True, False):
            rows = np.flatnonzero((effects.label == y) & (effects.is_group == side))
            centred = effects.difference[rows] - effects.difference[rows].mean(axis=0)
            np.add.at(by_hand, clusters[rows], weights[rows, None] * centred)
    np.testing.assert_allclose(found[:-1], by_hand / np.sqrt(1 - 1 / 25))


MEASURE = """
import re
from pathlib import Path
import numpy as np
from audit.evidence.bootstrap import draw_bootstrap, tost_p_values, weighted_estimates
from audit.evidence.effects import SwapEffects
R, K = 20_000, 144
rng = np.random.default_rng(0)
cross, placebo = (rng.random((R, K), dtype=np.float32).astype(float) for _ in range(2))
effects = SwapEffects(cross=cross, placebo=placebo, unpatched=rng.random(R), is_group=np.arange(R) % 2 == 0,
                      label=np.arange(R) // 2 % 5, subject=np.arange(R), unit=np.arange(R) // 2,
                      heads=[(k // 12, k % 12) for k in range(K)])
bootstrap = draw_bootstrap(effects, resamples=10_000, seed=0)
found = weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)
assert len(found) == len(tost_p_values(effects, bootstrap, 0.01)) == K
assert all(e.low < e.value < e.high for e in found)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@property_test
def test_memory_stays_under_a_gigabyte() -> None:
    """20,000 recipients, 10,000 draws and 144 heads; the whole process, in MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000
