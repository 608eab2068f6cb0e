"""Counts that add up, and what sizes can detect."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from audit.card import Card
from audit.data import describe_data
from audit.data.summary import audited_outcomes, detectable_difference
from audit.records import DataWarning, DataWarningCode, Shortfall
from audit.report.text import left_out_sentence, limit_sentences, warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces

pytestmark = pytest.mark.unit


def test_every_image_is_counted_once_an_attribute(tmp_path: Path) -> None:
    frame = face_table(40)
    frame.loc[4:9, "gender"] = None
    frame.loc[0, "expression"] = "anger"
    write_faces(tmp_path, frame)
    (tmp_path / frame.loc[20, "image"]).write_bytes(b"")
    groups = {"gender": {"column": "gender", "assigned_by": "hand"}, "source": {"column": "source"}}
    card = card_of(tmp_path, groups=groups, match_on=[], licence="CC0", citation="Nobody 2020")
    samples = read(tmp_path, card)
    report = describe_data(samples, card)
    for attribute in groups:
        assert sum(row.images for row in report.counts if row.attribute == attribute) == report.images == 78
    unknown = [row for row in report.counts if row.group == "unknown"]
    assert {row.attribute for row in unknown} == {"gender"}
    assert sum(row.images for row in unknown) == 6
    assert sum(report.splits.values()) == 78
    assert [left_out_sentence(row) for row in report.excluded] == ["label 'anger' is not in data.labels"]
    assert [left_out_sentence(row) for row in report.quarantined] == ["not an image"]
    assert (report.licence, report.citation, report.subjects) == ("CC0", "Nobody 2020", 40)
    assert report.fingerprint == samples.fingerprint
    rows = [row for row in report.counts if row.attribute == "gender"]
    assert list(dict.fromkeys(row.split for row in rows)) == ["train", "discovery", "confirmation"]
    assert list(dict.fromkeys(row.group for row in rows)) == ["female", "male", "unknown"]
    again = samples.frame.query("gender == 'male' and label == 'neutral' and split == 'train'")
    (cell,) = [row for row in rows if (row.group, row.label, row.split) == ("male", "neutral", "train")]
    assert cell.images == len(again)


def test_cells_without_an_image_are_rows_with_zero(tmp_path: Path) -> None:
    frame = face_table().assign(tone=["dark", "light"] * 24)  # tone says the expression
    write_faces(tmp_path, frame)
    card = card_of(tmp_path, groups={"tone": {"column": "tone"}})
    rows = [row for row in describe_data(read(tmp_path, card), card).counts if row.group == "dark"]
    assert [row.images for row in rows if row.label == "happiness"] == [0, 0, 0]
    assert [row.images for row in rows if row.label == "neutral"] == [12, 6, 6]


def test_labels_are_counted_by_who_gave_them(tmp_path: Path) -> None:
    """Source a calls everybody happy; of 14 sources the twelve largest stand by themselves."""
    frame = face_table()
    frame.loc[frame["source"] == "a", "expression"] = "happiness"
    write_faces(tmp_path, frame)
    card = card_of(tmp_path)
    rows = describe_data(read(tmp_path, card), card).label_shares
    assert [row.model_dump() for row in rows] == [
        {"column": "source", "value": value, "images": 16, "shares": {"neutral": 1 - happy, "happiness": happy}}
        for value, happy in (("a", 1.0), ("b", 0.5), ("c", 0.5))
    ]
    many = frame.assign(source=[f"s{k % 14 if k < 28 else k % 12}" for k in range(48)])
    write_faces(tmp_path, many)
    rows = describe_data(read(tmp_path, card), card).label_shares
    sizes = {row.value: row.images for row in rows}
    assert list(sizes)[-1] == "all others"
    assert len(sizes) == 13
    assert (sizes["all others"], sum(sizes.values())) == (4, 48)
    assert [sum(row.shares.values()) for row in rows] == pytest.approx([1.0] * 13)


def untrained_cells(folder: Path, card: Card) -> list[DataWarning]:
    warnings = describe_data(read(folder, card), card).warnings
    return [warning for warning in warnings if warning.code is DataWarningCode.UNTRAINED_CELLS]


def test_a_cell_without_an_image_to_train_on_is_told_with_what_it_means(tmp_path: Path) -> None:
    write_faces(tmp_path, face_table().assign(tone=["dark", "light"] * 24))  # tone says the expression
    card = card_of(tmp_path, groups={"tone": {"column": "tone"}})
    (warning,) = untrained_cells(tmp_path, card)
    assert warning_sentence(warning) == (
        "tone: no image to train on in 2 of 4 cells: dark x happiness, light x neutral; what the model says of these "
        "it has learnt from other groups, and a gap there may be no more than that"
    )
    complete = card_of(tmp_path)
    assert not untrained_cells(tmp_path, complete)


def test_small_cells_are_named_and_small_groups_not_promised(tmp_path: Path) -> None:
    write_faces(tmp_path)
    card = card_of(tmp_path)
    report = describe_data(read(tmp_path, card), card)
    told = warning_sentence(report.warnings[0])
    assert told.startswith("gender: 8 of 8 cells under 30 subjects: female x neutral in discovery (3)")
    (limit,) = report.limits
    assert (limit.shortfall, limit.detectable, limit.subjects_needed) == (Shortfall.SUBJECTS, {}, 30)
    assert limit_sentences(report) == [
        "gender male (6 subjects) against female (6): too little data; 30 subjects in each group are needed"
    ]
    smaller = card_of(tmp_path, audit={"min_group_size": 2})
    report = describe_data(read(tmp_path, smaller), smaller)
    assert report.limits[0].detectable == {"happiness": None}
    assert "at 80% power, corrected over 3 tests: happiness none, however large" in limit_sentences(report)[0]


@pytest.mark.parametrize("sizes", [(50, 50), (349, 987), (5000, 40)])
def test_detectable_difference_is_that_of_the_formula(sizes: tuple[int, int]) -> None:
    alpha = 0.05 / 3
    effect = (norm.isf(alpha / 2) + norm.ppf(0.8)) * math.sqrt(1 / sizes[0] + 1 / sizes[1])
    expected = math.sin(math.pi / 4 + effect / 2) ** 2 - 0.5
    found = detectable_difference(0.5, *sizes, alpha)
    assert found == pytest.approx(expected, abs=1e-4)


def test_detectable_difference_has_the_power_it_promises() -> None:
    gap = detectable_difference(0.3, 200, 200, 0.05)
    assert gap is not None
    rng = np.random.default_rng(0)
    a, b = rng.binomial(200, 0.3, 20_000) / 200, rng.binomial(200, 0.3 + gap, 20_000) / 200
    pooled = (a + b) / 2
    found = np.abs(b - a) / np.sqrt(2 * pooled * (1 - pooled) / 200) > norm.isf(0.025)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_what_cannot_be_detected_is_none() -> None:
    assert detectable_difference(0.5, 1, 900, 0.05) is None
    assert detectable_difference(0.5, 4, 4, 0.01) is None


def test_outcomes_default_to_the_second_of_two_or_all(tmp_path: Path) -> None:
    assert audited_outcomes(card_of(tmp_path), ("a", "b")) == ("b",)
    assert audited_outcomes(card_of(tmp_path), ("a", "b", "c")) == ("a", "b", "c")
    assert audited_outcomes(card_of(tmp_path, audit={"outcomes": ["neutral"]}), ("neutral", "b")) == ("neutral",)
