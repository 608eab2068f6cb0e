"""Models that are in memory: taken with their own weights and logits, or refused with the part and the reason."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import convnext_tiny, resnet18, resnext50_32x4d
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from audit.card.schema import ModelSpec
from audit.controls.identities import Subject, run_identities
from audit.errors import DataError, ModelError
from audit.models.adapters.registry import adapter
from audit.models.architecture import unit_of
from audit.models.build import Backbone
from audit.models.checkpoint import hash_state
from audit.models.predict import predict, predict_logits
from audit.models.preprocessing import preprocessing_of
from tests.models.test_converters import CLASSIFIERS, THREE, drawn
from tests.models_for_tests import FAMILIES, enlarged, noise_images, noise_pixels, tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.unit
NAMES = ["calm", "glad", "sad"]
HALF: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("unknown attention",)])
def test_a_model_of_timm_is_taken_as_it_is(family: str) -> None:
    module, images = tiny(family), noise_images(2)
    before = hash_state(module.state_dict())
    backbone = Backbone.from_module(module, NAMES)
    assert backbone.spec.classes == NAMES
    own = backbone.build_as_is(3)
    assert own is not module
    frozen = copy.deepcopy(module).requires_grad_(False)  # torch 2.6 rounds otherwise where weights ask for gradients
    with torch.inference_mode():
        torch.testing.assert_close(own(images), frozen(images), rtol=0, atol=0)
    assert not any(p.requires_grad for p in own.parameters())
    assert all(p.requires_grad for p in module.parameters())
    assert hash_state(module.state_dict()) == before
    assert unit_of(backbone.spec.name) == adapter(module).unit


@pytest.mark.parametrize("family", ["class token", "distilled", "beit", "swin", "resnet, basic", "convnext"])
def test_copies_share_the_body_and_untrained_ones_share_nothing(family: str) -> None:
    module = tiny(family)
    backbone = Backbone.from_module(module, NAMES)
    start = torch.get_rng_state()
    two, again, seven, untrained = backbone.build(2), backbone.build(2), backbone.build(7), backbone.build_untrained(3)
    assert torch.equal(torch.get_rng_state(), start)
    assert hash_state(two.state_dict()) == hash_state(again.state_dict())
    classifiers = tuple(f"{n}." for n in adapter(module).classifiers())
    mine, random = module.state_dict(), untrained.state_dict()
    for name, weight in seven.state_dict().items():
        if not name.startswith(classifiers):
            assert torch.equal(weight, mine[name]), name
    with torch.inference_mode():
        assert seven(noise_images(1)).shape == (1, 7)
        assert untrained(noise_images(2)).isfinite().all()
    alike = [n for n, p in untrained.named_parameters() if p.numel() > 1 and torch.equal(p, mine[n])]
    assert alike == []
    assert any(not torch.equal(random[n], torch.zeros_like(random[n])) for n in random)
    assert backbone.body_hash() == Backbone.from_module(module, ["a", "b", "c"]).body_hash()
    assert backbone.body_hash() != Backbone.from_module(tiny(family, seed=5), NAMES).body_hash()


def test_the_hash_sees_how_a_module_is_made_up() -> None:
    four, eight = (timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32,
                                     num_heads=n, num_classes=3) for n in (4, 8))  # fmt: skip
    eight.load_state_dict(four.state_dict())
    hashes = {Backbone.from_module(m, NAMES).body_hash() for m in (four, eight)}
    assert len(hashes) == 2


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_model_of_hugging_face_gives_its_own_logits(kind: str) -> None:
    original, images = drawn(CLASSIFIERS[kind]()), noise_images(2)
    backbone = Backbone.from_module(original, **HALF)
    assert backbone.spec.classes == NAMES
    assert backbone.spec.name == "huggingface"
    with torch.inference_mode():
        wanted = original(pixel_values=images).logits
        torch.testing.assert_close(backbone.build_as_is(3)(images), wanted, rtol=1e-4, atol=1e-4)
    assert backbone.build(5)(images).shape == (2, 5)


def test_models_of_torchvision_give_their_own_logits() -> None:
    vit = TorchvisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=3)
    for original in (drawn(vit), enlarged(resnet18(num_classes=3), 0), enlarged(resnext50_32x4d(num_classes=3), 0)):
        side = 32
        backbone = Backbone.from_module(original.eval(), NAMES, **HALF, image_size=side)
        images = noise_images(2, size=side)
        with torch.inference_mode():
            wanted = original(images)
            scale = float(wanted.abs().max())
            torch.testing.assert_close(backbone.build_as_is(3)(images), wanted, rtol=0, atol=1e-4 * scale)


def test_identities_hold_on_a_converted_model() -> None:
    original = TorchvisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=3)
    model = Backbone.from_module(drawn(original), NAMES, **HALF).build_as_is(3)
    subject = Subject(model, noise_images(3), noise_images(3, seed=1))
    assert [c.id for c in run_identities(subject) if not c.passed] == []


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


class Twice(VisionTransformer):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x) + super().forward(x.flip(-1))
        return out


def not_finite() -> Any:
    model = tiny()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[3] = float("nan")
    return model


def normalising() -> Any:
    model = tiny()
    model.blocks[1].attn.norm = nn.LayerNorm(32)
    return model


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a wrapper": (Wrapper, {}, "it is a Wrapper; its part 'body' is a VisionTransformer: take that"),
    "another library": (lambda: convnext_tiny(num_classes=3), {}, "it is a ConvNeXt"),
    "another kind": (lambda: nn.Linear(3, 3), {}, "it is a Linear"),
    "mixed heads": (normalising, {}, "block 1 normalises across heads"),
    "not finite": (not_finite, {}, "blocks.1.mlp.fc1.bias holds NaN"),
    "classes": (tiny, {"classes": ["a", "b"]}, "its output is (3,), for 2 classes"),
    "its own pass": (
        lambda: Twice(img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, num_classes=3),
        HALF,
        "the logits of its parts differ from its own",
    ),
    "pixels": (
        lambda: VisionTransformer(img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, num_classes=3),
        {},
        "nothing beside the weights says how pixels are normalised",
    ),
    "no classes": (
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
                         image_size=32, patch_size=8, problem_type="regression", **THREE)
        ),
        HALF,
        "problem_type 'regression'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_patched_is_refused_with_the_part_and_the_reason(name: str) -> None:
    make, options, reason = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        Backbone.from_module(make(), **{"classes": NAMES, **options})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.fix


def test_classes_must_be_known() -> None:
    with pytest.raises(ModelError, match="nothing says what the outputs mean"):
        Backbone.from_module(tiny())


def test_pictures_files_and_arrays_are_predicted_alike(tmp_path: Any) -> None:
    model, pixels = tiny(), noise_pixels(4, size=48)
    seen = preprocessing_of(ModelSpec(preprocess={"resize": 32}), model)
    pictures = [Image.fromarray(p) for p in pixels]
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    logits = predict(model, pictures, seen)
    assert logits.shape == (4, 3)
    assert logits.dtype == np.float32
    for given in (files, list(map(str, files)), list(pixels), [pictures[0], files[1], pixels[2], str(files[3])]):
        np.testing.assert_array_equal(predict(model, given, seen), logits)
    small = noise_pixels(4)
    np.testing.assert_array_equal(predict(model, list(small), seen), predict_logits(model, small))
    assert predict(model, [], seen).shape == (0, 3)
    with pytest.raises(DataError, match=r"images\[1\].*cannot be opened"):
        predict(model, [files[0], tmp_path / "none.png"], seen)
    with pytest.raises(DataError, match=r"images\[0\]: is an array \(4, 4, 3\) of float64"):
        predict(model, [np.zeros((4, 4, 3))], seen)  # type: ignore[list-item]
