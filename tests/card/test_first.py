"""A first card is guessed, commented and loadable."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from audit.card import first_card, load_card
from audit.errors import DataError

pytestmark = pytest.mark.unit

FACES = pd.DataFrame(
    {
        "img": [f"images/{n}.jpg" for n in range(120)],
        "emotion": ["neutral", "happy", "neutral", "happy"] * 29 + ["neutral", "no", "no", "no"],
        "gender": ["female", "male"] * 60,
        "skinTone": ["1", "2", None] * 40,
        "age": [str(n) for n in range(120)],
        "person_id": [f"p{n // 2}" for n in range(120)],
        "source": ["a"] * 120,
    }
)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_table_is_guessed(tmp_path: Path, suffix: str) -> None:
    table = tmp_path / f"faces.{suffix}"
    if suffix == "parquet":
        FACES.to_parquet(table)
    else:
        FACES.to_csv(table, index=False, sep="\t" if suffix == "tsv" else ",")
    text = first_card(table, card_folder=tmp_path)
    assert text == first_card(table, card_folder=tmp_path)
    card = load_card(_write(tmp_path, text))
    assert (card.data.path, card.data.image, card.data.label) == (f"faces.{suffix}", "img", "emotion")
    assert card.data.subject == "person_id"
    assert card.data.labels == ["neutral", "happy"]
    assert list(card.groups) == ["gender", "skinTone"]  # 120 ages are no groups
    assert card.task == "emotion"
    assert text.count("FILL IN: who assigned the groups") == 2
    assert "donors are matched on: age, source" in text


def _write(folder: Path, text: str) -> Path:
    path = folder / "dataset.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    table = tmp_path / "a: b #c.csv"
    rows = ['file,label,gender,"x: [y\nz"']
    rows += [f"{n}.png,{label},{'on' if n % 2 else '1'},q" for n, label in enumerate(["no", "~"] * 40)]
    table.write_text("\n".join(rows), encoding="utf-8")
    card = load_card(_write(tmp_path, first_card(table, card_folder=tmp_path)))
    assert card.data.path == "a: b #c.csv"
    assert sorted(card.data.labels or []) == ["no", "~"]


def test_image_paths_without_a_suffix_are_known_by_the_files(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"scan{n}").touch()
    frame = pd.DataFrame({"scan": [f"scan{n}" for n in range(4)], "label": list("abab"), "sex": list("mffm")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert load_card(_write(tmp_path, first_card(tmp_path / "t.csv"))).data.image == "scan"


def test_class_folders_without_annotations_say_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "data" / "happy").mkdir(parents=True)
    text = first_card(tmp_path / "data", card_folder=tmp_path)
    card = load_card(_write(tmp_path, text))
    assert (card.data.reader, card.data.path) == ("folder", "data")
    assert "Write groups.csv into the folder" in text


def test_class_folders_with_annotations(tmp_path: Path) -> None:
    (tmp_path / "happy").mkdir()
    FACES.rename(columns={"img": "image"}).to_csv(tmp_path / "groups.csv", index=False)
    card = load_card(_write(tmp_path, first_card(tmp_path)))
    assert list(card.groups) == ["gender", "skinTone"]
    assert card.data.subject == "person_id"


@pytest.mark.parametrize(
    ("dropped", "kind"), [("img", "image"), ("emotion", "label"), ("gender", "group")], ids=lambda v: str(v)
)
def test_what_cannot_be_guessed_lists_the_columns(tmp_path: Path, dropped: str, kind: str) -> None:
    table = tmp_path / "faces.csv"
    frame = FACES.drop(columns=[dropped, "skinTone"])
    frame.to_csv(table, index=False)
    with pytest.raises(DataError) as caught:
        first_card(table)
    assert f"which column holds the {kind} among {', '.join(frame.columns)}" in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder; name a table"):
        first_card(tmp_path / "none.csv")
    FACES.to_csv(tmp_path / "faces.csv", index=False)
    with pytest.raises(DataError, match=r"holds no class folders; did you mean the table 'faces\.csv' in it\?"):
        first_card(tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["expressions/faces.csv", "emoji-actions/actions.csv", "cifar100-20"])
def test_real_data_get_a_card(tmp_path: Path, name: str) -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    text = first_card(path, card_folder=tmp_path)
    assert yaml.safe_load(text)["groups"]["gender"]["column"] == "gender"
    assert load_card(_write(tmp_path, text)).groups
