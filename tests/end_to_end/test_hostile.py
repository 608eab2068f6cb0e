"""Hostile input and surroundings, through the command line: nothing is run, fetched, believed or given away.

Each promise, and where else it is tried:

- No path leaves the folder of the data: tests/data/test_quality.py, test_readers.py (``..``, absolute, links).
- Nothing is unpickled: tests/test_hostile.py (source), tests/models/test_checkpoint.py, tests/data/test_cifar100.py.
- Bombs and truncated files are set aside: tests/data/test_quality.py, and here.
- Aliases and huge cards are refused: tests/card/test_load.py, tests/test_hostile.py.
- Templates escape: tests/report/test_html.py, test_pdf.py, and here.
- The printer fetches nothing: tests/test_hostile.py. No network at run time, no secrets, no paths: here.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import lxml.html
import pandas as pd
import pytest
from PIL import Image

from tests.data.test_quality import bomb
from tests.end_to_end.conftest import TABLE, TONE, Invoke, Run, write_card
from tests.end_to_end.words import files_of, words_of

pytestmark = pytest.mark.end_to_end
SCRIPT, FORMULA, BRACES = "<script>alert(1)</script>", '=HYPERLINK("//evil","x")', "{{7*7}}{% include 'x' %}"


@pytest.fixture
def folder(face_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the faces to damage."""
    place = tmp_path / "data"
    shutil.copytree(face_folder, place, ignore=shutil.ignore_patterns("*.safetensors", "*.yaml"))
    return place


def test_bombs_truncated_files_and_links_out_are_set_aside_and_the_rest_is_counted(
    folder: Path, tmp_path: Path, invoke: Invoke
) -> None:
    images = sorted((folder / "images").iterdir())
    images[0].write_bytes(bomb())
    page = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(page, "JPEG")
    images[1].write_bytes(page.getvalue()[:-400])
    Image.new("1", (16_000, 16_000)).save(images[2], "PNG")  # 256 million pixels in 31 kB
    (tmp_path / "private.png").write_bytes(images[9].read_bytes())
    images[3].unlink()
    images[3].symlink_to(tmp_path / "private.png")
    card = write_card(folder / "card.yaml", data=TABLE, groups=TONE)
    result = invoke("check", card)
    assert result.exit_code == 0, result.output
    assert "156 images" in result.stdout
    assert "unreadable: 4 images" in result.stdout
    for reason in ("over 50,000,000 pixels", "damaged or truncated image", "link out of its folder"):
        assert reason in result.stdout
    assert "157 images" in invoke("check", write_card(card, data={**TABLE, "links": True}, groups=TONE)).stdout


@pytest.mark.parametrize("path", ["../private.png", "/etc/hostname", "C:\\private.png", "http://evil.example/a.png"])
def test_a_table_that_names_files_elsewhere_is_refused(folder: Path, invoke: Invoke, path: str) -> None:
    table = pd.read_csv(folder / "faces.csv", dtype=str, encoding="utf-8-sig")
    table.loc[5, "file"] = path
    table.to_csv(folder / "faces.csv", index=False)
    result = invoke("check", write_card(folder / "card.yaml", data=TABLE, groups=TONE))
    assert result.exit_code == 2
    assert f"image path '{path}'" in result.stderr
    assert "write paths relative to the table's folder" in result.stderr


