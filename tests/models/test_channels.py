"""What is special to convolutional networks: slices of channels, sizes, statistics of norms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet50

from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.architecture import make_architecture, unit_of
from audit.models.build import Backbone
from audit.models.finetune import Recipe, count_steps, finetune, make_views
from audit.models.transforms import as_input
from audit.patching.sites import head_outputs, record, sites_of, trace_bytes
from tests.models_for_tests import CONVOLUTIONAL, noise_images, tiny, two_tones

pytestmark = pytest.mark.unit
RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0.0, warmup_share=0.0, seed=0)


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_the_slices_of_a_block_share_out_its_channels(family: str) -> None:
    model = tiny(family)
    trace = record(model, noise_images(2))
    for layer in range(adapter(model).depth):
        outputs = head_outputs(model, layer, trace.head_activations[layer])
        assert torch.equal(outputs.sum(0), trace.attention[layer])
        touched = (outputs != 0).flatten(3).any(-1).any(1)  # (slices, channels)
        assert (touched.sum(0) <= 1).all()  # no channel belongs to two


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("side", [36, 44])
def test_images_of_odd_sizes_are_laid_out_and_back(family: str, side: int) -> None:
    """Their sides halve to odd numbers on the way."""
    model = tiny(family)
    body, trace = adapter(model), record(model, noise_images(2, size=side))
    for layer in range(body.depth):
        assert torch.equal(body.to_stream(layer, trace.head_activations[layer]), trace.attention[layer])


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_sizes_are_those_of_a_pass(family: str) -> None:
    model = tiny(family)
    body, trace = adapter(model), record(model, noise_images(1))
    for layer in range(body.depth):
        assert (body.tokens(layer), body.sizes(layer).width) == trace.head_activations[layer].shape[1:]
    kept = sum(t.numel() for t in (*trace.entering, *trace.attention, trace.leaving))
    assert trace_bytes(model) == pytest.approx(4 * kept, rel=0.35)


def spec(**options: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": "resnet18", "weights": "none", "image_size": 64, **options})


def test_a_card_says_into_how_many_slices() -> None:
    model = Backbone(spec(channel_slices=4), None).build(2)
    assert len(sites_of(model)) == 8 * 4
    assert len(sites_of(Backbone(spec(), None).build(2))) == 8 * 8


@pytest.mark.parametrize(
    ("options", "where", "what"),
    [
        ({"channel_slices": 7}, "model.channel_slices", "64 channels, which 7 slices of one size do not make up"),
        ({"name": "torchvision/vit_b_16", "channel_slices": 8}, "model.channel_slices", "has attention heads"),
        ({"name": "vit_tiny_patch16_224", "channel_slices": 8}, "model.channel_slices", "has attention heads"),
        ({"image_size": 16}, "model.image_size", "16 is less than the 32"),
        ({"name": "resnetv2_50"}, "model.name", "is not supported"),
    ],
)
def test_what_cannot_be_parted_is_refused(options: dict[str, object], where: str, what: str) -> None:
    with pytest.raises(ModelError) as caught:
        make_architecture(spec(**options), 2)
    assert caught.value.where == where
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_models_have_slices() -> None:
    assert unit_of("resnet50") == unit_of("convnext_tiny") == "slice"
    assert (
        unit_of("vit_tiny_patch16_224") == unit_of("swin_tiny_patch4_window7_224") == unit_of("huggingface") == "head"
    )


def test_a_state_dict_of_torchvision_is_read(tmp_path: Path) -> None:
    """It has the names and shapes of timm's, and gives the same logits."""
    torch.manual_seed(0)
    theirs = resnet50(weights=None, num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    card = ModelSpec(name="resnet50", weights="file", image_size=64)
    ours = Backbone(card, tmp_path / "w.safetensors").build_as_is(3)
    images = noise_images(2, size=64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_weights_from_before_norms_counted_batches_are_read(tmp_path: Path) -> None:
    state = resnet50(weights=None, num_classes=3).state_dict()
    save_file({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.safetensors")
    card = ModelSpec(name="resnet50", weights="file", image_size=64)
    assert Backbone(card, tmp_path / "w.safetensors").build_as_is(3).num_classes == 3


def statistics(model: Model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k}


@pytest.mark.parametrize("learn", [False, True])
def test_norms_learn_statistics_where_they_shall(learn: bool) -> None:
    model = tiny("resnet, basic", classes=2)
    pixels, targets = two_tones(16)
    before, weights = statistics(model), model.layer1[0].conv1.weight.clone()
    finetune(model, make_views(model, [pixels], None), targets, replace(RECIPE, learn_statistics=learn))
    after = statistics(model)
    assert any(not torch.equal(before[k], after[k]) for k in before) is learn
    assert not torch.equal(model.layer1[0].conv1.weight, weights)
    assert not any(m.training for m in model.modules())


def test_only_what_slices_write_is_trained_where_asked() -> None:
    """What goes around the branches, and what is frozen, stays."""
    model = tiny("resnet, bottleneck", classes=2)
    pixels, targets = two_tones(16)
    recipe = Recipe(1, 8, 1e-3, 0.0, 0.0, 0, train_blocks=2, freeze_classifier=True, attention_only=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    finetune(model, make_views(model, [pixels], 2), targets, recipe)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith(("layer3.0.", "layer4.0.")) and ".downsample." not in k for k in changed)


def test_frozen_blocks_hand_on_what_they_would() -> None:
    model = tiny("convnext")
    pixels, _ = two_tones(4)
    views = make_views(model, [pixels], 2, dtype=torch.float32)
    assert views.prefix == 3
    with torch.inference_mode():
        stream = views.data[0]
        assert isinstance(stream, torch.Tensor)
        for layer in range(3, 5):
            stream = adapter(model).run(layer, stream)
        found = adapter(model).classify(stream)
        torch.testing.assert_close(found, model(as_input(model, pixels)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_model_that_knows_nothing_is_as_loud_as_another(name: str) -> None:
    """Timm begins with blocks that write nothing, which would make of the null an ablation."""
    model = Backbone(spec(name=name), None).build_untrained(2)
    trace = record(model, noise_images(2, size=64))
    for layer, written in enumerate(trace.attention):
        assert written.norm() > 0.01 * adapter(model).residual_input(layer, trace.entering[layer]).norm()


@pytest.mark.parametrize("images", [9, 16, 17])
def test_norms_that_learn_get_no_last_batch_of_one(images: int) -> None:
    """At the smallest size a single image has no spread at all."""
    recipe = replace(RECIPE, learn_statistics=True, epochs=2)
    model = Backbone(spec(image_size=32, overrides={"layers": [1, 1, 1, 1]}), None).build(2)
    pixels, targets = two_tones(images)
    steps: list[tuple[int, int]] = []
    finetune(model, make_views(model, [pixels], None), targets, recipe, progress=lambda *done: steps.append(done))
    assert steps[-1] == (count_steps(images, recipe),) * 2


def test_models_are_kept_channel_by_channel_in_memory() -> None:
    """On a processor that trains several times as fast."""
    model = Backbone(spec(), None).build(2)
    filters = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters)
    assert np.isfinite(model(noise_images(1, size=64)).detach().numpy()).all()
