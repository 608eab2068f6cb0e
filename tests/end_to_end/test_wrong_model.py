"""A model that is not the one in use: what a swapped class order, a constant answer or a damaged file ends in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from audit.exit_codes import ExitCode
from audit.records import ChanceReason
from tests.end_to_end.conftest import Invoke, write_card

pytestmark = pytest.mark.end_to_end
LABELS = ("neutral", "happiness")
DATA = {"reader": "table", "path": "faces.csv", "image": "file", "label": "expression", "subject": "person"}
GROUPS = {"skin_tone": {"column": "gender", "assigned_by": "made up", "reference": "male"}}
State = dict[str, torch.Tensor]


def tiny(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=2, img_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=4
    ).eval()


def learnt(pixels: np.ndarray, answers: np.ndarray) -> torch.nn.Module:
    """Return a model that knows the answers to these images by heart."""
    model = tiny().train()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    step = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(60):
        step.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.from_numpy(answers)).backward()
        step.step()
    model.eval()
    with torch.inference_mode():
        assert (model(images).argmax(1).numpy() == answers).all()
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 80 pictures whose bar is the label and whose tint is the group, and a model that knows the labels."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    number = np.arange(80)
    group, label = number % 2, number // 2 % 2
    pixels = rng.integers(0, 120, (80, 64, 64, 3)).astype(np.uint8)
    for i in number:
        pixels[i, ..., group[i]] += 60
        top = 16 if label[i] else 32
        pixels[i, top : top + 16, 16:48] = 230 if label[i] else 20
        Image.fromarray(pixels[i]).save(folder / f"{i:03d}.png")
    pd.DataFrame(
        {
            "file": [f"{i:03d}.png" for i in number],
            "expression": np.array(LABELS)[label],
            "gender": np.array(["male", "female"])[group],
            "person": [f"p{i:03d}" for i in number],
        }
    ).to_csv(folder / "faces.csv", index=False)
    save_file(learnt(pixels, label).state_dict(), folder / "label.safetensors")
    return folder


def card_of(pictures: Path, place: Path, weights: str, classes: tuple[str, ...] = LABELS, **model: Any) -> Path:
    """Write a card that audits ``weights`` as they are."""
    return write_card(
        place / "card.yaml", data={**DATA, "path": str(pictures / "faces.csv")}, groups=GROUPS,
        model={"weights": weights, "classes": list(classes), **model}, training="none",
        controls={"weights": "rendered"}, audit={"min_group_size": 10, "outcomes": ["happiness"]},
    )  # fmt: skip


def loaded(path: Path) -> State:
    state: State = load_file(path)
    return state


def audited(invoke: Invoke, card: Path, out: Path) -> tuple[int, str, dict[str, Any]]:
    result = invoke("run", card, "--out", out, "--no-report")
    assert out.exists(), result.output
    (folder,) = out.iterdir()
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return result.exit_code, " ".join(result.stdout.split()), record


def test_classes_in_another_order_are_invalid_and_the_order_is_named(
    pictures: Path, tmp_path: Path, invoke: Invoke
) -> None:
    card = card_of(pictures, tmp_path, str(pictures / "label.safetensors"), LABELS[::-1])
    code, said, record = audited(invoke, card, tmp_path / "out")
    assert (code, record["outcome"]) == (ExitCode.INVALID, "INVALID")
    control = next(c for c in record["controls"]["controls"] if c["check"] == "knows_labels")
    assert (control["passed"], control["reason"]) == (False, ChanceReason.CLASS_ORDER)
    assert control["names"] == list(LABELS)
    assert control["estimate"]["value"] == 0.0
    assert "neutral, happiness" in said
    assert record["findings"] == record["rates"] == []


def test_a_constant_answer_is_never_passed_and_named(pictures: Path, tmp_path: Path, invoke: Invoke) -> None:
    state = loaded(pictures / "label.safetensors")
    save_file({**state, "head.bias": torch.tensor([60.0, 0.0])}, tmp_path / "dead.safetensors")
    code, said, record = audited(invoke, card_of(pictures, tmp_path, "dead.safetensors"), tmp_path / "out")
    control = next(c for c in record["controls"]["controls"] if c["check"] == "knows_labels")
    assert (control["reason"], control["form"]) == (ChanceReason.CONSTANT, "")
    assert control["estimate"]["value"] == 0.5
    assert (code, record["outcome"]) == (ExitCode.TOO_LITTLE_DATA, "INCONCLUSIVE")
    assert "it always gives one answer" in said


@pytest.mark.usefixtures("no_pdf")
def test_nothing_is_trained_for_a_model_with_one_answer(pictures: Path, tmp_path: Path, invoke: Invoke) -> None:
    """One answer for every image is one for every group, whatever the controls would say."""
    state = loaded(pictures / "label.safetensors")
    save_file({**state, "head.bias": torch.tensor([60.0, 0.0])}, tmp_path / "dead.safetensors")
    code, said, record = audited(invoke, card_of(pictures, tmp_path, "dead.safetensors"), tmp_path / "out")
    assert (code, [reason["code"] for reason in record["reasons"]]) == (ExitCode.TOO_LITTLE_DATA, ["not above chance"])
    assert "nothing was compared or patched, and no control was trained" in said
    assert [control["check"] for control in record["controls"]["controls"]] == ["knows_labels"]
    assert record["rates"] == record["contrasts"] == record["heads"] == record["findings"] == []
    assert record["accuracy"][0]["accuracy"]["value"] == 0.5
    (run,) = (tmp_path / "out").iterdir()
    assert {path.name for path in (run / "effects").iterdir()} == {"samples.parquet", "unpatched.parquet"}
    assert {path.name for path in (run / "models").iterdir()} == {"audited.safetensors"}
    assert invoke("render", run).exit_code == 0
    assert "The method passed its own tests" not in (run / "report.html").read_text(encoding="utf-8")
    assert invoke("verify", run).stdout.startswith("verified: ")


def not_finite(state: State, path: Path) -> None:
    torch.save({**state, "blocks.1.mlp.fc1.bias": torch.full((256,), float("nan"))}, path)


def two_sets(state: State, path: Path) -> None:
    torch.save({"state_dict": state, "state_dict_ema": {k: v + 1 for k, v in state.items()}}, path)


def with_a_neck(state: State, path: Path) -> None:
    wrapped = {f"teacher.body.{k}": v for k, v in state.items()}
    torch.save({"state_dict": {**wrapped, "neck.weight": torch.eye(8)}}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (not_finite, "blocks.1.mlp.fc1.bias holds NaN"),
        (two_sets, "model.state: ema, or raw"),
        (with_a_neck, "neck.weight"),
    ],
)
def test_weights_are_blamed_by_check_as_by_run_before_anything_is_trained(
    pictures: Path, tmp_path: Path, invoke: Invoke, damage: Callable[[State, Path], None], words: str
) -> None:
    damage(loaded(pictures / "label.safetensors"), tmp_path / "mine.pth")
    card = card_of(pictures, tmp_path, "mine.pth")
    checked, ran = invoke("check", card), invoke("run", card, "--out", tmp_path / "out")
    assert checked.exit_code == ran.exit_code == ExitCode.BAD_INPUT
    for result in (checked, ran):
        line = result.stderr.splitlines()[-1]
        assert line.startswith(str(tmp_path / "mine.pth"))
        assert words in line
    assert "controls" not in ran.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_byte_identical_images_are_warned_of_where_the_outcome_is_told(
    pictures: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """All 80 pictures are one and the same: whatever the answer, it is constant, and the terminal says why."""
    folder = tmp_path / "same"
    folder.mkdir()
    one = (pictures / "000.png").read_bytes()
    for i in range(80):
        (folder / f"{i:03d}.png").write_bytes(one)
    (folder / "faces.csv").write_bytes((pictures / "faces.csv").read_bytes())
    card = card_of(folder, tmp_path, str(pictures / "label.safetensors"))
    code, said, record = audited(invoke, card, tmp_path / "out")
    assert record["outcome"] != "PASSED"
    assert code in (ExitCode.INVALID, ExitCode.TOO_LITTLE_DATA)
    assert "80 of 80 images are byte-identical" in said
    assert "80 of 80 images are byte-identical" in " ".join(invoke("check", card).stdout.split())
