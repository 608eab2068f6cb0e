"""From a checkpoint to a card: what ``inspect`` prints is pasted, checked and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from PIL import Image

from audit.exit_codes import ExitCode
from tests.end_to_end.conftest import Invoke, write_card
from tests.models_for_tests import enlarged

pytestmark = pytest.mark.end_to_end
LABELS = ["neutral", "happiness"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 80 pictures of noise, whose labels and groups take turns."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    number = np.arange(80)
    for i in number:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    labels, groups = np.array(LABELS)[number // 2 % 2], np.array(["a", "b"])[number % 2]
    table = {"file": [f"{i}.png" for i in number], "label": labels, "group": groups, "person": number}
    pd.DataFrame(table).to_csv(folder / "table.csv", index=False)
    return folder


def pasted(snippet: str, pictures: Path, place: Path) -> Path:
    """Paste what ``inspect`` printed into a card; its classes are named by whoever knows them."""
    sections: dict[str, Any] = yaml.safe_load(snippet)
    assert sections["model"]["classes"] == ["class 0", "class 1"]
    sections["model"]["classes"] = LABELS
    return write_card(
        place / "card.yaml",
        data={
            "reader": "table",
            "path": str(pictures / "table.csv"),
            "image": "file",
            "label": "label",
            "subject": "person",
        },
        groups={"skin_tone": {"column": "group", "assigned_by": "made up", "reference": "a"}},
        controls={"weights": "rendered"},
        audit={"min_group_size": 10, "outcomes": ["happiness"]},
        **sections,
    )


def lightning(folder: Path) -> Path:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
    model = enlarged(timm.create_model("vit_tiny_patch16_224", num_classes=2, **sizes), 0)
    state = {f"net.backbone.{k}": v.half() for k, v in model.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(2)}}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_the_printed_card_is_accepted_and_the_record_says_how_weights_were_read(
    pictures: Path, tmp_path: Path, invoke: Invoke
) -> None:
    said = invoke("inspect", lightning(tmp_path))
    assert said.exit_code == ExitCode.DONE
    for line in ("before all names: net.backbone.", "left over: criterion.weight", "classes: 2"):
        assert line in said.stdout.splitlines()
    card = pasted(said.stdout.partition("card:\n")[2], pictures, tmp_path)
    checked = invoke("check", card)
    assert checked.exit_code == ExitCode.DONE, checked.output
    line = next(line for line in checked.stdout.splitlines() if line.startswith("model.weights: "))
    read = "PyTorch, its entry 'state_dict'; 'net.backbone.' taken off the names of tensors"
    assert line.startswith(f"model.weights: {read}; left over: 1 tensor (criterion.weight); stored as float16")
    assert line.endswith("loaded as float32")
    invoke("run", card, "--out", tmp_path / "out", "--no-report")
    (record,) = (tmp_path / "out").glob("*/audit.json")
    loaded = json.loads(record.read_text(encoding="utf-8"))["model"]["loaded"]
    assert (loaded["stripped"], loaded["left_over"]) == ("net.backbone.", ["criterion.weight"])
    assert loaded["stored"]["float16"] == len(timm.create_model("vit_tiny_patch16_224", depth=2).state_dict())


@pytest.mark.parametrize("content", [b"hello", b""])
def test_what_is_no_checkpoint_ends_in_one_line(content: bytes, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    said = invoke("inspect", tmp_path / "w.pth")
    assert (said.exit_code, said.stdout) == (ExitCode.BAD_INPUT, "")
    assert said.stderr.count("\n") == 1
    assert "cannot be read as weights" in said.stderr


def test_names_that_would_move_the_cursor_are_shown(tmp_path: Path, invoke: Invoke) -> None:
    torch.save({"a\x1b[2J.weight": torch.zeros(2, 2), "b\nc": torch.zeros(2)}, tmp_path / "w.pth")
    said = invoke("inspect", tmp_path / "w.pth")
    assert said.exit_code == ExitCode.DONE
    assert "\x1b" not in said.stdout
    assert "left over: a\\x1b[2J.weight, b\\nc" in said.stdout.splitlines()
