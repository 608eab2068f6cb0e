"""Log-odds of convolutional networks as a sum of what was written, gates and norms held."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from audit.errors import InputError
from audit.models.adapters.registry import adapter
from audit.models.named import AdaptedNetwork, PlainNetwork
from audit.patching.contributions import Component, NotSummedError, Written
from audit.patching.written import written
from audit.records import PartKind, WhyNoLedger
from tests.models_for_tests import CONVOLUTIONAL, enlarged, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit
IMAGES = noise_images(5)
LABELS = [0, 1, 0, 1, 1]


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_the_parts_sum_to_the_log_odds(family: str) -> None:
    model = tiny(family, classes=4)
    outcomes = {"a": 0, "d": 3}
    found = written(model, IMAGES, outcomes, LABELS)
    assert found.closure < 1e-4 > found.centred().closure
    with torch.no_grad():
        p = model(IMAGES).double().softmax(-1).numpy()
    np.testing.assert_allclose(found.log_odds, np.log(p / (1 - p))[:, [0, 3]], rtol=1e-4, atol=1e-5)
    exact = written(model.double(), IMAGES.double(), outcomes, LABELS)
    assert exact.closure < 1e-10 > exact.centred().closure
    body = adapter(model)
    assert len([c for c in exact.components if c.kind == PartKind.SLICE]) == sum(map(body.units, range(body.depth)))
    assert hooks_left(model) == 0


def of_kind(found: Written, *kinds: PartKind) -> npt.NDArray[np.floating]:
    return found.values[:, [i for i, c in enumerate(found.components) if c.kind in kinds], 0]


@pytest.mark.parametrize("family", ["resnet, basic", "resnet, average pools around", "convnext", "group norm"])
def test_a_stream_that_passes_no_biases_leaves_no_rest(family: str) -> None:
    """What remains besides slope times write is biases alone: without them the writes alone are the log-odds."""
    model = tiny(family, classes=2).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and ("downsample" in name or name.startswith(("fc", "head"))):
                parameter.zero_()
        for name, statistic in model.named_buffers():
            if "downsample" in name and name.endswith("running_mean"):
                statistic.zero_()
    found = written(model, IMAGES.double(), {"b": 1})
    np.testing.assert_allclose(of_kind(found, PartKind.BIASES, PartKind.CONSTANT), 0.0, atol=1e-11)
    sums = of_kind(found, PartKind.PATCHES, PartKind.SLICE).sum(1)
    np.testing.assert_allclose(sums, found.log_odds[:, 0], atol=1e-11)


def plain(activation: type[nn.Module] = nn.ReLU, *, biased: bool = True) -> Any:
    """Return a network of three stages in a row, a maximum between two of them, and a hidden layer."""

    def stage(entering: int, leaving: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(entering, leaving, 3, 2, 1, bias=biased), activation())

    parts = {
        "one": stage(3, 8), "two": stage(8, 16), "pool": nn.MaxPool2d(2), "three": stage(16, 16),
        "flat": nn.Flatten(), "hidden": nn.Linear(64, 16, bias=biased), "act": activation(),
        "out": nn.Linear(16, 2, bias=biased),
    }  # fmt: skip
    network = enlarged(nn.Sequential(OrderedDict(parts)), 0).eval()
    return PlainNetwork(network, ["one", "two", "three"], classifier="out", input_size=(3, 32, 32)).double()


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_network_without_stream_is_cut_layer_by_layer(cut: int) -> None:
    model = plain()
    found = written(model, IMAGES.double(), {"b": 1}, cut=cut)
    slices = [Component(PartKind.SLICE, cut, k) for k in range(8)]
    assert list(found.components) == [*slices, Component(PartKind.BIASES, cut)]
    assert found.closure < 1e-10
    bare = written(plain(biased=False), IMAGES.double(), {"b": 1}, cut=cut)
    np.testing.assert_allclose(of_kind(bare, PartKind.BIASES), 0.0, atol=1e-11)
    # A little more of one slice changes the log-odds by as much of its part: no gate turns.
    stage: Any = model.network.get_submodule(model.parts[cut])
    width, little = model.leaving[cut][0] // 8, 1e-9
    for k in (0, 5):

        def more(_module: nn.Module, _args: object, out: torch.Tensor, k: int = k) -> torch.Tensor:
            scaled = out.clone()
            scaled[:, k * width : (k + 1) * width] *= 1 + little
            return scaled

        handle = stage.register_forward_hook(more)
        with torch.no_grad():
            changed = model(IMAGES.double())
        handle.remove()
        rise = ((changed[:, 1] - changed[:, 0]).numpy() - found.log_odds[:, 0]) / little
        np.testing.assert_allclose(rise, found.values[:, k, 0], rtol=1e-4, atol=1e-4)


def test_the_last_cut_is_the_default_and_others_have_none() -> None:
    model = plain()
    last, named = (written(model, IMAGES.double(), {"b": 1}, cut=cut) for cut in (None, 2))
    np.testing.assert_array_equal(last.values, named.values)
    with pytest.raises(InputError, match="cut: is 3"):
        written(model, IMAGES.double(), {"b": 1}, cut=3)
    with pytest.raises(InputError, match="without a residual stream"):
        written(tiny("class token"), IMAGES, {"b": 1}, cut=0)


@pytest.mark.parametrize(
    ("family", "options"),
    [("convnext", {"head_hidden_size": 16}), ("resnet, basic", {"act_layer": nn.SiLU})],
)
def test_a_curved_path_is_refused(family: str, options: dict[str, Any]) -> None:
    model = tiny(family, **options)
    with pytest.raises(NotSummedError) as caught:
        written(model, IMAGES, {"a": 0})
    assert caught.value.reason == WhyNoLedger.CURVED
    assert hooks_left(model) == 0


def test_a_curved_row_of_stages_and_a_network_of_unknown_blocks_are_refused() -> None:
    for activation in (nn.GELU, nn.Tanh):
        with pytest.raises(NotSummedError) as caught:
            written(plain(activation), IMAGES.double(), {"b": 1}, cut=1)
        assert caught.value.reason == WhyNoLedger.CURVED
    block = nn.ModuleDict({"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8)})

    class Blocks(nn.Module):
        """One block whose heads' write is read through a tanh."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.block, self.classes = nn.Conv2d(3, 8, 16, 16), Curved(block), nn.Linear(8, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """Return logits."""
            x = self.patches(images).flatten(2).mT
            logits: torch.Tensor = self.classes(self.block(x).mean(1))
            return logits

    model: Any = AdaptedNetwork(
        Blocks(), ["block"], projection="parts.out", heads=2, inner=["parts.qkv"], classifier="classes",
        input_size=(3, 32, 32),
    )  # fmt: skip
    with pytest.raises(NotSummedError) as caught:
        written(model, IMAGES, {"a": 0})
    assert caught.value.reason == WhyNoLedger.UNKNOWN_BLOCKS


class Curved(nn.Module):
    """Mixes tokens, and bends what its projection puts out."""

    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stream."""
        q, k, v = self.parts["qkv"](x).chunk(3, -1)
        return x + torch.tanh(self.parts["out"]((q @ k.mT).softmax(-1) @ v))
