"""Published sets of actions are read in their own layout, gender is told as stated, hostile files are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.data.readers.actions import facet_box, fields_of, most_marked, objects_of
from audit.data.readers.captions import read_flickr8k
from audit.data.readers.layout import json_of, named
from audit.errors import DataError
from audit.report.text import left_out_sentence
from tests.data.published_sets import assert_named, coco, facet, flickr8k, imsitu, read_set, stanford40, write_json

pytestmark = pytest.mark.unit


def test_stanford40_names_actions_by_its_files(tmp_path: Path) -> None:
    stanford40(tmp_path)
    row = read_set("stanford40", tmp_path).frame.set_index("image").loc["JPEGImages/playing_guitar_005.jpg"]
    assert (row["label"], row["gender"], row["split"]) == ("playing guitar", "man", "train")


def change(path: Path, change_it: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change_it(content)
    write_json(path, content)


def agents(*nouns: str | None) -> list[dict[str, str | None]]:
    return [{"agent": noun, "place": ""} for noun in nouns]


def test_imsitu_tells_gender_by_the_nouns_of_three_annotators(tmp_path: Path) -> None:
    imsitu(tmp_path)
    man, woman, chef = "n10287213", "n10787470", "n09908446"
    said = {
        "one.jpg": agents(chef, "", woman),
        "both.jpg": agents(man, woman, man),
        "neither.jpg": agents(chef, chef, ""),
        "strange.jpg": agents("n1", None, "constructor"),
        "nobody.jpg": [{"place": man}],  # a man who is no agent
    }
    root = tmp_path / "imSitu"
    for name in said:
        (root / "of500_images_resized" / name).write_bytes(
            (root / "of500_images_resized" / "cooking_0.jpg").read_bytes()
        )
    change(
        root / "train.json",
        lambda rows: rows.update({name: {"verb": "cooking", "frames": frames} for name, frames in said.items()}),
    )
    rows = read_set("imsitu", tmp_path).frame.set_index("image")
    assert (rows.loc["cooking_0.jpg", "gender"], rows.loc["cooking_1.jpg", "gender"]) == ("man", "woman")
    assert rows.loc["cooking_0.jpg", "label"] == "cooking"
    assert rows.loc["cooking_0.jpg", "split"] == "train"
    assert {name: rows.loc[name, "gender"] for name in said} == {
        "one.jpg": "woman", "both.jpg": "unknown", "neither.jpg": "unknown", "strange.jpg": "unknown",
        "nobody.jpg": "unknown",
    }  # fmt: skip


def test_coco_tells_gender_by_single_words_of_captions_and_sports_by_gear(tmp_path: Path) -> None:
    coco(tmp_path)
    folder = tmp_path / "COCO" / "annotations"

    def more_captions(content: Any) -> None:
        texts = {0: "A woman with him.", 1: "A manhole, womanly men."}
        content["annotations"] += [{"image_id": image, "caption": text} for image, text in texts.items()]
        content["annotations"] = [c for c in content["annotations"] if c["image_id"] != 1 or "hole" in c["caption"]]

    def more_objects(content: Any) -> None:
        glove, kite = 8, 6
        content["annotations"] += [{"image_id": 4, "category_id": glove}, {"image_id": 2, "category_id": kite}]

    change(folder / "captions_train2014.json", more_captions)
    change(folder / "instances_train2014.json", more_objects)
    samples = read_set("coco", tmp_path)
    rows = samples.frame.set_index("image")
    keys = [f"train2014/COCO_train2014_{number:012d}.jpg" for number in range(12)]
    assert rows.loc[keys[0], "gender"] == "unknown"  # both words
    assert rows.loc[keys[1], "gender"] == "unknown"  # neither as a word of its own
    assert (rows.loc[keys[3], "label"], rows.loc[keys[3], "gender"]) == ("kite flying", "man")
    assert rows.loc[keys[10], "gender"] == "woman"
    assert rows.loc[keys[4], "label"] == "baseball"  # bat and glove
    assert keys[2] not in rows.index  # snowboard and kite: no single sport
    assert [left_out_sentence(row) for row in samples.excluded] == ["no value in column 'sport'"]
    assert set(rows.loc[rows.index.str.startswith("val2014/"), "split"]) == {"discovery", "confirmation"}


def test_flickr8k_tells_actions_and_people_by_what_two_captions_name_and_none_gainsays(tmp_path: Path) -> None:
    flickr8k(tmp_path)
    base = tmp_path / "Flickr8k"
    listed = base / "Flickr8k.token.txt"
    lines = listed.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].replace("A dog .", "A woman watches .")  # another gender
    lines[5 + 0] = lines[5 + 0].replace("walks along", "is there")  # named once
    lines[10 + 3] = lines[10 + 3].replace("A dog .", "Soccer .")  # another kind
    lines[15 + 4] = lines[15 + 4].replace("Somebody outside .", "A climber .")  # another action, of the same kind
    listed.write_text("\n".join(lines), encoding="utf-8")
    samples = read_set("flickr8k", tmp_path)
    rows = samples.frame.set_index("image")
    assert rows.loc["1000_ab12.jpg", ["label", "gender", "age"]].tolist() == ["sport", "unknown", "adult"]
    assert not {"1001_ab12.jpg", "1002_ab12.jpg"} & set(rows.index)
    assert rows.loc["1003_ab12.jpg", ["label", "gender"]].tolist() == ["sport", "woman"]
    assert [(left_out_sentence(row), row.images) for row in samples.excluded] == [("no value in column 'kind'", 2)]
    assert rows["split"].value_counts()["train"] == pytest.approx(len(rows) / 2, abs=2)
    raw = read_flickr8k(base).frame.set_index("image")
    assert raw.loc["1003_ab12.jpg", ["action", "kind"]].tolist() == [None, "sport"]
    table = ["image,caption", *(f'{line.split("#")[0]},"{line.partition(chr(9))[2]}"' for line in lines)]
    listed.unlink()
    (base / "captions.txt").write_text("\n".join(table), encoding="utf-8")
    pd.testing.assert_frame_equal(read_flickr8k(base).frame, raw.reset_index(), check_dtype=False)


def test_facet_is_cut_to_people_and_its_tones_are_binned_by_most_marks(tmp_path: Path) -> None:
    facet(tmp_path)
    listed = tmp_path / "FACET" / "annotations" / "annotations.csv"
    lines = listed.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].replace('""width"": 16', '""width"": NaN')
    lines[4] = lines[4].replace('""width"": 16', '""width"": 2')
    tone = lines[0].split(",").index("skin_tone_1") - len(lines[0].split(","))
    cells = lines[5].split(",")
    cells[tone : tone + 10] = ["1", "0", "0", "1", "0", "0", "0", "0", "0", "0"]
    lines[5] = ",".join(cells)
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples = read_set("facet", tmp_path)
    frame = samples.frame
    assert frame.groupby("subject")["split"].nunique().max() == 1
    dark, bright = samples.source.open("sa_5.jpg#10"), samples.source.open("sa_5.jpg#11")
    assert max(dark.getpixel((8, 8))) < 100 < 200 < min(bright.getpixel((8, 8)))
    row = frame.set_index("image").loc["sa_17.jpg#35"]
    assert tuple(row[["label", "gender", "age", "skin_tone"]]) == ("dancer", "feminine", "young", "dark")
    assert frame.set_index("image").loc["sa_2.jpg#4", "skin_tone"] == "unknown"  # a tie
    assert {left_out_sentence(row): row.examples for row in samples.quarantined} == {
        "no box": ["sa_1.jpg#2"],
        "box under 8 px on a side": ["sa_1.jpg#3"],
    }


@pytest.mark.parametrize(
    ("name", "file", "content", "what"),
    [
        ("stanford40", "Stanford40/ImageSplits/test.txt", "running.jpg\n", "not named ACTION_NUMBER.jpg"),
        ("stanford40", "Stanford40/ImageSplits/train.txt", None, "no such file"),
        ("imsitu", "imSitu/train.json", None, "no such file"),
        ("imsitu", "imSitu/imsitu_space.json", "{}", "is no JSON object"),
        ("imsitu", "imSitu/imsitu_space.json", '{"nouns": {"n1": 3}}', "'n1' is no JSON object"),
        ("imsitu", "imSitu/dev.json", "[1]", "is no JSON object"),
        ("imsitu", "imSitu/dev.json", '{"a.jpg": {"verb": 3, "frames": []}}', "'a.jpg' has no verb with its frames"),
        ("imsitu", "imSitu/dev.json", '{"a.jpg"', "cannot be read as JSON (JSONDecodeError)"),
        ("imsitu", "imSitu/dev.json", "[" * 200_000, "cannot be read as JSON (RecursionError)"),
        ("flickr8k", "Flickr8k/Flickr8k.token.txt", None, "no such file"),
        ("flickr8k", "Flickr8k/Flickr8k.token.txt", "1.jpg A man .", "is no NAME.jpg#NUMBER, tab, caption"),
        ("coco", "COCO/annotations/captions_val2014.json", None, "no such file"),
        ("coco", "COCO/annotations/captions_val2014.json", "[]", "has no list 'annotations'"),
        (
            "coco",
            "COCO/annotations/captions_val2014.json",
            '{"annotations": [{"image_id": [1], "caption": "a"}]}',
            "'annotations' has an entry without image_id and caption",
        ),
        ("coco", "COCO/annotations/instances_val2014.json", '{"categories": 1}', "has no list 'categories'"),
        ("facet", "FACET/annotations/annotations.csv", "person_id,filename\n1,a.jpg\n", "has no column bounding_box"),
    ],
)
def test_what_is_not_as_published_is_named(
    name: str, file: str, content: str | None, what: str, tmp_path: Path
) -> None:
    assert_named(name, file, content, what, tmp_path)


@pytest.mark.parametrize("name", ["coco", "imsitu", "facet"])
def test_photographs_stay_below_the_folder(name: str, tmp_path: Path) -> None:
    {"imsitu": imsitu, "coco": coco, "facet": facet}[name](tmp_path)
    for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.csv")]:
        text = path.read_text(encoding="utf-8")
        for good in ("COCO_train2014_000000000000.jpg", "cooking_0.jpg", "sa_0.jpg"):
            text = text.replace(good, f"../../{good}")
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="climbs out of its folder"):
        read_set(name, tmp_path)


def test_json_beyond_the_limit_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]", encoding="utf-8")
    assert json_of(path) == [1, 2]
    path.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(DataError, match="JSON"):
        json_of(path)
    path.write_text("[1, 2,", encoding="utf-8")
    with pytest.raises(DataError, match="6 bytes is over the limit of 5"):
        json_of(path, most=5)


def test_json_keeps_the_keys_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [{"a": 1, "b": 2}], "b": {"a": 3}})
    assert json_of(path, {"a"}) == {"a": [{"a": 1}]}


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(content=ANY_JSON)
def test_json_of_any_shape_is_read_or_refused(content: Any) -> None:
    for read_it in (
        lambda: list(objects_of(content, Path("a"))),
        lambda: list(fields_of(content, "a", ("b", "c"), Path("a"))),
    ):
        try:
            read_it()
        except DataError as error:
            assert str(error).startswith("a: ")
    assert len(facet_box(json.dumps(content))) == 4


def test_small_rules() -> None:
    assert most_marked({"light": 2, "dark": 1}) == "light"
    assert most_marked({"light": 2, "dark": 2}) is None
    assert facet_box('{"x": 1, "y": 2, "width": 3, "height": 4}') == (1, 2, 4, 6)
    assert not any(map(math.isfinite, facet_box('{"x": 1' + "0" * 400 + ', "y": 2, "width": 3, "height": 4}')))
    assert facet_box("{'x': 1, 'y': 2, 'width': 3.5, 'height': 4}") == (1, 2, 4.5, 6)
    assert [named(("a", "b"), code) for code in ("0", "1", "2", "-1", "\u00b2", "9" * 5000, None)] == [
        "a", "b", None, None, None, None, None,
    ]  # fmt: skip
