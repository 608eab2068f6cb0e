"""What is audited through the command line: the small card, image files of mixed kinds, people with names."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from audit.data.synthetic import SyntheticSource, sample_faces
from tests.small_world import SMALL_CARD, Invoke, Run, World, write_card

__all__ = ["SMALL_CARD", "TABLE", "TONE", "Invoke", "Run", "write_card"]


@pytest.fixture(scope="package", autouse=True)
def small_world(world: World) -> Iterator[None]:
    """Let every command of these tests use the cache of the session, and a small rendered base."""
    with world.entered():
        yield


def odd_image(image: Image.Image, number: int) -> bytes:
    """Encode an image in one of six modes and sizes, as collections of photographs hold them."""
    kinds: list[Callable[[Image.Image], Image.Image]] = [
        lambda i: i,
        lambda i: i.convert("L"),
        lambda i: i.convert("P"),
        lambda i: i.convert("RGBA").resize((80, 64)),
        lambda i: i.convert("CMYK").resize((48, 90)),
        lambda i: i.convert("1", dither=Image.Dither.NONE).resize((200, 200)),
    ]
    page = io.BytesIO()
    # five of six faces stay as they are: the model has to recognise them
    changed = kinds[number // 6 % len(kinds)](image) if number % 6 == 0 else image
    changed.save(page, format="TIFF" if changed.mode == "CMYK" else "PNG")
    return page.getvalue()


@pytest.fixture(scope="package")
def face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 160 rendered faces as image files of mixed modes and sizes, with a table that has seen a spreadsheet."""
    folder = tmp_path_factory.mktemp("faces")
    faces = sample_faces(160, 7, split="discovery")
    source = SyntheticSource(faces)
    (folder / "images").mkdir()
    rows = []
    for number, (key, expression, tone) in enumerate(
        zip(faces["image"], faces["expression"], faces["skin_tone"], strict=True)
    ):
        (folder / "images" / f"{key}.img").write_bytes(odd_image(source.open(key), number))
        rows.append(
            {
                "file": f"images/{key}.img",
                "expression": expression,
                "tone": "" if number % 40 == 0 else tone,  # four faces that nobody annotated
                "who": f"p{number:03d}",
                "Unnamed: 4": "",
            }
        )
    pd.DataFrame(rows).to_csv(folder / "faces.csv", index=False, encoding="utf-8-sig")
    return folder


TABLE = {"reader": "table", "path": "faces.csv", "image": "file", "label": "expression", "subject": "who"}
TONE = {"skin_tone": {"column": "tone", "reference": "lighter", "assigned_by": "the renderer"}}
FIRST = [
    "Aaliyah",
    "Björn",
    "Chidinma",
    "Dragoslav",
    "Eleftheria",
    "Fionnuala",
    "Giuseppina",
    "Hrvoje",
    "Ibrahim",
    "Jörgen",
]
LAST = ["Abernathy", "Bukhari", "Castellanos", "Dlamini", "Eriksen", "Fitzgerald", "Gutierrez", "Haraldsen"]
ANNOTATORS = ["Wilhelmina Ott", "Zacharias Poe"]


def write_named_folder(folder: Path) -> None:
    """Write 320 faces of 300 people whose names are in file names and table, as collections of photographs have them.

    Twenty people have two images, all others one: donors match enough people that are independent of each other. Two
    files are damaged, one image has a label that is left out, one person is seen in two groups, one image is nearly
    another person's, and of one person no age is known.
    """
    faces = sample_faces(320, 7, split="discovery")
    source = SyntheticSource(faces)
    rows = []
    for number, face in enumerate(faces.itertuples()):
        person, second = (number // 2, number % 2) if number < 40 else (number - 20, 0)
        both = (LAST[person // 10 % 8], LAST[(person // 10 + person // 80) % 8])  # the same for the first 80
        first, last = FIRST[person % 10], "-".join(dict.fromkeys(both))
        file = folder / "people" / f"{first}_{last}" / f"{first}_{last}_{second + 1:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = source.open(face.image if number != 159 else faces["image"][0])
        image.putpixel((0, 0), (number % 256, number // 256, 9))
        image.save(file)
        tone = rows[-1]["tone"] if second else face.skin_tone
        asked = {"file": file.relative_to(folder).as_posix(), "expression": face.expression, "tone": tone}
        years = 20 + person * 7 % 41
        rows.append({**asked, "who": f"{first} {last}", "by": ANNOTATORS[face.expression == "smiling"], "years": years})
    rows[11]["tone"] = "darker" if rows[10]["tone"] == "lighter" else "lighter"
    rows[77]["expression"] = "sleeping"
    rows[99]["years"] = ""
    for number in (131, 152):
        (folder / rows[number]["file"]).write_bytes(b"no image")
    pd.DataFrame(rows).to_csv(folder / "faces.csv", index=False)


@pytest.fixture(scope="session")
def named_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Audit the people of ``named_folder``, by a card that tells of this machine and of who wrote it."""

    def prepare(folder: Path) -> Path:
        write_named_folder(folder)
        data = {**TABLE, "path": str(folder / "faces.csv"), "labels": ["neutral", "smiling"]}
        matched = ["by", {"years": {"caliper": 20}}]
        card = write_card(
            folder / "cards" / "people.yaml", name="People with names", data=data, groups=TONE, match_on=matched,
            audit={"min_group_size": 4}, report={"run_by": "Ottoline Quimby", "owner": "Ottoline Quimby"},
        )  # fmt: skip
        card.write_text("# written by Ottoline Quimby\n" + card.read_text(encoding="utf-8"), encoding="utf-8")
        return card

    return world.audited("named", prepare, tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="session")
def named_folder(named_run: Run) -> Path:
    """Return the folder of the people's images, table and card."""
    return named_run.card.parent.parent
