"""Models of other libraries give their own logits after conversion, and are patched like any other."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from audit.card.load import load_card
from audit.card.schema import ModelSpec
from audit.controls.identities import Subject, run_identities
from audit.errors import ModelError
from audit.models.adapters.registry import adapter
from audit.models.architecture import why_not_patchable
from audit.models.build import Backbone, with_class_names
from audit.models.converters import HUGGING_FACE, read_conversion
from audit.models.converters.kinds import KINDS
from audit.models.converters.torchvision import convert_vit
from audit.models.undrawn import Undrawn
from tests.models_for_tests import OLDER_TIMM, noise_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.unit
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
MLP, DINO = SHAPE | {"intermediate_size": 64}, SHAPE | {"mlp_ratio": 2}
SWIN_OF_TIMM: dict[str, Any] = {"depths": [1, 1], "embed_dim": 16, "num_heads": [2, 4], "window_size": 4}
SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
STAGES: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [32, 32, 64, 96]}
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
    "beit": lambda: hf.BeitForImageClassification(hf.BeitConfig(**MLP, **THREE)),
    "beit, positions of each block": lambda: hf.BeitForImageClassification(
        hf.BeitConfig(**MLP, **THREE, use_relative_position_bias=True, use_absolute_position_embeddings=True)
    ),
    "beit, shared positions": lambda: hf.BeitForImageClassification(
        hf.BeitConfig(**MLP, **THREE, use_shared_relative_position_bias=True, use_mean_pooling=False)
    ),
    "swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN, **THREE)),
    "swin, other norms": lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN, **THREE, layer_norm_eps=0.1)),
    "swinv2": lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**SWIN, **THREE)),
    "swinv2, pretrained on other windows": lambda: hf.Swinv2ForImageClassification(
        hf.Swinv2Config(**SWIN, **THREE, pretrained_window_sizes=[3, 2])
    ),
    "convnext": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**STAGES, **THREE, image_size=32)),
    "convnextv2": lambda: hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(**STAGES, **THREE, image_size=32)),
    "resnet": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**STAGES, **THREE)),
    "resnet, basic": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**STAGES, **THREE, layer_type="basic")),
}
TOWERS: dict[str, Callable[[], Any]] = {
    "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**MLP, num_register_tokens=4)),
    "dinov3, gated": lambda: hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**MLP, num_register_tokens=2, use_gated_mlp=True, hidden_act="silu")
    ),
    "clip, vision model": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**MLP)),
    "siglip, vision model": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**MLP)),
}


def drawn(model: nn.Module) -> Any:
    """Draw all weights again, large enough that every part shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if re.search(r"norm.*weight$|lambda|layer_scale", name) else 0.0
            gain = 1 / weight[0].numel() ** 0.5 if weight.ndim == 4 else 0.2
            weight.copy_(around + gain * torch.randn(weight.shape, generator=generator))
        for name, statistic in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                around = 1.0 if name.endswith("var") else 0.0
                statistic.copy_(around + 0.1 * torch.randn(statistic.shape, generator=generator))
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


def side_of(model: Any) -> int:
    """Return the side that a folder of this model has of its own."""
    config = getattr(model.config, "vision_config", model.config)
    return int(getattr(config, "image_size", 224))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_of_hugging_face_gives_its_own_logits(kind: str, folder: Callable[[Any], Path]) -> None:
    original = drawn(CLASSIFIERS[kind]())
    images = noise_images(3, size=side_of(original))
    where = folder(original)
    backbone = Backbone(spec(), where)
    model = backbone.build_as_is(3)
    assert backbone.unit == adapter(model).unit
    with torch.inference_mode():
        wanted, found = original(pixel_values=images).logits, model(images)
    assert float(wanted.abs().max()) > 0.5
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["mean"] == (0.5, 0.4, 0.3)
    assert why_not_patchable(model) == ""
    assert_identities_hold(model, images[..., :32, :32], noise_images(3, seed=1))


def takes(kind: str, side: int) -> bool:
    """Tell whether transformers' own classifier takes images of this side, and shifted windows fill them."""
    return not kind.startswith("clip") and (side > 32 or not kind.startswith(("swin", "conv", "resnet")))


@pytest.mark.parametrize(("kind", "side"), [(k, s) for k in CLASSIFIERS for s in (24, 48) if takes(k, s)])
def test_positions_at_another_size_are_those_of_hugging_face(
    kind: str, side: int, folder: Callable[[Any], Path]
) -> None:
    """As the original resamples them when it is shown such images."""
    original, images = drawn(CLASSIFIERS[kind]()), noise_images(2, size=side)
    asked = {"interpolate_pos_encoding": True} if kind.startswith(("vit", "deit", "siglip")) else {}
    with torch.inference_mode():
        wanted = original(pixel_values=images, **asked).logits
        found = Backbone(spec(image_size=side), folder(original)).build_as_is(3)(images)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.std())))


@pytest.mark.parametrize("kind", TOWERS)
def test_positions_of_a_tower_at_another_size_are_those_of_hugging_face(
    kind: str, folder: Callable[[Any], Path]
) -> None:
    original, images = drawn(TOWERS[kind]()), noise_images(2, size=48)
    asked = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    model = Backbone(spec(image_size=48), folder(original)).build(3)
    with torch.inference_mode():
        wanted = original(pixel_values=images, **asked).pooler_output
        found = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.std())))


