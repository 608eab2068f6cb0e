"""The slow reference on answers that are known without it; and that it leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch

from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.patching.attention import can_look
from audit.patching.hooks import donor_head_outputs, patch_everything, patch_with_hooks
from audit.patching.sites import Site, head_outputs, record, sites_of
from tests.models_for_tests import FAMILIES, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_holds_the_pass(family: str) -> None:
    model, images = tiny(family), noise_images(2)
    trace = record(model, images)
    layers = adapter(model).depth
    assert len(trace.entering) == len(trace.attention) == len(trace.head_activations) == layers
    with torch.inference_mode():
        assert torch.allclose(adapter(model).classify(trace.leaving), model(images), atol=1e-5)
        for i in range(layers):
            after = trace.entering[i + 1] if i + 1 < layers else trace.leaving
            assert torch.allclose(adapter(model).run(i, trace.entering[i]), after, atol=1e-5)
            summed = adapter(model).residual_input(i, trace.entering[i]) + trace.attention[i]
            assert torch.allclose(adapter(model).after(i, summed), after, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if can_look(tiny(name), Site(0, 0))])
def test_a_trace_holds_what_timms_own_parts_give(family: str) -> None:
    model, images = tiny(family), noise_images(2)
    trace = record(model, images)
    with torch.inference_mode():
        for i, block in enumerate(model.blocks):
            assert torch.allclose(block.ls1(block.attn(block.norm1(trace.entering[i]))), trace.attention[i], atol=1e-5)
            assert torch.allclose(block.ls1(block.attn.proj(trace.head_activations[i])), trace.attention[i], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_head_writes_and_bias_add_up_to_attention(family: str) -> None:
    model, images = tiny(family), noise_images(2)
    trace = record(model, images)
    body = adapter(model)
    for i in range(body.depth):
        total = head_outputs(model, i, trace.head_activations[i]).sum(0)
        if isinstance(body, Heads) and body.projection(i).bias is not None:
            gamma = body.scale(i)
            bias = body.projection(i).bias * (1.0 if gamma is None else gamma)
            total[..., -len(bias) :] += bias  # where heads write beside the stream, the last channels are theirs
        assert float((total - trace.attention[i]).norm() / trace.attention[i].norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_to_split_attention_agree(family: str) -> None:
    model, images = tiny(family), noise_images(2)
    trace = record(model, images)
    for site, write in donor_head_outputs(model, images, sites_of(model)).items():
        fast = head_outputs(model, site.layer, trace.head_activations[site.layer])[site.head]
        assert torch.allclose(fast, write, atol=1e-5)


@torch.inference_mode()
def test_what_a_head_writes_by_hand() -> None:
    """Head h reads its own columns of W_O, times gamma, and no bias."""
    model, images = tiny("LayerScale"), noise_images(1)
    z, block = record(model, images).head_activations[1], model.blocks[1]
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        expected = block.ls1.gamma * (z[..., own] @ block.attn.proj.weight[:, own].T)
        assert torch.allclose(donor_head_outputs(model, images, [Site(1, head)])[Site(1, head)], expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_parts_patched_is_the_donor(family: str) -> None:
    """Where norm and classifier are common, nothing of the recipient is left."""
    model, donor = tiny(family), tiny(family, seed=3)
    for part in ("norm", "norm_pre", "fc_norm", "head", "attn_pool", "head_dist", "fc"):
        if hasattr(model, part):
            setattr(donor, part, getattr(model, part))
    for name, part in model.named_modules():  # what leads from stage to stage is no layer's write
        if name.endswith("downsample"):
            donor.set_submodule(name, part)
    images, donors = noise_images(2), noise_images(2, seed=1)
    patched, own, logits = patch_everything(model, donor, images, donors)
    assert torch.equal(patched, own)
    with torch.inference_mode():
        assert torch.equal(logits, donor(donors))
        assert not torch.allclose(logits, model(images), atol=1e-2)


def branch_weights(model: Model, layer: int) -> list[torch.Tensor]:
    """Return the matrices, or filters, that make what a layer's heads or slices write."""
    body = adapter(model)
    if isinstance(body, Heads):
        return [*body.inner_weights(layer), body.projection(layer).weight]
    return [p for p in body.branch(layer) if p.ndim > 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_of_a_donor_with_other_attention_weights_alone_are_the_donor(family: str) -> None:
    """Embeddings, MLPs, biases and classifier are common, so the heads are all that differs."""
    model = tiny(family)
    donor, images = copy.deepcopy(model), noise_images(3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in range(adapter(donor).depth):
            for weight in branch_weights(donor, layer):
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    patched = patch_with_hooks(model, images, donor_head_outputs(donor, images, sites_of(donor)))
    with torch.inference_mode():
        wanted, unpatched = donor(images), model(images)
    scale = float(wanted.abs().max())
    assert float((patched - wanted).abs().max()) < 1e-5 * scale
    assert float((unpatched - wanted).abs().max()) > 1e-2 * scale


def test_own_writes_back_change_nothing() -> None:
    model, images = tiny("three layers"), noise_images(2)
    patched = patch_with_hooks(model, images, donor_head_outputs(model, images, sites_of(model)))
    with torch.inference_mode():
        assert torch.allclose(patched, model(images), atol=1e-5)


def test_the_order_in_which_heads_are_named_does_not_matter() -> None:
    model, images = tiny("three layers"), noise_images(2)
    outputs = donor_head_outputs(model, noise_images(2, seed=1), [Site(2, 1), Site(0, 3), Site(0, 0), Site(1, 2)])
    turned = dict(reversed(outputs.items()))
    assert torch.equal(patch_with_hooks(model, images, outputs), patch_with_hooks(model, images, turned))


def test_no_head_patched_is_the_model() -> None:
    model, images = tiny(), noise_images(2)
    with torch.inference_mode():
        assert torch.equal(patch_with_hooks(model, images, {}), model(images))


def test_hooks_are_gone_afterwards() -> None:
    model, images = tiny(), noise_images(2)
    record(model, images)
    patch_with_hooks(model, images, donor_head_outputs(model, images, sites_of(model)))
    patch_everything(model, model, images, images)
    assert hooks_left(model) == 0


def test_hooks_are_gone_after_an_exception() -> None:
    model, images, too_large = tiny(), noise_images(2), noise_images(2, size=40)
    wrong = {Site(0, 0): torch.zeros(2, 5, 7)}
    for fault in (
        lambda: record(model, too_large),
        lambda: donor_head_outputs(model, too_large, sites_of(model)),
        lambda: patch_with_hooks(model, images, wrong),
        lambda: patch_with_hooks(model, images, {Site(0, 0): wrong[Site(0, 0)], Site(9, 0): wrong[Site(0, 0)]}),
        lambda: patch_everything(model, model, too_large, images),
        lambda: patch_everything(model, model, images, too_large),
    ):
        with pytest.raises((RuntimeError, AssertionError, IndexError)):
            fault()
        assert hooks_left(model) == 0


@pytest.mark.parametrize("family", ["class token", "LayerScale", "one head"])
def test_writes_are_to_be_had_from_a_model_whose_weights_still_ask_for_gradients(family: str) -> None:
    """As a user's own checkpoint is, that nobody has trained here."""
    model = tiny(family).requires_grad_(True)
    assert head_outputs(model, 0, record(model, noise_images(1)).head_activations[0]).requires_grad is False


def test_patching_leaves_the_model_as_it_was() -> None:
    model, images = tiny("LayerScale"), noise_images(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.inference_mode():
        logits = model(images)
    patch_with_hooks(model, images, donor_head_outputs(model, noise_images(2, seed=1), sites_of(model)))
    with torch.inference_mode():
        assert torch.equal(model(images), logits)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
