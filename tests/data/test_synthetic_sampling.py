"""Samples of faces: the association is exact, the rest is independent, the label follows the intensity."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audit.data.synthetic import face_of_row, sample_faces
from audit.errors import DataError

pytestmark = pytest.mark.unit

NUISANCE = ["shift_x", "tilt_deg", "scale", "brightness", "light_gradient", "face_width", "mouth_width"]


def smiling_gap(frame: pd.DataFrame, attribute: str, first: str) -> float:
    smiling = frame["expression"] == "smiling"
    is_first = frame[attribute] == first
    return float(smiling[is_first].mean() - smiling[~is_first].mean())


@pytest.mark.parametrize("association", [-0.5, 0.0, 0.3, 0.8, 0.98])
@pytest.mark.parametrize(("attribute", "first"), [("skin_tone", "lighter"), ("hair_length", "long")])
def test_the_association_is_exact_and_the_other_attribute_independent(
    association: float, attribute: str, first: str
) -> None:
    frame = sample_faces(1600, 5, association=association, attribute=attribute, split="train")
    other, other_first = ("hair_length", "long") if attribute == "skin_tone" else ("skin_tone", "lighter")
    assert smiling_gap(frame, attribute, first) == pytest.approx(association, abs=1 / 800)
    assert smiling_gap(frame, other, other_first) == pytest.approx(0.0, abs=2 / 800)
    crossed = pd.crosstab(frame[attribute], frame[other])
    assert crossed.to_numpy().max() - crossed.to_numpy().min() <= 2


def test_without_association_every_cell_is_equally_full() -> None:
    frame = sample_faces(160, 1, split="discovery")
    cells = frame.groupby(["expression", "skin_tone", "hair_length"]).size()
    assert cells.tolist() == [20] * 8


def test_the_label_is_intensity_plus_annotator_noise() -> None:
    frame = sample_faces(2000, 2, association=0.6, split="train")
    said = frame["intensity"] + frame["annotator_noise"] > 0
    assert (said == (frame["expression"] == "smiling")).all()
    agreement = ((frame["intensity"] > 0) == said).mean()
    assert 0.88 < agreement < 0.97  # annotators differ, near zero only
    assert (frame.loc[(frame["intensity"] > 0) != said, "intensity"].abs() < 0.5).all()


def test_many_faces_are_ambiguous() -> None:
    intensity = sample_faces(2000, 2, split="train")["intensity"]
    assert 0.17 < (intensity.abs() < 0.2).mean() < 0.23
    assert intensity.between(-1, 1).all()


def test_nuisance_and_accessories_do_not_depend_on_group_or_label() -> None:
    frame = sample_faces(4000, 8, association=0.8, split="train")
    numbers = frame[NUISANCE].assign(**{name: frame[name] == "yes" for name in ("glasses", "earrings", "hat")})
    for column, first in (("skin_tone", "lighter"), ("hair_length", "long"), ("expression", "smiling")):
        correlation = numbers.astype(float).corrwith((frame[column] == first).astype(float))
        assert correlation.abs().max() < 4 / np.sqrt(len(frame))


def test_the_same_seed_gives_the_same_table_and_splits_differ() -> None:
    first, again = (sample_faces(50, 4, split="train") for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = sample_faces(50, 4, split="discovery")
    assert not np.allclose(first["intensity"], other["intensity"])
    assert not set(first["subject"]) & set(other["subject"])


def test_keys_and_groups_agree_with_the_faces() -> None:
    frame = sample_faces(60, 4, split="confirmation")
    assert frame["image"].iloc[12] == "confirmation-00012"
    faces = [face_of_row(row) for row in frame.to_dict("records")]
    assert [face.skin_tone for face in faces] == frame["skin_tone"].tolist()
    assert [face.hair_length for face in faces] == frame["hair_length"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1, "split": "train"}, "give n >= 0"),
        ({"n": 8, "split": "train", "association": 1.2}, r"association in \[-1, 1\]"),
        ({"n": 8, "split": "trian"}, "did you mean 'train'"),
        ({"n": 8, "split": "train", "attribute": "skin"}, "no attribute 'skin'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_faces(seed=0, **arguments)  # type: ignore[arg-type]
