"""Models from a card: what fits, what is resampled or replaced, and what is refused in one line."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.attention import Attention

from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.architecture import SUPPORTED, make_architecture, why_not_patchable
from audit.models.build import Backbone, check_model
from audit.models.checkpoint import hash_state
from audit.models.supported import refusals
from tests.models_for_tests import FAMILIES, Gated, base_of, enlarged, noise_images, tiny

pytestmark = pytest.mark.unit
BODY: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}


def spec(name: str = "vit_tiny_patch16_224", *, size: int = 32, weights: str = "none", **options: Any) -> ModelSpec:
    return ModelSpec(name=name, image_size=size, weights=weights, overrides={**BODY, **options})


def saved(path: Path, *, classes: int = 3, name: str = "vit_tiny_patch16_224", size: int = 32, **options: Any) -> Path:
    """Save random weights of a tiny model and return the file."""
    model = timm.create_model(name, num_classes=classes, img_size=size, **{**BODY, **options})
    save_file(enlarged(model, 0).state_dict(), path / "w.safetensors")
    return path / "w.safetensors"


def one_line(call: Callable[[], object]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    backbone = Backbone(spec(), None)
    before = torch.get_rng_state()
    first, again, other = (hash_state(backbone.build(3, seed=s).state_dict()) for s in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_the_body_is_the_same_for_any_number_of_classes(tmp_path: Path) -> None:
    backbone = Backbone(spec(weights="file"), saved(tmp_path, classes=5))
    two, seven = backbone.build(2), backbone.build(7)
    assert seven.head.out_features == 7
    for name, weight in two.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(weight, seven.state_dict()[name])
    assert not two.training


def test_the_body_hash_sees_the_body_and_not_the_classifier(tmp_path: Path) -> None:
    file = saved(tmp_path)
    first = Backbone(spec(weights="file"), file).body_hash()
    state = timm.models.load_state_dict(file)
    save_file({**state, "head.bias": state["head.bias"] + 1}, file)
    assert Backbone(spec(weights="file"), file).body_hash() == first
    save_file({**state, "cls_token": state["cls_token"] + 1}, file)
    assert Backbone(spec(weights="file"), file).body_hash() != first


def test_as_it_is_gives_the_very_model(tmp_path: Path) -> None:
    model = Backbone(spec(weights="file"), saved(tmp_path)).build_as_is(3)
    expected = enlarged(timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, **BODY), 0).eval()
    with torch.inference_mode():
        assert torch.equal(model(noise_images(2)), expected(noise_images(2)))


@pytest.mark.parametrize("keep", [True, False])
def test_the_position_grid_is_resampled(keep: bool, tmp_path: Path) -> None:
    """Weights of 64 px at 96 px: smooth positions keep their corners' order, the rest is untouched."""
    file = saved(tmp_path, size=64)
    backbone = Backbone(spec(size=96, weights="file"), file)
    model = backbone.build_as_is(3) if keep else backbone.build(3)
    state = timm.models.load_state_dict(file)
    assert model.pos_embed.shape == (1, 1 + 12 * 12, 32)
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])  # the class token's place
    grid = model.pos_embed[0, 1:].detach().mean(0)
    torch.testing.assert_close(grid, state["pos_embed"][0, 1:].mean(0), atol=0.1, rtol=0)
    assert torch.equal(model.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])
    with torch.inference_mode():
        assert model(noise_images(1, size=96)).shape == (1, 3)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_checkpoint_with_other_classes_is_not_audited_as_it_is(count: int, tmp_path: Path) -> None:
    error = one_line(lambda: Backbone(spec(weights="file"), saved(tmp_path, classes=5)).build_as_is(count))
    assert "5" in str(error)
    assert str(count) in error.what
    assert "model.classes" in str(error)


