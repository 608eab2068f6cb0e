"""What a writer reads: the sum over what was written before is exact, and is the gradient with what is held held."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from audit.batching import batch_size_limit
from audit.models.adapters.registry import adapter
from audit.patching.contributions import Component
from audit.patching.read_back import Read, can_read, read_back, sum_of_writes
from audit.patching.sites import head_outputs, record
from audit.patching.written import written
from audit.records import PartKind
from tests.models_for_tests import hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit
IMAGES = noise_images(5)
OUTCOMES = {"first": 0, "last": 2}
PLAIN = [
    "class token", "average pool, registers", "attention pool", "distilled", "LayerScale", "deit3",
    "clip, pre-norm", "flexivit", "qk norm", "no bias", "one layer", "three layers",
]  # fmt: skip
POOLS: dict[str, dict[str, Any]] = {
    "maximum": {"global_pool": "max"},
    "mean and maximum": {"global_pool": "avgmax"},
    "RMSNorm": {"norm_layer": timm.layers.RmsNorm},
    "ReLU": {"act_layer": nn.ReLU},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in PLAIN},
    **{name: ("class token", options) for name, options in POOLS.items()},
}


def writers_of(model: Any) -> list[Component]:
    """Return every head and MLP that can be asked."""
    body = adapter(model)
    every = [Component(PartKind.HEAD, i, h) for i in range(body.depth) for h in range(body.units(i))]
    every += [Component(PartKind.MLP, i) for i in range(body.depth)]
    return [writer for writer in every if can_read(model, writer)]


def closes(found: list[Read], tolerance: float) -> None:
    assert max(read.closure for read in found) <= tolerance
    assert all(np.isfinite(read.values).all() for read in found)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_sums_to_what_is_written(kind: str) -> None:
    family, options = KINDS[kind]
    model = tiny(family, **options)
    writers = writers_of(model)
    mean = sum_of_writes(model, IMAGES, adapter(model).depth - 1).flat() / len(IMAGES)
    closes(read_back(model, IMAGES, OUTCOMES, writers), 1e-4)
    closes(read_back(model, IMAGES, OUTCOMES, writers, mean), 1e-4)
    model, images = model.double(), IMAGES.double()
    found = read_back(model, images, OUTCOMES, writers)
    closes(found, 1e-10)
    parts = written(model, images, OUTCOMES)
    for read in found:  # the same number that the first step has of the writer
        own = parts.values[:, parts.components.index(read.writer)]
        np.testing.assert_allclose(read.own, own, atol=1e-9 * max(1.0, float(np.abs(own).max())))
        np.testing.assert_allclose(read.places.sum(-1), read.values.sum(1), atol=1e-9)
    assert hooks_left(model) == 0


@pytest.mark.parametrize(
    "writer", [Component(PartKind.HEAD, 2, 1), Component(PartKind.MLP, 1), Component(PartKind.MLP, 2)]
)
def test_each_source_counts_by_the_gradient_with_what_is_held_held(writer: Component) -> None:
    """Written again from the formulas: every source has a factor of 1, by which torch derives what is written."""
    model, images = tiny("LayerScale", classes=2, depth=3).double(), IMAGES.double()
    (found,) = read_back(model, images, {"second": 1}, [writer])
    body, layer = adapter(model), writer.layer or 0
    block, trace = model.blocks[layer], record(model, images)
    sources = [u for i in range(layer + (writer.kind == PartKind.MLP)) for u in of_layer(model, trace, i)]
    first = trace.entering[0].clone()  # which was made in inference mode
    prefix = F.pad(first[:, :1], (0, 0, 0, first.shape[1] - 1))
    named = {Component(PartKind.TOKENS): prefix, Component(PartKind.PATCHES): first - prefix}
    named |= {c: u.clone() for c, u in sources if not (c.kind == PartKind.MLP and c.layer == layer)}
    factors = torch.ones(len(named), dtype=torch.float64, requires_grad=True)
    biases = [torch.as_tensor(body.bias(i)).detach() for i in range(layer + (writer.kind == PartKind.MLP))]
    written_before = [f * u for f, u in zip(factors, named.values(), strict=True)]
    stream = torch.stack(written_before).sum(0) + torch.stack(biases).sum(0)

    def held(norm: Any, entering: torch.Tensor) -> torch.Tensor:
        scale = (entering.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt().detach()
        normed: torch.Tensor = (entering - entering.mean(-1, keepdim=True)) * scale * norm.weight + norm.bias
        return normed

    if writer.kind == PartKind.HEAD:
        of_head = slice(8 * (writer.index or 0), 8 * (writer.index or 0) + 8)
        q, k, v = block.attn.qkv(held(block.norm1, stream)).chunk(3, dim=-1)
        seen = (q[..., of_head] @ k[..., of_head].mT * 8**-0.5).softmax(-1).detach()
        write = seen @ v[..., of_head] @ block.attn.proj.weight[:, of_head].mT * block.ls1.gamma
    else:
        inside = block.mlp.fc1(held(block.norm2, stream))
        write = block.ls2(block.mlp.fc2(inside * torch.distributions.Normal(0.0, 1.0).cdf(inside).detach()))
    weight = (model.head.weight[1] - model.head.weight[0]) * model.norm.weight
    scale = (trace.leaving[:, 0].clone().var(-1, unbiased=False) + model.norm.eps).rsqrt()
    answers = (write[:, 0] - write[:, 0].mean(-1, keepdim=True)) @ weight * scale
    np.testing.assert_allclose(found.own[:, 0], answers.detach(), atol=1e-9)
    for image, answer in enumerate(answers):
        (slope,) = torch.autograd.grad(answer, factors, retain_graph=True)
        wanted = dict(zip(named, slope.tolist(), strict=True))
        assert wanted == pytest.approx(dict(zip(found.sources, found.values[image, :, 0], strict=True)), abs=1e-9)


def of_layer(model: Any, trace: Any, layer: int) -> list[tuple[Component, torch.Tensor]]:
    """Return what the heads and the MLP of a layer write, (B, T, W) each."""
    heads = head_outputs(model, layer, trace.head_activations[layer])
    leaving = trace.leaving if layer + 1 == len(trace.entering) else trace.entering[layer + 1]
    mlp = leaving - trace.entering[layer] - trace.attention[layer]
    named = [(Component(PartKind.HEAD, layer, h), u) for h, u in enumerate(heads)]
    return [*named, (Component(PartKind.MLP, layer), mlp)]


def test_a_head_that_attends_to_one_patch_reads_that_patch_alone() -> None:
    """Its queries and keys are biases and positions alone, so that all of its attention is where it was put."""
    model = tiny("one layer", classes=2, num_heads=1).double()
    place, images = 7, IMAGES.double()
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[:, place, 0] = 60.0
        qkv = model.blocks[0].attn.qkv
        qkv.weight[:64], qkv.bias[:64] = 0.0, 0.0
        qkv.bias[0], qkv.weight[32, 0] = 100.0, 100.0
    mean = sum_of_writes(model, images, 0).flat() / len(images)
    (found,) = read_back(model, images, {"second": 1}, [Component(PartKind.HEAD, 0, 0)], mean)
    read = np.abs(found.places[:, 0])
    assert (read[:, place] > 1e-3).all()
    np.testing.assert_allclose(np.delete(read, place, axis=1), 0.0, atol=1e-9)
    by_source = dict(zip(found.sources, found.values[..., 0].T, strict=True))
    np.testing.assert_allclose(by_source[Component(PartKind.TOKENS)], 0.0, atol=1e-9)
    np.testing.assert_allclose(by_source[Component(PartKind.PATCHES)], found.places[:, 0].sum(-1))


@pytest.mark.parametrize(
    ("family", "heads", "mlps"),
    [("class token", True, True), ("dinov2, SwiGLU", True, False), ("unknown attention", False, False),
     ("beit", False, False), ("swin", False, False), ("resnet, basic", False, False)],
)  # fmt: skip
def test_only_what_is_known_is_read(family: str, heads: bool, mlps: bool) -> None:
    model = tiny(family)
    assert can_read(model, Component(PartKind.HEAD, 0, 0)) is heads
    assert can_read(model, Component(PartKind.MLP, 0)) is mlps
    assert not can_read(model, Component(PartKind.ATTENTION_BIAS, 0))


def test_what_is_read_does_not_depend_on_how_many_images_are_taken_at_once() -> None:
    model = tiny("class token").double()
    images, writers = IMAGES.double(), [Component(PartKind.HEAD, 1, 2), Component(PartKind.MLP, 1)]
    together, mean = read_back(model, images, OUTCOMES, writers), sum_of_writes(model, images, 1).flat()
    with batch_size_limit(2):
        for one, other in zip(together, read_back(model, images, OUTCOMES, writers), strict=True):
            np.testing.assert_allclose(other.values, one.values, atol=1e-12)
            np.testing.assert_allclose(other.places, one.places, atol=1e-12)
        np.testing.assert_allclose(sum_of_writes(model, images, 1).flat(), mean, atol=1e-12)


def test_groups_that_differ_in_one_patch_differ_there_alone() -> None:
    """Every patch is read alike, and all images are one but for a patch, which is bright in one group."""
    model = tiny("one layer, average pool", classes=2, num_heads=1).double()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:64], model.blocks[0].attn.qkv.bias[:64] = 0.0, 0.0
    images = IMAGES[:1].double().repeat(6, 1, 1, 1)
    is_group = np.array([True, False] * 3)
    images[is_group, :, 8:16, 16:24] += 1.0  # row 1 and column 2 of the 4 x 4 patches
    mean = sum_of_writes(model, images, 0).flat() / len(images)
    (found,) = read_back(model, images, {"second": 1}, [Component(PartKind.HEAD, 0, 0)], mean)
    gap = found.places[is_group, 0].mean(0) - found.places[~is_group, 0].mean(0)
    patches = gap[-16:].reshape(4, 4)
    assert abs(patches[1, 2]) > 1e-3
    patches[1, 2] = 0.0
    np.testing.assert_allclose(gap[:-16], 0.0, atol=1e-12)
    np.testing.assert_allclose(patches, 0.0, atol=1e-12)
