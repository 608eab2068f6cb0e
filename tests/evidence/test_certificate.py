"""The certificate of a repair: worlds whose answer is known, exact sizes, and what may not matter."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from audit.errors import DataError
from audit.evidence.certificate import certify, with_seeds
from audit.evidence.disparity import Thresholds, contrasts
from audit.evidence.gap_cells import Question
from audit.evidence.gap_score import GapChange, GapScore
from audit.evidence.paired import PairedCounts, power_above, score_variance
from audit.evidence.reachable import expect, reachable
from audit.records import (
    Aim,
    Certificate,
    CertificateLine,
    CertificateState,
    Expected,
    HarmfulError,
    LineKind,
    LineState,
    Margins,
    Metric,
    Shortfall,
)
from tests.evidence.simulate import plausible

pytestmark = pytest.mark.unit

QUESTIONS = [Question("gender", "male", ["female", "male"]), Question("tone", "light", ["dark", "light"])]
AIM = Aim(attribute="gender", group="female", reference="male", outcome="smile", metric=Metric.TPR_GAP)
MARGINS = Margins(gap=0.05, accuracy=0.02, error=0.02, alpha=0.05)
Frames = tuple[pd.DataFrame, pd.DataFrame]
Shares = dict[tuple[str, str], tuple[float, float]]  # of (gender, label): wrong before and after, in shares of a cell


def models(each: int, wrong: Shares) -> Frames:
    """Return two models' answers to ``each`` images of every gender, tone and label, each a subject.

    The images that are wrong before and after overlap as far as they can.
    """
    rows = []
    for gender in ("female", "male"):
        for tone in ("dark", "light"):
            for label, other in (("smile", "frown"), ("frown", "smile")):
                shares = wrong.get((gender, label), (0.0, 0.0))
                before, after = (np.where(np.arange(each) < round(share * each), other, label) for share in shares)
                rows += [(gender, tone, label, *said) for said in zip(before, after, strict=True)]
    frame = pd.DataFrame(rows, columns=["gender", "tone", "label", "before", "after"])
    frame["subject"] = [f"s{i}" for i in range(len(frame))]
    plain = frame.drop(columns=["before", "after"])
    return plain.assign(predicted=frame["before"]), plain.assign(predicted=frame["after"])


def judge(frames: Frames, aim: Aim = AIM, margins: Margins = MARGINS, *, candidates: int = 1) -> Certificate:
    return certify(*frames, QUESTIONS, aim, margins, min_subjects=10, candidates=candidates)


def line(certificate: Certificate, kind: LineKind, group: str, **named: object) -> CertificateLine:
    (found,) = [
        row
        for row in certificate.lines
        if (row.kind, row.group) == (kind, group) and all(getattr(row, k) == v for k, v in named.items())
    ]
    return found


def failed(certificate: Certificate) -> set[tuple[LineKind, str]]:
    return {(row.kind, row.group) for row in certificate.lines if row.state == LineState.FAILED}


EVERYWHERE: Shares = {(g, label): (0.05, 0.05) for g in ("female", "male") for label in ("smile", "frown")}


def test_a_model_without_a_gap_that_stays_as_it_is_is_certified() -> None:
    found = judge(models(1000, EVERYWHERE))
    assert found.state == CertificateState.CERTIFIED
    assert {row.state for row in found.lines} == {LineState.SHOWN}
    assert found.needed_images is None
    assert found.levelled_down == []
    assert all(c.images_newly_wrong == c.images_newly_right == 0 for c in found.changed)
    kinds = pd.Series([row.kind for row in found.lines]).value_counts().to_dict()
    # Two attributes of two groups: two labels and two errors of each, one gap of either.
    assert kinds == {LineKind.CELL_ACCURACY: 8, LineKind.GROUP_ERROR: 8, LineKind.GAP: 1, LineKind.OTHER_GAP: 1}


def test_a_repair_that_works_is_certified_and_says_who_is_newly_right() -> None:
    found = judge(models(1000, EVERYWHERE | {("female", "smile"): (0.25, 0.05)}))
    assert found.state == CertificateState.CERTIFIED
    gap = line(found, LineKind.GAP, "female")
    assert (gap.before, gap.after) == (pytest.approx(-0.2), pytest.approx(0.0))
    women, men = (next(c for c in found.changed if c.group == g) for g in ("female", "male"))
    assert (women.images, women.images_newly_right, women.images_newly_wrong) == (4000, 400, 0)
    assert (men.images_newly_right, men.images_newly_wrong) == (0, 0)


def test_a_cell_that_loses_ten_points_fails_on_its_own_line() -> None:
    found = judge(models(1000, EVERYWHERE | {("male", "frown"): (0.05, 0.15)}))
    assert found.state == CertificateState.FAILED
    cells = {
        (row.group, row.label) for row in found.lines if row.kind == LineKind.CELL_ACCURACY and row.state == "failed"
    }
    assert ("male", "frown") in cells
    assert ("female", "frown") not in cells
    of_men = line(found, LineKind.CELL_ACCURACY, "male", label="frown")
    assert of_men.estimate.value == pytest.approx(-0.1)
    assert of_men.estimate.high is not None and of_men.estimate.high < -0.02
    assert (of_men.before, of_men.after) == (pytest.approx(0.95), pytest.approx(0.85))
    assert found.needed_images is None  # no number of images would help


def test_levelling_down_closes_the_gap_fails_and_is_named() -> None:
    wrong = EVERYWHERE | {("female", "smile"): (0.25, 0.25), ("male", "smile"): (0.05, 0.25)}
    found = judge(models(1000, wrong))
    assert line(found, LineKind.GAP, "female").state == LineState.SHOWN
    assert line(found, LineKind.GROUP_ERROR, "male", error=HarmfulError.MISSED).state == LineState.FAILED
    assert found.levelled_down == ["male"]
    assert found.state == CertificateState.FAILED
    only_false_alarms = judge(models(1000, wrong), AIM.model_copy(update={"harm": HarmfulError.FALSE_ALARM}))
    assert (LineKind.GROUP_ERROR, "male") not in failed(only_false_alarms)
    assert (LineKind.CELL_ACCURACY, "male") in failed(only_false_alarms)


def test_a_gap_that_stays_fails_and_one_beyond_sight_is_not_shown() -> None:
    stays = judge(models(1000, EVERYWHERE | {("female", "smile"): (0.25, 0.25)}))
    assert failed(stays) == {(LineKind.GAP, "female")}
    near = judge(models(1000, EVERYWHERE | {("female", "smile"): (0.25, 0.10)}))
    assert line(near, LineKind.GAP, "female").state == LineState.NOT_SHOWN
    assert near.state == CertificateState.NOT_SHOWN


def test_a_gap_that_opens_between_other_groups_fails() -> None:
    before, after = models(1000, EVERYWHERE | {("female", "smile"): (0.25, 0.05)})
    opened = (after["tone"] == "dark") & (after["label"] == "smile")
    rows = after.index[opened].to_numpy()[::5]
    after.loc[rows, "predicted"] = "frown"
    found = judge((before, after))
    other = line(found, LineKind.OTHER_GAP, "dark")
    assert other.state == LineState.FAILED
    assert other.before == pytest.approx(0.0)
    assert other.estimate.value == pytest.approx(abs(other.after or 0.0))
    # That both models swap which tone is ahead widens nothing.
    narrowed = judge((after, before))
    assert line(narrowed, LineKind.OTHER_GAP, "dark").state == LineState.SHOWN


def test_too_few_images_are_not_shown_with_a_number_that_would_do() -> None:
    found = judge(models(20, EVERYWHERE))
    assert found.state == CertificateState.NOT_SHOWN
    assert found.needed_images is not None and found.needed_images > 20 * 8
    short = [row for row in found.lines if row.state == LineState.NOT_SHOWN]
    assert short
    assert all(row.needed_images is not None and row.needed_images > row.images for row in short)


@pytest.mark.parametrize(("changed", "margin"), [(0.02, 0.02), (0.06, 0.02), (0.1, 0.05), (0.3, 0.05)])
def test_the_number_of_one_line_suffices_four_times_in_five(changed: float, margin: float) -> None:
    sizes = np.arange(10, 20_000, 10)
    n = int(sizes[np.argmax([power_above(int(size), changed, margin, 0.05) >= 0.8 for size in sizes])])
    gained, lost = _draws(n, changed / 2, changed / 2, 2000, seed=3)
    shown = [PairedCounts(g, m, n).p_above(-margin) <= 0.05 for g, m in zip(gained, lost, strict=True)]
    assert plausible(sum(shown), len(shown), 0.76, 0.86)


def test_what_a_certificate_says_is_needed_suffices_four_times_in_five() -> None:
    """Of images that change as often one way as the other, and groups with the same rates."""
    before, after = models(100, EVERYWHERE)
    for gender in ("female", "male"):
        cell = np.flatnonzero(
            (after["gender"] == gender) & (after["label"] == "smile") & (after["predicted"] == "smile")
        )
        for frame, few in ((before, cell[:6]), (after, cell[6:12])):
            frame.iloc[few, frame.columns.get_loc("predicted")] = "frown"
    found = judge((before, after), margins=MARGINS.model_copy(update={"gap": 0.03}))
    assert found.state == CertificateState.NOT_SHOWN
    cell_line = line(found, LineKind.CELL_ACCURACY, "female", label="smile")
    assert (cell_line.images, cell_line.before, cell_line.after) == (200, pytest.approx(0.92), pytest.approx(0.92))
    assert cell_line.needed_images is not None
    changes = _draws(cell_line.needed_images, 0.03, 0.03, 1000, seed=5)
    shown = [PairedCounts(g, m, cell_line.needed_images).p_above(-0.02) <= 0.05 for g, m in zip(*changes, strict=True)]
    assert plausible(sum(shown), 1000, 0.78, 0.9)
    gap_line = line(found, LineKind.GAP, "female")
    assert gap_line.needed_images is not None
    each, rng = -(-gap_line.needed_images // 2), np.random.default_rng(6)
    rates = rng.binomial(each, 0.92, (1000, 2)) / each
    within = [two_cells((a, b), (each, each)).p_within(0.03) <= 0.05 for a, b in rates]
    assert plausible(sum(within), 1000, 0.77, 0.85)


def _draws(n: int, gained: float, lost: float, runs: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed).multinomial(n, [gained, lost, 1 - gained - lost], size=runs)
    return drawn[:, 0], drawn[:, 1]


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("n", [30, 118, 223, 272, 900])
@pytest.mark.parametrize("times", [1.0, 1.5, 4.0])
def test_at_the_margin_no_more_than_alpha_is_shown_whatever_changes(margin: float, n: int, times: float) -> None:
    """The size by enumeration of every outcome; at (0.01, 272) the test without correction has 6.5%."""
    lost, gained = margin * (times + 1) / 2, margin * (times - 1) / 2
    size = 0.0
    for b in range(int(stats.binom.isf(1e-9, n, gained)) + 1):
        c = np.arange(int(stats.binom.isf(1e-9, n, lost)) + 2)
        chance = stats.binom.pmf(b, n, gained) * stats.binom.pmf(c, n - b, lost / (1 - gained))
        passed = [b + m <= n and PairedCounts(b, int(m), n).p_above(-margin) <= 0.05 for m in c]
        size += float(chance[passed].sum())
    assert size <= 0.05


def test_no_change_is_not_certain() -> None:
    # With no image lost, the exact probability at the margin is (1 - margin)^n: 149 images are the fewest for 5%.
    few, many = (PairedCounts.of(np.zeros(n, dtype=np.int64), np.arange(n)) for n in (140, 200))
    assert few.p_above(-0.02) > 0.05 > many.p_above(-0.02)
    assert few.interval(0.9).low is not None and few.interval(0.9).low < -0.02  # type: ignore[operator]
    nothing = np.zeros(800, dtype=np.int64), np.repeat([0, 1], 400), np.array([1.0, -1.0])
    change = GapChange.of(*nothing, np.arange(800))
    assert change.value == 0
    # At 2 points each cell has lost or gained one: the variance is that of two shares of 1%.
    assert change.z(0.02) == pytest.approx(-(0.02 - 0.5 / 400) / np.sqrt(2 * 0.01 * 0.99 / 400), rel=1e-3)
    assert change.power(0.02, 0.05)(2.0) > change.power(0.02, 0.05)(1.0)
    in_pairs = GapChange.of(*nothing, np.arange(800) // 2)
    np.testing.assert_allclose(in_pairs.sizes, 200)


def test_the_likeliest_share_lost_solves_its_equation() -> None:
    gained, lost, size, bound = 3.0, 7.0, 200.0, -0.04
    q = (score_variance(gained, lost, size, bound) - bound * (1 - bound)) / 2
    slope = gained / (q + bound) + lost / q - 2 * (size - gained - lost) / (1 - 2 * q - bound)
    assert slope == pytest.approx(0, abs=1e-6)


def test_interval_and_test_agree() -> None:
    for gained, lost, size in [(0, 0, 50), (3, 9, 200), (40, 12, 300), (0, 30, 30), (30, 0, 30)]:
        counts = PairedCounts(gained, lost, size)
        found = counts.interval(0.9)
        assert found.value is not None and found.low is not None and found.high is not None
        assert -1 <= found.low < found.value or found.low == found.value == -1
        if found.low > -1:
            assert counts.p_above(found.low) == pytest.approx(0.05, abs=1e-6)
        if found.high < 1:
            assert counts.reversed().p_above(-found.high) == pytest.approx(0.05, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**31), st.floats(0.05, 0.6))
def test_images_that_a_subject_repeats_add_nothing(times: int, seed: int, changed: float) -> None:
    rng = np.random.default_rng(seed)
    change = rng.choice([-1, 0, 1], 60, p=[changed / 2, 1 - changed, changed / 2])
    once = PairedCounts.of(change, np.arange(60))
    again = PairedCounts.of(np.repeat(change, times), np.repeat(np.arange(60), times))
    assert again.size == pytest.approx(once.size)
    assert again.p_above(-0.05) == pytest.approx(once.p_above(-0.05))
    cells, weights = np.repeat([0, 1], 30), np.array([1.0, -1.0])
    few = GapChange.of(change, cells, weights, np.arange(60))
    many = GapChange.of(np.repeat(change, times), np.repeat(cells, times), weights, np.repeat(np.arange(60), times))
    assert many.value == pytest.approx(few.value)
    np.testing.assert_allclose(many.sizes, few.sizes, rtol=0.04)  # degrees of freedom differ


def two_cells(rates: tuple[float, float], sizes: tuple[int, int]) -> GapScore:
    return GapScore(np.array(rates), np.array(sizes, dtype=float), np.array([1.0, -1.0]))


@pytest.mark.parametrize(
    ("rates", "sizes"), [((0.95, 0.9), (200, 100)), ((0.0, 0.0), (40, 60)), ((1.0, 0.3), (50, 90))]
)
@pytest.mark.parametrize("gap", [-0.3, -0.05, 0.0, 0.05, 0.4])
def test_likeliest_rates_have_the_gap_and_no_others_are_likelier(
    rates: tuple[float, float], sizes: tuple[int, int], gap: float
) -> None:
    score = two_cells(rates, sizes)
    found = score.rates_at(gap)
    assert found @ score.weights == pytest.approx(gap, abs=1e-7)
    assert ((found >= 0) & (found <= 1)).all()

    def likelihood(reference: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [
                n * (special.xlogy(rate, p) + special.xlogy(1 - rate, 1 - p))
                for rate, n, p in zip(rates, sizes, (reference + gap, reference), strict=True)
            ]
        return np.asarray(sum(parts))

    grid = np.linspace(max(0.0, -gap), min(1.0, 1 - gap), 2001)
    assert likelihood(found[1:])[0] >= np.nanmax(likelihood(grid)) - 1e-3


@pytest.mark.parametrize(
    ("rate", "sizes", "margin"),
    [
        (0.02, (200, 200), 0.05),
        (0.02, (80, 320), 0.05),
        (0.0, (120, 120), 0.05),
        (0.05, (150, 60), 0.1),
        (0.9, (60, 150), 0.1),
    ],
)
def test_a_gap_at_its_margin_is_seldom_shown_to_be_within(rate: float, sizes: tuple[int, int], margin: float) -> None:
    """The size by enumeration; two one-sided Wald tests have 6.2% in the first case."""
    size = 0.0
    ranges = [
        np.arange(int(stats.binom.isf(1 - 1e-6, n, p)), int(stats.binom.isf(1e-6, n, p)) + 1)
        for n, p in zip(sizes, (rate, rate + margin), strict=True)
    ]
    for x in ranges[0]:
        within = [two_cells((x / sizes[0], y / sizes[1]), sizes).p_within(margin) <= 0.05 for y in ranges[1]]
        chance = stats.binom.pmf(ranges[1][within], sizes[1], rate + margin).sum()
        size += float(stats.binom.pmf(x, sizes[0], rate) * chance)
    assert 0.001 < size <= 0.05


def test_the_interval_of_a_gap_is_what_its_tests_leave() -> None:
    score = GapScore(np.array([0.9, 0.1, 0.85, 0.2]), np.array([90.0, 80, 120, 60]), np.array([0.4, 0.6, -0.4, -0.6]))
    found = score.interval(0.9)
    assert found.value == pytest.approx(0.4 * 0.05 - 0.6 * 0.1)
    assert found.low is not None and found.high is not None
    assert found.low < score.value < found.high
    assert score.p_beyond(-found.high) == pytest.approx(0.05, abs=1e-3)
    assert score.p_within(-found.low) == pytest.approx(0.05, abs=1e-3)


def test_images_repeated_or_alike_count_as_their_subjects_in_a_gap() -> None:
    rng = np.random.default_rng(8)
    called, cells = (rng.random(200) < 0.7).astype(float), np.repeat([0, 1], 100)
    weights = np.array([1.0, -1.0])
    once = GapScore.of(called, cells, weights, np.arange(200))
    again = GapScore.of(np.repeat(called, 3), np.repeat(cells, 3), weights, np.repeat(np.arange(200), 3))
    np.testing.assert_allclose(again.sizes, once.sizes, rtol=0.01)
    np.testing.assert_allclose(once.sizes, 99, rtol=1e-3)  # two means are estimated of 200 images
    alike = GapScore.of(np.ones(300), np.repeat([0, 1], 150), weights, np.repeat(np.arange(100), 3))
    np.testing.assert_allclose(alike.sizes, 50)  # all are called so: subjects count


@st.composite
def answers(draw: st.DrawFn) -> Frames:
    """Draw two models' answers to images of people, some with several, some of unknown group."""
    n = draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    frame = pd.DataFrame(
        {
            "gender": rng.choice(["female", "male", "unknown"], n, p=[0.45, 0.45, 0.1]),
            "tone": rng.choice(["dark", "light"], n),
            "label": rng.choice(["smile", "frown"], n),
            "subject": rng.integers(0, draw(st.integers(1, 60)), n).astype(str),
        }
    )
    said = [np.where(rng.random(n) < right, frame["label"], rng.choice(["smile", "frown"], n)) for right in (0.6, 0.8)]
    return frame.assign(predicted=said[0]), frame.assign(predicted=said[1])


