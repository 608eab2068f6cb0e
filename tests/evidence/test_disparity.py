from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.disparity import Question, Thresholds, contrasts, ranges, rates_by_group, with_seeds
from audit.records import ContrastRow, Shortfall
from tests.evidence.simulate import plausible, predictions, with_probabilities

pytestmark = pytest.mark.unit

LABELS = ["smile", "frown", "stare"]
QUESTION = Question("group", "b", ["a", "b"])
LIMITS = Thresholds(alpha=0.05, min_group_size=10, impact_ratio_below=0.8, gap_above=0.1)


@st.composite
def audits(draw: st.DrawFn) -> pd.DataFrame:
    """Draw predictions of three labels in three groups, one of them unknown."""
    n = draw(st.integers(4, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    frame = pd.DataFrame(
        {
            "group": rng.choice(["a", "b", "unknown"], n, p=[0.5, 0.4, 0.1]),
            "label": rng.choice(LABELS, n),
            "predicted": rng.choice(LABELS, n),
            "subject": rng.integers(0, draw(st.integers(2, 40)), n).astype(str),
        }
    )
    return with_probabilities(frame, LABELS)


def gap(rows: list[ContrastRow], metric: str = "standardised_gap") -> ContrastRow:
    return next(r for r in rows if r.metric == metric)


def compare(frame: pd.DataFrame, limits: Thresholds = LIMITS, question: Question = QUESTION) -> list[ContrastRow]:
    return contrasts(frame, [question], ["smile"], limits)


def counted(group: str, smile: tuple[int, int], frown: tuple[int, int]) -> list[tuple[str, str, str, int]]:
    """Return rows of one group: (predicted smile, predicted frown) of those labelled smile, then frown."""
    cells = itertools.product(["smile", "frown"], ["smile", "frown"])
    return [(group, label, said, n) for (label, said), n in zip(cells, [*smile, *frown], strict=True)]


@settings(max_examples=12, deadline=None)
@given(audits())
def test_rates_are_fairlearns_and_those_of_plain_masks(frame: pd.DataFrame) -> None:
    for outcome in LABELS:
        truth, said = frame["label"] == outcome, frame["predicted"] == outcome
        metrics = {
            "selection_rate": selection_rate,
            "true_positive_rate": true_positive_rate,
            "false_positive_rate": false_positive_rate,
        }
        ours = MetricFrame(
            metrics=metrics,
            y_true=truth.astype(int),
            y_pred=said.astype(int),
            sensitive_features=frame["group"],
        ).by_group
        for row in rates_by_group(frame, QUESTION, [outcome]):
            mine = frame["group"] == row.group
            masks = {"selection_rate": mine, "true_positive_rate": mine & truth, "false_positive_rate": mine & ~truth}
            for name, mask in masks.items():
                estimate = getattr(row, name)
                if not mask.any():
                    assert estimate.value is None
                    continue
                assert estimate.value == ours.loc[row.group, name]
                assert estimate.value == pytest.approx(said[mask].mean())
                assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
            if mine.any():
                right = (frame["label"] == frame["predicted"])[mine].mean()
                assert row.accuracy.value == pytest.approx(right)  # over all labels, not this one against the rest
                assert row.mean_probability.value == pytest.approx(frame.loc[mine, f"p:{outcome}"].mean())


@settings(max_examples=30, deadline=None)
@given(audits())
def test_unknown_group_is_shown_and_never_compared(frame: pd.DataFrame) -> None:
    unknown = int((frame["group"] == "unknown").sum())
    shown = [r.images for r in rates_by_group(frame, QUESTION, ["smile"]) if r.group == "unknown"]
    assert shown == ([unknown] if unknown else [])
    for row in compare(frame):
        assert (row.group, row.reference) == ("a", "b")
        assert row.n_group + row.n_reference <= len(frame) - unknown
    without = compare(frame[frame["group"] != "unknown"])
    assert [r.model_dump() for r in without] == [r.model_dump() for r in compare(frame)]


def test_intervals_of_rates_count_subjects() -> None:
    frame = predictions([*counted("a", (9, 9), (4, 14)), *counted("b", (9, 9), (4, 14))])
    twice = pd.concat([frame, frame], ignore_index=True)
    for once, double in zip(*(rates_by_group(f, QUESTION, ["smile"]) for f in (frame, twice)), strict=True):
        assert double.images == 2 * once.images
        assert double.subjects == once.subjects
        assert double.selection_rate.low == pytest.approx(once.selection_rate.low)
        assert double.accuracy.high == pytest.approx(once.accuracy.high)


def test_a_group_without_images_has_a_row_without_rates() -> None:
    frame = predictions(counted("b", (9, 9), (4, 14)))
    absent = next(r for r in rates_by_group(frame, QUESTION, ["smile"]) if r.group == "a")
    assert absent.images == 0
    assert absent.selection_rate.value is None
    assert absent.impact_ratio is None


@pytest.mark.parametrize("n", [1, 2])
def test_a_group_of_one_subject_is_reported(n: int) -> None:
    frame = predictions([("a", "smile", "smile", n), *counted("b", (9, 9), (4, 14))])
    frame.loc[frame["group"] == "a", "subject"] = "only"
    row = rates_by_group(frame, QUESTION, ["smile"])[0]
    assert row.subjects == 1
    assert row.selection_rate.low is not None
    assert row.selection_rate.low < 0.3
    assert {r.state for r in compare(frame)} == {"too little data", "not estimable"}


def test_labels_of_unknown_groups_only_have_no_weight() -> None:
    rows = [*counted("a", (9, 9), (4, 14)), *counted("b", (9, 9), (4, 14)), ("unknown", "stare", "smile", 5)]
    frame = predictions([*rows, ("unknown", "smile", "smile", 5), ("unknown", "frown", "smile", 5)])
    unknown = rates_by_group(frame, QUESTION, ["smile"])[-1]
    assert (unknown.group, unknown.images, unknown.standardised_rate.value) == ("unknown", 15, 1.0)
    alone = rates_by_group(frame[frame["group"] == "unknown"], QUESTION, ["smile"])
    assert [r.standardised_rate.value for r in alone] == [None, None, None]
    assert alone[-1].selection_rate.value == 1.0


def test_base_rates_alone_leave_the_standardised_gap_at_zero() -> None:
    # Both groups: 80% of smiles and 20% of frowns are called smiles; group a smiles more often.
    frame = predictions([*counted("a", (64, 16), (4, 16)), *counted("b", (16, 4), (16, 64))])
    rates = {r.group: r.selection_rate.value for r in rates_by_group(frame, QUESTION, ["smile"])}
    assert rates == pytest.approx({"a": 0.68, "b": 0.32})
    row = gap(compare(frame))
    assert row.estimate.value == pytest.approx(0.0, abs=1e-12)
    assert row.state == "no disparity detected"
    standardised = {r.group: r.standardised_rate.value for r in rates_by_group(frame, QUESTION, ["smile"])}
    assert standardised == pytest.approx({"a": 0.5, "b": 0.5})


def test_gaps_by_hand() -> None:
    # a: 30 of 40 smiles and 10 of 50 frowns are called smiles; b: 20 of 40, and 15 of 30.
    frame = predictions([*counted("a", (30, 10), (10, 40)), *counted("b", (20, 20), (15, 15))])
    rows = compare(frame)
    assert gap(rows, "tpr_gap").estimate.value == pytest.approx(0.75 - 0.5)
    assert gap(rows, "fpr_gap").estimate.value == pytest.approx(0.2 - 0.5)
    by_hand = 0.5 * (0.75 - 0.5) + 0.5 * (0.2 - 0.5)  # 80 of 160 images are smiles
    row = gap(rows)
    assert row.estimate.value == pytest.approx(by_hand)
    assert row.ratio == pytest.approx((0.5 * 0.75 + 0.5 * 0.2) / 0.5)
    assert (gap(rows, "tpr_gap").n_group, gap(rows, "tpr_gap").n_reference) == (40, 40)


@settings(max_examples=30, deadline=None)
@given(audits())
def test_relabelling_the_groups_turns_the_sign(frame: pd.DataFrame) -> None:
    there = compare(frame)
    back = compare(frame, question=Question("group", "a", ["a", "b"]))
    for one, other in zip(there, back, strict=True):
        assert one.metric == other.metric
        assert one.state == other.state
        assert one.p_raw == pytest.approx(other.p_raw) if one.p_raw is not None else other.p_raw is None
        assert one.smallest_detectable == pytest.approx(other.smallest_detectable)
        if one.estimate.value is not None:
            assert other.estimate.value == pytest.approx(-one.estimate.value, abs=1e-12)
            assert other.estimate.low == pytest.approx(-one.estimate.high, abs=1e-12)


@pytest.mark.parametrize("n", [1, 20])
def test_no_interval_of_a_gap_goes_beyond_all_against_none(n: int) -> None:
    """One group is always called so, the other never: the gap is 1, and cannot be more."""
    frame = predictions([*counted("a", (n, 0), (n, 0)), *counted("b", (0, n), (0, n))])
    rows = compare(frame)
    values = [(r.estimate.value, r.estimate.low, r.estimate.high) for r in rows if r.estimate.value is not None]
    assert len(values) == 3
    assert all(
        value == pytest.approx(1.0) and high == 1.0 and low is not None and low < 1.0 for value, low, high in values
    )
    raw = [r.difference for r in rates_by_group(frame, QUESTION, ["smile"]) if r.group == "a"]
    assert [r.high for r in raw if r is not None] == [1.0]


def test_disparity() -> None:
    row = gap(compare(predictions([*counted("a", (90, 10), (50, 50)), *counted("b", (50, 50), (10, 90))])))
    assert row.state == "disparity"
    assert row.above_policy
    assert row.p_adjusted is not None and row.p_adjusted < 0.001
    assert row.shortfall is None


def test_no_disparity_detected_says_what_could_have_been() -> None:
    row = gap(compare(predictions([*counted("a", (50, 50), (30, 70)), *counted("b", (49, 51), (31, 69))])))
    assert row.state == "no disparity detected"
    assert row.p_adjusted is not None and row.p_adjusted > 0.05
    # Weights of a half on four proportions of 100; three comparisons at .05: (2.394 + .842) standard errors.
    error = np.sqrt(0.25 * (0.5 * 0.5 + 0.3 * 0.7 + 0.49 * 0.51 + 0.31 * 0.69) / 100)
    assert row.smallest_detectable == pytest.approx(3.236 * error, rel=0.01)
    assert not row.above_policy


def test_too_little_data_gives_the_estimate_and_no_verdict() -> None:
    row = gap(compare(predictions([*counted("a", (4, 0), (4, 0)), *counted("b", (0, 40), (0, 40))])))
    assert row.state == "too little data"
    assert (row.shortfall, row.fewest_subjects, row.subjects_needed) == (Shortfall.SUBJECTS, 8, LIMITS.min_group_size)
    assert row.estimate.value == pytest.approx(1.0)
    assert row.p_adjusted is None and row.smallest_detectable is None
    assert not row.above_policy


def test_size_is_counted_in_subjects() -> None:
    frame = predictions([*counted("a", (20, 20), (20, 20)), *counted("b", (20, 20), (20, 20))])
    frame["subject"] = frame["group"] + (frame.groupby("group").cumcount() % 9).astype(str)
    assert {r.state for r in compare(frame)} == {"too little data"}


def test_a_label_seen_in_one_group_only_cannot_be_compared() -> None:
    frame = predictions([("a", "smile", "smile", 40), *counted("b", (20, 20), (20, 20))])
    rows = compare(frame)
    assert gap(rows).state == "not estimable"
    assert gap(rows).shortfall == Shortfall.LABELS
    assert gap(rows).estimate.value is None
    assert gap(rows, "fpr_gap").state == "not estimable"
    assert gap(rows, "tpr_gap").state == "disparity"  # all 40 smiles of a, 20 of 40 of b


def test_policy_is_crossed_by_the_gap_or_by_the_ratio() -> None:
    wide = predictions([*counted("a", (950, 50), (950, 50)), *counted("b", (800, 200), (800, 200))])
    assert gap(compare(wide)).ratio == pytest.approx(0.95 / 0.8)
    assert gap(compare(wide)).above_policy  # gap .15, ratio of the lower to the higher .84
    rare = predictions([*counted("a", (60, 940), (60, 940)), *counted("b", (20, 980), (20, 980))])
    assert gap(compare(rare)).estimate.value == pytest.approx(0.04)
    assert gap(compare(rare)).above_policy  # ratio 3
    small = predictions([*counted("a", (950, 50), (950, 50)), *counted("b", (900, 100), (900, 100))])
    assert gap(compare(small)).state == "disparity"
    assert not gap(compare(small)).above_policy
    assert not gap(compare(rare), "tpr_gap").above_policy  # no ratio is asked of it, and .04 is within


def test_ratio_is_judged_alike_from_both_sides() -> None:
    rare = predictions([*counted("a", (60, 940), (60, 940)), *counted("b", (20, 980), (20, 980))])
    assert gap(compare(rare, question=Question("group", "a", ["a", "b"]))).above_policy


def test_a_group_called_so_beside_a_reference_that_never_is_crosses_the_ratio_both_ways() -> None:
    rare = predictions([*counted("a", (60, 940), (60, 940)), *counted("b", (0, 1000), (0, 1000))])
    for reference in ("a", "b"):
        row = gap(compare(rare, question=Question("group", reference, ["a", "b"])))
        assert abs(row.estimate.value or 0) == pytest.approx(0.06)
        assert row.above_policy


def test_impact_ratio_over_nothing_is_none() -> None:
    frame = predictions([*counted("a", (20, 20), (20, 20)), *counted("b", (0, 40), (0, 40))])
    a, b = rates_by_group(frame, QUESTION, ["smile"])
    assert (a.impact_ratio, a.impact_ratio_highest) == (None, 1.0)
    assert (b.impact_ratio, b.impact_ratio_highest) == (None, 0.0)
    assert gap(compare(frame)).ratio is None
    never = rates_by_group(predictions([("a", "smile", "frown", 9), ("b", "smile", "frown", 9)]), QUESTION, ["smile"])
    assert [r.impact_ratio_highest for r in never] == [None, None]


def test_holm_counts_what_is_tested_and_nothing_else() -> None:
    frame = predictions(
        [
            *counted("a", (30, 10), (10, 30)),
            *counted("b", (20, 20), (15, 25)),
            *counted("c", (2, 1), (1, 2)),  # too few
            *counted("d", (25, 15), (5, 35)),
        ]
    )
    rows = contrasts(frame, [Question("group", "b", ["a", "b", "c", "d", "e"])], ["smile", "frown"], LIMITS)
    assert len(rows) == 4 * 2 * 3  # four groups against b, two outcomes, three metrics
    tested = [r for r in rows if r.p_adjusted is not None]
    assert {r.group for r in tested} == {"a", "d"}
    assert {r.family_size for r in tested} == {12}
    assert {r.state for r in rows if r.group == "c"} == {"too little data"}
    assert {r.state for r in rows if r.group == "e"} == {"not estimable"}
    smallest = min(tested, key=lambda r: r.p_raw or 1)
    assert smallest.p_adjusted == pytest.approx(min(1.0, 12 * (smallest.p_raw or 1)))
    assert len({r.id for r in rows}) == len(rows)


@pytest.mark.property
def test_groups_that_do_not_differ_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        people = np.arange(120)
        often = rng.beta(2, 2, 120)
        frame = pd.DataFrame({"subject": np.repeat(people, 3).astype(str)})
        frame["group"] = np.repeat(rng.permutation(["a", "b"] * 60), 3)
        frame["label"] = rng.choice(["smile", "frown"], 360)
        frame["predicted"] = np.where(rng.random(360) < np.repeat(often, 3), "smile", "frown")
        rows = compare(with_probabilities(frame, ["smile", "frown"]))
        wrong += any(r.state == "disparity" for r in rows)
    assert plausible(wrong, 300, 0.0, 0.05)


def test_every_seed_is_kept_in_order() -> None:
    seeds = [
        compare(predictions([*counted("a", (20 + k, 20 - k), (20, 20)), *counted("b", (20, 20), (20, 20))]))
        for k in (0, 10, 4)
    ]
    row = gap(with_seeds(seeds[0], seeds), "tpr_gap")
    assert row.by_seed == pytest.approx([0.0, 0.25, 0.1])
    assert row.estimate.value == pytest.approx(0.0)
    assert row.over_seeds is None


def test_six_seeds_are_judged_together() -> None:
    seeds = [
        compare(predictions([*counted("a", (30 + k, 10 - k), (20, 20)), *counted("b", (20, 20), (20, 20))]))
        for k in range(6)
    ]
    row = gap(with_seeds(seeds[0], seeds), "tpr_gap")
    assert row.over_seeds is not None
    assert row.over_seeds.value == pytest.approx(np.mean(row.by_seed))
    assert row.p_over_seeds == pytest.approx(2 / 64)


@pytest.mark.parametrize(("n", "shown"), [(20, False), (4000, True)])
def test_no_gap_is_shown_to_be_small_only_where_there_is_enough_data(n: int, shown: bool) -> None:
    row = gap(compare(predictions([*counted("a", (n, n), (n, n)), *counted("b", (n, n), (n, n))])))
    assert row.state == "no disparity detected"
    assert row.equivalence_margin == LIMITS.gap_above
    assert row.within_margin == shown
    assert (row.equivalence_p or 0) <= 0.05 if shown else (row.equivalence_p or 0) > 0.05


THREE = Question("group", "b", ["a", "b", "c"])


def test_widest_difference_by_hand() -> None:
    rows = [*counted("a", (30, 10), (20, 20)), *counted("b", (20, 20), (20, 20)), *counted("c", (10, 30), (20, 20))]
    (row,) = ranges(predictions(rows), [THREE], ["smile"], LIMITS, seed=0)
    assert (row.highest, row.lowest, row.groups) == ("a", "c", 3)
    assert row.widest == pytest.approx(0.25)  # 0.5 among the half that is labelled smile
    assert 0 < row.by_chance < 0.25
    assert row.corrected == pytest.approx(row.widest - row.by_chance)
    assert row.p < 0.01


def test_permutations_are_not_held_at_once() -> None:
    """A thousand of them, of one code for each image, would take 8,000 bytes of each image."""
    n = 3000
    about = {"group": np.tile(["a", "b", "c"], n // 3), "label": np.repeat(LABELS[:2], n // 2)}
    frame = pd.DataFrame({**about, "predicted": np.tile(LABELS[:2], n // 2), "subject": np.arange(n).astype(str)})
    tracemalloc.start()
    try:
        ranges(frame, [THREE], LABELS[:2], LIMITS, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / n < 1000


@pytest.mark.property
def test_the_widest_difference_between_like_groups_is_chance_alone() -> None:
    """Uncorrected, small groups that are alike seem to differ; corrected, the mean over many draws is near zero."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(40):
        frame = pd.DataFrame({"group": np.repeat(["a", "b", "c"], 40), "label": np.tile(["smile", "frown"], 60)})
        frame["predicted"] = rng.choice(["smile", "frown"], 120)
        frame["subject"] = np.arange(120).astype(str)
        (row,) = ranges(with_probabilities(frame, LABELS[:2]), [THREE], ["smile"], LIMITS, seed=0)
        found.append((row.widest, row.widest - row.by_chance, row.p))
    widest, beyond, p = np.array(found).T
    assert widest.mean() > 0.08
    assert abs(beyond.mean()) < 3 * beyond.std() / np.sqrt(40)
    assert plausible(int((p <= 0.1).sum()), 40, 0.05, 0.15)


@pytest.mark.property
def test_people_with_several_labels_are_permuted_whole() -> None:
    """Each person smiles in one picture and frowns in the other; some are always called smiling, some never."""
    rng = np.random.default_rng(5)
    p = []
    for _ in range(30):
        called = np.where(rng.random(80) < 0.5, "smile", "frown")
        people = [{"subject": str(k), "group": "ab"[k % 2], "predicted": called[k]} for k in range(80)]
        frame = pd.DataFrame([{**person, "label": label} for person in people for label in LABELS[:2]])
        (row,) = ranges(with_probabilities(frame, LABELS[:2]), [QUESTION], ["smile"], LIMITS, seed=0)
        p.append(row.p)
    assert plausible(int((np.array(p) <= 0.1).sum()), 30, 0.05, 0.15)


@pytest.mark.property
def test_images_that_resemble_each_other_are_permuted_together() -> None:
    """Drawings of an action in two groups, five each; all five of a kind are called alike, and by chance."""
    rng = np.random.default_rng(6)
    p = []
    for _ in range(30):
        rows = []
        for action in range(60):
            for group in "ab":
                called = "smile" if rng.random() < 0.5 else "frown"
                about = {"subject": str(action), "group": group, "label": LABELS[action % 2], "predicted": called}
                rows += [about] * 5
        (row,) = ranges(with_probabilities(pd.DataFrame(rows), LABELS[:2]), [QUESTION], ["smile"], LIMITS, seed=0)
        p.append(row.p)
    assert plausible(int((np.array(p) <= 0.1).sum()), 30, 0.05, 0.15)


def test_groups_too_small_or_without_a_label_are_not_ranked() -> None:
    few = counted("c", (3, 3), (0, 0))
    rows = [*counted("a", (30, 10), (20, 20)), *counted("b", (20, 20), (20, 20))]
    (row,) = ranges(predictions([*rows, *few]), [THREE], ["smile"], LIMITS, seed=0)
    assert row.groups == 2
    one_label = counted("c", (20, 20), (0, 0))
    assert ranges(predictions([*rows, *one_label]), [THREE], ["smile"], LIMITS, seed=0) == []
