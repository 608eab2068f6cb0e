"""All that a run will use of its models is opened beforehand, and what is wrong is blamed on the right thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import ResNet18_Weights, resnet18

from audit.card.schema import Card
from audit.data.samples import Samples
from audit.errors import ModelError
from audit.models.adapters.registry import adapter
from audit.models.build import Backbone
from audit.models.checkpoint import hash_state
from audit.models.predict import predict_logits
from audit.models.preflight import PreflightReport, preflight_model
from audit.models.readout import Readout
from tests.models_for_tests import enlarged, hugging_face, noise_pixels

pytestmark = pytest.mark.unit
BODY: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}
LABELS = ["anger", "joy", "neutral"]


class Pictures:
    """Random images of one size."""

    def __init__(self, width: int = 40, height: int = 40) -> None:
        self.size = (width, height)

    def open(self, key: str) -> Image.Image:
        rng = np.random.default_rng(int(key))
        return Image.fromarray(rng.integers(0, 256, (self.size[1], self.size[0], 3), dtype=np.uint8))


def samples(source: Any) -> Samples:
    return Samples(pd.DataFrame({"image": [str(i) for i in range(6)]}), source, tuple(LABELS), {})


def weights(seed: int = 0, *, classes: int = 3, **options: Any) -> dict[str, torch.Tensor]:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, img_size=32, **{**BODY, **options})
    state: dict[str, torch.Tensor] = enlarged(model, seed).state_dict()
    return state


def card(file: str = "w.safetensors", *, controls: dict[str, Any] | None = None, **model: Any) -> Card:
    return Card.model_validate(
        {
            "data": {"path": "t.csv"},
            "groups": {"g": {"column": "g"}},
            "model": {"name": "vit_tiny_patch16_224", "weights": file, "classes": LABELS, "image_size": 32,
                      "overrides": BODY, **model},
            "training": "none",
            "controls": controls or {},
        }
    )  # fmt: skip


def opened(folder: Path, given: Card, source: Any = None) -> PreflightReport:
    return preflight_model(given, card_path=folder / "card.yaml", data_root=None, samples=samples(source or Pictures()))


def refusal(folder: Path, given: Card, source: Any = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        opened(folder, given, source)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_what_fits_is_reported(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    save_file(weights(1, classes=5), tmp_path / "base.safetensors")
    report = opened(tmp_path, card(controls={"weights": "base.safetensors"}))
    assert [(o.field, Path(o.weights).name, o.state) for o in report.opened] == [
        ("model.weights", "w.safetensors", "raw"),
        ("controls.weights", "base.safetensors", "raw"),
    ]
    assert report.opened[0].tensors == len(weights())
    assert (report.preprocessing.geometry.shape[0], report.classes, report.images, report.not_opened) == (32, 3, 4, {})


def test_what_the_run_makes_itself_is_not_opened(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    report = opened(tmp_path, card(controls={"weights": "rendered"}))
    assert report.not_opened == {"controls.weights": "rendered"}


def test_pretrained_weights_are_opened_where_they_are_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    given = {"data": {"path": "t.csv"}, "groups": {"g": {"column": "g"}}, "model": {"name": "torchvision/resnet18"}}
    pretrained = Card.model_validate(given)
    report = opened(tmp_path, pretrained)
    assert (report.opened, report.not_opened) == ((), {"model.weights": "pretrained"})
    kept = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    kept.parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), kept)
    report = opened(tmp_path, pretrained)
    assert [(o.field, o.weights) for o in report.opened] == [("model.weights", "pretrained")]
    assert report.not_opened == {}
    kept.write_bytes(b"broken off")
    error = refusal(tmp_path, pretrained)
    assert (error.where, error.fix) == (str(kept), "remove the file, so that it is fetched again")


@pytest.mark.parametrize("field", ["model", "controls"])
def test_a_weight_that_is_not_finite_is_blamed_on_its_file(field: str, tmp_path: Path) -> None:
    state = weights()
    save_file(state, tmp_path / "w.safetensors")
    state["blocks.1.mlp.fc1.bias"] = torch.full((128,), float("nan"))
    save_file(state, tmp_path / "bad.safetensors")
    given = card("bad.safetensors") if field == "model" else card(controls={"weights": "bad.safetensors"})
    error = refusal(tmp_path, given)
    assert error.where == str(tmp_path / "bad.safetensors")
    assert "blocks.1.mlp.fc1.bias holds NaN" in error.what


def test_all_that_is_missing_and_surplus_is_named(tmp_path: Path) -> None:
    state = weights()
    for name in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"):
        state[f"teacher.{name}"] = state.pop(name)
    save_file(state, tmp_path / "w.safetensors")
    what = refusal(tmp_path, card()).what
    for name in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"):
        assert what.count(name) == 2


def test_another_number_of_outputs(tmp_path: Path) -> None:
    save_file(weights(classes=5), tmp_path / "w.safetensors")
    assert "5 outputs, the card names 3 classes" in refusal(tmp_path, card()).what


def test_a_lightning_prefix_is_taken_off_and_the_averaged_weights_are_asked_for(tmp_path: Path) -> None:
    raw, ema = weights(0), weights(1)
    torch.save({"state_dict": {f"model.{k}": v for k, v in raw.items()}}, tmp_path / "last.ckpt")
    assert opened(tmp_path, card("last.ckpt")).opened[0].state == "raw"
    torch.save({"state_dict": raw, "state_dict_ema": ema}, tmp_path / "both.pth")
    assert "2 sets of weights: state_dict (raw), state_dict_ema (ema)" in refusal(tmp_path, card("both.pth")).what
    for state, wanted in (("raw", raw), ("ema", ema)):
        given = card("both.pth", state=state)
        assert opened(tmp_path, given).opened[0].state == state
        backbone = Backbone(given.model, tmp_path / "both.pth")
        assert backbone.state == state
        assert hash_state(backbone.build_as_is(3).state_dict()) == hash_state(wanted)
    torch.save({"model": weights(2), "ema": weights(3)}, tmp_path / "base.pth")
    given = card("both.pth", state="raw", controls={"weights": "base.pth"})
    assert refusal(tmp_path, given).where == str(tmp_path / "base.pth")
    given = card("both.pth", state="raw", controls={"weights": "base.pth", "state": "ema"})
    assert [o.state for o in opened(tmp_path, given).opened] == ["raw", "ema"]


@pytest.mark.parametrize(
    "beside",
    [
        {"hyper_parameters": {"num_heads": 8}},
        {"args": {"model": "x", "model_kwargs": {"num_heads": 8}}},
    ],
    ids=str,
)
def test_a_number_of_heads_that_the_checkpoint_contradicts(beside: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), **beside}, tmp_path / "w.pth")
    error = refusal(tmp_path, card("w.pth"))
    assert "heads a layer, the card's model has 4" in error.what
    assert "num_heads" in error.fix
    torch.save({"state_dict": weights(), "hyper_parameters": {"num_heads": 4}}, tmp_path / "w.pth")
    assert opened(tmp_path, card("w.pth")).images == 4


def test_a_name_tells_the_number_of_heads_where_no_argument_was_changed(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32).state_dict()
    plain = card("w.pth", overrides={})
    torch.save({"state_dict": state, "arch": "vit_tiny_patch16_224"}, tmp_path / "w.pth")
    assert opened(tmp_path, plain).images == 4
    torch.save({"state_dict": state, "arch": "vit_small_patch16_224"}, tmp_path / "w.pth")
    assert "was trained with 6 heads a layer, the card's model has 3" in refusal(tmp_path, plain).what
    torch.save({"state_dict": weights(), "arch": "vit_tiny_patch16_224"}, tmp_path / "w.pth")
    assert opened(tmp_path, card("w.pth")).images == 4  # by the card's arguments it has 4


def test_a_table_of_positions_tells_the_number_of_heads(tmp_path: Path) -> None:
    options = {"patch_size": 8, "depth": 2, "embed_dim": 32}
    model = timm.create_model("beit_base_patch16_224", num_classes=3, img_size=32, num_heads=8, **options)
    save_file(enlarged(model, 0).state_dict(), tmp_path / "w.safetensors")
    given = card(name="beit_base_patch16_224", overrides={**options, "num_heads": 4})
    assert "relative_position_bias_table" in refusal(tmp_path, given).what


def test_logits_that_are_not_finite_though_the_weights_are(tmp_path: Path) -> None:
    state = weights()
    state["head.weight"] *= 1e38
    save_file(state, tmp_path / "w.safetensors")
    assert "logits of 0 are not finite, though its weights are" in refusal(tmp_path, card()).what


def test_code_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "model": torch.nn.Linear(2, 2)}, tmp_path / "w.pth")
    assert "cannot be read as weights" in refusal(tmp_path, card("w.pth")).what


def hf_folder(path: Path, **processor: Any) -> Card:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    torch.manual_seed(0)
    hf = hugging_face()
    model = hf.ViTForImageClassification(hf.ViTConfig(**shape, intermediate_size=64, **names))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    model.save_pretrained(path / "vit")
    usual = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (path / "vit/preprocessor_config.json").write_text(json.dumps({**usual, **processor}), encoding="utf-8")
    return card("vit", name="huggingface", overrides={}, image_size=None)


def test_a_folder_says_how_its_outputs_are_read(tmp_path: Path) -> None:
    given = hf_folder(tmp_path)
    first = opened(tmp_path, given)
    assert (first.images, first.readout) == (4, Readout())
    file = tmp_path / "vit/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "problem_type": "multi_label_classification"}), encoding="utf-8")
    assert opened(tmp_path, given).readout == Readout("sigmoid", "threshold", 0.5)
    file.write_text(json.dumps({**config, "problem_type": "regression"}), encoding="utf-8")
    assert "regression" in refusal(tmp_path, given).what


@pytest.mark.parametrize(
    "processor",
    [
        {"do_rescale": False, "image_mean": [127.5, 100, 90], "image_std": [60, 70, 127.5]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.8, 0.9], "image_std": [1.0, 0.5, 0.6]},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"rescale_factor": 1 / 255},
    ],
    ids=str,
)
def test_pixels_are_rescaled_as_the_folder_says(processor: dict[str, Any], tmp_path: Path) -> None:
    """The known answer: the original library's processor and model."""
    hf, given, pixels = hugging_face(), hf_folder(tmp_path, **processor), noise_pixels(3)
    model = Backbone(given.model, tmp_path / "vit").build_as_is(3)
    settings = json.loads((tmp_path / "vit/preprocessor_config.json").read_text(encoding="utf-8"))
    theirs = hf.ViTImageProcessor(**settings, do_resize=False)
    original = hf.ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    with torch.inference_mode():
        wanted = original(**theirs([Image.fromarray(p) for p in pixels], return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(predict_logits(model, pixels), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "processor",
    [{"image_std": [0.0, 0.1, 0.1]}, {"image_mean": [0.5]}, {"image_mean": "half"}, {"rescale_factor": 0},
     {"rescale_factor": "x"}],
    ids=str,
)  # fmt: skip
def test_a_processor_that_does_not_say_how_pixels_are_normalised(processor: dict[str, Any], tmp_path: Path) -> None:
    error = refusal(tmp_path, hf_folder(tmp_path, **processor))
    assert error.where.endswith("preprocessor_config.json")


@pytest.mark.parametrize("resample", [99, "x"])
def test_settings_that_the_processor_does_not_take_are_refused_in_a_line(resample: Any, tmp_path: Path) -> None:
    error = refusal(tmp_path, hf_folder(tmp_path, do_resize=True, size={"height": 32, "width": 32}, resample=resample))
    assert error.where == "model.preprocess"
    assert "does not take its own settings" in error.what


def test_images_of_any_shape_go_through_the_folders_own_processor(tmp_path: Path) -> None:
    squash = {"size": {"height": 32, "width": 32}}
    cut = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 32},
           "crop_size": {"height": 32, "width": 32}}  # fmt: skip
    for settings in (squash, cut):
        report = opened(tmp_path, hf_folder(tmp_path, do_resize=True, **settings), Pictures(40, 60))
        assert (report.images, report.preprocessing.info.input_size) == (4, [3, 32, 32])


def test_half_precision_weights_give_the_logits_of_their_float32_copies(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        state = {k: v.to(dtype) for k, v in weights().items()}
        save_file(state, tmp_path / "w.safetensors")
        model = Backbone(card().model, tmp_path / "w.safetensors").build_as_is(3)
        wanted = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, **BODY).eval()
        wanted.load_state_dict({k: v.float() for k, v in load_file(tmp_path / "w.safetensors").items()})
        assert adapter(model).side == 32
        np.testing.assert_array_equal(predict_logits(model, noise_pixels(2)), predict_logits(wanted, noise_pixels(2)))
