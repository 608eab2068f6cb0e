"""Where heads of control models look in the images that a report shows: each in its own image, and nowhere unknown."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from audit.controls.example_looks import DIGITS, example_looks
from audit.controls.spec import Channel, ChannelSpec
from audit.models.adapters.registry import Model
from audit.patching.attention import mean_attention
from audit.patching.sites import Site
from audit.records import Control, Estimate
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
PIXELS = noise_pixels(3)
MODEL = tiny()
with torch.no_grad():
    for block in MODEL.blocks:
        block.attn.qkv.weight.mul_(20)  # heads that look somewhere


def channel(name: Literal["colour", "blur"], model: Model = MODEL) -> Channel:
    spec = ChannelSpec(name, "colour", "gray", range(2), 1)
    return Channel(spec, (model,), model, (model,), model, PIXELS, np.zeros(3, dtype=np.int64))


def control(name: Literal["colour", "blur"], head: str, form: str = "models") -> Control:
    return Control(
        id=f"{name}_{form}_head", check="head", kind="effect", channel=name, form=form, head=head,
        estimate=Estimate(value=1.0), relation=">", threshold=0.0, passed=True,
    )  # fmt: skip


def test_each_channel_has_the_map_of_its_head_in_the_image_at_its_place() -> None:
    told = [control("colour", "L1H2"), control("blur", "L0H1"), control("blur", "L1H0", "input")]
    looks = example_looks([channel("colour"), channel("blur")], told)
    assert [(look.channel, look.image, look.name) for look in looks] == [("colour", 0, "L1H2"), ("blur", 1, "L0H1")]
    for look, site in zip(looks, (Site(1, 2), Site(0, 1)), strict=True):
        of_one = mean_attention(MODEL, PIXELS, np.array([look.image]), [site])[site]
        np.testing.assert_allclose(look.weights, of_one, atol=0.5001 * 10.0**-DIGITS)
        others = mean_attention(MODEL, PIXELS, np.array([2]), [site])[site]
        assert np.abs(np.array(look.weights) - others).max() > 10.0**-DIGITS


def test_a_head_that_prefers_nothing_looks_at_all_patches_alike() -> None:
    model = tiny()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.zero_()
        model.blocks[1].attn.qkv.bias.zero_()
    (look,) = example_looks([channel("colour", model)], [control("colour", "L1H0")])
    tokens = np.size(look.weights) + int(model.num_prefix_tokens)
    np.testing.assert_allclose(look.weights, 1 / tokens, atol=0.5001 * 10.0**-DIGITS)


def test_blocks_of_which_the_parts_are_not_known_have_no_map() -> None:
    unknown = channel("colour", tiny("unknown attention"))
    assert example_looks([unknown], [control("colour", "L1H0")]) == []
    assert example_looks([channel("colour")], [control("colour", "")]) == []
