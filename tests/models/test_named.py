"""Networks of no known family: stages and blocks that are named or found are patched exactly, or refused by name."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import vit_audit as va
from audit.controls.identities import Subject, every_site_is_live, run_identities
from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.readout import Readout, readout_of
from audit.models.transforms import as_input
from audit.patching.engine import Donor, patch_attention, patch_layer, patch_together, transplant_layer
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site, heads_of, record, same_up_to, sites_of
from tests.models_for_tests import enlarged, hooks_left, noise_images, tiny

NAMES = ["calm", "glad", "sad"]
GRAY: dict[str, Any] = {"mean": [0.5], "std": [0.5], "image_size": 16, "channels": 1}
COLOUR: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 16}
WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "fer2013_cnn.safetensors"
unit = pytest.mark.unit


def stage(entering: int, leaving: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(entering, leaving, 3, stride)
    return nn.Sequential(nn.ReflectionPad2d(1), convolution, nn.BatchNorm2d(leaving), nn.ReLU())


class Plain(nn.Module):
    """Stages of convolutions with code of their own between them, and a hidden layer before the logits."""

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (8, 16, 24), hidden: int = 8) -> None:
        super().__init__()
        for number, (a, b) in enumerate(zip((channels, *widths[:-1]), widths, strict=True), 1):
            self.add_module(f"conv_{number}", stage(a, b, min(number, 2)))
        self.between = nn.BatchNorm2d(widths[0])
        self.linear = nn.Sequential(nn.Linear(widths[-1] * 16, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = 0.5 * self.between(self.conv_1(images))  # type: ignore[operator]
        x = F.max_pool2d(self.conv_2(x), 1)  # type: ignore[operator]
        logits: torch.Tensor = self.linear(self.conv_3(x).flatten(1))  # type: ignore[operator]
        return logits


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, joined: bool) -> None:
        super().__init__()
        self.heads, self.joined, self.out = heads, joined, nn.Linear(width, width)
        if joined:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).chunk(3, -1) if self.joined else (self.q(x), self.k(x), self.v(x))
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        written: torch.Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return written


class Block(nn.Module):
    """Norms after what is added, a scale, and two branches side by side: nothing of timm's order."""

    def __init__(self, width: int, heads: int, joined: bool) -> None:
        super().__init__()
        self.attention, self.norm = Attention(width, heads, joined), nn.LayerNorm(width)
        self.side, self.ls1 = nn.Linear(width, width), nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(x + self.ls1 * torch.tanh(self.attention(x)) + F.gelu(self.side(x)))
        return out


class Transformer(nn.Module):
    def __init__(self, joined: bool = True) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 24, 4, 4), nn.ModuleList(Block(24, 3, joined) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.blocks):
            x = block(x) + 0.1 * number
        logits: torch.Tensor = self.out(self.norm(x).mean(1))
        return logits


