"""Every file below the data's folder is read, or counted with its reason and its group."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from audit.card import Card
from audit.data import Samples, describe_data
from audit.records import DataWarning, DataWarningCode
from audit.report.text import left_out_sentence, warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces, write_images

pytestmark = pytest.mark.unit
LABELS = ("happiness", "neutral")


def write_folder(root: Path, names: list[str], *, rows: list[str] | None = None) -> None:
    """Write images, and a ``groups.csv`` with a row for each of ``rows``; women and men in turn."""
    write_images(root, names)
    rows = names if rows is None else rows
    gender = ["female" if k % 2 else "male" for k in range(len(rows))]
    pd.DataFrame({"image": rows, "gender": gender}).to_csv(root / "groups.csv", index=False)


def folder_card(folder: Path, **changes: object) -> Card:
    parts = {"reader": "folder", "path": "set", "match_on": [], **changes}
    return card_of(folder, drop=("subject", "label"), **parts)


def left_out(samples: Samples) -> dict[str, int]:
    return {left_out_sentence(row): row.images for row in samples.excluded}


def coded(samples: Samples, code: DataWarningCode) -> list[DataWarning]:
    return [warning for warning in samples.warnings if warning.code is code]


def test_nested_images_and_every_suffix_are_read(tmp_path: Path) -> None:
    """The pictures of the public report: a quarter is .tif, two lie one folder deeper."""
    names = [f"{LABELS[k // 20]}/{k}.tif" if k % 4 == 1 else f"{LABELS[k // 20]}/{k}.png" for k in range(40)]
    names[2], names[6] = "happiness/more/2.png", "happiness/more/deep/6.JPEG"
    write_folder(tmp_path / "set", names)
    samples = read(tmp_path, folder_card(tmp_path))
    assert sorted(samples.frame["image"]) == sorted(names)
    assert not samples.excluded
    of = samples.frame.set_index("image")["label"]
    assert of["happiness/more/deep/6.JPEG"] == "happiness"
    assert samples.source.open("happiness/1.tif").mode == "RGB"


def test_what_is_not_read_is_counted_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = [f"{label}/{k}.png" for label in LABELS for k in range(20)]
    write_folder(root, names, rows=names[2:])
    for name in ("happiness/a.heic", "neutral/Thumbs.db", "neutral/noend", "neutral/.hidden.png", "README.md"):
        (root / name).write_bytes(b"x")
    for name in ("photo.heic", "noend", "LICENSE", "notes.txt", "card.yaml", ".DS_Store", "faces.zip"):
        (root / name).write_bytes(b"x")
    write_images(root, ["lone.png", "neutral/.thumbs/a.png", ".trash/b.png", ".hidden.png"])
    (root / ".git").mkdir()
    (root / ".git" / "index").write_bytes(b"x")
    (root / "neutral" / "loop").symlink_to(root / "neutral", target_is_directory=True)
    (root / "neutral" / "gone.png").symlink_to("nowhere.png")
    samples = read(tmp_path, folder_card(tmp_path))
    assert left_out(samples) == {
        "hidden file": 4,
        "in no class folder": 1,
        "link in a circle": 1,
        "no row in groups.csv": 3,  # two, and the link to nowhere
        "no suffix": 2,
        "suffix '.db' is no image's": 1,
        "suffix '.heic' is no image's": 2,
        "suffix '.zip' is no image's": 1,
    }
    assert len(samples.frame) == 38
    report = describe_data(samples, folder_card(tmp_path))
    assert sum(row.images for row in report.excluded) == 15


def test_a_file_that_is_not_read_counts_in_the_group_of_its_row(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = [f"{label}/{k}.png" for label in LABELS for k in range(20)]
    write_folder(root, names)
    for k in (1, 3, 5):  # women
        (root / f"neutral/{k}.png").rename(root / f"neutral/{k}.heic")
    table = pd.read_csv(root / "groups.csv")
    moved = [f"neutral/{k}.png" for k in (1, 3, 5)]
    table["image"] = [name.replace(".png", ".heic") if name in moved else name for name in table["image"]]
    table.to_csv(root / "groups.csv", index=False)
    (row,) = read(tmp_path, folder_card(tmp_path)).excluded
    assert (left_out_sentence(row), row.images) == ("suffix '.heic' is no image's", 3)
    assert row.by_group == {"gender": {"female": 3}}


def test_split_folders_may_be_nested_too(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = [f"{part}/{label}/sub/{k}.png" for part in ("train", "test") for label in LABELS for k in range(8)]
    write_folder(root, names)
    write_images(root, ["train/lone.png"])
    samples = read(tmp_path, folder_card(tmp_path))
    assert set(samples.frame["label"]) == set(LABELS)
    assert left_out(samples) == {"in no class folder": 1}


def test_images_that_no_row_names_are_told_of(tmp_path: Path) -> None:
    write_faces(tmp_path)
    write_images(tmp_path, ["images/zz.png", "more/a.tif"])
    (tmp_path / "notes.txt").write_text("x")
    samples = read(tmp_path)
    assert not samples.excluded
    (warning,) = samples.warnings
    assert (warning.code, warning.images) == (DataWarningCode.UNNAMED_FILES, 2)
    assert warning.examples == ["images/zz.png", "more/a.tif"]
    assert warning_sentence(warning).startswith("2 images in the data's folder are named by no row (e.g. images/zz")


def test_what_lies_beside_a_table_and_is_no_image_is_counted(tmp_path: Path) -> None:
    write_faces(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("images/a.heic", "images/b.HEIC", "raw.dng", "images/noend", "images/._a.png"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("README", "LICENCE.md", "more.csv", "card.yaml", "runs/a/e.npz", "runs/a/.lock", ".git/HEAD", "w.pt"):
        (tmp_path / name).write_bytes(b"x")
    samples = read(tmp_path)
    assert left_out(samples) == {
        "hidden file": 1,
        "no suffix": 1,
        "suffix '.dng' is no image's": 1,
        "suffix '.heic' is no image's": 2,
    }
    assert not samples.warnings
    assert sum(row.images for row in describe_data(samples, card_of(tmp_path)).excluded) == 5


def test_a_row_may_name_a_file_of_any_suffix(tmp_path: Path) -> None:
    """What a row names is opened, and set aside in its group where it is no image."""
    frame = face_table(60)
    first = frame["image"][0]
    write_faces(tmp_path, frame)
    (tmp_path / first).rename(tmp_path / "photo.heic")
    (tmp_path / "photo.heic").write_bytes(b"x")
    frame.assign(image=["photo.heic", *frame["image"][1:]]).to_csv(tmp_path / "faces.csv", index=False)
    samples = read(tmp_path)
    assert not samples.excluded
    (row,) = samples.quarantined
    assert (row.images, row.examples, sum(row.by_group["gender"].values())) == (1, ["photo.heic"], 1)


def lossy(folder: Path, women: int, men: int, people: int = 60) -> Samples:
    """Damage so many images of women and of men, among 60 of each."""
    frame = face_table(people)
    write_faces(folder, frame)
    for gender, count in (("female", women), ("male", men)):
        for name in frame.loc[frame["gender"] == gender, "image"].head(count):
            (folder / name).write_bytes(b"no image")
    return read(folder)


def test_loss_that_differs_between_groups_is_warned_of(tmp_path: Path) -> None:
    samples = lossy(tmp_path, women=6, men=0)
    (row,) = samples.quarantined
    assert row.by_group == {"gender": {"female": 6}}
    (warning,) = coded(samples, DataWarningCode.UNEVEN_LOSS)
    # Fisher, 6 of 60 against 0 of 60: 2 * C(60, 6) / C(120, 6)
    expected = 2 * np.prod([(60 - k) / (120 - k) for k in range(6)])
    assert warning.numbers["p"] == pytest.approx(expected)
    assert warning.numbers == {
        "p": warning.numbers["p"], "lost:female": 6, "lost:male": 0, "of:female": 60, "of:male": 60,
    }  # fmt: skip
    told = warning_sentence(warning)
    assert told.startswith(
        "gender: groups lost different shares of their images (female 6 of 60, male 0 of 60; p 0.027"
    )
    assert warning in describe_data(samples, card_of(tmp_path)).warnings


@pytest.mark.parametrize(("women", "men"), [(3, 3), (0, 0), (4, 1)])
def test_loss_that_may_be_chance_is_not(tmp_path: Path, women: int, men: int) -> None:
    samples = lossy(tmp_path, women, men)
    assert not coded(samples, DataWarningCode.UNEVEN_LOSS)
    assert sum(row.images for row in samples.quarantined) == women + men


def test_loss_by_choice_is_counted_by_group_and_not_tested(tmp_path: Path) -> None:
    frame = face_table(60)
    frame.loc[frame["gender"] == "female", "expression"] = ["anger", "happiness"] * 30
    frame.loc[frame["image"] == frame["image"].iloc[2], "expression"] = "neutral"
    write_faces(tmp_path, frame)
    samples = read(tmp_path)
    (row,) = samples.excluded
    assert row.by_group == {"gender": {"female": 29}}
    assert not coded(samples, DataWarningCode.UNEVEN_LOSS)


def test_loss_is_corrected_over_attributes(tmp_path: Path) -> None:
    frame = face_table(60)
    for k in range(4):
        frame[f"other{k}"] = ["a", "b", "c"] * 40
    write_faces(tmp_path, frame)
    for name in frame.loc[frame["gender"] == "female", "image"].head(6):
        (tmp_path / name).write_bytes(b"no image")
    groups = {name: {"column": name} for name in ("gender", "other0", "other1")}
    samples = read(tmp_path, card_of(tmp_path, groups=groups))  # .027 * 3 > .05
    assert not coded(samples, DataWarningCode.UNEVEN_LOSS)


def test_eighty_equal_pictures_of_eighty_people_are_warned_of(tmp_path: Path) -> None:
    frame = face_table(40).assign(person=[f"p{k}" for k in range(80)])
    write_faces(tmp_path, frame)
    for name in frame["image"]:
        Image.new("RGB", (12, 10), "gray").save(tmp_path / name)
    (warning,) = coded(read(tmp_path), DataWarningCode.IDENTICAL_IMAGES)
    assert (warning.images, warning.total) == (80, 80)
    assert warning.numbers == {"different": 1, "several splits": 80, "several subjects": 80}


def test_names_that_differ_in_case_or_blanks_only_are_warned_of(tmp_path: Path) -> None:
    frame = face_table(60)
    spelt = {"female": ["female", "Female", "fe male"], "male": ["male", "men", "male"]}
    frame["gender"] = [spelt[gender][k % 3] for k, gender in enumerate(frame["gender"])]
    write_faces(tmp_path, frame)
    (warning,) = coded(read(tmp_path), DataWarningCode.SIMILAR_NAMES)
    assert (warning.of, warning.names) == ("gender", ["Female", "fe male", "female"])
    labels = card_of(tmp_path, labels=None)
    frame["expression"] = frame["expression"].str.replace("happiness", "Neutral")
    write_faces(tmp_path, frame)
    assert "label" in {warning.of for warning in coded(read(tmp_path, labels), DataWarningCode.SIMILAR_NAMES)}


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_names_that_are_not_utf8_are_named_and_left_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = [f"{label}/{k}.png" for label in LABELS for k in range(20)]
    names += ["neutral/ä日 und\nZeile.png"]
    write_folder(root, names)
    (root / "neutral" / os.fsdecode(b"\xff\xfe.png")).write_bytes((root / names[0]).read_bytes())
    samples = read(tmp_path, folder_card(tmp_path))
    assert left_out(samples) == {"name is not UTF-8": 1}
    assert samples.excluded[0].examples == ["neutral/\\udcff\\udcfe.png"]
    assert "neutral/ä日 und\nZeile.png" in set(samples.frame["image"])
