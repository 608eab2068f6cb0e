"""Where random weights would not be read, none are drawn; shapes, and what is not random, stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from audit.models.undrawn import Undrawn, without_memory
from tests.models_for_tests import FAMILIES, base_of

pytestmark = pytest.mark.unit


def made(family: str) -> nn.Module:
    """Make a tiny model of a family as its library does."""
    name, own = FAMILIES[family]
    return timm.create_model(name, num_classes=3, **{**base_of(family), **own})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_drawn_is_as_ever(family: str) -> None:
    drawn = made(family)
    with Undrawn():
        undrawn = made(family)
    with without_memory():
        empty = made(family)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in drawn.state_dict().items()}
    for model in (undrawn, empty):
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    for (name, buffer), (_, other) in zip(drawn.named_buffers(), undrawn.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    for name, part in drawn.named_modules():
        if "Norm" in type(part).__name__:
            ours = undrawn.get_submodule(name).parameters(recurse=False)
            for own, other in zip(part.parameters(recurse=False), ours, strict=True):
                assert torch.equal(own, other), name


DRAWING = [
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.trunc_normal_,
    nn.init.kaiming_uniform_,
    timm.layers.trunc_normal_,
]


@pytest.mark.parametrize("draw", DRAWING)
def test_nothing_is_drawn(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    before = torch.get_rng_state()
    with Undrawn():
        tensor = torch.zeros(3, 4)
        assert draw(tensor) is tensor
    assert torch.equal(torch.get_rng_state(), before)
    assert not tensor.any()
    draw(tensor)
    assert tensor.all()
    assert not torch.equal(torch.get_rng_state(), before)