@settings(max_examples=40, deadline=None)
@given(answers(), st.sampled_from(Metric), st.integers(0, 1000))
def test_any_images_get_an_answer_that_their_order_does_not_change(frames: Frames, metric: Metric, seed: int) -> None:
    aim = AIM.model_copy(update={"metric": metric})
    found = judge(frames, aim)
    assert Certificate.model_validate_json(found.model_dump_json()) == found
    assert found.state == (
        CertificateState.FAILED
        if any(row.state == LineState.FAILED for row in found.lines)
        else CertificateState.NOT_SHOWN
        if any(row.state == LineState.NOT_SHOWN for row in found.lines)
        else CertificateState.CERTIFIED
    )
    for row in found.lines:
        assert (row.shortfall is None) == (row.p is not None)
        assert row.shortfall is None or row.state == LineState.NOT_SHOWN
        assert row.subjects >= 10 or row.shortfall in (Shortfall.SUBJECTS, Shortfall.LABELS)
    order = np.random.default_rng(seed).permutation(len(frames[0]))
    again = judge((frames[0].iloc[order], frames[1].iloc[order]), aim)
    assert again.state == found.state
    assert again.changed == found.changed
    for row, other in zip(found.lines, again.lines, strict=True):
        assert other.estimate.value == pytest.approx(row.estimate.value, abs=1e-12)
        assert other.p == pytest.approx(row.p)


