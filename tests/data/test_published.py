"""Published sets are read in their own layout, and what does not fit is named by its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from audit.card.load import built_in_cards, load_card
from audit.cli import main
from audit.data import Samples, read_samples
from audit.data.readers import READERS
from audit.errors import DataError
from audit.terminal import datasets_table

pytestmark = pytest.mark.unit
DOCS = Path(__file__).parents[2] / "docs"


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 10), (shade % 256, shade * 7 % 256, shade // 256)).save(path)


def rafdb(root: Path) -> None:
    """Write 84 images of RAF-DB's basic set: seven expressions, two genders and "unsure", three races, five ages."""
    base, lines = root / "RAF-DB" / "basic", []
    for number in range(84):
        name = f"{'train' if number % 2 else 'test'}_{number:05d}"
        image(base / "Image" / "aligned" / f"{name}_aligned.jpg", number * 3)
        lines.append(f"{name}.jpg {number // 2 % 7 + 1}")
        traits = "\n".join(["10.5\t20.5"] * 5 + [str(number // 14 % 3), str(number // 28 % 3), str(number % 5)])
        path = base / "Annotation" / "manual" / f"{name}_manu_attri.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traits + "\n", encoding="utf-8")
    (base / "EmoLabel").mkdir()
    (base / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def celeba(root: Path) -> None:
    base = root / "CelebA"
    attributes, identities, splits = ["60", "Male Smiling Young"], [], []
    for number in range(60):
        name = f"{number + 1:06d}.jpg"
        image(base / "img_align_celeba" / name, number * 4)
        signs = [1 if number & bit else -1 for bit in (1, 2, 4)]
        attributes.append(f"{name}  {signs[0]}  {signs[1]} {signs[2]}")
        identities.append(f"{name} {number // 20 * 100 + number % 20}")
        splits.append(f"{name} {number // 20}")
    for file, rows in (
        ("list_attr_celeba", attributes),
        ("identity_CelebA", identities),
        ("list_eval_partition", splits),
    ):
        (base / f"{file}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def utkface(root: Path) -> None:
    for number in range(60):
        stamp = f"2017011617{number:05d}000"
        image(
            root
            / "UTKFace"
            / f"part{number % 2}"
            / f"{number + 1}_{number % 2}_{number // 2 % 5}_{stamp}.jpg.chip.jpg",
            number,
        )
    image(root / "UTKFace" / "61_3_20170109142408075.jpg", 300)  # as some of the set, without a gender


def fairface(root: Path) -> None:
    base = root / "FairFace"
    races = ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern")
    for split, count in (("train", 56), ("val", 56)):
        rows = ["file,age,gender,race,service_test"]
        for number in range(count):
            image(base / split / f"{number + 1}.jpg", number * 2 + (split == "val"))
            rows.append(
                f"{split}/{number + 1}.jpg,20-29,{('Male', 'Female')[number % 2]},{races[number // 2 % 7]},True"
            )
        (base / f"fairface_label_{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def fer2013(root: Path) -> None:
    base = root / "FER2013"
    base.mkdir()
    usage = ("Training", "PublicTest", "PrivateTest")
    rows, votes, groups = (
        ["emotion,pixels,Usage"],
        ["Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"],
        ["image,gender"],
    )
    for number in range(90):
        pixels = " ".join(str((number * 2 + k) % 256) for k in range(48 * 48))
        rows.append(f"{number % 7},{pixels},{usage[number // 30]}")
        counts = [0] * 10
        counts[number % 5] = 8
        counts[9] = 2
        if number == 0:
            counts = [5, 5, *[0] * 8]  # a tie
        if number == 1:
            counts = [0] * 8 + [1, 9]  # no face
        votes.append(f"{usage[number // 30]},fer{number:07d}.png,{','.join(map(str, counts))}")
        groups.append(f"fer{number:07d}.png,{('woman', 'man')[number % 2]}")
    for file, lines in (("fer2013", rows), ("fer2013new", votes), ("groups", groups)):
        (base / f"{file}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def affectnet(root: Path) -> None:
    base = root / "AffectNet"
    for split, numbers in (("training", range(80)), ("validation", range(80, 160))):
        boxes = "face_x,face_y,face_width,face_height"
        rows = [f"subDirectory_filePath,{boxes},facial_landmarks,expression,valence,arousal"]
        for number in numbers:
            name = f"{number % 3}/{number:04d}.jpg"
            photograph(base / "Manually_Annotated" / "Manually_Annotated_Images" / name, number)
            rows.append(f"{name},20,0,16,16,1.0;2.0,{number % 11},0.1,0.2")
        path = base / "Manually_Annotated_file_lists" / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    groups = [f"{number % 3}/{number:04d}.jpg,{('woman', 'man')[number // 11 % 2]}" for number in range(160)]
    (base / "groups.csv").write_text("\n".join(["image,gender", *groups]) + "\n", encoding="utf-8")


def expw(root: Path) -> None:
    """Write 60 photographs of two faces each."""
    base = root / "ExpW"
    rows, groups = [], ["image,gender"]
    for number in range(60):
        name = f"actor_{number}.jpg"
        photograph(base / "image" / "origin" / name, number)
        for face, left in enumerate((0, 20)):
            rows.append(f"{name} {face} 0 {left} {left + 16} 16 56.3 {(number + face) % 7}")
            groups.append(f"origin/{name}#{face},{('woman', 'man')[number // 7 % 2]}")
    (base / "label.lst").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (base / "groups.csv").write_text("\n".join(groups) + "\n", encoding="utf-8")


def photograph(path: Path, shade: int) -> None:
    """Write a dark half and a bright one, 40 px wide and 20 high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (40, 20), (shade % 90, shade // 90, 0))
    picture.paste((255 - shade % 90, 255, 255 - shade // 90), (20, 0, 40, 20))
    picture.save(path, quality=100, subsampling=0)


def stanford40(root: Path) -> None:
    base, groups = root / "Stanford40", ["image,gender"]
    (base / "ImageSplits").mkdir(parents=True)
    actions = ("playing_guitar", "running", "cooking", "cleaning_the_floor", "fixing_a_car")
    for split, numbers in (("train", range(60)), ("test", range(60, 200))):
        names = [f"{actions[number % 5]}_{number:03d}.jpg" for number in numbers]
        for number, name in zip(numbers, names, strict=True):
            image(base / "JPEGImages" / name, number * 2)
            groups.append(f"JPEGImages/{name},{('woman', 'man')[number // 5 % 2]}")
        (base / "ImageSplits" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (base / "groups.csv").write_text("\n".join(groups) + "\n", encoding="utf-8")


SETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "rafdb": ("raf-db", rafdb),
    "celeba": ("celeba", celeba),
    "utkface": ("utkface", utkface),
    "fairface": ("fairface", fairface),
    "fer2013": ("fer2013", fer2013),
    "affectnet": ("affectnet", affectnet),
    "expw": ("expw", expw),
    "stanford40": ("stanford-40", stanford40),
}


def read(name: str, root: Path) -> Samples:
    path = built_in_cards()[SETS[name][0]]
    return read_samples(load_card(path), card_path=path, data_root=root)


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_read_with_its_own_card(name: str, tmp_path: Path) -> None:
    SETS[name][1](tmp_path)
    samples = read(name, tmp_path)
    assert not samples.quarantined
    assert {"train", "discovery", "confirmation"} == set(samples.frame["split"])
    opened = samples.source.open(samples.frame["image"].iloc[0])
    assert opened.mode == "RGB"
    result = CliRunner().invoke(main, ["check", SETS[name][0], "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_every_reader_is_tried_and_has_a_card() -> None:
    assert set(SETS) == set(READERS)
    cards = [load_card(path) for path in built_in_cards().values()]
    assert {card.data.reader for card in cards} >= set(READERS)
    for card in cards:
        if card.data.reader in READERS:
            assert card.data.licence and card.data.citation and card.out_of_scope
            assert all(group.assigned_by != "not stated" for group in card.groups.values())


def test_rafdb_says_what_its_files_say(tmp_path: Path) -> None:
    rafdb(tmp_path)
    samples = read("rafdb", tmp_path)
    rows = samples.frame.set_index("image")
    assert len(rows) == 84
    first = rows.loc["Image/aligned/train_00001_aligned.jpg"]
    assert (first["label"], first["gender"], first["race"], first["age"]) == ("surprise", "male", "caucasian", "4-19")
    assert first["split"] == "train"
    assert samples.attributes["gender"].unknown_images == 28
    (tmp_path / "RAF-DB" / "basic" / "Annotation" / "manual" / "train_00001_manu_attri.txt").unlink()
    assert read("rafdb", tmp_path).attributes["gender"].unknown_images == 29


def test_celeba_keeps_people_together(tmp_path: Path) -> None:
    celeba(tmp_path)
    frame = read("celeba", tmp_path).frame
    assert frame.groupby("subject")["split"].nunique().max() == 1
    row = frame.set_index("image").loc["img_align_celeba/000004.jpg"]  # number 3: male, smiling, not young
    assert (row["label"], row["gender"], row["age"], row["split"]) == ("smiling", "male", "not young", "train")


def test_utkface_names_what_its_file_names_say(tmp_path: Path) -> None:
    utkface(tmp_path)
    samples = read("utkface", tmp_path)
    assert len(samples.frame) == 60
    (left_out,) = samples.excluded
    assert (left_out.images, left_out.examples) == (1, ["61_3_20170109142408075.jpg"])


def test_affectnet_is_cut_to_its_faces(tmp_path: Path) -> None:
    affectnet(tmp_path)
    samples = read("affectnet", tmp_path)
    rows = samples.frame.set_index("image")
    assert (rows.loc["2/0005.jpg", "label"], rows.loc["2/0005.jpg", "split"]) == ("disgust", "train")
    assert "2/0008.jpg" not in rows.index  # none of the expressions
    face = samples.source.open("2/0005.jpg")
    assert face.size == (16, 16)
    assert min(face.getpixel((8, 8))) > 200  # of the bright half
    listed = tmp_path / "AffectNet" / "Manually_Annotated_file_lists" / "training.csv"
    text = listed.read_text(encoding="utf-8").replace("0005.jpg,20,0,16,16", "0005.jpg,39,0,16,16")
    listed.write_text(text.replace("0/0006.jpg,20,0,16,16", "0/0006.jpg,NULL,0,16,16"), encoding="utf-8")
    small, absent = sorted(read("affectnet", tmp_path).quarantined, key=lambda row: row.reason, reverse=True)
    assert (small.examples, absent.examples) == (["2/0005.jpg"], ["0/0006.jpg"])


def test_expws_faces_of_one_photograph_stay_together_and_differ(tmp_path: Path) -> None:
    expw(tmp_path)
    samples = read("expw", tmp_path)
    frame = samples.frame
    assert len(frame) == 120
    assert frame.groupby("subject")["split"].nunique().max() == 1
    dark, bright = (samples.source.open(f"origin/actor_3.jpg#{face}") for face in (0, 1))
    assert max(dark.getpixel((8, 8))) < 100 < 200 < min(bright.getpixel((8, 8)))
    assert not [text for text in samples.warnings if "byte-identical" in text]
    with pytest.raises(DataError, match="no such face"):
        samples.source.open("origin/actor_3.jpg#2")


def test_stanford40_names_actions_by_its_files(tmp_path: Path) -> None:
    stanford40(tmp_path)
    row = read("stanford40", tmp_path).frame.set_index("image").loc["JPEGImages/playing_guitar_005.jpg"]
    assert (row["label"], row["gender"], row["split"]) == ("playing guitar", "man", "train")


def test_ferplus_decides_by_its_votes(tmp_path: Path) -> None:
    fer2013(tmp_path)
    samples = read("fer2013", tmp_path)
    rows = samples.frame.set_index("image")
    assert "fer0000000.png" not in rows.index  # a tie
    assert "fer0000001.png" not in rows.index  # no face
    assert rows.loc["fer0000002.png", "label"] == "surprise"
    picture = samples.source.open("fer0000002.png")
    assert (picture.size, picture.getpixel((1, 0))) == ((48, 48), (5, 5, 5))
    (tmp_path / "FER2013" / "fer2013new.csv").unlink()
    assert read("fer2013", tmp_path).frame.set_index("image").loc["fer0000003.png", "label"] == "happiness"
    (tmp_path / "FER2013" / "groups.csv").unlink()
    with pytest.raises(DataError, match="no column 'gender'"):
        read("fer2013", tmp_path)


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
        ("stanford40", "Stanford40/ImageSplits/test.txt", "running.jpg\n", "not named ACTION_NUMBER.jpg"),
        ("stanford40", "Stanford40/ImageSplits/train.txt", None, "no such file"),
        ("fer2013", "FER2013/fer2013new.csv", "neutral,happiness\n1,2\n", "ten columns of votes for 90 rows"),
    ],
)
def test_what_is_not_as_published_is_named(
    name: str, file: str, content: str | None, what: str, tmp_path: Path
) -> None:
    SETS[name][1](tmp_path)
    path = tmp_path / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(name, tmp_path)
    assert what in str(caught.value)
    assert path.name in str(caught.value)


def test_pixels_that_are_none_are_quarantined(tmp_path: Path) -> None:
    fer2013(tmp_path)
    path = tmp_path / "FER2013" / "fer2013.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = "3,1 2 300,Training"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (set_aside,) = read("fer2013", tmp_path).quarantined
    assert set_aside.examples == ["fer0000003.png"]


def test_a_folder_without_the_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "UTKFace").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        read("utkface", tmp_path)
    image(tmp_path / "UTKFace" / "cat.jpg", 1)
    with pytest.raises(DataError, match="no image is named AGE_GENDER_RACE_DATE"):
        read("utkface", tmp_path)


def test_the_table_of_the_documentation_is_that_of_the_cards() -> None:
    cards = {name: load_card(path) for name, path in built_in_cards().items()}
    assert datasets_table(cards, markdown=True) in (DOCS / "datasets.md").read_text(encoding="utf-8")
    listed = CliRunner().invoke(main, ["datasets"]).output
    assert all(f"{name}: " in listed for name in cards)
