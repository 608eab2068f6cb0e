"""Tables and folders: what is kept, what is left out, and each bad input's one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from audit.data import Samples, describe_data
from audit.errors import DataError
from audit.records import DataWarning, DataWarningCode
from audit.report.text import attribute_note, left_out_sentence, source_sentence, table_sentence
from audit.terminal import data_summary
from tests.data.faces import card_of, face_table, read, write_faces, write_images

pytestmark = pytest.mark.unit


def message(folder: Path, **changes: object) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, card_of(folder, **changes))
    text = str(caught.value).replace(str(folder) + "/", "")
    assert "\n" not in text
    return text


def test_a_table_becomes_samples(tmp_path: Path) -> None:
    write_faces(tmp_path)
    samples = read(tmp_path)
    assert list(samples.frame) == ["image", "label", "subject", "split", "gender", "source"]
    assert len(samples.frame) == 48
    assert samples.labels == ("neutral", "happiness")
    assert samples.frame["image"].is_monotonic_increasing
    assert samples.attributes["gender"].groups == ["female", "male"]
    assert samples.source.open("images/00-neutral.png").size == (12, 10)
    assert source_sentence(samples.origin) == "table: faces.csv"
    assert not samples.excluded
    assert not samples.quarantined
    assert not samples.warnings


def _as_bom(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _with_stray_comma(path: Path) -> None:
    path.write_text("".join(line + ",\n" for line in path.read_text().splitlines()))


def _with_index(path: Path) -> None:
    pd.read_csv(path).to_csv(path)  # pandas' unnamed first column


def _with_blanks(path: Path) -> None:
    path.write_text(path.read_text().replace(",", " , ").replace("\n", "\r\n\r\n"))


def _shuffled(path: Path) -> None:
    pd.read_csv(path).sample(frac=1, random_state=3).to_csv(path, index=False)


def _dotted(path: Path) -> None:
    path.write_text(path.read_text().replace("images/", ".\\images\\"))


@pytest.mark.parametrize("mangle", [_as_bom, _with_stray_comma, _with_index, _with_blanks, _shuffled, _dotted])
def test_harmless_differences_of_a_table_change_nothing(tmp_path: Path, mangle: object) -> None:
    path = write_faces(tmp_path)
    before = read(tmp_path)
    assert callable(mangle)
    mangle(path)
    after = read(tmp_path)
    pd.testing.assert_frame_equal(after.frame, before.frame)
    assert after.fingerprint == before.fingerprint


STORED = {
    "faces.tsv": lambda path, frame: frame.to_csv(path, index=False, sep="\t"),
    "bars.csv": lambda path, frame: frame.to_csv(path, index=False, sep="|"),
    "unmarked.csv": lambda path, frame: path.write_bytes(frame.to_csv(index=False, sep=";").encode("utf-16-le")),
    "excels.csv": lambda path, frame: path.write_text("sep=;\n" + frame.to_csv(index=False, sep=";")),
    "faces.xlsx": lambda path, frame: frame.to_excel(path, index=False),
    "faces.parquet": lambda path, frame: frame.to_parquet(path),
    "dictionary.parquet": lambda path, frame: frame.astype("category").to_parquet(path),
    "floating.parquet": lambda path, frame: frame.astype({"tone": float}).to_parquet(path),
    "faces.jsonl": lambda path, frame: frame.to_json(path, orient="records", lines=True),
    "faces.ndjson": lambda path, frame: frame.to_json(path, orient="records", lines=True),
}


@pytest.mark.parametrize("name", STORED)
def test_other_formats_say_the_same(tmp_path: Path, name: str) -> None:
    path = write_faces(tmp_path, face_table().assign(tone=[1, None] * 24))
    tone = {"tone": {"column": "tone"}, "gender": {"column": "gender"}}
    frame = pd.read_csv(path).astype({"tone": "Int64"})
    frame.loc[0, "tone"] = 2
    frame.to_csv(path, index=False)
    csv = read(tmp_path, card_of(tmp_path, groups=tone))
    STORED[name](tmp_path / name, frame)
    card = card_of(tmp_path, groups=tone, path=name)
    other = read(tmp_path, card)
    assert other.attributes["tone"].groups == ["1", "2"]
    assert other.fingerprint == csv.fingerprint
    (form,) = describe_data(other, card).tables
    assert table_sentence(form) in data_summary(describe_data(other, card), "x").replace("\n  ", " ")


def test_the_fingerprint_sees_one_pixel_and_one_cell(tmp_path: Path) -> None:
    path = write_faces(tmp_path)
    before = read(tmp_path).fingerprint
    path.write_text(path.read_text().replace("p00,a", "p00,b"))
    changed_cell = read(tmp_path).fingerprint
    write_images(tmp_path, ["images/01-neutral.png"])
    assert len({before, changed_cell, read(tmp_path).fingerprint}) == 3


def total(samples: Samples) -> int:
    left_out = sum(row.images for row in (*samples.excluded, *samples.quarantined))
    return len(samples.frame) + left_out


def test_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    frame = face_table(40)
    frame.loc[0, "image"] = None
    frame.loc[1, "expression"] = None
    frame.loc[2, "expression"] = "surprise"
    frame.loc[3, "person"] = None
    frame.loc[4:7, "gender"] = None
    frame.loc[8, "source"] = None
    write_faces(tmp_path, frame)
    (tmp_path / frame.loc[9, "image"]).unlink()
    (tmp_path / frame.loc[10, "image"]).write_bytes(b"no image")
    samples = read(tmp_path)
    assert total(samples) == 80
    assert {left_out_sentence(row): row.images for row in samples.excluded} == {
        "no value in column 'image'": 1,
        "no value in column 'expression'": 1,
        "label 'surprise' is not in data.labels": 1,
        "no value in data.subject": 1,
    }
    assert {left_out_sentence(row): row.examples for row in samples.quarantined} == {
        "missing file": ["images/04-happiness.png"],
        "not an image": ["images/05-neutral.png"],
    }
    assert samples.attributes["gender"].unknown_images == 4
    assert (samples.frame["gender"] == "unknown").sum() == 4
    assert (samples.frame["source"] == "unknown").sum() == 1


def test_values_that_are_not_kept_count_as_unknown_and_are_told(tmp_path: Path) -> None:
    frame = face_table()
    frame.loc[frame["person"] == "p00", "gender"] = "other, male"
    write_faces(tmp_path, frame)
    group = {"column": "gender", "values": ["male", "female"], "note": "By hand."}
    info = read(tmp_path, card_of(tmp_path, groups={"gender": group})).attributes["gender"]
    assert info.groups == ["male", "female"]
    assert info.reference == "female"
    assert info.unknown_images == 2
    assert (info.note, info.not_kept) == ("By hand.", {"other, male": 2})
    assert attribute_note(info) == "By hand. 2 images with other values count as unknown: other, male (2)."


def test_repeated_rows_are_merged_with_a_warning(tmp_path: Path) -> None:
    frame = face_table()
    write_faces(tmp_path, pd.concat([frame, frame.head(3)]))
    samples = read(tmp_path)
    assert len(samples.frame) == 48
    assert samples.warnings == (DataWarning(code=DataWarningCode.REPEATED_ROWS, images=3),)


def test_twins_and_torn_groups_are_warned_of(tmp_path: Path) -> None:
    frame = face_table()
    frame.loc[0, "gender"] = "female"  # the other image of p00 is of a man
    write_faces(tmp_path, frame)
    twin = (tmp_path / "images/00-neutral.png").read_bytes()
    for name in frame["image"][2:8]:
        (tmp_path / name).write_bytes(twin)
    torn, twins = read(tmp_path).warnings
    code = DataWarningCode.SUBJECT_IN_SEVERAL_GROUPS
    assert torn == DataWarning(code=code, of="gender", images=1, total=24, subjects=["p00"])
    assert (twins.code, twins.images, twins.total) == (DataWarningCode.IDENTICAL_IMAGES, 7, 48)
    assert twins.numbers == {"different": 1, "several splits": 7, "several subjects": 7}


def test_subjects_may_be_joined_from_columns(tmp_path: Path) -> None:
    write_faces(tmp_path)
    samples = read(tmp_path, card_of(tmp_path, subject=["person", "expression"]))
    assert samples.frame["subject"].iloc[0] == "p00/happiness"
    alone = read(tmp_path, card_of(tmp_path, drop=("subject",)))
    assert alone.frame["subject"].tolist() == alone.frame["image"].tolist()


def test_the_users_own_model_needs_no_training_split(tmp_path: Path) -> None:
    write_faces(tmp_path)
    classes = ["anger", "happiness", "neutral"]
    model = {"weights": "own.safetensors", "classes": classes}
    samples = read(tmp_path, card_of(tmp_path, drop=("labels",), training="none", model=model))
    assert samples.labels == tuple(classes)
    assert samples.frame["split"].value_counts().to_dict() == {"discovery": 24, "confirmation": 24}


def test_synthetic_cards_are_rendered_and_thinned(tmp_path: Path) -> None:
    groups = {"skin_tone": {"column": "skin_tone"}}
    rendered = {"train_images": 64, "audit_images": 32}
    whole = read(
        tmp_path, card_of(tmp_path, reader="synthetic", rendered=rendered, groups=groups, match_on=[], drop=("labels",))
    )
    plant = [{"attribute": "skin_tone", "group": "darker", "label": "smiling", "keep": 0.5}]
    thinned = read(
        tmp_path,
        card_of(
            tmp_path, reader="synthetic", rendered=rendered, groups=groups, match_on=[], plant=plant, drop=("labels",)
        ),
    )
    assert len(whole.frame) == 96
    assert len(thinned.frame) == 88
    assert whole.fingerprint != thinned.fingerprint
    assert total(thinned) == 96


def edited(**columns: object) -> pd.DataFrame:
    return face_table().assign(**columns)


BAD_TABLES = {
    "one class": (
        edited(expression="neutral"),
        {"drop": ("labels",)},
        "faces.csv: one class only ('neutral', 48 images); an audit needs two labels; check data.label and data.labels",
    ),
    "label without images": (
        edited(),
        {"labels": ["neutral", "happines"]},
        "faces.csv (data.labels): no image has the label 'happines'; did you mean 'happiness'?",
    ),
    "empty group column": (
        edited(gender=None),
        {},
        "groups.gender (column 'gender'): no image has a group; fill in the column, or remove this attribute",
    ),
    "one group": (
        edited(gender="male"),
        {},
        (
            "groups.gender (column 'gender'): one group only ('male', 48 images); "
            "annotate a second group, or remove this attribute"
        ),
    ),
    "group without images": (
        edited(),
        {"groups": {"gender": {"column": "gender", "values": ["male", "femal"]}}},
        "groups.gender (column 'gender'): no image has the group 'femal'; did you mean 'female'?",
    ),
    "reference without images": (
        edited(),
        {"groups": {"gender": {"column": "gender", "reference": "men"}}},
        "groups.gender (column 'gender'): no image has the reference 'men'; choose from female, male",
    ),
    "missing column": (
        edited(),
        {"label": "expresion"},
        (
            "faces.csv: no column 'expresion' (data.label) among image, expression, gender, person, source; "
            "did you mean 'expression'?"
        ),
    ),
    "missing columns": (
        edited(),
        {"match_on": ["zzz"], "groups": {"race": {"column": "race"}}},
        (
            "faces.csv: no column 'race' (groups.race.column), 'zzz' (match_on); "
            "choose from image, expression, gender, person, source"
        ),
    ),
    "conflicting rows": (
        pd.concat([face_table(), face_table().head(1).assign(expression="happiness")]),
        {},
        (
            "faces.csv: image 'images/00-neutral.png' occurs twice, with label 'neutral' and 'happiness' "
            "(1 such images); keep one row per image"
        ),
    ),
    "unknown split": (
        edited(part=["train", "tset"] * 24),
        {"split": "part"},
        "split column 'part': 'tset' is no split; did you mean 'test'?",
    ),
    "subject in two splits": (
        edited(part=["train", "test"] * 24),
        {"split": "part"},
        (
            "split column 'part': 24 subjects are in two splits (e.g. p00, p01, p02); "
            "put all images of a subject in one split"
        ),
    ),
    "row without a split": (
        edited(part=["train"] * 46 + [None] * 2),
        {"split": "part"},
        (
            "split column 'part': 'images/23-happiness.png' has no split; "
            "write one of train, discovery, confirmation, repair, sealed, test, val, validation"
        ),
    ),
    "too few subjects": (
        edited(person=["a", "b"] * 24),
        {},
        (
            "data.shares: no image falls into 'confirmation' (2 subjects in all); "
            "add subjects, or change data.shares or the split column"
        ),
    ),
    "label in test but not in train": (
        edited(
            part=["train"] * 24 + ["test"] * 24,
            expression=["neutral", "happiness"] * 12 + ["neutral", "happiness", "anger", "anger"] * 6,
        ),
        {"split": "part", "drop": ("labels",)},
        (
            "faces.csv: label 'anger' is in 'discovery' but in no training image; "
            "add training images of it, or leave it out of data.labels"
        ),
    ),
    "plant without images": (
        edited(),
        {"plant": [{"attribute": "gender", "group": "woman", "label": "neutral", "keep": 0}]},
        "data.plant: no group 'woman' in 'gender'; choose from female, male",
    ),
    "strange class of the user's model": (
        edited(),
        {"training": "none", "model": {"classes": ["neutral", "happy"]}},
        "faces.csv (data.labels): 'happiness' is not in model.classes; choose from neutral, happy",
    ),
}


@pytest.mark.parametrize(("frame", "changes", "expected"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_each_bad_table_is_one_line(
    tmp_path: Path, frame: pd.DataFrame, changes: dict[str, object], expected: str
) -> None:
    write_faces(tmp_path, frame)
    assert message(tmp_path, **changes) == expected


BAD_FILES = {
    "stray value": (
        b"image,expression\na.png,neutral,what\n",
        (
            "faces.csv:2: 3 values where the header has 2 columns (stray 'what'); "
            "name the column in the header, or quote a value that holds a separator"
        ),
    ),
    "no text": (
        b"image,expression\n\0\1,neutral\n",
        "faces.csv: is no text; save the table as UTF-8, or give it the suffix of its format",
    ),
    "twice in the header": (
        b"image,label,label\na.png,x,y\n",
        "faces.csv: column 'label' occurs twice in the header; rename one of them",
    ),
    "no rows": (b"image,label\n", "faces.csv: the table has no rows; give one row per image"),
    "nothing": (b"", "faces.csv: the table is empty; give a header and one row per image"),
    "open quote": (
        b'image,label\n"a.png,x\n',
        "faces.csv:2: not a well-formed table (unexpected end of data); check the quotes in this row",
    ),
    "absolute path": (
        b"image\n/etc/passwd\n",
        "faces.csv: image path '/etc/passwd' is not relative to the table; write paths relative to the table's folder",
    ),
    "climbing path": (
        b"image\na/../../b.png\n",
        "faces.csv: image path 'a/../../b.png' climbs out of its folder; write paths relative to the table's folder",
    ),
    "drive": (
        b"image\nC:\\b.png\n",
        "faces.csv: image path 'C:\\b.png' is not relative to the table; write paths relative to the table's folder",
    ),
}


@pytest.mark.parametrize(("content", "expected"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_each_bad_file_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "faces.csv").write_bytes(content)
    assert message(tmp_path) == expected


def test_no_table_a_wrong_suffix_and_a_broken_parquet(tmp_path: Path) -> None:
    assert message(tmp_path).startswith("dataset.yaml 'faces.csv': no such file or folder at")
    (tmp_path / "folder").mkdir()
    assert message(tmp_path, path="folder") == (
        "folder: is a folder, not a table; name the table in it, or use reader: folder"
    )
    (tmp_path / "faces.xls").touch()
    said = "faces.xls: '.xls' is not a table; use .csv, .tsv, .xlsx, .parquet, .jsonl, .ndjson"
    assert message(tmp_path, path="faces.xls") == said
    (tmp_path / "faces.parquet").write_bytes(b"PAR1 not really")
    assert message(tmp_path, path="faces.parquet").startswith("faces.parquet: not a readable Parquet file")


def test_too_many_unreadable_images_are_an_error_with_examples(tmp_path: Path) -> None:
    frame = face_table()
    write_faces(tmp_path, frame)
    for name in frame["image"][:3]:
        (tmp_path / name).write_bytes(b"")
    assert message(tmp_path) == (
        "faces.csv: 3 of 48 images (6%) cannot be read: not an image (3); e.g. images/00-happiness.png, "
        "images/00-neutral.png, images/01-neutral.png; repair or remove them, or check where they lie; "
        "up to 5% is set aside"
    )


def class_folders(folder: Path, frame: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    names = [f"{prefix}{label}/{number:03d}.png" for number, label in enumerate(frame["expression"], start=len(prefix))]
    write_images(folder, names)
    return frame.assign(image=names)


def test_class_folders_with_annotations(tmp_path: Path) -> None:
    frame = class_folders(tmp_path / "faces", face_table())
    frame.drop(columns="expression").head(40).to_csv(tmp_path / "faces" / "groups.csv", index=False)
    card = card_of(tmp_path, reader="folder", path="faces", match_on=[], drop=("subject", "label"))
    samples = read(tmp_path, card)
    assert len(samples.frame) == 40
    assert [(left_out_sentence(row), row.images) for row in samples.excluded] == [("no row in groups.csv", 8)]
    assert set(samples.frame["label"]) == {"neutral", "happiness"}


def test_split_folders_are_kept_and_test_is_split(tmp_path: Path) -> None:
    frame = face_table()
    root = tmp_path / "faces"
    parts = [class_folders(root, frame[:24], "train/"), class_folders(root, frame[24:], "test/")]
    pd.concat(parts).to_csv(root / "groups.csv", index=False)
    samples = read(tmp_path, card_of(tmp_path, reader="folder", path="faces"))
    for split, images in samples.frame.groupby("split")["image"]:
        assert images.str.startswith("train/" if split == "train" else "test/").all()
    assert samples.frame["split"].value_counts().to_dict() == {"train": 24, "discovery": 12, "confirmation": 12}


def test_each_bad_folder_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    changes = {"reader": "folder", "path": "faces"}
    assert message(tmp_path, **changes).startswith("faces: no class folder with images (.apng, .avif")
    frame = class_folders(root, face_table())
    assert message(tmp_path, **changes) == (
        "faces/groups.csv: no such file, and folders alone name no groups; "
        "write it with a column 'image' (path in the folder) and one column per attribute"
    )
    frame.assign(image="neutral/none.png").head(1).to_csv(root / "groups.csv", index=False)
    assert "1 rows name no image of the class folders (e.g. 'neutral/none.png')" in message(tmp_path, **changes)
    pd.concat([frame, frame.head(1)]).to_csv(root / "groups.csv", index=False)
    assert "'neutral/000.png' occurs twice; keep one row per image" in message(tmp_path, **changes)