@settings(max_examples=25, deadline=None)
@given(answers(), st.sampled_from(Metric))
def test_exchanged_groups_turn_the_gap_round_and_nothing_else(frames: Frames, metric: Metric) -> None:
    aim = AIM.model_copy(update={"metric": metric})
    found = line(judge(frames, aim), LineKind.GAP, "female")
    turned = aim.model_copy(update={"group": "male", "reference": "female"})
    other = line(judge(frames, turned), LineKind.GAP, "male")
    assert other.state == found.state
    assert other.p == pytest.approx(found.p)
    if found.after is not None:
        assert (other.after, other.before) == (pytest.approx(-found.after), pytest.approx(-(found.before or 0.0)))


@settings(max_examples=25, deadline=None)
@given(answers(), st.sampled_from(Metric))
def test_the_gap_is_the_audits(frames: Frames, metric: Metric) -> None:
    limits = Thresholds(alpha=0.05, min_group_size=10, impact_ratio_below=0.8, gap_above=MARGINS.gap)
    (row,) = [r for r in contrasts(frames[1], QUESTIONS[:1], ["smile"], limits) if r.metric == metric]
    found = line(judge(frames, AIM.model_copy(update={"metric": metric})), LineKind.GAP, "female")
    assert found.after == pytest.approx(row.estimate.value)
    assert found.shortfall == row.shortfall
    if found.state == LineState.SHOWN:
        assert row.equivalence_p is not None and row.equivalence_p < 0.1  # of another test, a little less strict


