"""A whole audit in small: 400 rendered faces, a transformer of two blocks, everything through the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from audit.cli import main
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.models import rendered_base

Invoke = Callable[..., Result]
SMALL_CARD: dict[str, Any] = {
    "name": "Small rendered audit",
    "task": "emotion",
    "data": {"reader": "synthetic", "rendered": {"train_images": 400, "audit_images": 240, "association": 0.9}},
    "groups": {"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "rendered",
        "image_size": 64,
        "overrides": {"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
    },
    "training": {"seeds": [0], "epochs": 4, "learning_rate": 1e-3},
    "controls": {
        "card": "rendered",
        "train_images": 400,
        "eval_images": 96,
        "base_epochs": 12,
        "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200},
}


@dataclass(frozen=True)
class Run:
    """A finished audit: its card, folder, record, and what the command said."""

    card: Path
    out: Path
    folder: Path
    result: Result

    @property
    def record(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "audit.json").read_text(encoding="utf-8"))
        return loaded


def write_card(path: Path, **changes: Any) -> Path:
    """Write the small card; each change replaces a part, or updates it where both are mappings."""
    card = deepcopy(SMALL_CARD)
    for key, value in changes.items():
        together = isinstance(value, dict) and isinstance(card.get(key), dict) and key != "data"
        card[key] = {**card[key], **value} if together else value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="package", autouse=True)
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep trained models in a folder of this session, and train the rendered base on few faces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_AUDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("VIT_AUDIT_DATA", raising=False)
        patch.setattr(rendered_base, "FACES", 400)
        patch.setattr(rendered_base, "RECIPE", replace(rendered_base.RECIPE, epochs=4))
        yield


@pytest.fixture(scope="package")
def invoke() -> Invoke:
    """Return a call of the command line in this process."""

    def call(*args: object) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return call


@pytest.fixture(scope="package")
def small_run(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Run:
    """Run the small audit once."""
    place = tmp_path_factory.mktemp("small")
    card = write_card(place / "card.yaml")
    result = invoke("run", card, "--out", place / "out")
    assert result.exit_code in (0, 1, 4), result.output
    (folder,) = (place / "out").iterdir()
    return Run(card, place / "out", folder, result)


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


@pytest.fixture(scope="package")
def named_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 160 faces of 80 people whose names are in file names and table, as collections of photographs have them.

    Two files are damaged, one image has a label that is left out, one person is seen in two groups, and one image is
    nearly another person's.
    """
    folder = tmp_path_factory.mktemp("named")
    faces = sample_faces(160, 7, split="discovery")
    source = SyntheticSource(faces)
    rows = []
    for number, face in enumerate(faces.itertuples()):
        first, last = FIRST[number // 2 % 10], LAST[number // 20]
        file = folder / "people" / f"{first}_{last}" / f"{first}_{last}_{number % 2 + 1:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = source.open(face.image if number != 159 else faces["image"][0])
        image.save(file)
        image.putpixel((0, 0), (number, 9, 9))
        image.save(file)
        tone = face.skin_tone if number % 2 == 0 or number == 81 else rows[-1]["tone"]
        asked = {"file": file.relative_to(folder).as_posix(), "expression": face.expression, "tone": tone}
        rows.append({**asked, "who": f"{first} {last}", "by": ANNOTATORS[face.expression == "smiling"]})
    rows[81]["tone"] = "darker" if rows[80]["tone"] == "lighter" else "lighter"
    rows[77]["expression"] = "sleeping"
    for number in (31, 52):
        (folder / rows[number]["file"]).write_bytes(b"no image")
    pd.DataFrame(rows).to_csv(folder / "faces.csv", index=False)
    return folder


@pytest.fixture(scope="package")
def named_run(named_folder: Path, invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Audit the people of ``named_folder``, by a card that tells of this machine and of who wrote it."""
    data = {**TABLE, "path": str(named_folder / "faces.csv"), "labels": ["neutral", "smiling"]}
    card = write_card(
        named_folder / "cards" / "people.yaml", name="People with names", data=data, groups=TONE, match_on=["by"],
        audit={"min_group_size": 4}, report={"run_by": "Ottoline Quimby"},
    )  # fmt: skip
    card.write_text("# written by Ottoline Quimby\n" + card.read_text(encoding="utf-8"), encoding="utf-8")
    out = tmp_path_factory.mktemp("named-out")
    result = invoke("run", card, "--out", out)
    assert result.exit_code in (0, 1, 4), result.output
    (folder,) = out.iterdir()
    return Run(card, out, folder, result)
