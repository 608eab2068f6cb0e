"""What the mean-shift patch takes of a gap: formulas worked by hand in a linear world, and a simulation of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from audit.evidence.effects import SwapEffects
from audit.evidence.mean_shift import MeanShift, MovedMeans, judge_shifts, means_of
from audit.evidence.stats import Array
from audit.patching.shifts import Moved, Shifts, draw_shifts
from audit.records import Estimate

pytestmark = pytest.mark.unit
PARTS = 2  # the first puts out what the answer is, the second what it does not read


def linear_world(
    rng: np.random.Generator, *, images: int, gap: float, a_person: int = 1
) -> tuple[Array, Shifts, SwapEffects]:
    """Draw what a part puts out, which is the answer but for noise of its own: its whole gap goes with it."""
    people = images // a_person
    person = np.repeat(np.arange(people), a_person)
    label, is_group = person // 2 % 2, person % 2 == 1
    out = rng.standard_normal(people)[person] + 0.3 * rng.standard_normal(images) + gap * is_group + 2.0 * label
    nothing = np.zeros((images, 0))
    layout = SwapEffects(
        cross=nothing, placebo=nothing, unpatched=np.zeros(images), is_group=is_group, label=label,
        subject=person, unit=person, heads=[], shares={0: 0.5, 1: 0.5},
    )  # fmt: skip
    weights = np.abs(layout.gap_weights())
    shifts = draw_shifts(label, is_group, person, weights, shuffles=5, again=1, seed=int(rng.integers(1000)))
    return out, shifts, layout


def moved_in(out: Array, shifts: Shifts, rng: np.random.Generator) -> Moved:
    """Move the first part as the patch does, with pulls by the formula; the second changes nothing."""
    n, columns = shifts.coefficients.shape
    answers = out + 0.5 * rng.standard_normal(n)
    patched, pulls = np.repeat(answers, PARTS * columns).reshape(n, PARTS, columns), np.zeros((n, PARTS))
    for label in np.unique(shifts.label):
        for half in (0, 1):
            donors = (shifts.label == label) & (shifts.half == half)
            rows = (shifts.label == label) & (shifts.half != half)
            shift = shifts.coefficients[donors].T @ out[donors]
            patched[rows, 0] += np.where(shifts.is_group, 1.0, -1.0)[rows, None] * shift
            pulls[donors, 0] = shifts.weights[rows].sum() * out[donors] / 2
    scales = [np.repeat(a[..., None, None], 3, axis=-1) for a in (answers, patched, pulls)]
    return Moved(np.arange(n), *scales)


def judged(rng: np.random.Generator, *, of_means: bool = True, **world: float) -> tuple[list[MeanShift], MovedMeans]:
    out, shifts, layout = linear_world(rng, **world)  # type: ignore[arg-type]
    means = means_of(moved_in(out, shifts, rng), shifts, layout, 0, 0)
    return judge_shifts(means, resamples=400, seed=0, of_means=of_means), means


def test_what_alone_carries_the_gap_takes_it_and_the_interval_is_that_of_a_difference_of_means() -> None:
    rng = np.random.default_rng(0)
    out, shifts, layout = linear_world(rng, images=4000, gap=0.8)
    means = means_of(moved_in(out, shifts, rng), shifts, layout, 0, 0)
    whole, nothing = judge_shifts(means, resamples=4000, seed=0)
    assert whole.effect.value == pytest.approx(layout.gap_weights() @ out, abs=1e-9)  # whole halves are averaged
    by_hand = np.sqrt(
        sum(0.25 * 1.09 / 1000 for _ in range(4))
    )  # two labels of weight 1/2, two sides, 1,000 images each
    assert whole.effect.low is not None
    assert (whole.effect.value - whole.effect.low) / 1.96 == pytest.approx(by_hand, rel=0.06)
    assert whole.share.value == pytest.approx(1.0, abs=0.05)
    assert whole.takes(0.8)
    assert not whole.takes(-0.8)
    assert (nothing.effect.value, nothing.effect.low, nothing.effect.high) == (0.0, 0.0, 0.0)
    assert not nothing.takes(0.8)


def test_intervals_hold_the_truth_once_they_have_the_noise_of_the_means() -> None:
    held = {True: 0, False: 0}
    for seed in range(100):
        for of_means in held:
            (whole, _), _ = judged(np.random.default_rng(seed), of_means=of_means, images=120, gap=0.5)
            assert whole.effect.low is not None
            assert whole.effect.high is not None
            held[of_means] += whole.effect.low <= 0.5 <= whole.effect.high
    assert held[True] / 100 == pytest.approx(0.95, abs=0.06)
    assert held[False] / 100 < 0.4


def test_images_of_one_person_are_one_draw() -> None:
    held = 0
    for seed in range(100):
        (whole, _), _ = judged(np.random.default_rng(seed), images=240, gap=0.5, a_person=4)
        assert whole.effect.low is not None
        assert whole.effect.high is not None
        held += whole.effect.low <= 0.5 <= whole.effect.high
    assert held / 100 == pytest.approx(0.94, abs=0.065)


def test_without_a_group_nothing_is_taken() -> None:
    taken = sum(judged(np.random.default_rng(seed), images=120, gap=0.0)[0][0].takes(1.0) for seed in range(150))
    assert taken / 150 <= 0.06


def test_placebos_are_quiet_and_without_a_gap_there_is_no_share() -> None:
    (whole, _), means = judged(np.random.default_rng(3), images=400, gap=0.0)
    assert whole.placebo.low is not None
    assert whole.placebo.high is not None
    assert whole.placebo.low < 0 < whole.placebo.high
    if not whole.effect.low > 0:  # type: ignore[operator]
        assert whole.share.value is None
    assert means.shuffled.shape[2] == 5


def test_means_of_subjects_drawn_again_move_a_linear_answer_as_pulls_say() -> None:
    rng = np.random.default_rng(5)
    out, shifts, layout = linear_world(rng, images=200, gap=0.4)
    moved = moved_in(out, shifts, rng)
    change = shifts.coefficients[:, -1] - shifts.coefficients[:, 0]
    exact = -layout.gap_weights() @ (moved.patched[:, 0, -1, 0, 0] - moved.patched[:, 0, 0, 0, 0])
    assert abs(exact) > 0.001
    assert -2 * change @ moved.pulls[:, 0, 0, 0] == pytest.approx(exact)


def test_what_is_beyond_the_placebo_counts_too() -> None:
    clear, unclear = Estimate(value=0.1, low=0.05, high=0.15), Estimate(value=0.1, low=-0.01, high=0.2)
    shift = MeanShift(clear, unclear, clear, clear)
    assert shift.takes(0.1)
    assert not replace(shift, beyond=unclear).takes(0.1)
    assert not replace(shift, effect=unclear).takes(0.1)