def test_a_group_without_an_image_or_with_too_few_is_said_to_be_so() -> None:
    before, after = models(400, EVERYWHERE)
    questions = [*QUESTIONS, Question("tone x gender", "light", ["light", "none", "few"])]
    names = np.where(np.arange(len(after)) < 5, "few", "light")
    frames = [frame.assign(**{"tone x gender": names}) for frame in (before, after)]
    found = certify(frames[0], frames[1], questions, AIM, MARGINS, min_subjects=10)
    of_none = [row for row in found.lines if row.group == "none"]
    assert len(of_none) == 5
    assert {row.shortfall for row in of_none} == {Shortfall.LABELS}
    assert {row.state for row in of_none} == {LineState.NOT_SHOWN}
    assert all(row.needed_images is None for row in of_none)
    few = line(found, LineKind.CELL_ACCURACY, "few", label="smile")
    assert (few.images, few.shortfall, few.state) == (5, Shortfall.SUBJECTS, LineState.NOT_SHOWN)
    assert few.needed_images is not None and few.needed_images >= 10
    assert found.state == CertificateState.NOT_SHOWN
    assert found.needed_images is None


def test_several_candidates_share_the_level() -> None:
    frames = models(1000, EVERYWHERE | {("female", "smile"): (0.10, 0.07)})
    alone, shared = judge(frames), judge(frames, candidates=3)
    assert (alone.alpha, shared.alpha, shared.candidates) == (0.05, pytest.approx(0.05 / 3), 3)
    assert shared.lines[0].estimate.level == pytest.approx(1 - 0.1 / 3)
    low = [certificate.lines[0].estimate.low or 0.0 for certificate in (alone, shared)]
    assert low[1] < low[0]


