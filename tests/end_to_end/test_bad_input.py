"""Bad input through the command line: one line that names place and fix, exit 2, nothing left behind."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from audit.card.load import built_in_cards
from audit.card.schema import ModelSpec
from audit.models.architecture import make_architecture
from tests.end_to_end.conftest import SMALL_CARD, TABLE, TONE, Invoke, write_card

pytestmark = pytest.mark.end_to_end
Damage = Callable[[Path], dict[str, Any]]


@pytest.fixture
def folder(face_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the faces to damage."""
    place = tmp_path / "data"
    shutil.copytree(face_folder, place)
    return place


def edit_table(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = pd.read_csv(folder / "faces.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    change(table).to_csv(folder / "faces.csv", index=False)


def weights_of(folder: Path, classes: int = 2, **overrides: Any) -> str:
    model = {**SMALL_CARD["model"], "overrides": {**SMALL_CARD["model"]["overrides"], **overrides}}
    save_file(make_architecture(ModelSpec(**model), classes).state_dict(), folder / "w.safetensors")
    return "w.safetensors"


def unknown_key(_: Path) -> dict[str, Any]:
    return {"grups": {}}


def missing_table(folder: Path) -> dict[str, Any]:
    (folder / "faces.csv").unlink()
    return {}


def missing_image(folder: Path) -> dict[str, Any]:
    edit_table(folder, lambda t: t.assign(file=["gone.png"] * 20 + t["file"].tolist()[20:]).drop_duplicates("file"))
    for path in sorted((folder / "images").iterdir())[20:40]:
        path.unlink()
    return {}


def no_annotations(folder: Path) -> dict[str, Any]:
    edit_table(folder, lambda t: t.assign(tone=""))
    return {}


def one_group(folder: Path) -> dict[str, Any]:
    edit_table(folder, lambda t: t.assign(tone="lighter"))
    return {}


def empty_group(_: Path) -> dict[str, Any]:
    return {"groups": {"skin_tone": {**TONE["skin_tone"], "values": ["lighter", "darkre"]}}}


def one_class(folder: Path) -> dict[str, Any]:
    edit_table(folder, lambda t: t.assign(expression="smiling"))
    return {}


def label_not_trained(folder: Path) -> dict[str, Any]:
    parts = ["train", "discovery", "confirmation", "confirmation"] * 40
    edit_table(folder, lambda t: t.assign(part=["discovery" if e == "smiling" and p == "train" else p
                                                for e, p in zip(t["expression"], parts, strict=True)]))  # fmt: skip
    return {"data": {**TABLE, "split": "part"}}


def tiny_images(folder: Path) -> dict[str, Any]:
    for path in sorted((folder / "images").iterdir())[:10]:  # 10 of 160 is over 5%
        Image.new("RGB", (1, 1)).save(path, format="PNG")
    return {}


def missing_column(_: Path) -> dict[str, Any]:
    return {"data": {**TABLE, "label": "expresion"}}


def unknown_outcome(_: Path) -> dict[str, Any]:
    return {"audit": {"outcomes": ["smilling"]}}


def other_architecture(folder: Path) -> dict[str, Any]:
    return {"model": {"weights": weights_of(folder, embed_dim=32)}}


def other_depth(folder: Path) -> dict[str, Any]:
    return {"model": {"weights": weights_of(folder, depth=3)}}


def other_classes(folder: Path) -> dict[str, Any]:
    weights = weights_of(folder, classes=5)
    return {"model": {"weights": weights, "classes": ["neutral", "smiling"]}, "training": "none"}


def not_weights(folder: Path) -> dict[str, Any]:
    torch.save({"model": object}, folder / "w.pth")
    return {"model": {"weights": "w.pth"}}


def missing_weights(_: Path) -> dict[str, Any]:
    return {"model": {"weights": "gone.safetensors"}}


def unsupported_model(_: Path) -> dict[str, Any]:
    return {"model": {"name": "xcit_tiny_12_p16_224"}}


def unknown_model(_: Path) -> dict[str, Any]:
    return {"model": {"name": "vit_tiny_patch16_242"}}


def own_model_without_file(_: Path) -> dict[str, Any]:
    return {"training": "none", "model": {"classes": ["neutral", "smiling"]}}


def missing_controls(_: Path) -> dict[str, Any]:
    return {"controls": {"card": "cifar100", "path": "gone"}, "model": {"weights": "none"}}


def no_training_cell(folder: Path) -> dict[str, Any]:
    """Put all smiling faces of one group into the other splits."""

    def parted(table: pd.DataFrame) -> pd.DataFrame:
        parts = pd.Series(["train", "train", "discovery", "confirmation"] * 40)
        kept_out = (table["expression"] == "smiling") & (table["tone"] == "darker")
        return table.assign(part=parts.where(~(kept_out & (parts == "train")), "discovery"))

    edit_table(folder, parted)
    return {"data": {**TABLE, "split": "part"}, "model": {"weights": "none"}}


def damaged_control_image(folder: Path) -> dict[str, Any]:
    for number, image in enumerate(sorted((folder / "images").iterdir())[:24]):
        place = folder / "objects" / ("train" if number % 3 else "test") / ("cups" if number % 2 else "pens")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(image.read_bytes() if number != 7 else b"no image")
    return {"controls": {"card": "cifar100", "path": "objects"}, "model": {"weights": "none"}}


def missing_control_weights(_: Path) -> dict[str, Any]:
    return {"controls": {"weights": "gone.safetensors"}, "model": {"weights": "none"}}


FAULTS: list[tuple[Damage, list[str]]] = [
    (unknown_key, ["card.yaml:", "unknown key 'grups'", "did you mean 'groups'?"]),
    (missing_table, ["faces.csv", "no such file or folder", "--data"]),
    (missing_image, ["faces.csv", "cannot be read", "%"]),
    (no_annotations, ["groups.skin_tone", "no image has a group", "fill in the column"]),
    (one_group, ["groups.skin_tone", "one group only", "annotate a second group"]),
    (empty_group, ["groups.skin_tone", "no image has the group 'darkre'", "did you mean 'darker'?"]),
    (one_class, ["faces.csv", "one class only ('smiling'", "two labels"]),
    (label_not_trained, ["faces.csv", "'smiling'", "no training image", "add training images"]),
    (tiny_images, ["faces.csv", "10 of 160", "5%"]),
    (missing_column, ["faces.csv", "'expresion'", "did you mean 'expression'?"]),
    (unknown_outcome, ["audit.outcomes", "'smilling' is not a label", "did you mean 'smiling'?"]),
    (other_architecture, ["w.safetensors", "another architecture", "name weights of vit_tiny_patch16_224"]),
    (other_depth, ["w.safetensors", "another architecture", "blocks.2."]),
    (other_classes, ["w.safetensors", "5 outputs", "2 classes", "under model.classes"]),
    (not_weights, ["w.pth", "cannot be read as weights", "w-weights.pth"]),
    (missing_weights, ["gone.safetensors", "no such file or folder", "--data"]),
    (unsupported_model, ["model.name", "'xcit_tiny_12_p16_224' is not supported", "supported: vit_*"]),
    (unknown_model, ["model.name", "vit_tiny_patch16_242", "did you mean vit_tiny_patch16_224"]),
    (own_model_without_file, ["model.weights", "training: none", "name the weights file"]),
    (missing_controls, ["'gone'", "no such file or folder", "--data"]),
]


@pytest.mark.parametrize(("damage", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_one_line_names_place_and_fix(
    folder: Path, tmp_path: Path, invoke: Invoke, damage: Damage, words: list[str]
) -> None:
    card = write_card(folder / "card.yaml", **{"data": TABLE, "groups": TONE, **damage(folder)})
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    message = result.stderr.splitlines()[-1]
    for word in words:
        assert word in message
    assert ";" in message
    assert "Traceback" not in result.output
    assert "internal error" not in result.output
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    debug = invoke("run", card, "--out", tmp_path / "out", "--debug")
    assert debug.exit_code == 2
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.splitlines()[-1] == message


def test_every_fault_of_a_card_at_once(tmp_path: Path, invoke: Invoke) -> None:
    card = write_card(tmp_path / "card.yaml", grups={}, policy={"gap_above": "much"}, task="emotions")
    result = invoke("check", card)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{card}:") for line in lines)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (unsupported_model, "'xcit_tiny_12_p16_224' is not supported"),
        (unknown_model, "did you mean vit_tiny_patch16_224"),
        (missing_controls, "'gone': no such file or folder"),
        (no_training_cell, "no training image"),
        (damaged_control_image, "train/cups/7.png"),
        (missing_control_weights, "gone.safetensors"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_check_refuses_what_a_run_would(folder: Path, invoke: Invoke, damage: Damage, said: str) -> None:
    card = write_card(folder / "card.yaml", **{"data": TABLE, "groups": TONE, **damage(folder)})
    result = invoke("check", card)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()[-1:]
    assert said in line
    assert [line] == invoke("run", card, "--out", folder / "out").stderr.splitlines()[-1:]
    assert not (folder / "out").exists()


@pytest.mark.parametrize("command", ["run", "check"])
def test_missing_card(tmp_path: Path, invoke: Invoke, command: str) -> None:
    result = invoke(command, tmp_path / "no.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        f"{tmp_path / 'no.yaml'}: no such card; built-in cards: {', '.join(sorted(built_in_cards()))}; "
        "'vit-audit init PATH' writes a first card\n"
    )


@pytest.mark.parametrize("command", ["run", "check"])
def test_missing_data_folder(tmp_path: Path, invoke: Invoke, command: str) -> None:
    result = invoke(command, "synthetic-expressions", "--data", tmp_path / "gone")
    assert result.exit_code == 2
    assert (
        result.stderr.splitlines()[-1] == f"{tmp_path / 'gone'}: no such data folder; correct --data or VIT_AUDIT_DATA"
    )


def test_mixed_modes_bom_and_stray_column_are_no_fault(folder: Path, invoke: Invoke) -> None:
    assert (folder / "faces.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    modes = {Image.open(io.BytesIO(p.read_bytes())).mode for p in (folder / "images").iterdir()}
    assert {"RGB", "L", "P", "RGBA", "CMYK", "1"} <= modes
    result = invoke("check", write_card(folder / "card.yaml", data=TABLE, groups=TONE))
    assert result.exit_code == 0, result.output
    assert "160 images" in result.stdout
    assert "unreadable: 0 images" in result.stdout


def test_a_few_bad_images_are_quarantined_and_listed(folder: Path, invoke: Invoke) -> None:
    images = sorted((folder / "images").iterdir())
    Image.new("RGB", (1, 1)).save(images[0], format="PNG")
    images[1].write_bytes(b"no image")
    result = invoke("check", write_card(folder / "card.yaml", data=TABLE, groups=TONE))
    assert result.exit_code == 0, result.output
    assert "158 images" in result.stdout
    assert "unreadable: 2 images" in result.stdout
    assert images[0].name in result.stdout
