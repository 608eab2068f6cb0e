"""From a checkpoint to a card: what ``inspect`` prints is pasted, checked and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from audit.exit_codes import ExitCode
from tests.end_to_end.conftest import SMALL_CARD, TABLE, TONE, Invoke, Run

pytestmark = pytest.mark.end_to_end
LABELS = ["neutral", "smiling"]


def lightning(weights: Path, folder: Path) -> Path:
    """Write weights as a checkpoint of Lightning: under an attribute of its module, half as long, settings beside."""
    state = {f"net.backbone.{name}": tensor.half() for name, tensor in load_file(weights).items()}
    content = {
        "state_dict": {**state, "criterion.weight": torch.ones(2)},
        "hyper_parameters": {"num_heads": SMALL_CARD["model"]["overrides"]["num_heads"], "lr": 1e-3},
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def pasted(snippet: str, folder: Path) -> Path:
    """Paste what ``inspect`` printed into a card; its classes are named by whoever knows them."""
    sections: dict[str, Any] = yaml.safe_load(snippet)
    assert sections["model"]["classes"] == ["class 0", "class 1"]
    path = folder / "pasted.yaml"
    card = {
        "name": "A checkpoint of Lightning",
        "data": TABLE,
        "groups": TONE,
        "model": {**sections["model"], "classes": LABELS},
        "training": sections["training"],
        "controls": {**SMALL_CARD["controls"], "weights": "rendered"},
        "audit": {**SMALL_CARD["audit"], "min_group_size": 20},
    }
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.long
@pytest.mark.usefixtures("no_pdf")
def test_a_checkpoint_of_lightning_is_audited_by_the_card_that_is_printed(
    small_run: Run, face_folder: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """The model is that of the small audit, which knows its labels: every control passes, and groups are compared."""
    said = invoke("inspect", lightning(small_run.folder / "models" / "seed-0.safetensors", tmp_path))
    assert said.exit_code == ExitCode.DONE
    for line in ("before all names: net.backbone.", "left over: criterion.weight", "classes: 2"):
        assert line in said.stdout.splitlines()
    card = pasted(said.stdout.partition("card:\n")[2], face_folder)
    checked = invoke("check", card)
    assert checked.exit_code == ExitCode.DONE, checked.output
    line = next(line for line in checked.stdout.splitlines() if line.startswith("model.weights: "))
    read = "PyTorch, its entry 'state_dict'; 'net.backbone.' taken off the names of tensors"
    assert line.startswith(f"model.weights: {read}; left over: 1 tensor (criterion.weight); stored as float16")
    assert line.endswith("loaded as float32")
    done = invoke("run", card, "--out", tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert (done.exit_code, record["outcome"]) == (ExitCode.DISPARITY, "DISPARITY FOUND"), done.output
    controls = record["controls"]
    assert controls["valid"] and {c["channel"] for c in controls["controls"]} >= {"colour", "blur"}
    assert [c["id"] for c in controls["controls"] if not c["passed"] and c["gates"] == "audit"] == []
    assert record["heads"] and record["rates"]
    loaded = record["model"]["loaded"]
    assert (loaded["stripped"], loaded["left_over"]) == ("net.backbone.", ["criterion.weight"])
    assert loaded["stored"]["float16"] == len(load_file(small_run.folder / "models" / "seed-0.safetensors"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "A checkpoint of Lightning" in page and "DISPARITY FOUND" in page
    assert invoke("verify", folder).exit_code == ExitCode.DONE


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
