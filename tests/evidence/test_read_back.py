"""What the largest writers of a gap read: rows that sum to the writer's own, signs that flip, means by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from audit.evidence.disparity import Question
from audit.evidence.ledgers import judge_written
from audit.evidence.read_back import (
    Asked,
    Readings,
    gather_read,
    group_weights,
    judge_read,
    largest_writers,
    maps_read,
)
from audit.patching.contributions import Component, Contributions
from audit.records import (
    Contrast,
    ContrastRow,
    Estimate,
    LedgerRow,
    Metric,
    PartKind,
    ReadRow,
    ReadWriter,
    State,
    WhyNotRead,
)

pytestmark = pytest.mark.unit
WRITER, OTHER = Component(PartKind.HEAD, 1, 0), Component(PartKind.MLP, 0)
PARTS = (Component(PartKind.PATCHES), OTHER, WRITER, Component(PartKind.HELD))
SOURCES = (Component(PartKind.TOKENS), Component(PartKind.PATCHES), Component(PartKind.HEAD, 0, 1), PARTS[-1])
QUESTION = Question("gender", "man", ("man", "woman"))
LABELS = ["happy", "neutral"]


def gap_in_rates(metric: Metric = Metric.STANDARDISED_GAP, group: str = "woman", reference: str = "man") -> ContrastRow:
    return ContrastRow(
        id="", attribute="gender", group=group, reference=reference, outcome="happy", metric=metric,
        estimate=Estimate(value=0.1), ratio=None, p_raw=None, p_adjusted=None, family_size=1,
        smallest_detectable=None, state=State.DISPARITY, above_policy=False, by_seed=[], n_group=100, n_reference=100,
    )  # fmt: skip


def asked(question: Question = QUESTION, metric: Metric = Metric.STANDARDISED_GAP) -> Asked:
    group = next(g for g in question.groups if g != question.reference)
    contrast = Contrast("gender", group, question.reference)
    return Asked(question, contrast, gap_in_rates(metric, group, question.reference), (WRITER,))


def sample(n: int = 200, *, gap: float = 2.0) -> tuple[Readings, Contributions, pd.DataFrame]:
    """Return n images of n / 2 people, whose only difference between groups is what the writer reads of patches."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "label": np.where(np.arange(n) % 8 < 3, *LABELS),
            "gender": np.where(np.arange(n) // 2 % 2, "woman", "man"),
            "subject": [f"s{i // 2}" for i in range(n)],
        }
    )
    read = np.zeros((n, len(SOURCES), 1))
    read[:, 1, 0] = gap * (frame["gender"] == "woman") + rng.normal(size=n)
    values = np.zeros((n, len(PARTS), 1))
    values[:, 2] = read.sum(axis=1)
    entries = tuple((WRITER, source) for source in SOURCES)
    return Readings(entries, ("happy",), read), Contributions(PARTS, ("happy",), values, values.sum(axis=1)), frame


def judged(
    readings: Readings | WhyNotRead, given: Contributions, frame: pd.DataFrame, one: Asked
) -> tuple[list[ReadWriter], list[ReadRow]]:
    return judge_read(readings, given, frame, [one], resamples=400, seed=1)


def test_the_source_that_alone_differs_has_all_of_it() -> None:
    writers, rows = judged(*sample(), asked())
    assert [(w.among, w.part, w.layer, w.head) for w in writers] == [
        ("all", PartKind.HEAD, 1, 0),
        ("near the decision", PartKind.HEAD, 1, 0),
    ]
    shares = {(r.among, r.source): r.share.value for r in rows}
    assert shares["all", PartKind.PATCHES] == pytest.approx(1.0)
    assert shares["near the decision", PartKind.PATCHES] == pytest.approx(1.0)
    others = [r.gap.value for r in rows if r.source != PartKind.PATCHES]
    assert others == pytest.approx([0.0] * len(others), abs=1e-12)


@pytest.mark.parametrize("metric", [Metric.STANDARDISED_GAP, Metric.TPR_GAP, Metric.FPR_GAP])
def test_rows_sum_to_the_row_of_the_first_sum(metric: Metric) -> None:
    readings, given, frame = sample()
    rng = np.random.default_rng(1)
    read = readings.values + rng.normal(size=readings.values.shape)
    values = given.values.copy()
    values[:, 2] = read.sum(axis=1)
    given = replace(given, values=values, log_odds=values.sum(axis=1))
    one = asked(metric=metric)
    writers, rows = judged(replace(readings, values=read), given, frame, one)
    _, ledger = judge_written(given, frame, [(one.question, one.contrast, one.gap)], resamples=400, seed=1)
    for writer in writers:
        (own,) = (r for r in ledger if (r.among, r.level, r.part) == (writer.among, "part", PartKind.HEAD))
        ends = [writer.gap.value, writer.gap.low, writer.gap.high]  # the interval too: the draws are the same
        assert ends == pytest.approx([own.gap.value, own.gap.low, own.gap.high], rel=1e-5)
        total = sum(r.gap.value or 0.0 for r in rows if r.among == writer.among)
        assert total == pytest.approx(own.gap.value, abs=1e-12)
        assert writer.closure is not None and writer.closure < 1e-12
        assert writer.closure_of_images is not None and writer.closure_of_images < 1e-12


