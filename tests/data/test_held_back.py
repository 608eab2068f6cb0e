"""Splits that are held back: assigned, counted, and read by no audit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from audit.data import AUDIT_SPLITS, HELD_BACK, SPLITS, Samples, describe_data
from audit.data.pixels import centred_square, load_pixels
from audit.data.sealed import count_openings, open_sealed
from audit.records import DataWarningCode
from tests.data.faces import card_of, face_table, read, write_faces

pytestmark = pytest.mark.unit
SHARES = {"train": 0.4, "discovery": 0.2, "confirmation": 0.2, "repair": 0.1, "sealed": 0.1}


class Guarded:
    """A source of plain pictures that refuses what is held back."""

    def __init__(self, samples: Samples) -> None:
        self.held_back = set(samples.frame.loc[samples.frame["split"].isin(HELD_BACK), "image"])

    def open(self, key: str) -> Image.Image:
        assert key not in self.held_back
        return Image.new("RGB", (8, 8), (7, 7, 7))


def held_back(folder: Path) -> Samples:
    write_faces(folder, face_table(50))
    return read(folder, card_of(folder, shares=SHARES))


def test_the_splits_have_one_order() -> None:
    assert SPLITS == ("train", *AUDIT_SPLITS, *HELD_BACK) == ("train", "discovery", "confirmation", "repair", "sealed")


def test_what_is_held_back_is_counted(tmp_path: Path) -> None:
    samples = held_back(tmp_path)
    card = card_of(tmp_path, shares=SHARES)
    report = describe_data(samples, card)
    assert report.splits == {"train": 40, "discovery": 20, "confirmation": 20, "repair": 10, "sealed": 10}
    assert list(dict.fromkeys(row.split for row in report.counts)) == list(SPLITS)
    assert sum(row.images for row in report.counts if row.split == "sealed") == 10
    (small,) = [w for w in report.warnings if w.code is DataWarningCode.SMALL_CELLS]
    assert small.total == 8  # 2 groups, 2 labels, 2 audit splits


def test_without_them_the_tables_are_as_before(tmp_path: Path) -> None:
    write_faces(tmp_path)
    report = describe_data(read(tmp_path), card_of(tmp_path))
    assert list(report.splits) == list(SPLITS[:3])
    assert {row.split for row in report.counts} == set(SPLITS[:3])


def test_no_pixel_of_theirs_is_read(tmp_path: Path) -> None:
    samples = held_back(tmp_path)
    pixels = load_pixels(Guarded(samples), samples.keys, centred_square(8))
    black = (pixels == 0).all(axis=(1, 2, 3))
    assert np.array_equal(black, samples.frame["split"].isin(HELD_BACK))
    assert samples.keys.count(None) == 20


def test_keys_are_those_of_the_table_and_can_be_sent(tmp_path: Path) -> None:
    samples = held_back(tmp_path)
    held = samples.frame["split"].isin(HELD_BACK)
    wanted = [None if out else key for key, out in zip(samples.frame["image"], held, strict=True)]
    for keys in (samples.keys, pickle.loads(pickle.dumps(samples.keys))):
        assert list(keys) == wanted
        assert keys[5:40:3] == wanted[5:40:3]
        assert (len(keys), keys[-1]) == (len(wanted), wanted[-1])
        assert {type(key) for key in keys} == {str, type(None)}


def test_the_sealed_rows_are_opened_at_one_place_and_each_time_is_counted(tmp_path: Path) -> None:
    samples, run = held_back(tmp_path / "data"), tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="open_sealed"):
        samples.of_split("sealed")
    assert count_openings(run) == 0
    for times in (1, 2):
        rows = open_sealed(samples, run, purpose="certificate")
        assert set(rows["split"]) == {"sealed"}
        assert len(rows) == 10
        assert count_openings(run) == times


def test_nothing_is_said_of_their_labels(tmp_path: Path) -> None:
    """All images of source "z" are held back: nothing of it is in the shares of labels."""
    frame = face_table(50).assign(part="train")
    frame.loc[20:39, "part"], frame.loc[40:59, "part"] = "discovery", "confirmation"
    frame.loc[80:, ["part", "source"]] = ["sealed", "z"]
    write_faces(tmp_path, frame)
    card = card_of(tmp_path, split="part")
    rows = describe_data(read(tmp_path, card), card).label_shares
    assert {row.value for row in rows} == {"a", "b", "c"}
    assert sum(row.images for row in rows) == 80


def test_rendered_faces_may_be_held_back_too(tmp_path: Path) -> None:
    changes = {
        "reader": "synthetic", "rendered": {"train_images": 64, "audit_images": 32}, "match_on": [],
        "groups": {"skin_tone": {"column": "skin_tone"}}, "drop": ("labels",),
    }  # fmt: skip
    before = read(tmp_path, card_of(tmp_path, **changes)).frame
    after = read(tmp_path, card_of(tmp_path, **changes, shares=SHARES)).frame
    assert after["split"].value_counts().to_dict() == {
        "train": 64, "discovery": 16, "confirmation": 16, "repair": 8, "sealed": 8,
    }  # fmt: skip
    pd.testing.assert_frame_equal(after[~after["split"].isin(HELD_BACK)].reset_index(drop=True), before)
