"""The engine against plain hooks, on every supported kind of model, and on answers known without either."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck

from audit.batching import batch_size_limit
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.models.blocks import rows_read
from audit.patching.engine import (
    Donor,
    continue_unpatched,
    patch_attention,
    patch_layer,
    patch_together,
    transplant_layer,
)
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site, heads_of, record, same_up_to, sites_of
from tests.models_for_tests import CONVOLUTIONAL, FAMILIES, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit


def by_hooks(model: Model, donor: Model, images: torch.Tensor, donors: torch.Tensor, layer: int) -> torch.Tensor:
    sites = [Site(layer, h) for h in range(heads_of(model, layer))]
    outputs = donor_head_outputs(donor, donors, sites)
    return torch.stack([patch_with_hooks(model, images, {s: outputs[s]}) for s in sites])


def by_engine(model: Model, donor: Model, images: torch.Tensor, donors: torch.Tensor, layer: int) -> torch.Tensor:
    return patch_layer(model, record(model, images), Donor(donor, record(donor, donors)), layer)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_engine_gives_what_hooks_give(family: str, n: int) -> None:
    model, images, donors = tiny(family), noise_images(n), noise_images(n, seed=1)
    with torch.inference_mode():
        unpatched = model(images)
    for layer in range(adapter(model).depth):
        slow = by_hooks(model, model, images, donors, layer)
        assert relative(by_engine(model, model, images, donors, layer), slow) < 1e-4
        least = 1e-4 if family in CONVOLUTIONAL else 1e-3
        assert (slow - unpatched).abs().amax((1, 2)).min() > least * unpatched.abs().max()  # each head was patched


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_less_precision_the_engine_gives_nearly_the_same(family: str, dtype: torch.dtype) -> None:
    if family == "swin v2, padded windows" and dtype == torch.float16:
        dtype = torch.bfloat16  # keys of padding have length 0, and timm's guard against that is 0 in float16
    model, images, donors = tiny(family), noise_images(3), noise_images(3, seed=1)
    recipient, donor = record(model, images), Donor(model, record(model, donors))
    for layer in range(adapter(model).depth):
        exact, rough = (patch_layer(model, recipient, donor, layer, precision=p) for p in (torch.float32, dtype))
        assert torch.equal(exact, patch_layer(model, recipient, donor, layer))
        assert rough.dtype == torch.float32
        assert 0 < relative(rough, exact) < (3e-2 if dtype == torch.bfloat16 else 4e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_gives_what_hooks_give_between_two_models(family: str) -> None:
    model, donor = tiny(family), tiny(family, seed=7)
    images, donors = noise_images(3), noise_images(3, seed=1)
    for layer in range(adapter(model).depth):
        slow = by_hooks(model, donor, images, donors, layer)
        assert relative(by_engine(model, donor, images, donors, layer), slow) < 1e-4


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_engine_gives_what_hooks_give_for_each_pool(pool: str) -> None:
    model, images, donors = tiny(global_pool=pool), noise_images(2), noise_images(2, seed=1)
    for layer in range(2):
        slow = by_hooks(model, model, images, donors, layer)
        assert relative(by_engine(model, model, images, donors, layer), slow) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_of_some_layers_together_give_what_hooks_give(family: str) -> None:
    model, donor = tiny(family), tiny(family, seed=7)
    images, donors = noise_images(3), noise_images(3, seed=1)
    own, given = record(model, images), Donor(donor, record(donor, donors))
    depth = adapter(model).depth
    for layers in {range(depth), range(depth - 1, depth), range(1)}:
        slow = patch_with_hooks(model, images, donor_head_outputs(donor, donors, sites_of(donor, layers)))
        assert relative(patch_attention(model, own, given, layers), slow) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_several_heads_together_give_what_hooks_give(family: str) -> None:
    model, donor = tiny(family), tiny(family, seed=7)
    images, donors = noise_images(3), noise_images(3, seed=1)
    own, given = record(model, images), Donor(donor, record(donor, donors))
    every = sites_of(model)
    for sites in ([every[0]], every[-1:], every[::2], every):
        slow = patch_with_hooks(model, images, donor_head_outputs(donor, donors, sites))
        assert relative(patch_together(model, own, given, sites), slow) < 1e-4
    alone = patch_layer(model, own, given, every[0].layer, [every[0].head])[0]
    assert relative(patch_together(model, own, given, every[:1]), alone) < 1e-4
    assert hooks_left(model) == 0


def with_head_of(model: Model, donor: Model, site: Site) -> Model:
    """Return a copy of ``model`` whose one head has the donor's Q, K, V and O weights."""
    mixed = copy.deepcopy(model)
    ours, theirs = (dict(adapter(m).blocks[site.layer].attn.named_parameters()) for m in (mixed, donor))
    width = ours["proj.weight"].shape[1] // heads_of(model, site.layer)
    own = slice(site.head * width, (site.head + 1) * width)
    with torch.no_grad():
        for name, weight in ours.items():
            if name == "proj.weight":
                weight[:, own] = theirs[name][:, own]
            elif "position" in name:
                weight[:, site.head] = theirs[name][:, site.head]
            elif name == "logit_scale":
                weight[site.head] = theirs[name][site.head]
            elif name.startswith("cpb_mlp"):
                continue  # its first layer is common to the heads
            elif "norm" not in name and not name.startswith("proj"):
                parts = 3 if name.startswith("qkv") else 1
                for given, taken in zip(weight.chunk(parts), theirs[name].chunk(parts), strict=True):
                    given[own] = taken[own]
        if "cpb_mlp.0.weight" in ours:
            _join_positions(adapter(mixed).blocks[site.layer].attn, adapter(donor).blocks[site.layer].attn, site.head)
    return mixed


