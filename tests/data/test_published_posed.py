"""Sets of people who were asked, and EMOTIC's and CelebAMask-HQ's own forms, are read as their documentation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from audit.card.load import built_in_cards, load_card
from audit.card.read_table import read_table
from audit.data.readers.open import read_raw
from audit.data.readers.posed import box_of, options_of, together
from audit.errors import DataError
from audit.report.text import left_out_sentence
from tests.data.published_sets import (
    SETS,
    assert_named,
    casualconversations2,
    celebamask,
    emotic,
    fhibe,
    hagrid,
    photograph,
    read_set,
    records,
    write_json,
)

pytestmark = pytest.mark.unit


def raw_rows(name: str, root: Path) -> Any:
    """Return every row that a reader finds, by image."""
    path = built_in_cards()[SETS[name][0]]
    return read_raw(load_card(path).data, path, root).frame.set_index("image")


def test_fhibe_is_read_by_what_people_said_of_themselves(tmp_path: Path) -> None:
    fhibe(tmp_path)
    rows = raw_rows("fhibe", tmp_path)
    assert len(rows) == 244
    first = rows.loc["0001/0001-0/main_0001-0.png#subject-0001"]
    assert first["action"] == "sitting"
    assert (first["pronoun"], first["age"], first["ancestry"]) == ("he/him/his", "21", "asia")
    assert (first["skin_tone"], first["apparent_skin_tone"]) == ("tan", "very light")
    assert (first["scene"], first["interaction"]) == ("indoor: home or hotel", "none")
    assert rows.loc["0014/0014-0/main_0014-0.png#subject-0014", "pronoun"] == "she/her/hers and they/them/their"
    assert rows.loc["0005/0005-0/main_0005-0.png#subject-0005", "ancestry"] == "africa and europe"
    assert rows.loc["0005/0005-0/main_0005-0.png#subject-0005", "interaction"] is None  # two of them
    assert rows.loc["0003/0003-0/main_0003-0.png#subject-0003", "action"] is None  # in their own words
    samples = read_set("fhibe", tmp_path)
    assert set(samples.labels) == {"standing", "sitting", "walking"}
    assert set(samples.attributes["age"].groups) >= {"under 30", "30 to 39", "60 and over"}
    assert samples.frame.set_index("image").loc["0005/0005-0/main_0005-0.png#subject-0005", "ancestry"] == "unknown"


def test_fhibes_people_of_one_photograph_stay_together_and_are_cut_out(tmp_path: Path) -> None:
    fhibe(tmp_path)
    samples = read_set("fhibe", tmp_path)
    frame = samples.frame.set_index("image")
    both = ["0000/0000-2/main_0000-2.png#subject-0001", "0001/0001-3/main_0001-3.png#subject-0002"]
    assert {frame.loc[key, "subject"] for key in both if key in frame.index} == {"subject-0000"}
    assert frame["subject"].nunique() == 118  # three of 120 are one
    left, right = (samples.source.open(f"0001/0001-3/main_0001-3.png#subject-{person:04d}") for person in (1, 2))
    assert left.size == right.size == (16, 16)
    assert max(left.getpixel((8, 8))) < 100 < 200 < min(right.getpixel((8, 8)))


def test_fhibe_without_consent_or_in_two_versions_is_refused(tmp_path: Path) -> None:
    fhibe(tmp_path)
    (version,) = (tmp_path / "FHIBE").iterdir()
    listed = version / "data" / "processed" / "fhibe_downsampled" / "fhibe_downsampled.csv"
    listed.write_text(listed.read_text(encoding="utf-8").replace('"True","27"', '"False","27"'), encoding="utf-8")
    with pytest.raises(DataError, match="has people without consent; download the newest version"):
        read_set("fhibe", tmp_path)
    (tmp_path / "FHIBE" / "fhibe.20260101.m_downsampled_public").mkdir()
    with pytest.raises(DataError, match="holds 2 versions of FHIBE"):
        read_set("fhibe", tmp_path)


def test_long_cells_are_read_and_columns_that_nobody_asks_for_are_not_held(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f'image,outline,label\na.png,"{"1, " * 60_000}",x\n', encoding="utf-8")
    assert len(read_table(table).frame.loc[0, "outline"]) == 179_999  # a blank at its end dropped
    assert list(read_table(table, ("label", "image")).frame.columns) == ["image", "label"]


def test_who_is_in_photographs_together_is_one() -> None:
    people, photographs = ["a", "b", "b", "c", "d", "e"], ["1", "1", "2", "2", "3", "4"]
    assert together(people, photographs) == ["a", "a", "a", "a", "d", "e"]
    assert together(["z", "y"], ["1", "1"]) == ["y", "y"]
    assert together([], []) == []


def test_options_and_boxes_of_fhibe() -> None:
    assert options_of("0. Standing") == ["standing"]
    assert options_of("['0. She/her/hers', '2. They/them/their']") == ["she/her/hers", "they/them/their"]
    assert options_of('["5. Cote d\'Ivoire"]') == ["cote d'ivoire"]
    assert [options_of(text) for text in (None, "", "[", "[1, None]", "[" * 500)] == [[]] * 5
    assert box_of("[20.5, 0, 16, 16]") == (20.5, 0, 36.5, 16)
    assert not any(map(np.isfinite, box_of("[1, 2, 3]")))


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_any_text_is_an_option_or_none(text: str) -> None:
    assert all(isinstance(name, str) and name for name in options_of(text))
    assert len(box_of(text)) == 4


def test_hagrid_tells_what_networks_guessed_and_parts_people(tmp_path: Path) -> None:
    hagrid(tmp_path)
    samples = read_set("hagrid", tmp_path)
    frame = samples.frame
    assert len(frame) == 240
    assert frame.groupby("subject")["split"].nunique().max() == 1
    row = frame.set_index("image").loc["like/00000000-0002-0003.jpg"]
    assert tuple(row[["label", "gender", "age", "subject", "split"]]) == ("like", "male", "under 30", "user3", "train")
    unknown = frame.set_index("image").loc[[f"like/00000000-0002-000{person}.jpg" for person in (7, 8)]]
    assert set(unknown["gender"]) == set(unknown["age"]) == {"unknown"}  # no face, and two
    raw = raw_rows("hagrid", tmp_path).loc["like/00000000-0002-0003.jpg"]
    assert (raw["age"], raw["race"]) == ("27.41", "white")


def test_hagrid_in_part_is_read_and_a_gesture_without_its_list_is_named(tmp_path: Path) -> None:
    hagrid(tmp_path)
    for file in (tmp_path / "HaGRID" / "hagrid_dataset" / "call").iterdir():
        file.unlink()
    (tmp_path / "HaGRID" / "hagrid_dataset" / "call").rmdir()
    assert "call" not in set(raw_rows("hagrid", tmp_path)["action"])
    (tmp_path / "HaGRID" / "hagrid_dataset" / "three2").mkdir()
    with pytest.raises(DataError, match=r"three2\.json: no such file"):
        read_set("hagrid", tmp_path)


def test_hagrids_photographs_stay_below_the_folder(tmp_path: Path) -> None:
    hagrid(tmp_path)
    write_json(tmp_path / "HaGRID" / "hagrid_annotations" / "val" / "like.json", {"../../a": {"user_id": "u"}})
    with pytest.raises(DataError, match="climbs out of its folder"):
        read_set("hagrid", tmp_path)


def test_casual_conversations_are_frames_by_person(tmp_path: Path) -> None:
    casualconversations2(tmp_path)
    frame = read_set("casualconversations2", tmp_path).frame
    assert frame.groupby("subject")["split"].nunique().max() == 1
    rows = raw_rows("casualconversations2", tmp_path)
    assert len(rows) == 60 * 2 * 2
    row = rows.loc["ccv2-frames-part-1/0012/0012_portuguese_nonscripted_1_raw_frame00000044.jpg"]
    assert tuple(row[["gender", "age", "country", "skin_tone", "person"]]) == (
        "cis man",
        "32",
        "brazil",
        "dark",
        "0012",
    )
    assert row["video"] == "0012_portuguese_nonscripted_1"
    image = "ccv2-frames-part-1/0007/0007_portuguese_scripted_1_raw_frame00000000.jpg"
    assert frame.set_index("image").loc[image, "age"] == "unknown"  # not told
    assert set(frame["label"]) == {"cis man", "cis woman"}


def test_emotic_is_cut_to_people_with_what_one_or_several_annotators_saw(tmp_path: Path) -> None:
    emotic(tmp_path)
    rows = raw_rows("emotic", tmp_path)
    assert len(rows) == 88
    happy, doubtful = rows.loc["mscoco/images/photo_train_0.jpg#0"], rows.loc["framesdb/images/photo_train_1.jpg#1"]
    assert (happy["happiness"], happy["peace"], happy["anger"], happy["gender"], happy["age"]) == (
        "yes", "yes", "no", "male", "adult",
    )  # fmt: skip
    assert (doubtful["happiness"], doubtful["doubt/confusion"], doubtful["gender"]) == ("no", "yes", "female")
    assert rows.loc["mscoco/images/photo_test_0.jpg#0", ["happiness", "fatigue"]].tolist() == ["yes", "yes"]
    assert rows.loc["emodb_small/images/photo_train_2.jpg#0", "age"] == "kid"
    samples = read_set("emotic", tmp_path)
    assert samples.frame.groupby("subject")["split"].nunique().max() == 1
    dark, bright = (samples.source.open(f"ade20k/images/photo_val_3.jpg#{person}") for person in (0, 1))
    assert max(dark.getpixel((8, 8))) < 100 < 200 < min(bright.getpixel((8, 8)))


def test_emotics_people_without_an_emotion_have_no_label(tmp_path: Path) -> None:
    emotic(tmp_path)
    listed = tmp_path / "EMOTIC" / "Annotations" / "Annotations.mat"
    parts = {name: value for name, value in loadmat(listed).items() if not name.startswith("__")}
    parts["test"][0, 0]["person"][0, 0]["combined_categories"] = np.empty((0, 0))
    parts["test"][0, 1]["person"][0, 0]["body_bbox"] = np.empty((0, 0))
    savemat(listed, parts)
    samples = read_set("emotic", tmp_path)
    assert [(left_out_sentence(row), row.images) for row in samples.excluded] == [("no value in column 'happiness'", 1)]
    assert {left_out_sentence(row): row.examples for row in samples.quarantined} == {
        "no box": ["framesdb/images/photo_test_1.jpg#0"]
    }


def test_celebamask_takes_people_and_splits_from_celeba(tmp_path: Path) -> None:
    celebamask(tmp_path)
    frame = read_set("celebamask", tmp_path).frame
    assert frame.groupby("subject")["split"].nunique().max() == 1
    row = frame.set_index("image").loc["CelebA-HQ-img/3.jpg"]  # male, smiling, not young; 000497.jpg of CelebA
    assert tuple(row[["label", "gender", "age", "split", "subject"]]) == ("smiling", "male", "not young", "train", "3")
    mapping = tmp_path / "CelebAMask-HQ" / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text(mapping.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")  # without its header
    assert len(read_set("celebamask", tmp_path).frame) == 60


FHIBE_LIST = "FHIBE/fhibe.20250901.m_downsampled_public/data/processed/fhibe_downsampled/fhibe_downsampled.csv"


@pytest.mark.parametrize(
    ("name", "file", "content", "what"),
    [
        ("fhibe", FHIBE_LIST, None, "no such file"),
        ("fhibe", FHIBE_LIST, "filepath,subject_id\na.png,1\n", "has no column consent, person_bbox"),
        ("hagrid", "HaGRID/hagrid_annotations/val/like.json", None, "no such file"),
        ("hagrid", "HaGRID/hagrid_annotations/val/like.json", "[]", "is no JSON object"),
        ("hagrid", "HaGRID/hagrid_annotations/val/like.json", '{"a": {"labels": []}}', "'a' has no user_id"),
        ("casualconversations2", "CasualConversations2/annotations/CasualConversationsV2.json", None, "no such file"),
        (
            "casualconversations2",
            "CasualConversations2/annotations/CasualConversationsV2.json",
            "{}",
            "no list of videos",
        ),
        (
            "casualconversations2",
            "CasualConversations2/annotations/CasualConversationsV2.json",
            '[{"video_name": "9999_x_scripted_1.mp4"}]',
            "no image is named after one of its videos",
        ),
        ("emotic", "EMOTIC/Annotations/Annotations.mat", None, "no such file"),
        ("emotic", "EMOTIC/Annotations/Annotations.mat", "MATLAB 5.0", "cannot be read as a file of MATLAB"),
        ("celebamask", "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt", None, "no such file"),
        ("celebamask", "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt", "0 000001.jpg\n", "is no table of idx"),
        ("celebamask", "CelebAMask-HQ/identity_CelebA.txt", None, "no such file"),
    ],
)
def test_what_is_not_as_published_is_named(
    name: str, file: str, content: str | None, what: str, tmp_path: Path
) -> None:
    assert_named(name, file, content, what, tmp_path)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"train": records([{"a": 1.0}])}, "'train' has a photograph that is not of five fields"),
        ({"val": records([{"a": 1.0}])}, "has no part 'train'"),
        (
            {
                "train": records(
                    [{"filename": "a.jpg", "folder": "x", "size": 1.0, "origin": 1.0, "person": records([{"b": 1.0}])}]
                )
            },
            "a person in 'x/a.jpg' has not 5 or 7 fields",
        ),
    ],
)
def test_records_of_another_form_are_named(parts: dict[str, Any], what: str, tmp_path: Path) -> None:
    (tmp_path / "EMOTIC" / "Annotations").mkdir(parents=True)
    savemat(tmp_path / "EMOTIC" / "Annotations" / "Annotations.mat", parts)
    with pytest.raises(DataError) as caught:
        read_set("emotic", tmp_path)
    assert what in str(caught.value)


def test_a_photograph_twice_is_not_guessed(tmp_path: Path) -> None:
    casualconversations2(tmp_path)
    again = next((tmp_path / "CasualConversations2").rglob("*.jpg")).name
    photograph(tmp_path / "CasualConversations2" / "copy" / again, 1)
    with pytest.raises(DataError, match="have one name"):
        read_set("casualconversations2", tmp_path)


def test_entries_of_odd_kinds_are_unknown(tmp_path: Path) -> None:
    casualconversations2(tmp_path)
    listed = tmp_path / "CasualConversations2" / "annotations" / "CasualConversationsV2.json"
    entries = json.loads(listed.read_text(encoding="utf-8"))
    entries[0] |= {"monk_skin_tone": "scale 3", "geo_location": None, "age": [3], "gender": "cis man"}
    write_json(listed, entries)
    rows = raw_rows("casualconversations2", tmp_path)
    row = rows.loc["ccv2-frames-part-1/0000/0000_portuguese_scripted_1_raw_frame00000000.jpg"]
    assert row[["age", "country", "skin_tone"]].tolist() == [None, None, None]
