"""What is said of a checkpoint before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import save_file

import vit_audit as va
from audit.models.known_shapes import known_models
from audit.models.supported import names_like
from benchmarks.known_shapes import measure
from tests.models_for_tests import OLDER_TIMM, hugging_face

pytestmark = pytest.mark.unit


def saved(path: Path, name: str, *, before: str = "", **options: Any) -> Path:
    """Write weights of a model's shapes, all of them one zero, which takes no time."""
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    torch.save({before + k: torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "layers", "units"),
    [
        ("vit_tiny_patch16_224", 12, 3),
        ("vit_small_patch14_reg4_dinov2", 12, 6),
        ("deit3_small_patch16_224", 12, 6),
        ("swin_tiny_patch4_window7_224", 12, 3),
        ("beit_base_patch16_224", 12, 12),
        ("resnet50", 16, 8),
        ("convnext_tiny", 18, 8),
        ("vit_small_patch16_dinov3_qkvb", 12, 6),
    ],
)
@pytest.mark.parametrize("before", ["", "model.net."])
def test_timms_models_are_known_by_their_shapes(
    name: str, layers: int, units: int, before: str, tmp_path: Path
) -> None:
    found = va.inspect_checkpoint(saved(tmp_path / "w.pth", name, before=before, num_classes=7))
    made = found.architecture
    assert name in (made.name, *made.also)
    assert (made.layers, made.units, found.classes, found.stripped) == (layers, units, 7, before)
    assert (made.missing, made.left_over) == ((), ())
    section = yaml.safe_load(found.card)["model"]
    assert section["name"] == made.name
    assert len(section["classes"]) == 7