def test_calls_by_outcome_count_where_there_are_some() -> None:
    before, after = models(1000, EVERYWHERE)
    raised = after["predicted"] == "smile"
    raised &= ~((after["gender"] == "male") & (np.arange(len(after)) % 5 == 0))  # a threshold that some men miss
    found = judge(
        (before.assign(**{"called:smile": before["predicted"] == "smile"}), after.assign(**{"called:smile": raised}))
    )
    assert line(found, LineKind.CELL_ACCURACY, "male", label="smile").state == LineState.FAILED
    assert line(found, LineKind.GAP, "female").state == LineState.FAILED


def test_images_that_differ_and_aims_at_nothing_are_refused() -> None:
    before, after = models(20, EVERYWHERE)
    with pytest.raises(DataError, match="different images"):
        judge((before.iloc[::-1], after))
    with pytest.raises(DataError, match="different images"):
        judge((before.assign(label="smile"), after))
    with pytest.raises(DataError, match="no group other"):
        judge((before, after), AIM.model_copy(update={"group": "other"}))
    with pytest.raises(DataError, match="one"):
        judge((before, after), AIM.model_copy(update={"group": "male"}))


def test_seeds_are_listed_and_leave_the_state() -> None:
    good, bad = judge(models(1000, EVERYWHERE)), judge(models(20, EVERYWHERE))
    found = with_seeds(good, [good, bad])
    assert found.by_seed == [CertificateState.CERTIFIED, CertificateState.NOT_SHOWN]
    assert found.state == CertificateState.CERTIFIED