class Residual(Plain):
    """Something goes around the second stage."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv_1(images)  # type: ignore[operator]
        logits: torch.Tensor = self.linear(self.conv_3(self.conv_2(x)).flatten(1) + x.mean())  # type: ignore[operator]
        return logits


def row() -> nn.Sequential:
    """Return the same kind of network as one row of modules, some of them in rows of their own."""
    head = [nn.Flatten(), nn.Dropout(0.1), nn.Linear(16 * 64, 16), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Sequential(*stage(3, 8, 1), *stage(8, 16, 2)), *head)


def drawn(module: nn.Module, seed: int = 0) -> Any:
    """Draw every weight; what a rectifier reads lies above zero, so that no channel is idle."""
    enlarged(module, seed)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(1 + 0.2 * torch.randn(part.weight.shape, generator=generator))
                part.bias.copy_(4 + 0.2 * torch.randn(part.bias.shape, generator=generator))
            if isinstance(part, nn.Conv2d):
                part.weight.mul_(0.2)
            if isinstance(part, nn.Linear) and part.out_features in (8, 16):
                part.weight.mul_(0.2)
                part.bias.copy_(3 + torch.randn(part.bias.shape, generator=generator))
    return module.eval()


STAGES, BLOCKS = ["conv_1", "conv_2", "conv_3"], ["blocks.0", "blocks.1", "blocks.2"]
PARTS: dict[str, Any] = {"blocks": BLOCKS, "projection": "attention.out", "heads": 3, **COLOUR}


def net(kind: str, seed: int = 0) -> va.Net:
    if kind == "plain":
        return va.wrap(drawn(Plain(), seed), NAMES, stages=STAGES, **GRAY)
    if kind == "plain, hidden layer too":
        return va.wrap(drawn(Plain(), seed), NAMES, stages=[*STAGES, "linear.0"], **GRAY)
    if kind == "row":
        return va.wrap(drawn(row(), seed), NAMES, **COLOUR)
    joined = kind == "transformer"
    qkv = ["attention.qkv"] if joined else ["attention.q", "attention.k", "attention.v"]
    return va.adapt(drawn(Transformer(joined), seed), NAMES, qkv=qkv, **PARTS)


KINDS = ["plain", "plain, hidden layer too", "row", "transformer", "transformer, q k v apart"]


def images_for(model: Model, n: int, seed: int = 0) -> torch.Tensor:
    size = model.pretrained_cfg["input_size"]
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(seed))


@unit
@pytest.mark.parametrize("kind", KINDS)
def test_every_identity_holds(kind: str) -> None:
    model = net(kind).module
    failed = [
        c.id for c in run_identities(Subject(model, images_for(model, 3), images_for(model, 3, 1))) if not c.passed
    ]
    assert failed == []
    assert hooks_left(model) == 0


@unit
@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_gives_what_hooks_give_between_two_models(kind: str) -> None:
    model, donor = net(kind).module, net(kind, seed=7).module
    images, donors = images_for(model, 3), images_for(model, 3, 1)
    own, given = record(model, images), Donor(donor, record(donor, donors))
    outputs = donor_head_outputs(donor, donors, sites_of(donor))
    scale = float(model(images).abs().max())
    body = adapter(model)
    for layer in range(body.depth):
        found = patch_layer(model, own, given, layer)
        for head in range(heads_of(model, layer)):
            wanted = patch_with_hooks(model, images, {Site(layer, head): outputs[Site(layer, head)]})
            assert float((found[head] - wanted).abs().max()) < 1e-4 * scale
        assert transplant_layer(model, own, donor, layer).isfinite().all()
    for sites in (list(outputs)[::2], list(outputs)):
        wanted = patch_with_hooks(model, images, {s: outputs[s] for s in sites})
        assert float((patch_together(model, own, given, sites) - wanted).abs().max()) < 1e-4 * scale
    wanted = patch_with_hooks(model, images, outputs)
    assert float((patch_attention(model, own, given, range(body.depth)) - wanted).abs().max()) < 1e-4 * scale


@unit
@torch.inference_mode()
@pytest.mark.parametrize("kind", ["plain", "plain, hidden layer too", "row"])
def test_all_slices_of_any_stage_are_the_whole_of_the_image(kind: str) -> None:
    """Nothing goes around a stage: with all that it hands on, the donor's logits are handed on."""
    model = net(kind).module
    images, donors = images_for(model, 2), images_for(model, 2, 1)
    for layer in range(adapter(model).depth):
        outputs = donor_head_outputs(model, donors, sites_of(model, range(layer, layer + 1)))
        torch.testing.assert_close(patch_with_hooks(model, images, outputs), model(donors), rtol=0, atol=1e-4)


@unit
def test_a_slice_that_is_idle_on_one_image_is_live_on_another() -> None:
    model = net("plain, hidden layer too").module
    one, other = images_for(model, 1), images_for(model, 1, 1)
    hidden = model.network.linear[0]
    with torch.inference_mode():
        at = [record(model, image).attention[3][0, 0] for image in (one, other)]
    if at[0] > at[1]:
        one, other, at = other, one, at[::-1]
    with torch.no_grad():  # rectified to zero on the first image, not on the other
        hidden.bias[0] -= (at[0] + at[1]) / 2
    site = [Site(3, 0)]
    assert not every_site_is_live(Subject(model, one, other), sites=site).passed
    assert every_site_is_live(Subject(model, torch.cat([one, other]), other), sites=site).passed


@unit
@torch.inference_mode()
def test_a_head_of_an_adapted_model_is_what_zeroing_its_columns_takes_away() -> None:
    model = net("transformer").module
    images, network = images_for(model, 2), net("transformer").module.network
    nothing = torch.zeros_like(donor_head_outputs(model, images, [Site(1, 2)])[Site(1, 2)])
    patched = patch_with_hooks(model, images, {Site(1, 2): nothing})
    network.blocks[1].attention.out.weight[:, 16:24] = 0
    torch.testing.assert_close(patched, network(images), rtol=1e-5, atol=1e-5)