def test_positions_at_another_size_are_those_of_torchvision() -> None:
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 3}
    original, larger = drawn(TorchvisionTransformer(32, 8, **sizes)), TorchvisionTransformer(48, 8, **sizes).eval()
    larger.load_state_dict(interpolate_embeddings(48, 8, original.state_dict()))
    conversion, images = convert_vit(original), noise_images(2, size=48)
    model = conversion.create(3, 48).eval()
    model.load_state_dict(conversion.resampled(model, conversion.renamed(original.state_dict())))
    with torch.inference_mode():
        wanted = larger(images)
        torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.std())))


TIMM_FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}),
    "vit, average pool": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 4, "global_pool": "avg"},
    ),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN_OF_TIMM, "img_size": 32}),
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1]}),
}


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_shifted_windows_that_do_not_fill_the_image_are_refused(kind: str, folder: Callable[[Any], Path]) -> None:
    """Hugging Face pads the image before the shift, timm after it."""
    what = "the image" if kind == "swinv2" and OLDER_TIMM else "10 x 10 places"
    with pytest.raises(ModelError, match=f"windows of 4 do not fill {what}: take another size"):
        Backbone(spec(image_size=40), folder(CLASSIFIERS[kind]())).build_as_is(3)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", TIMM_FOLDERS)
def test_a_folder_that_names_an_architecture_of_timms_is_read(kind: str, wrapped: bool, tmp_path: Path) -> None:
    """As timm pushes it to the Hub, and as transformers' wrapper saves it."""
    name, options = TIMM_FOLDERS[kind]
    original = drawn(timm.create_model(name, num_classes=3, **options))
    if wrapped:
        config = hf.TimmWrapperConfig(architecture=name, model_args=options, **THREE)
        saved = hf.TimmWrapperForImageClassification(config)
        saved.timm_model.load_state_dict(original.state_dict())
        saved.save_pretrained(tmp_path)
    else:
        save_for_hf(original, tmp_path, {"label_names": ["calm", "glad", "sad"]}, safe_serialization=True,
                    model_args=options)  # fmt: skip
    backbone, images = Backbone(spec(), tmp_path), noise_images(2, size=224 if kind == "resnet" else 32)
    model = backbone.build_as_is(3)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), original(images), rtol=1e-5, atol=1e-5)
    assert backbone.unit == ("slice" if kind == "resnet" else "head")
    assert model.pretrained_cfg["mean"] == original.pretrained_cfg["mean"]
    assert read_conversion(HUGGING_FACE, tmp_path).classes == ["calm", "glad", "sad"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architecture": "resnet999"}, "architecture resnet999 is of no known family"),
        ({"architecture": "regnety_004"}, "architecture regnety_004 is of no known family"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "model_args has checkpoint_path"),
        ({"model_args": {"in_chans": 1}}, "in_chans is not 3"),
        ({"model_args": {"depht": 3}}, "is not the configuration of a timm_wrapper model"),
    ],
)
def test_a_folder_of_timms_that_cannot_be_made_is_refused_in_a_line(
    change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, **change}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        Backbone(spec(), tmp_path).build_as_is(3)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("name", [pytest.param("vit_b_16", marks=[pytest.mark.long]), "vit_b_32"])
def test_a_model_of_torchvision_gives_its_own_logits(name: str, tmp_path: Path) -> None:
    with Undrawn():
        made = get_model(name, num_classes=3)
    original = drawn(made)
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
    for named, what in (
        ({"0": "a", "2": "b"}, "does not name the classes"),
        ({"0": "a", "1": "b", "2": "a"}, "calls two"),
    ):
        (where / "config.json").write_text(json.dumps({**config, "id2label": named}), encoding="utf-8")
        with pytest.raises(ModelError, match=rf"config\.json: {what}"):
            with_class_names(loaded, card_path=card, data_root=None)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "levit"}, "model_type 'levit' cannot be converted"),
        ({"model_type": "siglip2"}, "model_type 'siglip2' cannot be converted"),  # NaFlex
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
    with pytest.raises(ModelError, match="'torchvision/alexnet' is not converted"):
        Backbone(ModelSpec(name="torchvision/alexnet", weights="none"), None).build(2)
    with pytest.raises(ModelError, match="torchvision/vit_b_16 takes none"):
        Backbone(ModelSpec(name="torchvision/vit_b_16", weights="none", overrides={"depth": 2}), None).build(2)
    with pytest.raises(ModelError, match="needs a folder"):
        Backbone(ModelSpec(name=HUGGING_FACE, weights="none"), None).build(2)


def test_every_kind_is_tried() -> None:
    tried = {made().config.model_type for made in (*CLASSIFIERS.values(), *TOWERS.values())}
    assert tried == set(KINDS)


def test_what_a_folder_of_siglip_leaves_out_is_the_librarys_default() -> None:
    """Published folders say no more of the image tower than its kind."""
    own = hf.SiglipVisionConfig()
    found = KINDS["siglip"]({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}})
    assert found.image_size == own.image_size
    for name, value in (("embed_dim", own.hidden_size), ("depth", own.num_hidden_layers),
                        ("num_heads", own.num_attention_heads), ("patch_size", own.patch_size)):  # fmt: skip
        assert found.options[name] == value
    assert found.options["norm_layer"].keywords["eps"] == own.layer_norm_eps


def test_what_a_folder_of_clip_leaves_out_is_the_librarys_default() -> None:
    own = hf.CLIPVisionConfig()
    found = KINDS["clip"]({"model_type": "clip"})
    assert (found.options["patch_size"], found.image_size) == (own.patch_size, own.image_size)
    assert found.options["norm_layer"].keywords["eps"] == own.layer_norm_eps