def test_what_is_planned_is_what_will_be_tested() -> None:
    before, after = models(1000, EVERYWHERE)
    plan = reachable(after, QUESTIONS, AIM, MARGINS, Expected(changed=0.02, error=0.05), min_subjects=10)
    tested = judge((before, after)).lines
    key = ("kind", "attribute", "group", "label", "error", "images", "subjects")
    assert {tuple(getattr(row, k) for k in key) for row in plan.lines} == {
        tuple(getattr(row, k) for k in key) for row in tested
    }
    assert plan.reachable
    assert plan.power >= 0.8
    assert plan.needed_images is not None and plan.needed_images < len(after)


def test_a_plan_for_fewer_images_says_how_many_and_for_an_empty_cell_that_none_would_do() -> None:
    _, after = models(20, EVERYWHERE)
    expected = Expected(changed=0.02, error=0.05)
    plan = reachable(after, QUESTIONS, AIM, MARGINS, expected, min_subjects=10)
    assert not plan.reachable
    assert plan.needed_images is not None
    each = -(-plan.needed_images // 8)
    _, enough = models(each, EVERYWHERE)
    assert reachable(enough, QUESTIONS, AIM, MARGINS, expected, min_subjects=10).reachable
    several = reachable(after, QUESTIONS, AIM, MARGINS, expected, min_subjects=10, candidates=3)
    assert several.needed_images is not None and several.needed_images > plan.needed_images
    men_smile = after[(after["gender"] == "female") | (after["label"] == "smile")]
    none = reachable(men_smile, QUESTIONS, AIM, MARGINS, expected, min_subjects=10)
    assert (none.reachable, none.needed_images) == (False, None)


def test_images_of_one_person_need_more_images_the_more_alike_they_are() -> None:
    _, after = models(200, EVERYWHERE)
    several = after.assign(subject=[f"s{i // 4}" for i in range(len(after))])
    needed = [
        reachable(
            several, QUESTIONS, AIM, MARGINS, Expected(changed=0.02, error=0.05, within_subject=rho), min_subjects=10
        ).needed_images
        for rho in (0.0, 0.5, 1.0)
    ]
    assert needed[0] is not None and needed[1] is not None and needed[2] is not None
    assert needed[1] == pytest.approx(2.5 * needed[0], rel=0.05)
    assert needed[2] == pytest.approx(4 * needed[0], rel=0.05)


def test_what_is_expected_is_counted_where_a_repair_was_tried() -> None:
    before, after = models(100, {("female", "smile"): (0.2, 0.0), ("male", "frown"): (0.0, 0.1)})
    found = expect(before, after)
    assert found.changed == pytest.approx((40 + 20 + 1) / 802)
    assert found.error == pytest.approx(21 / 802)
    assert found.within_subject == 0
    nothing = expect(before.iloc[:0], after.iloc[:0])
    assert (nothing.changed, nothing.error) == (0.5, 0.5)
