"""Published sets are read in their own layout, and what does not fit is named by its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.card.load import built_in_cards, load_card
from audit.cli import main
from audit.data.readers.open import PUBLISHED
from audit.errors import DataError
from audit.exit_codes import ExitCode
from audit.records import DataWarningCode, LeftOut
from audit.report.text import left_out_sentence
from audit.terminal import datasets_table
from tests.data.published_sets import (
    SETS,
    affectnet,
    assert_named,
    celeba,
    expw,
    fer2013,
    image,
    lfw,
    miap,
    rafdb,
    read_set,
    utkface,
)

pytestmark = pytest.mark.unit
DOCS = Path(__file__).parents[2] / "docs"
EVALUATION = ("facet", "fhibe", "casualconversations2")  # sets whose licence allows no training


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_read_with_its_own_card(name: str, tmp_path: Path) -> None:
    SETS[name][1](tmp_path)
    samples = read_set(name, tmp_path)
    assert not samples.quarantined
    trained = {"train"} if name not in EVALUATION else set()
    assert trained | {"discovery", "confirmation"} == set(samples.frame["split"])
    opened = samples.source.open(samples.frame["image"].iloc[0])
    assert opened.mode == "RGB"
    result = CliRunner().invoke(main, ["check", SETS[name][0], "--data", str(tmp_path)])
    if name in EVALUATION:  # its card audits a model of one's own, and there is none here
        assert result.exit_code == ExitCode.BAD_INPUT
        assert "-model.safetensors': no such file" in result.stderr.splitlines()[-1]
    else:
        assert result.exit_code == ExitCode.DONE, result.output


def test_every_reader_is_tried_and_has_a_card() -> None:
    assert set(SETS) == set(PUBLISHED)
    cards = [load_card(path) for path in built_in_cards().values()]
    assert {card.data.reader for card in cards} >= set(PUBLISHED)
    for card in cards:
        if card.data.reader in PUBLISHED:
            assert card.data.licence and card.data.citation and card.out_of_scope
            assert all(group.assigned_by != "not stated" for group in card.groups.values())
            assert card.data.consent_source and card.data.layout != "not stated"
    for path in built_in_cards().values():
        card = load_card(path)
        assert (
            card.data.reader not in PUBLISHED
            or "nown problems of the labels" in path.read_text()
            or path.stem == "facet-clip"
        )
        assert all(
            group.provenance != "not stated" or "groups.csv" in group.assigned_by for group in card.groups.values()
        )


def test_rafdb_says_what_its_files_say(tmp_path: Path) -> None:
    rafdb(tmp_path)
    samples = read_set("rafdb", tmp_path)
    rows = samples.frame.set_index("image")
    assert len(rows) == 84
    first = rows.loc["Image/aligned/train_00001_aligned.jpg"]
    assert (first["label"], first["gender"], first["race"], first["age"]) == ("surprise", "male", "caucasian", "4-19")
    assert first["split"] == "train"
    assert samples.attributes["gender"].unknown_images == 28
    (tmp_path / "RAF-DB" / "basic" / "Annotation" / "manual" / "train_00001_manu_attri.txt").unlink()
    assert read_set("rafdb", tmp_path).attributes["gender"].unknown_images == 29


def test_celeba_keeps_people_together(tmp_path: Path) -> None:
    celeba(tmp_path)
    frame = read_set("celeba", tmp_path).frame
    assert frame.groupby("subject")["split"].nunique().max() == 1
    row = frame.set_index("image").loc["img_align_celeba/000004.jpg"]  # number 3: male, smiling, not young
    assert (row["label"], row["gender"], row["age"], row["split"]) == ("smiling", "male", "not young", "train")


def test_utkface_names_what_its_file_names_say(tmp_path: Path) -> None:
    utkface(tmp_path)
    samples = read_set("utkface", tmp_path)
    assert len(samples.frame) == 60
    (left_out,) = samples.excluded
    assert (left_out.images, left_out.examples) == (1, ["61_3_20170109142408075.jpg"])


def test_affectnet_is_cut_to_its_faces(tmp_path: Path) -> None:
    affectnet(tmp_path)
    samples = read_set("affectnet", tmp_path)
    rows = samples.frame.set_index("image")
    assert (rows.loc["2/0005.jpg", "label"], rows.loc["2/0005.jpg", "split"]) == ("disgust", "train")
    assert "2/0008.jpg" not in rows.index  # none of the expressions
    face = samples.source.open("2/0005.jpg")
    assert face.size == (16, 16)
    assert min(face.getpixel((8, 8))) > 200  # of the bright half
    listed = tmp_path / "AffectNet" / "Manually_Annotated_file_lists" / "training.csv"
    text = listed.read_text(encoding="utf-8").replace("0005.jpg,20,0,16,16", "0005.jpg,39,0,16,16")
    listed.write_text(text.replace("0/0006.jpg,20,0,16,16", "0/0006.jpg,NULL,0,16,16"), encoding="utf-8")
    small, absent = sorted(read_set("affectnet", tmp_path).quarantined, key=lambda row: row.kind)
    assert (small.kind, absent.kind) == (LeftOut.SMALL_BOX, LeftOut.NO_BOX)
    assert (small.examples, absent.examples) == (["2/0005.jpg"], ["0/0006.jpg"])


def test_expws_faces_of_one_photograph_stay_together_and_differ(tmp_path: Path) -> None:
    expw(tmp_path)
    samples = read_set("expw", tmp_path)
    frame = samples.frame
    assert len(frame) == 120
    assert frame.groupby("subject")["split"].nunique().max() == 1
    dark, bright = (samples.source.open(f"origin/actor_3.jpg#{face}") for face in (0, 1))
    assert max(dark.getpixel((8, 8))) < 100 < 200 < min(bright.getpixel((8, 8)))
    assert not [w for w in samples.warnings if w.code is DataWarningCode.IDENTICAL_IMAGES]
    with pytest.raises(DataError, match="no such part"):
        samples.source.open("origin/actor_3.jpg#2")


def test_lfws_people_stay_together_and_its_words_are_one(tmp_path: Path) -> None:
    lfw(tmp_path)
    legend = tmp_path / "LFW" / "legend.csv"
    more = "457,Ann_000_0001.jpg,happiness\n302,Ann_003_0001.jpg,neutral\n"
    legend.write_text(legend.read_text(encoding="utf-8") + more, encoding="utf-8")
    men = tmp_path / "LFW" / "male_names.txt"
    men.write_text(men.read_text(encoding="utf-8") + "Ann_002_0001.jpg\n", encoding="utf-8")
    samples = read_set("lfw", tmp_path)
    rows = samples.frame.set_index("image")
    assert samples.frame.groupby("subject")["split"].nunique().max() == 1
    first = rows.loc["Ann_001/Ann_001_0001.jpg"]
    assert (first["label"], first["gender"], first["annotator"]) == ("happiness", "male", "457")
    assert first["subject"] == "Ann_001"
    assert "Ann_000/Ann_000_0001.jpg" not in rows.index  # two annotators, two words
    again = rows.loc["Ann_003/Ann_003_0001.jpg"]  # two annotators, one word
    assert (again["label"], again["annotator"]) == ("neutral", "unknown")
    assert rows.loc["Ann_002/Ann_002_0001.jpg", "gender"] == "unknown"  # in both lists


def test_miap_is_cut_to_single_people(tmp_path: Path) -> None:
    miap(tmp_path)
    samples = read_set("miap", tmp_path)
    frame = samples.frame
    assert len(frame) == 120
    assert frame.groupby("subject")["split"].nunique().max() == 1
    dark, bright = (samples.source.open(f"{3:016x}#{person}") for person in (0, 1))
    assert dark.size == bright.size == (16, 16)
    assert max(dark.getpixel((8, 8))) < 100 < 200 < min(bright.getpixel((8, 8)))
    row = frame.set_index("image").loc[f"{3:016x}#1"]
    assert (row["label"], row["age"], row["split"]) == ("masculine", "older", "train")
    boxes = tmp_path / "MIAP" / "open_images_extended_miap_boxes_val.csv"
    lines = boxes.read_text(encoding="utf-8").splitlines()
    lines[1] = lines[1].replace(",0,0,0,0,0,", ",0,0,1,0,0,")  # several people
    lines[2] = lines[2].replace(",0,0,0,0,0,", ",0,0,0,1,0,")  # a drawing
    lines[3] = lines[3].replace("0.0,0.4,", "nan,0.4,")
    lines[4] = lines[4].replace("0.5,0.9,", "0.5,0.6,")
    boxes.write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples = read_set("miap", tmp_path)
    assert [(row.images, left_out_sentence(row)) for row in samples.excluded] == [(2, "no value in column 'gender'")]
    assert {left_out_sentence(row) for row in samples.quarantined} == {"no box", "box under 8 px on a side"}


def test_miap_in_parts_is_split_and_ambiguous_photographs_are_refused(tmp_path: Path) -> None:
    miap(tmp_path)
    (tmp_path / "MIAP" / "open_images_extended_miap_boxes_train.csv").unlink()
    frame = read_set("miap", tmp_path).frame
    assert len(frame) == 80
    assert set(frame["split"]) == {"train", "discovery", "confirmation"}
    image(tmp_path / "MIAP" / "again" / f"{30:016x}.jpg", 1)
    with pytest.raises(DataError, match=r"have one name; remove one of them"):
        read_set("miap", tmp_path)


def test_ferplus_decides_by_its_votes(tmp_path: Path) -> None:
    fer2013(tmp_path)
    samples = read_set("fer2013", tmp_path)
    rows = samples.frame.set_index("image")
    assert "fer0000000.png" not in rows.index  # a tie
    assert "fer0000001.png" not in rows.index  # no face
    assert rows.loc["fer0000002.png", "label"] == "surprise"
    picture = samples.source.open("fer0000002.png")
    assert (picture.size, picture.getpixel((1, 0))) == ((48, 48), (5, 5, 5))
    (tmp_path / "FER2013" / "fer2013new.csv").unlink()
    assert read_set("fer2013", tmp_path).frame.set_index("image").loc["fer0000003.png", "label"] == "happiness"
    (tmp_path / "FER2013" / "groups.csv").unlink()
    with pytest.raises(DataError, match="no column 'gender'"):
        read_set("fer2013", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "what"),
    [
        ("rafdb", "RAF-DB/basic/EmoLabel/list_patition_label.txt", None, "no such file"),
        ("rafdb", "RAF-DB/basic/EmoLabel/list_patition_label.txt", "train_00001.jpg 9\n", "not 'NAME 1..7'"),
        ("rafdb", "RAF-DB/basic/Annotation/manual/train_00001_manu_attri.txt", "1\n2\n", "gender, race and age"),
        ("celeba", "CelebA/list_attr_celeba.txt", "1\nMale Smiling Young\na.jpg 1 1\n", "another number of columns"),
        ("celeba", "CelebA/list_attr_celeba.txt", "1\nBald\na.jpg 1\n", "names no attribute male, smiling, young"),
        ("celeba", "CelebA/identity_CelebA.txt", "a.jpg 1 2\n", "not of two columns"),
        ("celeba", "CelebA/list_eval_partition.txt", None, "no such file"),
        ("fairface", "FairFace/fairface_label_val.csv", "file,age\na.jpg,1\n", "has no column gender, race"),
        (
            "fairface",
            "FairFace/fairface_label_train.csv",
            "file,age,gender,race\n../a.jpg,1,Male,White\n",
            "climbs out",
        ),
        ("fer2013", "FER2013/fer2013.csv", "emotion,Usage\n1,Training\n", "has no column pixels"),
        (
            "affectnet",
            "AffectNet/Manually_Annotated_file_lists/training.csv",
            "subDirectory_filePath,expression\na.jpg,1\n",
            "has no column face_x, face_y, face_width, face_height",
        ),
        ("expw", "ExpW/label.lst", "a.jpg 0 1 2 3\n", "not of 8 columns"),
        ("expw", "ExpW/label.lst", "../a.jpg 0 1 2 3 4 5 6\n", "climbs out"),
        ("lfw", "LFW/legend.csv", "image,emotion\nAnn_001_0001.jpg,happy\n", "has no column user.id"),
        ("lfw", "LFW/legend.csv", "user.id,image,emotion\n1,a.jpg,happy\n", "names no image as LFW does"),
        ("lfw", "LFW/legend.csv", "user.id,image,emotion\n1,../a_0001.jpg,happy\n", "climbs out"),
        ("lfw", "LFW/female_names.txt", None, "no such file"),
        (
            "miap",
            "MIAP/open_images_extended_miap_boxes_test.csv",
            "ImageID,XMin\n0,0.1\n",
            "has no column YMin, XMax, YMax, IsGroupOf",
        ),
        ("fer2013", "FER2013/fer2013new.csv", "neutral,happiness\n1,2\n", "ten columns of votes for 90 rows"),
    ],
)
def test_what_is_not_as_published_is_named(
    name: str, file: str, content: str | None, what: str, tmp_path: Path
) -> None:
    assert_named(name, file, content, what, tmp_path)


def test_pixels_that_are_none_are_quarantined(tmp_path: Path) -> None:
    fer2013(tmp_path)
    path = tmp_path / "FER2013" / "fer2013.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = "3,1 2 300,Training"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (set_aside,) = read_set("fer2013", tmp_path).quarantined
    assert set_aside.examples == ["fer0000003.png"]


def test_a_folder_without_the_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "UTKFace").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        read_set("utkface", tmp_path)
    image(tmp_path / "UTKFace" / "cat.jpg", 1)
    with pytest.raises(DataError, match="no image is named AGE_GENDER_RACE_DATE"):
        read_set("utkface", tmp_path)


def test_the_table_of_the_documentation_is_that_of_the_cards() -> None:
    cards = {name: load_card(path) for name, path in built_in_cards().items()}
    assert datasets_table(cards, markdown=True) in (DOCS / "datasets.md").read_text(encoding="utf-8")
    listed = CliRunner().invoke(main, ["datasets"]).output
    assert all(f"{name}: " in listed for name in cards)


def test_cards_are_listed_with_who_consented_in_80_columns() -> None:
    table, _, paragraphs = CliRunner().invoke(main, ["datasets"]).output.partition("\n\n")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    assert rows[0] == ["card", "task", "consent", "groups"]
    assert max(map(len, table.splitlines())) <= 80
    answers = {row[0]: tuple(row[1:]) for row in rows[1:]}
    assert set(answers) == set(built_in_cards())
    assert answers["fhibe"] == ("action", "yes", "self-reported")
    assert answers["casual-conversations-2"] == ("other", "yes", "self-reported, annotated")
    assert answers["emotic"] == ("emotion", "no", "annotated")
    assert answers["hagrid"] == ("action", "not stated", "inferred")
    assert answers["synthetic-balanced"] == ("emotion", "no people", "drawn")
    assert "  consent: no: photographs from the web, of COCO, ADE20K and a search engine\n" in paragraphs
