"""Image processors of Hugging Face folders: which file names one, and what the library takes where none does."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vit_audit as va
from audit.card.schema import ModelSpec
from audit.models.build import Backbone
from audit.models.converters import kept_configuration
from audit.models.predict import predict
from tests.models.small_towers import write_tokenizer
from tests.models.test_preprocessing import MLP, SIDE, THREE, drawn, files, library_logits, near, rgb

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

__all__ = ["files"]
pytestmark = pytest.mark.unit
in_one_file = pytest.mark.skipif(
    not hasattr(hf, "ViTImageProcessorPil"), reason="before version 5 transformers does not save it in one file"
)


def processor_of(folder: Path) -> Callable[[Image.Image], torch.Tensor]:
    """Return what the folder's own processor makes of an image."""
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def whole_clip(folder: Path) -> Any:
    """Save a CLIP with its whole processor, whose images are not those that CLIP's are by default."""
    write_tokenizer(folder)
    tokenizer = hf.CLIPTokenizer.from_pretrained(folder)
    half: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    images = hf.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, **half)
    hf.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    model = drawn(hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=MLP | {"image_size": 40}, **THREE)))
    model.save_pretrained(folder)
    return model


@in_one_file
def test_a_whole_processor_in_one_file(files: list[Path], tmp_path: Path) -> None:
    model = whole_clip(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    net = va.load_model({"name": "huggingface", "weights": str(tmp_path)})
    near(net.predict(files), library_logits(model, processor_of(tmp_path), files))
    seen = net.preprocessing
    assert (seen.source, seen.input_size, seen.mean) == ("weights", [3, 40, 40], [0.5] * 3)
    found = va.inspect_checkpoint(tmp_path).preprocessing
    assert found is not None
    assert (found.source, found.settings["image_mean"]) == ("processor_config.json", [0.5] * 3)


@in_one_file
def test_a_run_keeps_the_whole_processor(tmp_path: Path) -> None:
    whole_clip(tmp_path)
    kept = kept_configuration("huggingface", tmp_path)
    assert set(kept) == {"config.json", "processor_config.json"}
    assert json.loads(kept["processor_config.json"])["image_processor"]["image_mean"] == [0.5] * 3


def test_what_the_file_leaves_open_the_processors_class_says(files: list[Path], tmp_path: Path) -> None:
    model = drawn(hf.ViTForImageClassification(hf.ViTConfig(**MLP, **THREE)))
    model.save_pretrained(tmp_path)
    stated = {"image_processor_type": "ViTImageProcessor", "size": SIDE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated), encoding="utf-8")
    found = va.load_model({"name": "huggingface", "weights": str(tmp_path)}).predict(files)
    near(found, library_logits(model, processor_of(tmp_path), files))


class Pooled(nn.Module):
    """What an image tower gives of an image."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.tower(pixel_values=images).pooler_output
        return made


@pytest.mark.skipif(not hasattr(hf, "DINOv3ViTModel"), reason="this transformers has no DINOv3")
def test_dinov3_from_file_to_logits(files: list[Path], tmp_path: Path) -> None:
    """Its processor rescales before it resizes, so what the model sees was never rounded to bytes."""
    tower = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**MLP, num_register_tokens=4))
    frequencies = {name: buffer.clone() for name, buffer in tower.named_buffers()}  # constants, which no file holds
    drawn(tower)
    for name, buffer in frequencies.items():
        tower.get_buffer(name).copy_(buffer)
    tower.save_pretrained(tmp_path)
    name = "DINOv3ViTImageProcessor"
    processor = getattr(hf, name if hasattr(hf, name) else f"{name}Fast")  # the only one in 4.56
    processor(size=SIDE).save_pretrained(tmp_path)
    backbone = Backbone(ModelSpec(name="huggingface", weights=str(tmp_path)), tmp_path)
    model = backbone.build(3)
    drawn(model.get_classifier())
    seen = backbone.preprocessing(model)
    process = processor_of(tmp_path)
    for file in files:
        made = torch.from_numpy(seen.geometry.fit(rgb(file))).permute(2, 0, 1)
        torch.testing.assert_close(made, process(rgb(file)), rtol=0, atol=1e-6)
    whole = nn.Sequential(Pooled(tower), model.get_classifier())
    near(predict(model, files, seen), library_logits(whole, process, files))
    assert seen.info.mean == pytest.approx([0.485, 0.456, 0.406])


def test_a_folder_without_a_processor_gets_the_class_and_backend_that_the_library_takes(tmp_path: Path) -> None:
    hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=MLP, **THREE)).save_pretrained(tmp_path)
    card = {"name": "huggingface", "weights": str(tmp_path), "mean": [0.5] * 3, "std": [0.5] * 3}
    default = va.load_model(card).preprocessing
    hf.CLIPImageProcessor().save_pretrained(tmp_path)
    named = va.load_model({**card, "image_size": 32}).preprocessing
    assert (default.source, named.source) == ("library default", "weights")
    assert default.library == named.library
    assert "backend" in default.library


@pytest.mark.parametrize(("carried", "source"), [({"crop_pct": 0.8}, "weights"), ({}, "library default")])
def test_a_timm_folder_carries_its_preprocessing_or_says_that_it_does_not(
    carried: dict[str, Any], source: str, tmp_path: Path
) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": sizes}
    config |= {"label_names": ["calm", "glad", "sad"]} | ({"pretrained_cfg": carried} if carried else {})
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert va.load_model({"name": "huggingface", "weights": str(tmp_path)}).preprocessing.source == source