@unit
@torch.inference_mode()
def test_an_adapted_vit_is_patched_as_its_family_is() -> None:
    family = tiny("LayerScale")
    layout = {"blocks": ["blocks.0", "blocks.1"], "projection": "attn.proj", "heads": 4, "qkv": ["attn.qkv"]}
    adapted = va.adapt(family, NAMES, **layout, **{**COLOUR, "image_size": 32}).module
    images, donors = noise_images(3), noise_images(3, seed=1)
    for layer in range(2):
        wanted, found = (
            patch_layer(m, record(m, images), Donor(m, record(m, donors)), layer) for m in (family, adapted)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@unit
def test_stages_of_a_row_are_found() -> None:
    model = net("row").module
    assert model.parts == ("stage0", "stage1", "stage2")
    assert model.leaving == [(8, 16, 16), (16, 8, 8), (16,)]
    assert [type(m).__name__ for m in model.network.stage2] == ["Flatten", "Dropout", "Linear", "ReLU"]
    assert net("row").unit == "slice"


@unit
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_a_parts_own_is_known(kind: str) -> None:
    """Every weight is before the first part, of one part, or after the last."""
    model = net(kind).module
    body = adapter(model)
    twin = net(kind).module
    with torch.no_grad():
        for name in body.names(1):
            for weight in twin.get_submodule(name.rstrip(".")).parameters():
                weight.mul_(1.5)
    assert same_up_to(model, twin, 1)
    assert not same_up_to(model, twin, 2)
    assert body.last
    changed = net(kind).backbone.build(5)
    assert changed(images_for(model, 2)).shape == (2, 5)
    untrained = net(kind).backbone.build_untrained(3)
    assert untrained(images_for(model, 2)).isfinite().all()


@unit
def test_one_channel_is_the_luma_that_pillow_gives() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    model = net("plain").module
    gray = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in pixels])[..., None]
    assert torch.equal(as_input(model, pixels), as_input(model, gray))
    assert as_input(model, gray).shape == (2, 1, 16, 16)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no such stage": (Plain(), {"stages": ["conv_1", "conv_9"], **GRAY}, "conv_9: a Plain has no such part"),
    "not in order": (Plain(), {"stages": ["conv_2", "conv_1"], **GRAY}, "name parts in the order in which they run"),
    "gone around": (Residual(), {"stages": STAGES, **GRAY}, "name parts that nothing goes around"),
    "no convolution": (Plain(), {"stages": ["conv_1.3"], **GRAY}, "stage conv_1.3 does not end in a convolution"),
    "slices": (Plain(), {"stages": STAGES, "channel_slices": 5, **GRAY}, "which 5 slices of one size do not make up"),
    "colour": (Plain(), {"stages": STAGES, **COLOUR}, "do not pass through it"),
    "mean": (Plain(), {"stages": STAGES, **GRAY, "mean": [0.5] * 3}, "give 1 numbers each"),
    "size": (Plain(), {"stages": STAGES, "channels": 1}, "nothing beside the module says what images it reads"),
    "no row": (nn.Sequential(Plain()), GRAY, "no row of convolutions; name its stages"),
    "classes": (
        Plain(hidden=4),
        {"stages": STAGES, **GRAY, "classes": ["a", "b"]},
        "its output is (3,), for 2 classes",
    ),
}


@unit
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_patched_is_refused_by_the_part(name: str) -> None:
    module, options, what = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        va.wrap(drawn(module), **{"classes": NAMES, **options})
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


