"""Accuracy and balanced accuracy by hand, what chance is, and the reasons for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audit.evidence.accuracy import accuracy, chance, is_above_chance, likely_reason
from audit.records import ChanceReason
from tests.evidence.simulate import predictions

pytestmark = pytest.mark.unit


def frame() -> pd.DataFrame:
    """Eight of ten smiles of 'dark' are seen and all of 'light', of frowns 15 of 20 and 30 of 30."""
    return predictions(
        [
            ("dark", "smile", "smile", 8), ("dark", "smile", "frown", 2),
            ("dark", "frown", "frown", 15), ("dark", "frown", "smile", 5),
            ("light", "smile", "smile", 10), ("light", "frown", "frown", 30),
        ]
    )  # fmt: skip


def test_accuracy_and_balanced_accuracy_by_hand() -> None:
    every, dark, light = accuracy(frame(), {"group": ["dark", "light"]})
    assert (every.attribute, every.group, every.images, every.subjects) == ("", "", 70, 70)
    assert every.accuracy.value == pytest.approx(63 / 70)
    assert every.balanced_accuracy.value == pytest.approx((18 / 20 + 45 / 50) / 2)
    assert (dark.attribute, dark.group, dark.images) == ("group", "dark", 30)
    assert dark.accuracy.value == pytest.approx(23 / 30)
    assert dark.balanced_accuracy.value == pytest.approx((0.8 + 0.75) / 2)
    assert light.balanced_accuracy.value == 1.0
    assert light.balanced_accuracy.low is not None and light.balanced_accuracy.low < 0.99  # 40 of 40 is no certainty
    assert light.balanced_accuracy.high == 1.0


def test_the_interval_of_balanced_accuracy_is_as_wide_as_subjects_make_it() -> None:
    own = accuracy(frame(), {})[0].balanced_accuracy
    pairs = pd.concat([frame(), frame()])  # each subject twice, alike: no more is known than before
    twice = accuracy(pairs, {})[0].balanced_accuracy
    assert own.low is not None and own.high is not None and twice.low is not None and twice.high is not None
    assert twice.high - twice.low == pytest.approx(own.high - own.low, rel=0.02)


def test_unknown_and_empty_groups_have_rows() -> None:
    table = frame()
    table.loc[table.index[:3], "group"] = "unknown"
    rows = {row.group: row for row in accuracy(table, {"group": ["dark", "light", "green"]})}
    assert rows["unknown"].images == 3
    assert rows["green"].images == 0
    assert rows["green"].accuracy.value is None and rows["green"].balanced_accuracy.value is None


@pytest.mark.parametrize(
    ("rows", "above"),
    [
        ([("a", "smile", "smile", 40), ("a", "frown", "frown", 40)], True),
        ([("a", "smile", "frown", 40), ("a", "frown", "smile", 40)], False),  # classes reversed
        ([("a", "smile", "smile", 40), ("a", "frown", "smile", 40)], False),  # one answer only
        ([("a", "smile", "smile", 22), ("a", "smile", "frown", 18), ("a", "frown", "frown", 40)], True),
    ],
)
def test_chance(rows: list[tuple[str, str, str, int]], above: bool) -> None:
    images = predictions(rows)
    (row,) = accuracy(images, {})
    assert chance(images) == 0.5
    assert is_above_chance(row, chance(images)) == above


@pytest.mark.parametrize(("hits", "above"), [(40, True), (10, False), (0, False)])
def test_chance_of_a_model_with_more_classes_than_the_data_has_labels(hits: int, above: bool) -> None:
    """Of 100 images of either label 40 are called so or otherwise, 20 of them by either name; the rest by others."""
    rows = [("a", label, label, hits) for label in ("smile", "frown")]
    rows += [("a", "smile", "frown", 20 - min(hits, 20)), ("a", "frown", "smile", 20 - min(hits, 20))]
    rows += [("a", label, "sneer", 100 - hits - 20 + min(hits, 20)) for label in ("smile", "frown")]
    images = predictions([row for row in rows if row[3]])
    (row,) = accuracy(images, {})
    expected = sum((hits + 20 - min(hits, 20)) / 100 for _ in range(2)) / 2 / 2
    assert chance(images) == pytest.approx(expected)
    assert is_above_chance(row, chance(images)) == above


def test_what_was_not_measured_is_not_above_chance() -> None:
    (row,) = accuracy(frame().iloc[:0], {})
    assert not is_above_chance(row, 0.5)


def test_reasons() -> None:
    found = likely_reason(np.array([[2, 38, 0], [1, 1, 38], [39, 1, 0]]))
    assert (found.reason, found.order) == (ChanceReason.CLASS_ORDER, (1, 2, 0))
    assert likely_reason(np.array([[0, 40], [40, 0]])).order == (1, 0)
    assert likely_reason(np.array([[40, 0], [40, 0]])).reason == ChanceReason.CONSTANT
    assert likely_reason(np.zeros((3, 3), dtype=np.int64)).reason == ChanceReason.UNRELATED


def test_random_answers_are_not_taken_for_another_order() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 5, 10):
        for _ in range(50):
            confusion = rng.multinomial(40, np.full(classes, 1 / classes), size=classes)
            assert likely_reason(confusion).reason == ChanceReason.UNRELATED