@pytest.mark.usefixtures("no_pdf")
def test_words_that_are_code_elsewhere_stay_words(folder: Path, tmp_path: Path, invoke: Invoke) -> None:
    """As label, group, subject, and in the card's own text; the PDF of such words is in tests/report/test_pdf.py."""
    table = pd.read_csv(folder / "faces.csv", dtype=str, encoding="utf-8-sig")
    table["expression"] = table["expression"].map({"smiling": SCRIPT, "neutral": FORMULA})
    table["tone"] = table["tone"].map({"lighter": BRACES, "darker": "</td><img src=x onerror=alert(1)>"})
    table["who"] = SCRIPT + table["who"]
    table.to_csv(folder / "faces.csv", index=False)
    tone = {"skin_tone": {**TONE["skin_tone"], "reference": BRACES, "assigned_by": SCRIPT}}
    card = write_card(
        folder / "card.yaml", data=TABLE, groups=tone, intended_use=BRACES, name=f"{SCRIPT} {BRACES}",
        audit={"outcomes": [SCRIPT], "min_group_size": 4}, report={"run_by": SCRIPT},
    )  # fmt: skip
    assert SCRIPT in invoke("check", card).stdout
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1, 4), result.output
    (run,) = (tmp_path / "out").iterdir()
    source = (run / "report.html").read_text(encoding="utf-8")
    page = lxml.html.fromstring(source)
    assert len(page.xpath("//script[not(@type)]")) == 1
    assert page.xpath("//*[@onerror]") == []
    assert SCRIPT not in source
    assert SCRIPT in page.text_content()
    assert "{{7*7}}" in page.text_content()
    for path in (run / "tables").glob("*.csv"):
        cells = [str(c) for c in pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel()]
        assert not [c for c in cells if c.startswith(("=", "@"))], path.name
    assert invoke("verify", run).exit_code == 0


@pytest.mark.long
def test_a_run_and_all_that_follows_need_no_network(
    small_run: Run, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_named: Any) -> Any:
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    card = write_card(tmp_path / "card.yaml", training={"epochs": 1})
    assert invoke("check", card).exit_code == 0
    result = invoke("run", card, "--out", tmp_path / "out", "--no-report")
    assert result.exit_code in (0, 1, 3, 4), result.output
    (run,) = (tmp_path / "out").iterdir()
    assert invoke("render", run).exit_code == 0
    assert invoke("verify", run).exit_code == 0
    finding = small_run.record["findings"][0]["id"]
    assert invoke("reproduce", small_run.folder, finding).exit_code == 0
    assert invoke("diff", small_run.folder, run, "--out", tmp_path / "diff").exit_code == 0


SECRETS = {
    "HF_TOKEN": "hf_qzWJpVbTnXcRkLmYdGsH",
    "HUGGING_FACE_HUB_TOKEN": "hf_aYbXcWdVeUfTgShRiQjP",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIbPxRfiCYzqrEXAMPLE",
    "USER": "ottoline-quimby",
    "LOGNAME": "ottoline-quimby",
    "HOSTNAME": "quimbys-laptop",
}


def test_secrets_and_folders_of_this_machine_are_in_no_file_of_a_run(
    folder: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages, record, tables, models, log: nothing tells who ran it where."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for asked in ("socket.gethostname", "platform.node"):
        monkeypatch.setattr(asked, lambda: SECRETS["HOSTNAME"])
    home = tmp_path / "home-of-quimby"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    card = write_card(tmp_path / "cards" / "card.yaml", data=TABLE, groups=TONE, audit={"min_group_size": 4})
    result = invoke("run", card, "--data", folder, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1, 4), result.output
    (run,) = (tmp_path / "out").iterdir()
    said = words_of(run)
    assert "faces.csv" in said
    places = [home, folder, tmp_path, Path.cwd(), Path.home(), Path("~").expanduser()]
    assert [x for x in [*SECRETS.values(), *map(str, places)] if x in said] == []


@pytest.mark.long
def test_an_absolute_path_of_a_card_stands_in_the_card_alone(named_run: Run, named_folder: Path) -> None:
    """The run keeps its card as it was written; what is read and handed on does not repeat where the files lay."""
    holding = {name for name, content in files_of(named_run.folder).items() if str(named_folder).encode() in content}
    assert holding == {"card.yaml", "preregistration.json"}
    assert json.loads((named_run.folder / "audit.json").read_text())["data"]["source"]["path"] == "faces.csv"
