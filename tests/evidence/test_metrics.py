"""One question, one metric: the gap that was detected is the gap whose heads are asked for, in sign and size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence.disparity import Question, Thresholds, contrasts, primary_gaps
from audit.evidence.effects import SwapEffects
from audit.evidence.effects_store import StoredEffects
from audit.evidence.heads import direction_of, localise
from audit.records import ContrastRow, Direction, HeadRow, Metric, State
from tests.evidence.rows import around, contrast_row
from tests.evidence.test_heads import SETTINGS, SPLITS, TONE, simulated

pytestmark = pytest.mark.unit
LIMITS = Thresholds(alpha=0.05, min_group_size=30, impact_ratio_below=0.8, gap_above=0.1)
QUESTION = Question("tone", "light", ["dark", "light"])
KEY = f"{TONE}:smile"


def one_sided(seed: int, moved: str) -> SwapEffects:
    """Draw effects in which a gap among one label is 24 points, and 9 the other way among the other, thrice as common.

    So the label-standardised gap is next to nothing, and against it. The first head carries 12 points of the first gap
    and 6 of the second, which is 1.5 against it at equal labels.
    """
    rng = np.random.default_rng(seed)
    units, n = 400, 1600
    unit = np.repeat(np.arange(units), 4)
    is_group = np.tile([True, True, False, False], units)
    label = (unit % 4 == 0).astype(np.int64) if moved == "smile" else (unit % 4 != 0).astype(np.int64)
    among = label == (1 if moved == "smile" else 0)
    uniform, gap = rng.permutation(n) / n, np.where(among, 0.24, -0.09)
    p = 0.5 + gap * np.where(is_group, 0.5, -0.5)  # of being called smile
    carried = np.where(is_group, -1, 1) * np.where(among, 0.12, -0.06)
    effects = np.stack([np.where(uniform < p + carried, 0.9, 0.1), np.where(uniform < p, 0.9, 0.1)], axis=1)
    own = np.where(uniform < p, 0.9, 0.1)
    noise = rng.normal(0, 0.01, (2, n, 2))
    return SwapEffects(
        cross=effects + noise[0], placebo=own[:, None] + noise[1], unpatched=own, is_group=is_group, label=label,
        subject=np.arange(n), unit=unit, heads=[(0, 0), (0, 1)],
    )  # fmt: skip


def audited(moved: str) -> tuple[StoredEffects, dict[str, ContrastRow]]:
    stored = simulated({(0, TONE, split): one_sided(k, moved) for k, split in enumerate(SPLITS)})
    called = [np.where(t["p:smile"] > 0.5, "smile", "frown") for t in (stored.swap, stored.unpatched)]
    swap, own = (t.assign(predicted=c) for t, c in zip((stored.swap, stored.unpatched), called, strict=True))
    asked = replace(stored, swap=swap, unpatched=own)
    return asked, primary_gaps(all_rows(asked))


def heads(stored: StoredEffects) -> list[HeadRow]:
    return localise(stored, [TONE], ["smile"], [0], SETTINGS)[0]


@pytest.mark.parametrize(("moved", "metric"), [("smile", Metric.TPR_GAP), ("frown", Metric.FPR_GAP)])
def test_a_gap_among_one_label_is_not_localised_as_a_standardised_gap_of_the_other_sign(
    moved: str, metric: Metric
) -> None:
    stored, gaps = audited(moved)
    head, other = heads(replace(stored, gaps=gaps))
    gap = gaps[KEY]
    assert all_rows(stored)[0].state == State.NOT_DETECTED
    assert gap.metric == metric
    assert gap.state == State.DISPARITY and gap.estimate.value == pytest.approx(0.24, abs=0.08)
    assert head.metric == metric
    assert head.verdict == "confirmed" and head.direction == Direction.WIDENS
    assert head.confirmation_rate is not None
    assert head.confirmation_rate.value == pytest.approx(0.12, abs=0.04)
    assert head.confirmation.value == pytest.approx(0.8 * 0.12, abs=0.04)
    assert head.share_of_gap.value == pytest.approx(0.5, abs=0.15)
    assert head.n_group + head.n_reference == 400  # recipients of that label alone
    assert other.direction == Direction.NOT_DETERMINED
    standardised = heads(stored)[0]
    assert standardised.metric == Metric.STANDARDISED_GAP
    assert standardised.confirmation_rate is not None and standardised.confirmation_rate.value is not None
    assert standardised.confirmation_rate.value < 0


def all_rows(stored: StoredEffects) -> list[ContrastRow]:
    frame = stored.frame.join(stored.unpatched.set_index("recipient")["predicted"])
    return contrasts(frame, [QUESTION], ["smile"], LIMITS)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_every_metric_weighs_images_as_the_comparison_of_groups_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    effects = one_sided(seed, "smile")
    kept = effects.take(np.flatnonzero(rng.random(len(effects.label)) < np.where(effects.label == 1, 0.9, 0.5)))
    stored = simulated({(0, TONE, split): kept for split in SPLITS})
    own = stored.unpatched.assign(predicted=np.where(stored.unpatched["p:smile"] > 0.5, "smile", "frown"))
    stored = replace(stored, unpatched=own)
    for row in all_rows(stored):
        laid_out = replace(stored, gaps={KEY: row}).of(0, TONE, "confirmation", "smile", scalar="called")
        assert laid_out.gap_weights() @ laid_out.unpatched == pytest.approx(row.estimate.value)  # both splits are alike


def rows(*detected: str, p: tuple[float, float, float] = (0.01, 0.01, 0.02)) -> list[ContrastRow]:
    return [
        contrast_row(metric=m, state=State.DISPARITY if m in detected else State.NOT_DETECTED, p_adjusted=q)
        for m, q in zip(Metric, p, strict=True)
    ]


@pytest.mark.parametrize(
    ("found", "metric"),
    [
        (rows(), Metric.STANDARDISED_GAP),
        (rows(*Metric), Metric.STANDARDISED_GAP),
        (rows("standardised_gap", p=(0.04, 0.2, 0.2)), Metric.STANDARDISED_GAP),
        (rows("tpr_gap"), Metric.TPR_GAP),
        (rows("fpr_gap"), Metric.FPR_GAP),
        (rows("tpr_gap", "fpr_gap"), Metric.TPR_GAP),
        (rows("tpr_gap", "fpr_gap", p=(0.5, 0.02, 0.01)), Metric.FPR_GAP),
    ],
)
def test_which_gap_heads_are_asked_about(found: list[ContrastRow], metric: Metric) -> None:
    (gap,) = primary_gaps(found).values()
    assert gap.metric == metric
    assert primary_gaps(reversed(found)) == primary_gaps(found)


@pytest.mark.parametrize(
    ("effect", "half", "gap", "state", "expected"),
    [
        (0.05, 0.02, 0.15, State.DISPARITY, Direction.WIDENS),
        (-0.05, 0.02, -0.15, State.DISPARITY, Direction.WIDENS),
        (0.05, 0.02, -0.15, State.DISPARITY, Direction.NARROWS),
        (0.05, 0.06, 0.15, State.DISPARITY, Direction.NOT_DETERMINED),
        (0.05, 0.02, 0.15, State.NOT_DETECTED, Direction.NOT_DETERMINED),
        (None, 0.02, 0.15, State.DISPARITY, Direction.NOT_DETERMINED),
    ],
)
def test_direction_rests_on_the_heads_own_interval(
    effect: float | None, half: float, gap: float, state: State, expected: Direction
) -> None:
    row = contrast_row(estimate=around(gap), state=state)
    assert direction_of(around(effect, half), row) == expected
    assert direction_of(around(effect, half), None) == Direction.NOT_DETERMINED
