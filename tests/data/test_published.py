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


SETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "rafdb": ("raf-db", rafdb),
    "celeba": ("celeba", celeba),
    "utkface": ("utkface", utkface),
    "fairface": ("fairface", fairface),
    "fer2013": ("fer2013", fer2013),
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
