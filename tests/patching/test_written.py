"""Log-odds as a sum of what was written: the sum is exact, and every part is what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from torch import nn

from audit.batching import batch_size_limit
from audit.models.converters.conversion import Joint
from audit.models.readout import Readout, class_log_odds, with_readout
from audit.models.zero_shot import with_zero_shot_head
from audit.patching.contributions import Component, Contributions, NotSummedError, Written, joined
from audit.patching.sites import bias_output, head_outputs, record
from audit.patching.written import written
from audit.records import PartKind, WhyNoLedger
from tests.models_for_tests import CONVOLUTIONAL, FAMILIES, OLDER_TIMM, enlarged, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit
IMAGES = noise_images(6)
LABELS = [0, 1, 0, 1, 1, 2]
TRANSFORMERS = [family for family in FAMILIES if family not in CONVOLUTIONAL]
POOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "RMSNorm": ("class token", {"norm_layer": timm.layers.RmsNorm}),
    "mean of normed tokens": ("average pool", {"fc_norm": False}),
    "mean with prefix": ("average pool, registers", {"pool_include_prefix": True}),
    "maximum": ("average pool", {"global_pool": "max"}),
    "mean and maximum": ("average pool", {"global_pool": "avgmax"}),
    "attention without biases": ("attention pool", {"qkv_bias": False}),
    "attention in EVA": ("eva02, rotary", {"global_pool": "map"}),
    "class token of EVA": ("eva02, rotary", {"global_pool": "token"}),
    "class token of BEiT": ("beit", {"global_pool": "token", "use_fc_norm": False}),
    "maximum in Swin": ("swin", {"global_pool": "max"}),
}
if OLDER_TIMM:  # which builds no such model
    POOLS = {name: made for name, made in POOLS.items() if name not in ("class token of BEiT", "maximum in Swin")}
KINDS = {**{family: (family, {}) for family in TRANSFORMERS}, **POOLS}


def closes(found: Contributions, tolerance: float) -> None:
    assert found.closure <= tolerance
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_sum_to_the_log_odds(kind: str, classes: int) -> None:
    family, options = KINDS[kind]
    model = tiny(family, classes=classes, **options)
    outcomes = {"first": 0, "last": classes - 1}
    found = written(model, IMAGES, outcomes, LABELS)
    with torch.no_grad():
        p = model(IMAGES).double().softmax(-1).numpy()
    np.testing.assert_allclose(found.log_odds, np.log(p / (1 - p))[:, [0, -1]], rtol=1e-4, atol=1e-5)
    assert found.values.dtype == np.float32
    closes(found, 1e-4)
    closes(found.centred(), 1e-4)
    if kind == "rotary by layer" and OLDER_TIMM:
        return  # it rotates by layer in single precision alone
    exact = written(model.double(), IMAGES.double(), outcomes, LABELS)
    closes(exact, 1e-10)
    closes(exact.centred(), 1e-10)
    assert [c.kind for c in exact.components].count(PartKind.ENTROPY) == (classes > 2)
    assert hooks_left(model) == 0


def of_kind(found: Contributions, *kinds: PartKind) -> npt.NDArray[np.floating]:
    """Return the parts (N, K) of some kinds, of the first outcome."""
    return found.values[:, [i for i, c in enumerate(found.components) if c.kind in kinds], 0]


@pytest.mark.parametrize(
    "kind", ["class token", "LayerScale", "average pool", "mean of normed tokens", "clip, pre-norm"]
)
def test_each_part_is_its_write_along_what_the_held_norm_leaves(kind: str) -> None:
    """Two classes: the difference of their rows of the classifier, with gain and deviation of each image's own norm."""
    family, options = KINDS[kind]
    model, images = tiny(family, classes=2, **options).double(), IMAGES.double()
    trace = record(model, images)
    token = model.global_pool == "token"
    norm = model.norm if isinstance(model.fc_norm, nn.Identity) else model.fc_norm
    weight = (model.head.weight[1] - model.head.weight[0]) * norm.weight

    def pool(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[..., 0, :] if token else tokens[..., model.num_prefix_tokens :, :].mean(-2)

    def of(write: torch.Tensor) -> npt.NDArray[np.float64]:
        """Return what a write (..., B, T, W) adds to the log-odds of the second class."""
        normed_tokens = norm is model.norm and not token
        ends, own = (trace.leaving, write) if normed_tokens else (pool(trace.leaving), pool(write))
        held = (ends.var(-1, unbiased=False) + norm.eps).sqrt().unsqueeze(-1)
        scaled = (own - own.mean(-1, keepdim=True)) / held
        answer: npt.NDArray[np.float64] = ((pool(scaled) if normed_tokens else scaled) @ weight).detach().numpy()
        return answer

    found = written(model, images, {"second": 1})
    heads = [of(head_outputs(model, i, z)) for i, z in enumerate(trace.head_activations)]
    np.testing.assert_allclose(of_kind(found, PartKind.HEAD), np.concatenate(heads).T, atol=1e-10)
    biases = [of(torch.as_tensor(bias_output(model, i)).expand_as(trace.leaving)) for i in range(len(heads))]
    np.testing.assert_allclose(of_kind(found, PartKind.ATTENTION_BIAS), np.stack(biases, 1), atol=1e-10)
    ends = [*trace.entering[1:], trace.leaving]
    mlps = [of(e - b - a) for e, b, a in zip(ends, trace.entering, trace.attention, strict=True)]
    np.testing.assert_allclose(of_kind(found, PartKind.MLP), np.stack(mlps, 1), atol=1e-10)
    entering = of_kind(found, PartKind.TOKENS, PartKind.PATCHES).sum(1)
    np.testing.assert_allclose(entering, of(trace.entering[0]), atol=1e-10)


@pytest.mark.parametrize("family", ["swin", "swin v2", "attention pool", "distilled"])
def test_a_silenced_head_writes_nothing(family: str) -> None:
    model = tiny(family, classes=2).double()
    adapted = model.layers[0].blocks[1] if "swin" in family else model.blocks[1]
    per_head = adapted.attn.proj.weight.shape[1] // adapted.attn.num_heads
    with torch.no_grad():
        adapted.attn.proj.weight[:, per_head : 2 * per_head] = 0.0
    found = written(model, IMAGES.double(), {"second": 1})
    heads = [c for c in found.components if c.kind == PartKind.HEAD]
    silent = {c for c, of in zip(heads, of_kind(found, PartKind.HEAD).T, strict=True) if np.abs(of).max() < 1e-14}
    assert silent == {Component(PartKind.HEAD, 1, 1)}
    closes(found, 1e-10)


def zero_shot(family: str, output: str, *, projects: bool) -> Any:
    """Return a tower with random texts, its weights and temperature drawn at random."""
    model = tiny(family)
    model = with_zero_shot_head(model, Joint(16 if projects else 32, "proj" if projects else "", biased=True))
    model = enlarged(model, 1).eval()
    return with_readout(model, Readout(output=output))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["clip, pre-norm", "attention pool"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_towers_with_texts(family: str, output: str) -> None:
    model = zero_shot(family, output, projects=family != "attention pool")
    found = written(model, IMAGES, {"b": 1}, LABELS)
    closes(found, 1e-4)
    closes(found.centred(), 1e-4)
    with torch.no_grad():
        logits = model(IMAGES)
    wanted = class_log_odds(logits) if output == "softmax" else logits
    np.testing.assert_allclose(found.log_odds[:, 0], wanted[:, 1].numpy(), atol=1e-6)
    closes(written(model.double(), IMAGES.double(), {"b": 1}), 1e-10)


def test_what_is_no_sum_is_refused_with_the_reason() -> None:
    model = tiny("class token")
    model.head = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(NotSummedError) as caught:
        written(model, IMAGES, {"a": 0})
    assert caught.value.reason == WhyNoLedger.NONLINEAR_POOL
    pools = () if OLDER_TIMM else (("swin", "catavgmax"), ("average pool", "prr"))
    for family, pool in pools:
        with pytest.raises(NotSummedError, match=r"pool '?(catavgmax|AttentionPoolPrr)"):
            written(tiny(family, global_pool=pool), IMAGES, {"a": 0})
    for norm in (timm.layers.SimpleNorm(32), nn.GroupNorm(1, 32)):
        model = tiny("class token")
        model.norm = norm if isinstance(norm, timm.layers.SimpleNorm) else nn.Sequential(nn.Tanh())
        with pytest.raises(NotSummedError) as caught:
            written(model, IMAGES, {"a": 0})
        assert caught.value.reason == WhyNoLedger.UNKNOWN_NORM
        assert hooks_left(model) == 0


def test_images_may_come_in_any_order_and_in_parts() -> None:
    model, outcomes = tiny("average pool, registers").double(), {"a": 0, "c": 2}
    images, order = IMAGES.double(), [3, 0, 5, 1, 4, 2]
    whole = written(model, images, outcomes, LABELS)
    shuffled = written(model, images[order], outcomes, np.array(LABELS)[order])
    np.testing.assert_allclose(shuffled.values, whole.values[order], atol=1e-12)
    np.testing.assert_allclose(shuffled.centred().values, whole.centred().values[order], atol=1e-12)
    labels = np.array(LABELS)
    with batch_size_limit(2):
        few = written(model, images, outcomes, LABELS)
    parts = [written(model, images[part], outcomes, labels[part]) for part in (slice(0, 4), slice(4, 6))]
    parted = joined([parts[1], parts[0]])
    for found, rows in ((few, range(6)), (parted, [4, 5, 0, 1, 2, 3])):
        np.testing.assert_allclose(found.values, whole.values[list(rows)], atol=1e-12)
        np.testing.assert_allclose(found.centred().values, whole.centred().values[list(rows)], atol=1e-12)


class Fixed(nn.Module):
    """An MLP that writes the same whatever it reads."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value, self.fc1 = value, nn.Linear(32, 8)

    def forward(self, entering: torch.Tensor) -> torch.Tensor:
        """Return the value for every token."""
        return self.value.expand_as(entering)


@pytest.mark.parametrize("classes", [2, 4])
def test_centred_parts_do_not_depend_on_where_zero_is(classes: int) -> None:
    """What two parts add that always cancels changes neither, once each is counted from its mean."""
    model = tiny("one layer", classes=classes).double()
    model.blocks[0].mlp = Fixed(torch.zeros(32).double())
    unmoved = written(model, IMAGES.double(), {"a": 0})
    more = torch.randn(32, generator=torch.Generator().manual_seed(3)).double()
    model.blocks[0].mlp = Fixed(more)
    with torch.no_grad():
        model.blocks[0].attn.proj.bias -= more
    after = written(model, IMAGES.double(), {"a": 0})
    np.testing.assert_allclose(after.log_odds, unmoved.log_odds, atol=1e-12)
    assert np.abs(after.values - unmoved.values).max() > 0.1
    np.testing.assert_allclose(after.centred().values, unmoved.centred().values, atol=1e-12)


def only_head(layer: int, head: int, *, normed: bool) -> Any:
    """Return a model in which nothing but one head tells images apart at the class token."""
    model = tiny("class token", classes=2).double()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            width = block.attn.proj.in_features // block.attn.num_heads
            for h in range(block.attn.num_heads):
                if (i, h) != (layer, head):
                    block.attn.proj.weight[:, h * width : (h + 1) * width] = 0.0
            block.mlp.fc2.weight.zero_()
    if not normed:
        model.norm = nn.Identity()
    return model


@pytest.mark.parametrize("normed", [True, False])
def test_a_model_whose_only_path_is_one_head(normed: bool) -> None:
    model = only_head(1, 2, normed=normed)
    found: Written = written(model, IMAGES.double(), {"b": 1}, LABELS)
    centred = found.centred()
    told = {c for k, c in enumerate(centred.components) if np.abs(centred.values[:, k]).max() > 1e-12}
    assert told >= {Component(PartKind.HEAD, 1, 2), Component(PartKind.HELD)}
    assert told == {Component(PartKind.HEAD, 1, 2), Component(PartKind.HELD)}
    closes(centred, 1e-10)
    of_label = centred.values[np.array(LABELS) == 1, :, 0]
    held = of_label[:, centred.components.index(Component(PartKind.HELD))]
    assert bool(np.ptp(held) < 1e-12) is not normed  # without a norm nothing that is held differs