def test_exchanging_the_groups_flips_every_sign() -> None:
    readings, given, frame = sample()
    _, there = judged(readings, given, frame, asked())
    _, back = judged(readings, given, frame, asked(Question("gender", "woman", ("man", "woman"))))
    assert [r.gap.value for r in there] == pytest.approx([-(r.gap.value or 0.0) for r in back], abs=1e-12)
    assert [r.share.value for r in there] == pytest.approx([r.share.value for r in back])


def test_what_does_not_sum_or_is_not_known_is_not_shown() -> None:
    readings, given, frame = sample()
    apart = replace(readings, values=readings.values * 1.01)
    unread = replace(readings, entries=tuple((OTHER, source) for source in SOURCES))
    for found, reason in (
        (apart, WhyNotRead.NOT_CLOSED),
        (unread, WhyNotRead.NOT_PLAIN),
        (WhyNotRead.NOT_PLAIN, WhyNotRead.NOT_PLAIN),
    ):
        writers, rows = judged(found, given, frame, asked())
        assert [w.why_not for w in writers] == [reason] * 2
        assert all(w.gap.value is not None for w in writers)
        assert rows == []
    for one, reason in (
        (replace(asked(), writers=()), WhyNotRead.NO_WRITER),
        (replace(asked(), writers=(), has_slices=True), WhyNotRead.SLICES),
    ):
        writers, rows = judged(readings, given, frame, one)
        assert [(w.part, w.why_not) for w in writers] == [(None, reason)]
        assert rows == []


def part(kind: PartKind, layer: int, head: int | None, value: float, among: str = "all") -> LedgerRow:
    return LedgerRow(
        contrast="c", outcome="o", among=among, level="part", part=kind, layer=layer, head=head,
        gap=Estimate(value=value, low=value - 0.1, high=value + 0.1), share=Estimate(value=None),
    )  # fmt: skip


def test_the_largest_heads_and_mlps_beyond_noise_are_asked() -> None:
    rows = [
        part(PartKind.HEAD, 0, 0, 0.05),  # its interval holds 0
        part(PartKind.HEAD, 0, 1, -0.9),
        part(PartKind.ATTENTION_BIAS, 0, None, 3.0),
        part(PartKind.MLP, 0, None, 0.5),
        part(PartKind.HEAD, 1, 0, 0.3),
        part(PartKind.HEAD, 1, 1, 0.2),
    ]
    assert largest_writers(rows, "c", "o") == (
        Component(PartKind.HEAD, 0, 1),
        Component(PartKind.MLP, 0),
        Component(PartKind.HEAD, 1, 0),
    )
    near = part(PartKind.HEAD, 1, 1, 0.2, "near the decision")
    assert largest_writers([*rows, near], "c", "o") == (Component(PartKind.HEAD, 1, 1),)
    assert largest_writers(rows, "c", "another") == ()


def test_what_was_stored_is_put_together_again() -> None:
    readings, _, _ = sample(8)
    images, entries = readings.values.shape[:2]
    table = pd.DataFrame(
        {
            "recipient": np.repeat(np.arange(images) + 40, entries),
            **{
                f"{prefix}{name}": [
                    getattr(e[k], of) if getattr(e[k], of) is not None else -1 for e in readings.entries
                ]
                * images
                for k, prefix in enumerate(("", "read_"))
                for name, of in (("part", "kind"), ("layer", "layer"), ("head", "index"))
            },
            "m:happy": readings.values.reshape(-1),
        }
    )
    found = gather_read(table, ["happy"])
    assert found.entries == readings.entries
    np.testing.assert_allclose(found.values, readings.values, rtol=1e-6)


@pytest.mark.parametrize("metric", [Metric.STANDARDISED_GAP, Metric.TPR_GAP, Metric.FPR_GAP])
def test_a_mean_over_a_group_counts_each_label_as_the_gap_does(metric: Metric) -> None:
    values: npt.NDArray[np.float64] = np.array([1.0, 4.0, 10.0])
    labels, counts = ["happy", "neutral", "sad"], np.array([10, 30, 0])
    mean = group_weights(counts, labels, asked(metric=metric), {"happy": 0.25, "neutral": 0.75}) @ (values * counts)
    wanted = {Metric.STANDARDISED_GAP: 0.25 * 1 + 0.75 * 4, Metric.TPR_GAP: 1.0, Metric.FPR_GAP: 4.0}
    assert mean == pytest.approx(wanted[metric])


def test_a_map_is_the_difference_of_two_groups() -> None:
    places = [(-1, -1), (0, 0), (0, 1), (1, 0), (1, 1)]
    sides = {"group": [9.0, 1.0, 2.0, 3.0, 4.0], "reference": [2.0, 0.0, 0.0, 0.0, 8.0]}
    about = {"contrast": "gender:woman-man", "asked": "happy", "part": "MLP", "layer": 2, "head": -1}
    table = pd.DataFrame(
        [
            {**about, "side": side, "images": len(side), "row": row, "column": column, "value": value}
            for side, values in sides.items()
            for (row, column), value in zip(places, values, strict=True)
        ]
    )
    (found,) = maps_read(table)
    assert (found.part, found.layer, found.head) == (PartKind.MLP, 2, None)
    assert (found.prefix, found.values) == (7.0, [[1.0, 2.0], [3.0, -4.0]])
    assert (found.images_group, found.images_reference) == (5, 9)
