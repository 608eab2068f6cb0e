"""Models of other libraries give their own logits after conversion, and are patched like any other."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from audit.card.load import load_card
from audit.card.schema import ModelSpec
from audit.controls.identities import Subject, run_identities
from audit.errors import ModelError
from audit.models.architecture import why_not_patchable
from audit.models.build import Backbone, with_class_names
from audit.models.converters import HUGGING_FACE, read_conversion
from audit.models.converters.kinds import KINDS
from tests.models_for_tests import noise_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.unit
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
MLP, DINO = SHAPE | {"intermediate_size": 64}, SHAPE | {"mlp_ratio": 2}
THREE = {"num_labels": 3, "id2label": {0: "calm", 1: "glad", 2: "sad"}, "label2id": {"calm": 0, "glad": 1, "sad": 2}}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**MLP, **THREE)),
    "vit, no qkv bias": lambda: hf.ViTForImageClassification(hf.ViTConfig(**MLP, **THREE, qkv_bias=False)),
    "vit, gelu_new": lambda: hf.ViTForImageClassification(hf.ViTConfig(**MLP, **THREE, hidden_act="gelu_new")),
    "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**MLP, **THREE)),
    "deit, two classifiers": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**MLP, **THREE)),
    "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO, **THREE)),
    "dinov2, SwiGLU": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO, **THREE, use_swiglu_ffn=True)),
    "dinov2, registers": lambda: hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**DINO, **THREE)
    ),
    "clip": lambda: hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=MLP, **THREE)),
    "siglip": lambda: hf.SiglipForImageClassification(hf.SiglipConfig(vision_config=MLP, **THREE)),
}
TOWERS: dict[str, Callable[[], Any]] = {
    "clip, vision model": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**MLP)),
    "siglip, vision model": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**MLP)),
}


def drawn(model: nn.Module) -> Any:
    """Draw all weights again, large enough that every part shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(around + 0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Any], Path]:
    def saved(model: Any) -> Path:
        model.save_pretrained(tmp_path)
        config = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
        return tmp_path

    return saved


def spec(**options: Any) -> ModelSpec:
    return ModelSpec(name=HUGGING_FACE, weights="folder", **options)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_of_hugging_face_gives_its_own_logits(kind: str, folder: Callable[[Any], Path]) -> None:
    original, images = drawn(CLASSIFIERS[kind]()), noise_images(3)
    where = folder(original)
    model = Backbone(spec(), where).build_as_is(3)
    with torch.inference_mode():
        wanted, found = original(pixel_values=images).logits, model(images)
    assert float(wanted.abs().max()) > 0.5
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["mean"] == (0.5, 0.4, 0.3)
    assert why_not_patchable(model) == ""
    assert_identities_hold(model, images, noise_images(3, seed=1))


@pytest.mark.parametrize("kind", TOWERS)
def test_an_image_tower_starts_a_new_classifier(kind: str, folder: Callable[[Any], Path]) -> None:
    original, images = drawn(TOWERS[kind]()), noise_images(2)
    backbone = Backbone(spec(), folder(original))
    model = backbone.build(5)
    with torch.inference_mode():
        wanted = original(pixel_values=images).pooler_output
        found = model.forward_head(model.forward_features(images), pre_logits=True)
        assert model(images).shape == (2, 5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    untrained = backbone.build_untrained(5)
    assert not torch.equal(untrained.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(ModelError, match=r"lacks head\.weight"):
        backbone.build_as_is(5)


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32"])
def test_a_model_of_torchvision_gives_its_own_logits(name: str, tmp_path: Path) -> None:
    from torchvision.models import get_model

    original = drawn(get_model(name, num_classes=3))
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    named = ModelSpec(name=f"torchvision/{name}", weights="w.safetensors")
    model = Backbone(named, tmp_path / "w.safetensors").build_as_is(3)
    images = noise_images(1, size=224)
    with torch.inference_mode():
        wanted = original(images)
        torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-4)
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


def test_identities_hold_on_a_model_of_torchvision(tmp_path: Path) -> None:
    """Of its own class and names, with two blocks, so that every head can be tried."""
    original = TorchvisionTransformer(224, 32, num_layers=2, num_heads=12, hidden_dim=768, mlp_dim=3072, num_classes=3)
    model = read_conversion("torchvision/vit_b_32", None).create(3, 64)
    model.blocks = model.blocks[:2]
    state = read_conversion("torchvision/vit_b_32", None).renamed(drawn(original).state_dict())
    model.load_state_dict({k: v for k, v in state.items() if k != "pos_embed"}, strict=False)
    assert_identities_hold(model.eval(), noise_images(2, size=64), noise_images(2, seed=1, size=64))


def assert_identities_hold(model: Any, images: torch.Tensor, donors: torch.Tensor) -> None:
    """Every head is live, patched with itself changes no bit, and is patched by the engine as by hooks."""
    failed = [c.id for c in run_identities(Subject(model, images, donors)) if not c.passed]
    assert failed == []


def test_pretrained_weights_of_torchvision_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match="could not be fetched"):
        Backbone(ModelSpec(name="torchvision/vit_b_16", weights="pretrained"), None).build(2)


