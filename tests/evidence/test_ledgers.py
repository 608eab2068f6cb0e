"""Ledgers of a gap: rows that close, signs that flip, intervals that hold the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from audit.data.covariates import Covariates
from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.ledgers import Ledger, WrittenLedger, judge_written, written_ledger
from audit.patching.contributions import Component, Contributions
from audit.records import Contrast, PartFamily, PartKind

pytestmark = pytest.mark.unit
PARTS = (
    Component(PartKind.TOKENS),
    Component(PartKind.HEAD, 0, 0),
    Component(PartKind.HEAD, 0, 1),
    Component(PartKind.ATTENTION_BIAS, 0),
    Component(PartKind.MLP, 0),
    Component(PartKind.HEAD, 1, 0),
    Component(PartKind.CONSTANT),
    Component(PartKind.HELD),
)
QUESTION = Question("gender", "man", ("man", "woman"))


def sample(n: int, *, seed: int = 0, gap: float = 0.0, level: float = 0.0) -> tuple[Contributions, pd.DataFrame]:
    """Return n images of n / 2 people; head L0H1 writes ``gap`` more for women, the constant is ``level``."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "label": np.where(np.arange(n) % 8 < 3, "happy", "neutral"),
            "gender": np.where(np.arange(n) // 2 % 2, "woman", "man"),
            "subject": [f"s{i // 2}" for i in range(n)],
        }
    )
    values = rng.normal(size=(n, len(PARTS), 2)) + 0.5 * rng.normal(size=(n // 2, len(PARTS), 2)).repeat(2, axis=0)
    values[:, 2] += gap * (frame["gender"] == "woman").to_numpy()[:, None]
    values[:, 6] = level
    return Contributions(PARTS, ("happy", "neutral"), values, values.sum(axis=1)), frame


def ledger(
    given: Contributions, frame: pd.DataFrame, *, question: Question = QUESTION, rate_gap: float | None = 0.1
) -> WrittenLedger:
    found = ledger_or_none(given, frame, question=question, rate_gap=rate_gap)
    assert found is not None
    return found


def ledger_or_none(
    given: Contributions, frame: pd.DataFrame, *, question: Question = QUESTION, rate_gap: float | None = 0.1
) -> WrittenLedger | None:
    group = next(g for g in question.groups if g != question.reference)
    return written_ledger(given, "happy", frame, question, group, rate_gap=rate_gap, resamples=400, seed=1)


def gaps(found: Ledger | None, level: str = "components") -> npt.NDArray[np.float64]:
    assert found is not None
    return np.array([row.gap.value for row in getattr(found, level)], dtype=np.float64)


def by_hand(values: npt.NDArray[np.floating], frame: pd.DataFrame) -> float:
    """Return the gap of one column with the shares of all images' labels."""
    means = pd.Series(values).groupby([frame["label"], frame["gender"]]).mean().unstack()
    shares = frame["label"].value_counts(normalize=True)
    return float((shares * (means["woman"] - means["man"])).sum())


def test_rows_are_the_gaps_of_their_parts_and_close_at_every_level() -> None:
    given, frame = sample(200, gap=1.5)
    found = ledger(given, frame)
    assert found.whole is not None and found.near is not None
    wanted = [by_hand(given.values[:, k, 0], frame) for k in range(len(PARTS))]
    np.testing.assert_allclose(gaps(found.whole), wanted, atol=1e-12)
    total = by_hand(given.log_odds[:, 0], frame)
    assert found.whole.total.value == pytest.approx(total, abs=1e-12)
    for level in ("components", "in_layers", "families"):
        assert gaps(found.whole, level).sum() == pytest.approx(total, abs=1e-12)
        beyond = found.near.clipped
        assert beyond is not None and beyond.gap.value is not None and beyond.family == PartFamily.CLIPPED
        near = gaps(found.near, level).sum() + beyond.gap.value
        assert near == pytest.approx(by_hand(np.clip(given.log_odds[:, 0], -4, 4), frame), abs=1e-12)
    assert found.whole.closure < 1e-12 > found.near.closure
    in_layers = {(row.family, row.layer): row.gap.value for row in found.whole.in_layers}
    assert in_layers[PartFamily.ATTENTION, 0] == pytest.approx(sum(wanted[1:4]))
    assert {row.layer: row.gap.value for row in found.whole.layers}[0] == pytest.approx(sum(wanted[1:5]))
    assert [row.component for row in found.whole.components] == list(PARTS)


def test_a_coarse_row_has_its_own_interval() -> None:
    """Two parts that cancel in every image: each is uncertain, their sum is certain."""
    given, frame = sample(200)
    values = given.values.copy()
    values[:, 1] = 50 * values[:, 2]
    values[:, 2] = -values[:, 1]
    found = ledger(replace(given, values=values, log_odds=values.sum(axis=1)), frame)
    assert found.whole is not None
    widths = {r.family: r.gap.high - r.gap.low for r in found.whole.families if r.gap.high and r.gap.low}
    alone = found.whole.components[1].gap
    assert alone.high is not None and alone.low is not None
    assert widths[PartFamily.ATTENTION] < 0.1 * (alone.high - alone.low)


def test_exchanging_the_groups_flips_every_sign() -> None:
    given, frame = sample(120, gap=0.7)
    there = ledger(given, frame)
    back = ledger(given, frame, question=Question("gender", "woman", ("man", "woman")), rate_gap=-0.1)
    for a, b in ((there.whole, back.whole), (there.near, back.near)):
        for level in ("components", "in_layers", "families", "layers"):
            np.testing.assert_array_equal(gaps(a, level), -gaps(b, level))
        assert a is not None and b is not None
        assert a.total.low == pytest.approx(-(b.total.high or 0.0), abs=0.2)
    assert there.kept == pytest.approx(back.kept)


def test_groups_that_are_alike_have_gaps_of_exactly_nothing() -> None:
    given, frame = sample(60)
    men, women = frame.assign(gender="man"), frame.assign(gender="woman", subject=frame["subject"] + "'")
    twice = pd.concat([men, women], ignore_index=True)
    both = replace(given, values=np.tile(given.values, (2, 1, 1)), log_odds=np.tile(given.log_odds, (2, 1)))
    found = ledger(both, twice)
    for of in (found.whole, found.near):
        assert of is not None and of.total.value == 0.0 == of.closure
        for level in ("components", "in_layers", "families", "layers"):
            assert not gaps(of, level).any()
        assert all(row.share.value is None for row in of.components)


def test_the_order_of_images_does_not_matter() -> None:
    given, frame = sample(120, gap=0.7)
    order = np.random.default_rng(3).permutation(120)
    again = ledger(
        replace(given, values=given.values[order], log_odds=given.log_odds[order]),
        frame.iloc[order].reset_index(drop=True),
    )
    first = ledger(given, frame)
    for a, b in ((first.whole, again.whole), (first.near, again.near)):
        np.testing.assert_allclose(gaps(a), gaps(b), atol=1e-12)
    assert first.kept == pytest.approx(again.kept)


def test_shares_only_where_the_gap_is_known_and_has_the_sign_of_the_rates() -> None:
    given, frame = sample(400, gap=2.0)
    shares = {
        rate_gap: [row.share.value for row in found.whole.components]
        for rate_gap in (0.1, -0.1, 0.0, None)
        if (found := ledger(given, frame, rate_gap=rate_gap)).whole is not None
    }
    for rate_gap in (-0.1, 0.0, None):
        assert shares[rate_gap] == [None] * len(PARTS)
    known = [share for share in shares[0.1] if share is not None]
    assert sum(known) == pytest.approx(1.0)
    assert known[2] == pytest.approx(1.0, abs=0.3)
    small = ledger(sample(24)[0], sample(24)[1]).whole
    assert small is not None and all(row.share.value is None for row in small.components)


def test_a_head_that_carries_all_has_all_within_its_interval() -> None:
    given, frame = sample(400, gap=1.0)
    values = np.zeros_like(given.values)
    values[:, 2] = given.values[:, 2]
    whole = ledger(replace(given, values=values, log_odds=values.sum(axis=1)), frame).whole
    assert whole is not None
    for row in whole.components:
        is_it = row.component == Component(PartKind.HEAD, 0, 1)
        assert (row.share.value, row.share.low, row.share.high) == pytest.approx((float(is_it),) * 3)


def test_saturated_images_have_no_say_near_the_decision() -> None:
    """Half of all images far beyond the decision, with a large gap there; near it another head makes the gap."""
    given, frame = sample(400)
    rng = np.random.default_rng(5)
    values, woman = 0.1 * rng.normal(size=given.values.shape), (frame["gender"] == "woman").to_numpy()
    far = np.arange(400) // 8 % 2 == 0
    values[far, 6] = 40.0
    values[far & woman, 5] += 9.0
    values[~far & woman, 1] += 1.0
    found = ledger(replace(given, values=values, log_odds=values.sum(axis=1)), frame)
    assert found.whole is not None and found.near is not None and found.near.clipped is not None
    assert found.kept == pytest.approx(0.5, abs=0.02)
    largest = [int(np.abs(gaps(of)).argmax()) for of in (found.whole, found.near)]
    assert largest == [5, 1]
    assert gaps(found.near)[1] == pytest.approx(0.5, abs=0.05)
    assert gaps(found.near)[5] == pytest.approx(0.0, abs=0.05)
    assert found.near.clipped.gap.value == pytest.approx(0.0, abs=0.05)


def test_a_label_that_a_group_lacks_is_said() -> None:
    given, frame = sample(40)
    lacking = ~((frame["gender"] == "woman") & (frame["label"] == "happy")).to_numpy()
    few = replace(given, values=given.values[lacking], log_odds=given.log_odds[lacking])
    assert ledger_or_none(few, frame[lacking].reset_index(drop=True)) is None


def test_weights_are_those_of_the_audited_gap() -> None:
    """Where log-odds are 0 or 1 the gap is that of rates, other groups' labels counting in the common shares."""
    _, frame = sample(120)
    frame["gender"] = np.where(np.arange(120) % 11 == 0, "other", frame["gender"])
    question = Question("gender", "man", ("man", "woman", "other"))
    called = np.random.default_rng(2).integers(0, 2, 120)
    frame["predicted"] = np.where(called == 1, "happy", "neutral")
    rows = contrasts(frame, [question], ["happy"], Thresholds(0.05, 5, 0.8, 0.1))
    wanted = next(r for r in rows if r.group == "woman" and r.metric == "standardised_gap").estimate
    one = Contributions((PARTS[0],), ("happy",), called[:, None, None].astype(float), called[:, None].astype(float))
    found = ledger(one, frame, question=question)
    assert found.whole is not None
    assert found.whole.total.value == pytest.approx(wanted.value)
    assert found.whole.total.low == pytest.approx(wanted.low, abs=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = [
        row.gap.low <= (0.5 if row.component == PARTS[2] else 0.0) <= row.gap.high
        for trial in range(25)
        if (found := ledger(*sample(80, seed=trial, gap=0.5)).whole) is not None
        for row in found.components
        if row.gap.low is not None and row.gap.high is not None
        if row.component != PARTS[6]
    ]
    assert 0.88 <= np.mean(held) <= 0.99


def test_rows_at_equal_covariates_close_at_every_level_and_lose_what_goes_with_them() -> None:
    given, frame = sample(200)
    age = np.random.default_rng(4).normal(40, 8, len(frame)) + 6 * (frame["gender"] == "woman").to_numpy()
    given.values[:, 2] = 0.2 * age[:, None]
    whole, aged = replace(given, log_odds=given.values.sum(axis=1)), frame.assign(age=age.astype(str))
    found = written_ledger(
        whole, "happy", aged, QUESTION, "woman",
        rate_gap=0.1, resamples=100, seed=1, covariates=Covariates.of(aged, {"age": 5.0}, ()),
    )  # fmt: skip
    assert found is not None
    for part in (found.whole, found.near):
        clipped = part.clipped.adjusted.value if part.clipped and part.clipped.adjusted else 0.0
        for level in ("components", "in_layers", "families"):
            summed = sum(row.adjusted.value for row in getattr(part, level))
            assert part.adjusted is not None
            assert summed + (clipped or 0.0) == pytest.approx(part.adjusted.value, abs=1e-9)
    (follows,) = (row for row in found.whole.components if row.component == PARTS[2])
    assert follows.adjusted is not None
    assert follows.gap.value == pytest.approx(1.2, abs=0.5)
    assert follows.adjusted.value == pytest.approx(0.0, abs=1e-9)
    assert ledger(given, frame).whole.adjusted is None


def test_rows_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given, frame = sample(200, gap=2.0)
    whole = ledger(given, frame)
    monkeypatch.setattr("audit.evidence.bootstrap.INFLUENCES", 3 * 200)
    parted = ledger(given, frame)
    for a, b in ((whole.whole, parted.whole), (whole.near, parted.near)):
        for level in ("components", "in_layers", "families", "layers"):
            for row, other in zip(getattr(a, level), getattr(b, level), strict=True):
                for of in ("gap", "share"):
                    one, again = (getattr(r, of) for r in (row, other))
                    assert (again.value, again.low, again.high) == pytest.approx(
                        (one.value, one.low, one.high), abs=1e-6
                    )
        assert a.clipped is None or a.clipped.gap.value == pytest.approx(b.clipped.gap.value, abs=1e-12)


def test_near_the_decision_is_near_a_threshold_that_is_not_even() -> None:
    """With the decision at -4.6 nats, of log-odds around it all are near; shifted by as much nothing else changes."""
    given, frame = sample(200, gap=1.5)
    shifted = given.values.copy()
    shifted[:, 6] -= 4.6
    apart = replace(given, values=shifted, log_odds=shifted.sum(axis=1), decision=(-4.6, 0.0))
    one, other = ledger(given, frame), ledger(apart, frame)
    assert (one.decision, other.decision) == (0.0, -4.6)
    assert other.kept == pytest.approx(one.kept)
    np.testing.assert_allclose(gaps(other.near), gaps(one.near), atol=1e-9)
    assert ledger(replace(apart, decision=()), frame).kept < other.kept


@pytest.mark.parametrize(("layers", "cut"), [((3, 3, 3), 3), ((1, 2, 3), None)])
def test_the_record_says_at_which_stage_a_plain_network_is_cut(layers: tuple[int, ...], cut: int | None) -> None:
    _, frame = sample(200)
    frame["predicted"] = frame["label"]
    rows = contrasts(frame, [QUESTION], ["happy"], Thresholds(0.05, 5, 0.8, 0.1))
    gap = next(row for row in rows if row.metric == "standardised_gap")
    parts = tuple(Component(PartKind.SLICE, layer, index) for index, layer in enumerate(layers))
    values = np.random.default_rng(0).normal(size=(len(frame), len(parts), 1))
    given = Contributions(parts, ("happy",), values, values.sum(axis=1))
    asked = [(QUESTION, Contrast("gender", "woman", "man"), gap)]
    totals, _ = judge_written(given, frame, asked, resamples=50, seed=0)
    assert [total.cut for total in totals] == [cut, cut]