@pytest.mark.parametrize("weights", ["none", "pretrained"])
def test_nothing_to_audit_as_it_is(weights: str) -> None:
    error = one_line(lambda: Backbone(spec(weights=weights), None).build_as_is(3))
    assert error.where == "model.weights"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"embed_dim": 48}, "blocks.0."),
        ({"depth": 3}, "blocks.2"),
        ({"depth": 1}, "blocks.1"),
        ({"init_values": 0.1}, "gamma"),
        ({"qkv_bias": False}, "qkv.bias"),
        ({"mlp_ratio": 2.0}, "mlp.fc1"),
        ({"reg_tokens": 4}, "reg_token"),
        ({"global_pool": "avg"}, "norm"),
        ({"name": "deit_tiny_distilled_patch16_224"}, ""),
        ({"name": "vit_base_patch16_siglip_224"}, ""),
    ],
    ids=lambda v: " ".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
)
def test_weights_of_another_architecture(options: dict[str, Any], part: str, keep: bool, tmp_path: Path) -> None:
    file = saved(tmp_path, **options)
    backbone = Backbone(spec(weights="file"), file)
    error = one_line(lambda: backbone.build_as_is(3) if keep else backbone.build(3))
    assert error.where == str(file)
    assert part in error.what
    assert "architecture" in error.what
    assert "vit_tiny_patch16_224" in error.fix


@pytest.mark.parametrize("keep", [True, False])
def test_a_missing_and_a_surplus_tensor_are_named(keep: bool, tmp_path: Path) -> None:
    file = saved(tmp_path)
    state = timm.models.load_state_dict(file)

    named = spec(weights="file")

    def build() -> object:
        return Backbone(named, file).build_as_is(3) if keep else Backbone(named, file).build(3)

    save_file({k: v for k, v in state.items() if k != "blocks.1.mlp.fc2.bias"}, file)
    assert "lacks blocks.1.mlp.fc2.bias" in one_line(build).what
    save_file({**state, "extra.weight": torch.zeros(2)}, file)
    assert "has extra.weight" in one_line(build).what


def test_only_as_it_is_needs_the_classifier(tmp_path: Path) -> None:
    file = saved(tmp_path)
    save_file({k: v for k, v in timm.models.load_state_dict(file).items() if not k.startswith("head.")}, file)
    assert Backbone(spec(weights="file"), file).build(4).head.out_features == 4
    assert "lacks head.weight" in one_line(lambda: Backbone(spec(weights="file"), file).build_as_is(3)).what


@pytest.mark.parametrize(
    "family", [n for n, (_, own) in FAMILIES.items() if "norm_layer" not in own and n != "unknown attention"]
)
def test_every_family_comes_back_from_its_own_weights(family: str, tmp_path: Path) -> None:
    name, own = FAMILIES[family]
    model = tiny(family)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = {**base_of(family), **own}
    options = {k: v for k, v in options.items() if k not in ("img_size", "pretrained_cfg_overlay")}
    card = ModelSpec(name=name, image_size=32, weights="file", overrides=options)
    loaded = Backbone(card, tmp_path / "w.safetensors").build_as_is(3)
    assert hash_state(loaded.state_dict()) == hash_state(model.state_dict())
    assert Backbone(card, tmp_path / "w.safetensors").build(2).num_classes == 2


@pytest.mark.parametrize(
    ("name", "changes", "where"),
    [
        ("resnet18", {"overrides": {"act_layer": "nothing"}}, "model"),
        ("resnet18", {"overrides": {"block": "x"}}, "model"),
        ("resnet18", {"overrides": {"layers": [0, 0, 0, 0]}}, "model"),
        ("convnext_atto", {"overrides": {"kernel_sizes": 0}}, "model"),
        ("vit_tiny_patch16_224", {"overrides": {"global_pool": ""}}, "model"),
        ("vit_tiny_patch16_224", {"overrides": {"in_chans": 1}}, "model.overrides"),
        ("vit_tiny_patch16_224", {"overrides": {"checkpoint_path": "/etc/passwd"}}, "model.overrides"),
        ("vit_tiny_patch16_224", {"overrides": {"cache_dir": "elsewhere"}}, "model.overrides"),
        ("vit_tiny_patch16_224", {"overrides": {"pretrained_cfg": "x"}}, "model.overrides"),
        ("vit_tiny_patch16_224", {"overrides": {"depth": 10**9}}, "model.overrides"),
        ("resnet18", {"overrides": {"layers": [2, 2, 2, 10**9]}}, "model.overrides"),
        ("vit_tiny_patch16_224", {"overrides": {"embed_dim": 3 * 10**12}}, "model.overrides"),
        ("vit_tiny_patch16_224", {"overrides": {"mlp_ratio": float("inf")}}, "model.overrides"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_arguments_that_make_no_model_are_refused_before_anything_runs(
    name: str, changes: dict[str, Any], where: str
) -> None:
    card = SimpleNamespace(model=ModelSpec(name=name, weights="none", **changes))
    error = one_line(lambda: check_model(card, card_path=Path("card.yaml"), data_root=None))  # type: ignore[arg-type]
    assert error.where.startswith(where)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224",
             "vit_small_patch16_dinov3_qkvb", "vit_base_patch16_siglip_224", "resnet50", "convnextv2_atto"]
)  # fmt: skip
def test_models_as_they_are_pass_the_check(name: str) -> None:
    card = SimpleNamespace(model=ModelSpec(name=name, weights="none"))
    check_model(card, card_path=Path("card.yaml"), data_root=None)  # type: ignore[arg-type]
    assert list(refusals(name)) == [(name, "")]


def test_weights_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(3, 3), "bn1.weight": torch.zeros(3)}, file)
    error = one_line(lambda: Backbone(spec(weights="file"), file).build(3))
    assert "not weights of a timm VisionTransformer" in error.what
    assert "bn1.weight" in error.what