def _join_positions(ours: Any, theirs: Any, head: int) -> None:
    """Give one head the positions that the donor's MLP computes: both MLPs side by side, each head reading one."""
    own, given = ours.cpb_mlp, theirs.cpb_mlp
    read = torch.cat([own[2].weight, torch.zeros_like(given[2].weight)], dim=1)
    read[head] = torch.cat([torch.zeros_like(own[2].weight[head]), given[2].weight[head]])
    joined = torch.nn.Linear(2, read.shape[1]), torch.nn.Linear(read.shape[1], len(read), bias=False)
    joined[0].weight.copy_(torch.cat([own[0].weight, given[0].weight]))
    joined[0].bias.copy_(torch.cat([own[0].bias, given[0].bias]))
    joined[1].weight.copy_(read)
    ours.cpb_mlp = torch.nn.Sequential(joined[0], own[1], joined[1])


def with_branch_of(model: Model, donor: Model, site: Site, images: torch.Tensor) -> torch.Tensor:
    """Return the logits where one slice of channels is what the donor's branch makes of the recipient's stream."""
    given = copy.deepcopy(adapter(donor).blocks[site.layer])
    if isinstance(given, BasicBlock | Bottleneck):  # what is rectified could not be taken apart
        setattr(given, "act3" if isinstance(given, Bottleneck) else "act2", torch.nn.Identity())
    stream = record(model, images).entering[site.layer]
    write = given(stream.clone()) - adapter(donor).residual_input(site.layer, stream)
    width = write.shape[1] // heads_of(model, site.layer)
    only = torch.zeros_like(write)
    own = slice(site.head * width, (site.head + 1) * width)
    only[:, own] = write[:, own]
    return patch_with_hooks(model, images, {site: only})


def transplanted(model: Model, donor: Model, site: Site, images: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes) of a model whose one head, or slice of channels, has the donor's weights."""
    if isinstance(adapter(model), Heads):
        logits: torch.Tensor = with_head_of(model, donor, site)(images)
        return logits
    return with_branch_of(model, donor, site, images)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transplanted_head_is_a_model_with_that_heads_weights(family: str) -> None:
    model, donor, images = tiny(family), tiny(family, seed=7), noise_images(3)
    own = record(model, images)
    with torch.inference_mode():
        for layer in range(adapter(model).depth):
            found = transplant_layer(model, own, donor, layer)
            for head in range(heads_of(model, layer)):
                expected = transplanted(model, donor, Site(layer, head), images)
                assert relative(found[head], expected) < 1e-4
            last = heads_of(model, layer) - 1
            assert relative(transplant_layer(model, own, donor, layer, [last])[0], found[last]) < 1e-5
    assert hooks_left(model) == 0


@pytest.mark.parametrize("family", ["class token", "LayerScale", "average pool", *CONVOLUTIONAL])
def test_a_models_own_weights_transplanted_change_next_to_nothing(family: str) -> None:
    model, images = tiny(family), noise_images(2)
    own = record(model, images)
    for layer in range(adapter(model).depth):
        unpatched = continue_unpatched(model, own, layer, heads_of(model, layer))
        assert relative(transplant_layer(model, own, tiny(family), layer), unpatched) < 1e-5