def test_class_names_come_from_the_folder(folder: Callable[[Any], Path], tmp_path: Path) -> None:
    where = folder(CLASSIFIERS["vit"]())
    card = tmp_path / "card.yaml"
    card.write_text(
        "name: x\ntask: emotion\ndata: {reader: table, path: t.csv}\ngroups: {g: {column: g}}\n"
        f"model: {{name: huggingface, weights: {where}}}\ntraining: none\n",
        encoding="utf-8",
    )
    loaded = load_card(card)
    assert loaded.model.classes is None
    assert with_class_names(loaded, card_path=card, data_root=None).model.classes == ["calm", "glad", "sad"]
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    (where / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "2": "b"}}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: does not name the classes"):
        with_class_names(loaded, card_path=card, data_root=None)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "swin"}, "model_type 'swin' cannot be converted"),
        ({"model_type": None}, "model_type 'None' cannot be converted"),
        ({"hidden_size": "wide"}, "is not the configuration of a vit model"),
        ({"hidden_size": 0}, "is not the configuration of a vit model"),
        ({"hidden_act": "snake"}, "hidden_act 'snake'"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"image_size": [32, 64]}, "image_size"),
        ({"num_hidden_layers": 3}, "another architecture"),
        ({"num_hidden_layers": 10**9}, "no network is so large"),
        ({"image_size": 10**9}, "no network is so large"),
        ({"num_attention_heads": 5}, "refuses"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_a_line(
    change: dict[str, Any], what: str, folder: Callable[[Any], Path]
) -> None:
    where = folder(CLASSIFIERS["vit"]())
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    (where / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        Backbone(spec(), where).build_as_is(3)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_folder_lacks_is_named(folder: Callable[[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file; name a folder that save_pretrained wrote"):
        Backbone(spec(), tmp_path).build(2)
    where = folder(CLASSIFIERS["vit"]())
    (where / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"give model\.mean and model\.std"):
        Backbone(spec(), where).build(2)
    given = spec(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    assert Backbone(given, where).build(2).pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    state = load_file(where / "model.safetensors")
    (where / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        Backbone(given, where).build(2)
    torch.save(state, where / "pytorch_model.bin")
    assert Backbone(given, where).build(2).head.out_features == 2
    for content in (b"{", b"[1]", b"\xff"):
        (where / "config.json").write_bytes(content)
        with pytest.raises(ModelError, match=r"config\.json"):
            Backbone(given, where).build(2)


def test_overrides_and_unknown_names_are_refused() -> None:
    with pytest.raises(ModelError, match="torchvision has no vision transformer 'resnet50'"):
        Backbone(ModelSpec(name="torchvision/resnet50", weights="none"), None).build(2)
    with pytest.raises(ModelError, match="torchvision/vit_b_16 takes none"):
        Backbone(ModelSpec(name="torchvision/vit_b_16", weights="none", overrides={"depth": 2}), None).build(2)
    with pytest.raises(ModelError, match="needs a folder"):
        Backbone(ModelSpec(name=HUGGING_FACE, weights="none"), None).build(2)


def test_every_kind_is_tried() -> None:
    tried = {made().config.model_type for made in (*CLASSIFIERS.values(), *TOWERS.values())}
    assert tried == set(KINDS)