@pytest.mark.parametrize("name", ["vit_b_16", "vit_l_32"])
def test_torchvisions_models_are_known_by_their_shapes(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=5)
    torch.save({k: torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()}, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    assert (found.architecture.name, found.classes) == (f"torchvision/{name}", 5)


def test_a_name_stored_beside_the_weights_decides_between_equal_shapes(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model("deit_base_patch16_224").state_dict()
    zeros = {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}
    torch.save({"state_dict": zeros, "arch": "deit_base_patch16_224"}, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth").architecture
    assert found.name == "deit_base_patch16_224"
    assert "vit_base_patch16_224" in found.also


def test_another_image_size_is_seen_in_the_positions(tmp_path: Path) -> None:
    found = va.inspect_checkpoint(saved(tmp_path / "w.pth", "vit_tiny_patch16_224", img_size=96))
    assert found.architecture.side == 96
    assert yaml.safe_load(found.card)["model"]["image_size"] == 96


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average pool": {"global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers, LayerScale": {"reg_tokens": 4, "init_values": 0.1},
    "registers without positions": {"reg_tokens": 3, "no_embed_class": True},
    "pre-norm, no bias": {"pre_norm": True, "qkv_bias": False},
    "query and key norms": {"qk_norm": True},
    "narrow MLP": {"mlp_ratio": 2.3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_transformers_are_described_so_that_their_weights_fit(variant: str, tmp_path: Path) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=3,
        **VARIANTS[variant],
    )  # fmt: skip
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = va.inspect_checkpoint(tmp_path / "w.safetensors")
    assert (found.architecture.units, found.architecture.units_known) == (2, False)
    assert "a guess" in str(found)
    net = va.load_model(yaml.safe_load(found.card)["model"])
    torch.testing.assert_close(net.module.state_dict(), dict(model.state_dict()))


def test_what_is_missing_and_left_over_is_named_and_no_card_is_given(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", embed_dim=128, depth=3, num_heads=2).state_dict()
    state["blocks.1.mlp.gate"] = state.pop("blocks.1.mlp.fc2.bias")
    torch.save(state, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    assert found.architecture.missing == ("blocks.1.mlp.fc2.bias",)
    assert found.architecture.left_over == ("blocks.1.mlp.gate",)
    assert found.card == ""
    assert "missing: blocks.1.mlp.fc2.bias" in str(found)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_huge_patch14_xp_224"])
def test_models_that_cannot_be_audited_are_not_named(name: str, tmp_path: Path) -> None:
    found = va.inspect_checkpoint(saved(tmp_path / "w.pth", name))
    assert found.card == ""
    assert "no model that can be audited" in str(found) or found.architecture.missing


def test_averaged_weights_are_listed_and_the_card_says_which(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224", num_classes=2).state_dict()
    zeros = {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": zeros}, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    assert found.to_frame()[["set", "state"]].to_numpy().tolist() == [["state_dict", "raw"], ["state_dict_ema", "ema"]]
    assert yaml.safe_load(found.card)["model"]["state"] == "raw"


def test_a_body_beside_its_classifier(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    own = {f"backbone.{k}": torch.zeros(()).expand(v.shape) for k, v in state.items()}
    torch.save({**own, "classifier.weight": torch.zeros(4, 192), "classifier.bias": torch.zeros(4)}, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    assert (found.classes, found.architecture.left_over, found.stripped) == (4, (), "backbone.")


@pytest.mark.parametrize(
    ("beside", "card"),
    [("teacher", False), ("projector", False), ("criterion", True), ("step_sizes", True)],
)
def test_a_card_is_given_where_it_works(beside: str, card: bool, tmp_path: Path) -> None:
    """What an audit would refuse, a second model or a layer that may take part, is not proposed."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=2).state_dict()
    own = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in model.items()}
    more = {f"teacher.{name}": tensor for name, tensor in own.items()} if beside == "teacher" else {}
    more |= {"projector.weight": torch.zeros(5, 192)} if beside == "projector" else {}
    more |= {f"{beside}.weight": torch.zeros(2)} if card else {}
    torch.save({**{f"student.{name}": tensor for name, tensor in own.items()}, **more}, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    assert found.architecture.name == "vit_tiny_patch16_224"
    assert bool(found.card) == card
    assert ("no card: " in str(found)) != card


def test_a_hugging_face_folder_is_described_by_its_configuration(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    named = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    hf = hugging_face()
    hf.ViTForImageClassification(hf.ViTConfig(**shape, **named)).save_pretrained(tmp_path)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = va.inspect_checkpoint(tmp_path)
    made = found.architecture
    assert (made.name, made.layers, made.units, made.side, made.width, made.patch) == ("huggingface", 2, 4, 32, 32, 8)
    assert (found.classes, found.class_names, made.missing, made.left_over) == (2, ("no", "yes"), (), ())
    assert found.preprocessing is not None
    assert found.preprocessing.settings["image_mean"] == [0.4] * 3
    assert va.load_model(yaml.safe_load(found.card)["model"]).classes == ("no", "yes")


def test_a_timm_folder_names_its_model_classes_and_pixels(tmp_path: Path) -> None:
    saved(tmp_path / "pytorch_model.bin", "vit_tiny_patch16_224", num_classes=2)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 2, "label_names": ["no", "yes"],
              "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.9}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = va.inspect_checkpoint(tmp_path)
    assert found.architecture.name == "vit_tiny_patch16_224"
    assert found.class_names == ("no", "yes")
    assert found.preprocessing is not None
    assert found.preprocessing.settings == {"mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.9}


def test_hugging_faces_names_without_a_folder_say_what_to_name(tmp_path: Path) -> None:
    torch.save({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(32, 3, 8, 8)}, tmp_path / "w.ckpt")
    assert "name the folder that holds its config.json" in str(va.inspect_checkpoint(tmp_path / "w.ckpt"))


@pytest.mark.parametrize("kind", ["file", "timm folder", "Hugging Face folder"])
def test_a_single_logit_is_a_pair_of_classes_read_by_a_sigmoid(kind: str, tmp_path: Path) -> None:
    if kind == "Hugging Face folder":
        hf = hugging_face()
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
        config = hf.ViTConfig(
            **shape, id2label={0: "yes"}, label2id={"yes": 0}, problem_type="multi_label_classification"
        )
        settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        hf.ViTForImageClassification(config).save_pretrained(tmp_path)
    else:
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=1)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    if kind == "timm folder":
        config = {
            "architecture": "vit_tiny_patch16_224",
            "label_names": ["yes"],
            "model_args": {"depth": 1, "img_size": 32},
        }
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = tmp_path / "pytorch_model.bin" if kind == "file" else tmp_path
    section = yaml.safe_load(va.inspect_checkpoint(path).card)["model"]
    assert section["classes"] == (["class 0", "class 1"] if kind == "file" else ["not yes", "yes"])
    assert section["output"] == "sigmoid"
    assert va.load_model(section).classes == tuple(section["classes"])


def test_one_class_is_refused_in_a_line(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.pth", "vit_tiny_patch16_224", num_classes=1)
    with pytest.raises(va.CardError, match=r"model.classes: fewer than two classes; .*output: sigmoid") as said:
        va.load_model({"name": "vit_tiny_patch16_224", "weights": str(weights), "classes": ["yes"]})
    assert len(str(said.value).splitlines()) == 1


def open_clip_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights of the shapes of a model of open_clip's, all of them one zero."""
    import open_clip  # takes seconds

    given = dict(config)
    with torch.device("meta"):
        made = open_clip.CustomTextCLIP if given.pop("custom_text", False) else open_clip.CLIP
        state = made(**given).state_dict()
    return {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "also", "side", "layers"),
    [
        ("ViT-B-32", ("open_clip/ViT-B-32-quickgelu",), 224, 12),
        ("ViT-B-16-SigLIP-256", (), 256, 12),
    ],
)
def test_open_clips_file_without_its_configuration_is_known_by_its_shapes(
    name: str, also: tuple[str, ...], side: int, layers: int, tmp_path: Path
) -> None:
    import open_clip

    torch.save(open_clip_state(open_clip.get_model_config(name)), tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    made = found.architecture
    assert (made.name, made.also, made.side, made.layers, made.missing) == (f"open_clip/{name}", also, side, layers, ())
    section = yaml.safe_load(found.card)["model"]
    assert (section["name"], list(section["prompts"])) == (f"open_clip/{name}", ["class 0", "class 1"])
    assert ("name the one that it was trained as" in str(found)) == bool(also)


@pytest.mark.parametrize("before", ["", "clip."])
def test_open_clips_file_of_other_shapes_asks_for_its_name(before: str, tmp_path: Path) -> None:
    from tests.models.small_towers import OPEN_CLIP

    state = {before + name: tensor for name, tensor in open_clip_state(OPEN_CLIP["own tower"]).items()}
    torch.save({**state, "criterion.weight": torch.zeros(2)} if before else state, tmp_path / "w.pth")
    found = va.inspect_checkpoint(tmp_path / "w.pth")
    said = "under 'clip.' lies beside other tensors: save its state_dict alone" if before else "name: open_clip/NAME"
    (line,) = [line for line in str(found).splitlines() if line.startswith("model: ")]
    assert said in line
    assert (found.card, "output_key" in str(found)) == ("", False)


def test_a_path_to_nothing_is_to_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(va.ModelError, match=r"no such weights file; correct the path$"):
        va.inspect_checkpoint(tmp_path / "w.pth")


def test_the_table_of_shapes_is_that_of_the_models() -> None:
    table = {known.name: known for known in known_models()}
    if not OLDER_TIMM:  # which lacks some of them
        assert {name for name in table if "/" not in name} <= set(names_like("*"))
    for found in measure("[vr]*t_tiny*"):
        assert dataclasses.asdict(table[found.name]) == dataclasses.asdict(found)