@pytest.mark.parametrize("family", ["class token", "three layers", "LayerScale", "swin", *CONVOLUTIONAL])
def test_a_pass_taken_up_from_a_shared_prefix_is_the_whole_pass(family: str) -> None:
    model, twin, images = tiny(family), tiny(family), noise_images(2)
    start = adapter(model).depth - 1
    with torch.no_grad():
        for weight in (*adapter(twin).modules(start)[0].parameters(), *twin.get_classifier().parameters()):
            weight.mul_(1.5)
    assert same_up_to(model, twin, start)
    assert not same_up_to(model, twin, start + 1)
    assert not same_up_to(model, tiny(family, seed=1), 0)
    whole, resumed = record(twin, images), record(twin, images, prefix=record(model, images), start=start)
    assert torch.equal(whole.leaving, resumed.leaving)
    for name in ("entering", "attention", "head_activations"):
        pairs = list(zip(getattr(whole, name), getattr(resumed, name), strict=True))
        assert len(pairs) == start + 1
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_self_patch_changes_not_one_bit(family: str) -> None:
    model = tiny(family)
    trace = record(model, noise_images(3))
    for layer in range(adapter(model).depth):
        patched = patch_layer(model, trace, Donor(model, trace), layer)
        assert torch.equal(patched, continue_unpatched(model, trace, layer, heads_of(model, layer)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unpatched_path_is_the_model(family: str) -> None:
    model, images = tiny(family), noise_images(3)
    trace = record(model, images)
    with torch.inference_mode():
        logits = model(images)
    for layer in range(adapter(model).depth):
        assert relative(continue_unpatched(model, trace, layer, 2), logits.expand(2, -1, -1)) < 1e-5


def test_a_twin_in_other_coordinates_patches_alike() -> None:
    """u is what is patched: a donor that stores the same heads elsewhere makes no difference, raw z would."""
    model = tiny()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for block in twin.blocks:
            block.attn.qkv.weight[64:] *= 3.0
            block.attn.qkv.bias[64:] *= 3.0
            block.attn.proj.weight /= 3.0
    images, donors = noise_images(3), noise_images(3, seed=1)
    own, other = by_engine(model, model, images, donors, 0), by_engine(model, twin, images, donors, 0)
    assert relative(other, own) < 1e-5
    assert not torch.allclose(record(twin, donors).head_activations[0], record(model, donors).head_activations[0])


def test_each_recipient_gets_its_own_donor() -> None:
    model, images, donors = tiny(), noise_images(4), noise_images(4, seed=1)
    together = by_engine(model, model, images, donors, 0)
    for i in range(4):
        alone = by_engine(model, model, images[i : i + 1], donors[i : i + 1], 0)
        assert relative(together[:, i : i + 1], alone) < 1e-5


def test_chosen_heads_are_those_of_the_full_run_in_the_order_asked() -> None:
    model, images, donors = tiny(), noise_images(3), noise_images(3, seed=1)
    trace, donor = record(model, images), Donor(model, record(model, donors))
    full, some = patch_layer(model, trace, donor, 1), patch_layer(model, trace, donor, 1, heads=[3, 1])
    assert some.shape == (2, 3, 3)
    assert relative(some, full[[3, 1]]) < 1e-5


@pytest.mark.parametrize("rows_at_once", [1, 5, 12])
@pytest.mark.parametrize("family", ["class token", "average pool", "swin", *CONVOLUTIONAL])
def test_batch_boundaries_do_not_matter(family: str, rows_at_once: int) -> None:
    model, images, donors = tiny(family), noise_images(3), noise_images(3, seed=1)
    layers = range(adapter(model).depth)
    whole = [by_engine(model, model, images, donors, layer) for layer in layers]
    for layer in layers:
        with batch_size_limit(rows_at_once):
            parts = by_engine(model, model, images, donors, layer)
        assert relative(parts, whole[layer]) < 5e-5


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("class token", 1),
        ("distilled", 2),
        ("dinov2, registers", 5),
        ("average pool", None),
        ("attention pool", None),
    ],
)
def test_rows_that_the_classifier_reads(family: str, rows: int | None) -> None:
    assert rows_read(tiny(family)) == rows


@pytest.mark.parametrize("family", ["class token", "distilled", "dinov2, registers"])
def test_the_classifier_reads_no_other_rows(family: str) -> None:
    model = tiny(family)
    rows = rows_read(model)
    stream = torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(
            model.forward_head(model.norm(stream)), model.forward_head(model.norm(stream[:, :rows])), atol=1e-6
        )


def test_a_take_of_a_trace_patches_like_the_whole() -> None:
    model, images, donors = tiny(), noise_images(5), noise_images(5, seed=1)
    own, given, rows = record(model, images), record(model, donors), torch.tensor([4, 0, 2])
    whole = patch_layer(model, own, Donor(model, given), 0)[:, rows]
    assert relative(patch_layer(model, own.take(rows), Donor(model, given.take(rows)), 0), whole) < 1e-5


def test_sites_are_all_heads_layer_by_layer() -> None:
    model = tiny("three layers")
    assert sites_of(model) == [Site(layer, head) for layer in range(3) for head in range(4)]
    assert sites_of(model, range(2, 3)) == [Site(2, head) for head in range(4)]
    assert sites_of(model, range(0)) == []  # an empty range is no layers, not all of them