@pytest.mark.parametrize(
    "name",
    [
        "resnetv2_50",
        "swinv2_cr_tiny_224",
        "vit_relpos_small_patch16_224",
        "eva02_base_patch16_clip_224",
        "mixer_s16_224",
        "regnety_004",
        "vitamin_small_224",
        "vit_dwee_patch16_reg1_gap_256",
        "vit_dpwee_patch16_reg1_gap_256",
    ],
)
def test_unsupported_models_are_refused_by_name_with_the_list(name: str) -> None:
    error = one_line(lambda: make_architecture(ModelSpec(name=name, weights="none"), 2))
    assert error.where == "model.name"
    assert f"'{name}' is not supported" in error.what
    assert all(pattern in error.fix for pattern in SUPPORTED)


@pytest.mark.parametrize("block", ["ParallelScalingBlock", "ParallelThingsBlock", "ResPostBlock"])
def test_blocks_that_do_not_hold_attention_then_mlp(block: str) -> None:
    import timm.models.vision_transformer as zoo

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, **BODY, block_fn=getattr(zoo, block))
    assert "block 0" in why_not_patchable(model)
    assert "not attention then MLP" in why_not_patchable(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_patchable(family: str) -> None:
    assert why_not_patchable(tiny(family)) == ""


def test_heads_mixed_before_the_projection_cannot_be_told_apart() -> None:
    error = one_line(lambda: make_architecture(spec(scale_attn_norm=True), 2))
    assert "normalises across heads" in error.what
    model = copy.deepcopy(tiny())
    model.blocks[1].attn.norm = torch.nn.LayerNorm(32)
    assert "block 1 normalises across heads" in why_not_patchable(model)


@pytest.mark.skipif("gated" not in inspect.signature(Attention).parameters, reason="this timm gates no attention")
def test_gated_attention_is_refused() -> None:
    assert "block 0 scales its heads by a gate" in why_not_patchable(tiny(attn_layer=Gated))


def test_a_model_without_blocks_has_nothing_to_patch() -> None:
    assert "it has no block" in one_line(lambda: make_architecture(spec(depth=0), 2)).what


def test_an_unknown_name_with_the_nearest_ones() -> None:
    error = one_line(lambda: make_architecture(spec("vit_tiny_pach16_224"), 2))
    assert "timm has no model 'vit_tiny_pach16_224'" in error.what
    assert "vit_tiny_patch16_224" in error.fix
    assert "did you mean" in one_line(lambda: make_architecture(spec("zzz"), 2)).fix


@pytest.mark.parametrize(
    "options", [{"depht": 3}, {"num_heads": 5}, {"global_pool": "sum"}, {"embed_dim": 33}], ids=lambda o: next(iter(o))
)
def test_overrides_that_timm_refuses(options: dict[str, Any]) -> None:
    error = one_line(lambda: make_architecture(spec(**options), 2))
    assert "timm refuses" in error.what
    assert "overrides" in error.fix


@pytest.mark.parametrize("fault", [OSError, ConnectionError, RuntimeError, TimeoutError])
def test_pretrained_weights_without_network(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise fault("no route to host\nsecond line")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_pretrained", "load_custom_pretrained"):
        monkeypatch.setattr(f"timm.models._builder.{name}", offline, raising=False)
    error = one_line(lambda: Backbone(ModelSpec(name="vit_tiny_patch16_224", image_size=32), None).build(2))
    assert error.where == "model.weights"
    assert "could not be fetched" in error.what
    assert "weights FILE" in error.fix