class Uncalled(nn.Module):
    """torch's own attention, which takes the weights of its projection and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(24, 3, batch_first=True), nn.LayerNorm(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.attention(self.norm(x), self.norm(x), self.norm(x), need_weights=False)[0]
        return out


def with_torchs_own() -> nn.Module:
    model = Transformer()
    model.blocks = nn.ModuleList(Uncalled() for _ in range(3))
    return model


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "projection": (Transformer, {"projection": "attention.proj"}, "blocks.0.attention.proj: a Transformer has no such"),
    "no linear": (Transformer, {"projection": "norm"}, "blocks.0.norm: is a LayerNorm, no Linear"),
    "heads": (Transformer, {"heads": 7}, "7 heads do not fit"),
    "queries": (Transformer, {"qkv": ["side"]}, "name queries, keys and values"),
    "not called": (
        with_torchs_own,
        {"projection": "attention.out_proj", "qkv": ["attention.out_proj"] * 3},
        "blocks.0.attention.out_proj: runs 0 times in a pass of its block",
    ),
    "not the projection": (
        Transformer,
        {"projection": "side", "qkv": ["attention.q", "attention.k", "attention.v"], "joined": False},
        "does not patch as it should: rotation",
    ),
    "classifier": (Transformer, {"classifier": "norm"}, "norm: gives the logits, and is no Linear"),
}


@unit
@pytest.mark.parametrize("name", WRONG)
def test_a_layout_that_is_wrong_is_refused_by_the_part(name: str) -> None:
    make, options, what = WRONG[name]
    joined = options.pop("joined", None)
    module = make() if joined is None else make(joined)
    with pytest.raises(ModelError) as caught:
        va.adapt(drawn(module), NAMES, **{**PARTS, "qkv": ["attention.qkv"], **options})
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.real_data
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no published classifier beside the checkout")
def test_a_published_classifier_of_gray_images_is_patched() -> None:
    """As its users have it: four stages, a hidden layer, seven outputs."""
    stages = {f"conv_{i + 1}": stage(a, b, min(i + 1, 2)) for i, (a, b) in
              enumerate([(1, 32), (32, 64), (64, 128), (128, 256)])}  # fmt: skip
    head = nn.Sequential(nn.Linear(9216, 256), nn.ReLU(), nn.Linear(256, 7))

    class Published(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images
            for name in stages:
                x = self.get_submodule(name)(x)
            out: torch.Tensor = self.get_submodule("linear")(x.flatten(1))
            return out

    module = Published(OrderedDict([*stages.items(), ("linear", head)]))
    module.load_state_dict(load_file(WEIGHTS))
    size: dict[str, Any] = {"mean": [0.5], "std": [0.5], "image_size": 48, "channels": 1}
    taken = va.wrap(module.eval(), list("ADFHSUN"), stages=list(stages), **size)
    model = taken.module
    assert len(sites_of(model)) == 4 * 8
    subject = Subject(model, images_for(model, 2), images_for(model, 2, 1))
    assert [c.id for c in run_identities(subject) if not c.passed] == []


def squashed(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((16, 16))) / 100.0).permute(2, 0, 1).float()


@unit
@unit
@pytest.mark.parametrize(("last", "output"), [(nn.Sigmoid(), "sigmoid"), (nn.Softmax(dim=1), "softmax")])
def test_a_network_that_gives_probabilities_is_refused(last: nn.Module, output: str) -> None:
    network = Plain()
    network.linear.append(last)
    with pytest.raises(ModelError, match=rf"^linear\.2: .* {output} .*output='{output}'"):
        va.wrap(network, NAMES, stages=["conv_1", "conv_2", "conv_3"], **GRAY)
    network.linear[-1] = nn.LogSoftmax(dim=1)  # gives logits, too
    assert va.wrap(network, NAMES, stages=["conv_1", "conv_2", "conv_3"], **GRAY).unit == "slice"


@unit
def test_an_adapted_transformer_is_fed_and_read_as_is_said() -> None:
    module, fed = drawn(Transformer()), {k: v for k, v in PARTS.items() if k not in ("mean", "std")}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    reading: dict[str, Any] = {"output": "sigmoid", "decision": "threshold", "threshold": 0.25}
    own = va.adapt(module, NAMES, qkv=["attention.qkv"], **fed, preprocess=va.Preprocess(squashed), **reading)
    with torch.inference_mode():
        np.testing.assert_allclose(own.predict([picture]), module(squashed(picture)[None]).numpy(), atol=1e-5)
    assert own.preprocessing.source == "callable"
    assert readout_of(own.module) == Readout("sigmoid", "threshold", 0.25)
    stated = va.adapt(module, NAMES, qkv=["attention.qkv"], **PARTS, preprocess={"mode": "squash"})
    assert (stated.preprocessing.source, stated.spec.output) == ("card", None)
    assert va.adapt(module, NAMES, qkv=["attention.qkv"], **PARTS).preprocessing.source == "legacy"


@unit
@pytest.mark.parametrize(
    "wrong", [{"preprocess": "squash"}, {"preprocess": {"crop": "x"}}, {"output": "logits"}], ids=str
)
def test_a_wrong_word_for_an_adapted_transformer_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"as docs/card\.md has it under model"):
        va.adapt(drawn(Transformer()), NAMES, qkv=["attention.qkv"], **PARTS, **wrong)
