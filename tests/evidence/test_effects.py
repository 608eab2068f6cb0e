from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from audit.evidence.bootstrap import (
    draw_bootstrap,
    share_of_gap,
    tost_p_values,
    weighted_estimates,
)
from audit.evidence.effects import SwapEffects, lay_out, unit_sums
from tests.evidence.simulate import plausible, swap_effects

pytestmark = pytest.mark.unit


def mediated(effects: SwapEffects) -> np.ndarray:
    return effects.mediated_weights() @ effects.difference


def mediated_by_loops(effects: SwapEffects, head: int) -> float:
    """Return (IIE_{b->a} - IIE_{a->b}) / 2, label by label, from the definition."""
    shared = [y for y in set(effects.label) if len(set(effects.is_group[effects.label == y])) == 2]
    images = sum(y in shared for y in effects.label)
    total = 0.0
    for y in shared:
        weight = sum(v == y for v in effects.label) / images
        for recipients_in_group, sign in ((False, 1.0), (True, -1.0)):
            d = [
                effects.cross[r, head] - effects.placebo[r, head]
                for r in range(len(effects.label))
                if effects.label[r] == y and effects.is_group[r] == recipients_in_group
            ]
            total += weight * sign * sum(d) / len(d) / 2
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(4, 20))
def test_mediated_gap_is_its_formula(seed: int, labels: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    effects = swap_effects(rng, units=units, heads=3, labels=labels, planted=[0.1])
    keep = rng.random(len(effects.label)) < 0.7  # uneven cells; perhaps a label on one side only
    keep[:4] = True
    effects = dataclasses.replace(
        effects,
        **{
            name: getattr(effects, name)[keep]
            for name in ("cross", "placebo", "unpatched", "is_group", "label", "subject", "unit")
        },
    )
    oracle = [mediated_by_loops(effects, k) for k in range(3)]
    assert mediated(effects) == pytest.approx(oracle, abs=1e-12)
    assert unit_sums(effects).sum(axis=0) == pytest.approx(oracle, abs=1e-12)


def test_mediated_gap_of_a_one_sided_change_is_half_of_it() -> None:
    effects = swap_effects(np.random.default_rng(0), heads=1)
    delta = 0.08
    lifted = effects.placebo + delta * ~effects.is_group[:, None]
    one_sided = dataclasses.replace(effects, cross=lifted)
    assert mediated(one_sided) == pytest.approx([delta / 2])
    assert one_sided.side_weights(group=False) @ one_sided.difference == pytest.approx([delta])
    assert one_sided.side_weights(group=True) @ one_sided.difference == pytest.approx([0.0])
    both = dataclasses.replace(effects, cross=lifted - delta * effects.is_group[:, None])
    assert mediated(both) == pytest.approx([delta])


def test_mediated_gap_is_what_pooled_donors_would_close() -> None:
    """Its meaning: gap(same-group donors) - gap(donors from both groups alike)."""
    effects = swap_effects(np.random.default_rng(1), planted=[0.1, -0.05])
    gap = effects.gap_weights()
    pooled = (effects.cross + effects.placebo) / 2
    assert mediated(effects) == pytest.approx(gap @ effects.placebo - gap @ pooled)


def test_label_weights_leave_base_rates_out() -> None:
    # p is .8 for label 1 and .2 for label 0 in both groups; the group is labelled 1 three times as often.
    label = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    p = np.where(label == 1, 0.8, 0.2)
    effects = SwapEffects(
        cross=p[:, None], placebo=p[:, None], unpatched=p, is_group=np.repeat([True, False], 4), label=label,
        subject=np.arange(8), unit=np.arange(8), heads=[(0, 0)],
    )  # fmt: skip
    assert effects.gap_weights() @ p == pytest.approx(0.0)
    assert p[:4].mean() - p[4:].mean() == pytest.approx(0.3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_exchanging_group_and_reference_turns_the_sign(seed: int) -> None:
    effects = swap_effects(np.random.default_rng(seed), planted=[0.1])
    back = dataclasses.replace(effects, is_group=~effects.is_group)
    assert mediated(back) == pytest.approx(-mediated(effects), abs=1e-15)
    assert back.gap_weights() @ back.unpatched == pytest.approx(-effects.gap_weights() @ effects.unpatched)


def stored(effects: SwapEffects, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Write effects as a sweep stores them, rows in any order; recipients are rows 100, 101, ... of the sample."""
    n = len(effects.label)
    recipients = 100 + np.arange(n)
    parts = [
        pd.DataFrame(
            {
                "position": np.arange(n), "recipient": recipients, "donor_kind": kind, "layer": layer, "head": head,
                "p:smile": values[:, k], "p:frown": 1 - values[:, k], "unit": effects.unit,
                "side": np.where(effects.is_group, "group", "reference"),
                "label": np.array(["frown", "smile"])[effects.label],
            }
        )
        for kind, values in (("cross", effects.cross), ("placebo", effects.placebo))
        for k, (layer, head) in enumerate(effects.heads)
    ]  # fmt: skip
    table = pd.concat(parts, ignore_index=True).sample(frac=1, random_state=rng.integers(1000))
    own = pd.DataFrame({"recipient": recipients, "p:smile": effects.unpatched}).sample(frac=1, random_state=1)
    subjects = pd.Series([f"s{s}" for s in effects.subject], index=recipients).sample(frac=1, random_state=2)
    return table, own, subjects


def test_a_stored_table_in_any_order_gives_the_same_arrays() -> None:
    rng = np.random.default_rng(3)
    effects = swap_effects(rng, units=12, heads=6)
    effects = dataclasses.replace(effects, subject=effects.subject // 3)
    found = lay_out(*stored(effects, rng), "smile")
    for name in ("cross", "placebo", "unpatched", "is_group", "label", "unit"):
        np.testing.assert_array_equal(getattr(found, name), getattr(effects, name), err_msg=name)
    assert found.heads == effects.heads
    assert (found.subject[:, None] == found.subject).tolist() == (effects.subject[:, None] == effects.subject).tolist()
    other = lay_out(*(t.rename(columns={"p:smile": "p:frown", "p:frown": "p:smile"}) if isinstance(t, pd.DataFrame)
                      else t for t in stored(effects, rng)), "frown")  # fmt: skip
    np.testing.assert_array_equal(other.cross, effects.cross)


def test_labels_weigh_what_the_audited_gap_gives_them_however_many_were_drawn() -> None:
    rng = np.random.default_rng(6)
    effects = swap_effects(rng, units=12, heads=2)
    found = lay_out(*stored(effects, rng), "smile", label_shares={"smile": 0.9, "frown": 0.1, "stare": 0.5})
    assert found.label_weights() == {0: pytest.approx(0.1), 1: pytest.approx(0.9)}
    by_label = [
        (found.unpatched[found.is_group & (found.label == y)].mean()
         - found.unpatched[~found.is_group & (found.label == y)].mean())
        for y in (0, 1)
    ]  # fmt: skip
    assert found.gap_weights() @ found.unpatched == pytest.approx(0.1 * by_label[0] + 0.9 * by_label[1])
    assert effects.label_weights() == {0: 0.5, 1: 0.5}


def test_what_is_called_counts_as_one_and_all_else_as_nothing() -> None:
    rng = np.random.default_rng(5)
    effects = swap_effects(rng, units=12, heads=3)
    table, own, subjects = stored(effects, rng)
    table, own = (t.assign(predicted=np.where(t["p:smile"] > 0.5, "smile", "frown")) for t in (table, own))
    found = lay_out(table, own, subjects, "smile", scalar="called")
    np.testing.assert_array_equal(found.cross, (effects.cross > 0.5).astype(float))
    np.testing.assert_array_equal(found.placebo, (effects.placebo > 0.5).astype(float))
    np.testing.assert_array_equal(found.unpatched, (effects.unpatched > 0.5).astype(float))
    assert len(np.unique(found.cross)) == 2


def test_an_image_may_be_recipient_twice() -> None:
    rng = np.random.default_rng(4)
    effects = swap_effects(rng, units=4, heads=2)
    table, own, subjects = stored(effects, rng)
    table["recipient"] = 100 + table["position"] // 2
    found = lay_out(table, own, subjects, "smile")
    np.testing.assert_array_equal(found.unpatched, effects.unpatched[np.arange(16) // 2])
    np.testing.assert_array_equal(found.cross, effects.cross)


def test_what_does_not_vary_within_a_cell_has_no_spread() -> None:
    """However different the cells are from one another."""
    effects = swap_effects(np.random.default_rng(5), heads=1)
    boot = draw_bootstrap(effects, resamples=200, seed=0)
    constant = np.where(effects.is_group, 0.7, 0.2)[:, None]
    (found,) = weighted_estimates(constant, effects.gap_weights(), effects, boot)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.property
@pytest.mark.parametrize(("units", "per_unit", "donor_noise"), [(30, 2, 0.05), (60, 1, 0.05), (60, 3, 0.1)])
def test_interval_of_the_mediated_gap_covers(units: int, per_unit: int, donor_noise: float) -> None:
    rng = np.random.default_rng(6)
    held = 0
    for i in range(300):
        effects = swap_effects(
            rng, units=units, per_unit=per_unit, heads=4, planted=[0.1, 0.03, 0.0, -0.05], donor_noise=donor_noise
        )
        boot = draw_bootstrap(effects, resamples=400, seed=i)
        found = weighted_estimates(effects.difference, effects.mediated_weights(), effects, boot)
        held += sum(e.low <= v <= e.high for e, v in zip(found, [0.1, 0.03, 0.0, -0.05], strict=True))
    assert plausible(held, 1200, 0.93, 0.97)


@pytest.mark.property
def test_heads_are_shown_to_carry_little_only_where_they_do() -> None:
    """Heads at the margin, at either end, are declared smaller in at most 5% of the runs; heads at zero often."""
    rng, runs, planted = np.random.default_rng(7), 400, [0.04, -0.04, 0.0]
    declared = np.zeros(3, dtype=int)
    for i in range(runs):
        effects = swap_effects(rng, units=60, heads=3, planted=planted, noise=0.1, donor_noise=0.05)
        boot = draw_bootstrap(effects, resamples=400, seed=i)
        declared += np.array(tost_p_values(effects, boot, 0.04)) <= 0.05
    assert plausible(declared[0], runs, 0.03, 0.07)
    assert plausible(declared[1], runs, 0.03, 0.07)
    assert declared[2] > 0.8 * runs


def test_shown_smaller_agrees_with_the_interval_of_twice_alpha() -> None:
    rng = np.random.default_rng(3)
    for margin in (0.005, 0.02, 0.05, 0.2):
        effects = swap_effects(rng, heads=4, planted=[0.04, -0.02, 0.0, 0.01])
        boot = draw_bootstrap(effects, resamples=2000, seed=1)
        inside = [
            -margin < e.low and e.high < margin
            for e in weighted_estimates(effects.difference, effects.mediated_weights(), effects, boot, level=0.9)
        ]
        assert [p <= 0.05 for p in tost_p_values(effects, boot, margin)] == inside


def test_a_head_that_changes_nothing_is_shown_to_carry_little() -> None:
    effects = swap_effects(np.random.default_rng(2), heads=2)
    still = dataclasses.replace(effects, cross=effects.placebo)
    assert tost_p_values(still, draw_bootstrap(still, resamples=199, seed=0), 0.005) == [1 / 200, 1 / 200]


@pytest.mark.property
def test_interval_is_as_wide_as_the_two_way_clustered_error_of_statsmodels() -> None:
    """The mediated gap is a contrast of cell means, so a regression on cells has it too, with errors by two clusters.

    Each subject has two images and receives from one pair, where the two ways of clustering agree.
    """
    rng = np.random.default_rng(8)
    drawn = swap_effects(rng, units=200, per_unit=4, heads=3, planted=[0.1, 0.0], donor_noise=0.08)
    subject = (np.arange(len(drawn.label)) // 2).astype(np.int64)
    own = rng.normal(0, 0.05, subject.max() + 1)[subject, None]
    effects = dataclasses.replace(drawn, subject=subject, cross=drawn.cross + own)
    found = weighted_estimates(
        effects.difference, effects.mediated_weights(), effects, draw_bootstrap(effects, resamples=4000, seed=0)
    )
    cell = effects.label * 2 + effects.is_group
    cells = np.eye(4)[cell]
    contrast = effects.mediated_weights() @ cells  # the weights of a cell, summed, are those of its mean
    for k, estimate in enumerate(found):
        fitted = sm.OLS(effects.difference[:, k], cells).fit()
        assert contrast @ fitted.params == pytest.approx(estimate.value)
        error = np.sqrt(contrast @ cov_cluster_2groups(fitted, subject, effects.unit)[0] @ contrast)
        assert estimate.low is not None and estimate.high is not None
        width = (estimate.high - estimate.low) / (2 * stats.norm.ppf(0.975))
        assert width == pytest.approx(error, rel=0.06)
        naive = np.sqrt(contrast @ fitted.cov_params() @ contrast)
        assert error > 1.5 * naive  # were images independent, the interval would be far too narrow


def test_share_of_gap_is_the_ratio_and_none_where_there_may_be_no_gap() -> None:
    rng = np.random.default_rng(7)
    effects = swap_effects(rng, planted=[0.1], gap=0.2, noise=0.01, donor_noise=0.01)
    first, second, *_ = share_of_gap(effects, draw_bootstrap(effects, resamples=400, seed=0))
    gap = effects.gap_weights() @ effects.unpatched
    assert first.value == pytest.approx(mediated(effects)[0] / gap)
    assert first.value == pytest.approx(0.5, abs=0.1)
    assert first.low is not None and first.high is not None and first.low < first.value < first.high
    assert second.value == pytest.approx(0.0, abs=0.1)
    level = dataclasses.replace(effects, unpatched=0.5 + rng.normal(0, 0.05, len(effects.label)))
    shares = share_of_gap(level, draw_bootstrap(level, resamples=400, seed=0))
    assert [s.value for s in shares] == [None] * 6
