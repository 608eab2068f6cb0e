"""Whole audits of models that are not timm's plain ViT: three that are trained, and a folder as it is."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pypdf
import pytest
import torch
from torch.nn import functional as F

from audit.data.pixels import centred_square, load_pixels
from audit.data.synthetic import SyntheticSource, sample_faces
from tests.end_to_end.conftest import Invoke, write_card
from tests.small_world import without_pdf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.end_to_end
SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "overrides": {"patch_size": 8, "window_size": 4, "depths": [1, 1], "embed_dim": 32, "num_heads": [2, 4]},
}

CONVNEXT = {
    "name": "convnext_tiny",
    "overrides": {"depths": [1, 1, 1, 1], "dims": [16, 32, 32, 64], "ls_init_value": 0.5},
    "channel_slices": 4,
}


RESNET = {"name": "resnet18", "overrides": {"layers": [1] * 4, "channels": [16, 32, 64, 64]}, "channel_slices": 4}
LONGER = {"base_epochs": 20, "condition_epochs": 8, "learning_rate": 5e-3, "batch_size": 64}  # of its controls


def record_of(out: Path) -> tuple[Path, dict[str, Any]]:
    (folder,) = out.iterdir()
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return folder, record


def assert_sound(invoke: Invoke, out: Path) -> dict[str, Any]:
    """Check that controls passed, that what the run holds gives what it says, and that a finding can be repeated."""
    folder, record = record_of(out)
    failed = [c["id"] for c in record["controls"]["controls"] if not c["passed"] and c["gates"] == "audit"]
    assert failed == []
    with without_pdf():
        assert invoke("verify", folder).exit_code == 0
    for kind in ("disparity", "head"):
        found = next((f["id"] for f in record["findings"] if f["kind"] == kind), None)
        if found is not None:
            result = invoke("reproduce", folder, found)
            assert result.exit_code == 0, result.output
    return record


@pytest.mark.long
@pytest.mark.usefixtures("no_pdf")
def test_a_swin_is_trained_and_audited(invoke: Invoke, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card.yaml", model=SWIN)
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1, 4), result.output
    record = assert_sound(invoke, tmp_path / "out")
    assert record["model"]["heads_by_layer"] == [2, 4]
    assert {(h["layer"], h["head"]) for h in record["heads"]} == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)}
    page = next((tmp_path / "out").iterdir()) / "report.html"
    assert "2 layers of 2 to 4 heads" in page.read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.usefixtures("no_pdf")
def test_a_convnext_is_trained_and_audited(invoke: Invoke, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card.yaml", model=CONVNEXT)
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1, 4), result.output
    record = assert_sound(invoke, tmp_path / "out")
    assert {h["name"] for h in record["heads"]} == {f"L{layer}C{k}" for layer in range(4) for k in range(4)}


@pytest.mark.long
def test_a_resnet_is_trained_and_audited_in_words_of_its_own(invoke: Invoke, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card.yaml", model=RESNET, controls=LONGER)
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1, 4), result.output
    record = assert_sound(invoke, tmp_path / "out")
    assert (record["model"]["unit"], record["model"]["heads_by_layer"]) == ("slice", [4] * 4)
    (folder,) = (tmp_path / "out").iterdir()
    page = (folder / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert "slices of channels" in words.lower()
    printed = "\n".join(sheet.extract_text() for sheet in pypdf.PdfReader(folder / "report.pdf").pages)
    assert "slices of channels" in printed.lower()
    card = json.loads((folder / "exports" / "model-card.cdx.json").read_text(encoding="utf-8"))
    (model,) = (c for c in card["components"] if "modelCard" in c)
    assert model["modelCard"]["modelParameters"]["architectureFamily"] == "convolutional network"
    exported = [path.read_text(encoding="utf-8") for path in (folder / "exports").iterdir()]
    for text in (words, printed, result.output, *exported):
        # But for names of fields and files: /heads/0, heads.csv.
        assert re.findall(r"(?<![/\w])heads?\b(?!\.csv)", text, flags=re.IGNORECASE) == []


def trained_folder(where: Path) -> Path:
    """Train a small ViT of Hugging Face on rendered faces whose darker ones smile less often, and save it."""
    config = hf.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=64, patch_size=16,
        id2label={0: "neutral", 1: "smiling"}, label2id={"neutral": 0, "smiling": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = hf.ViTForImageClassification(config)
    faces = sample_faces(600, 3, split="train", association=0.5)
    pixels = load_pixels(SyntheticSource(faces), faces["image"].tolist(), centred_square(64))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    targets = torch.from_numpy((faces["expression"] == "smiling").to_numpy().astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        for part in torch.randperm(len(images)).split(32):
            loss = F.cross_entropy(model(pixel_values=images[part]).logits, targets[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(where)
    normal = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (where / "preprocessor_config.json").write_text(json.dumps(normal), encoding="utf-8")
    return where


@pytest.mark.long
@pytest.mark.usefixtures("no_pdf")
def test_a_hugging_face_folder_is_audited_as_it_is(invoke: Invoke, tmp_path: Path) -> None:
    trained_folder(tmp_path / "my-vit")
    card = write_card(tmp_path / "card.yaml", training="none")
    text = card.read_text(encoding="utf-8")
    start, end = text.index("model:"), text.index("training:")
    card.write_text(f"{text[:start]}model: {{name: huggingface, weights: my-vit}}\n{text[end:]}", encoding="utf-8")
    assert invoke("check", card).exit_code == 0
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1, 4), result.output
    record = assert_sound(invoke, tmp_path / "out")
    assert record["model"]["classes"] == ["neutral", "smiling"]
    assert record["model"]["accuracy_by_seed"][0] > 0.7
    (run,) = (tmp_path / "out").iterdir()
    assert "_name_or_path" not in (run / "models" / "huggingface" / "config.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in (run / "report.html").read_text(encoding="utf-8")
