"""Where a head looks: as timm's own attention has it, and where the answer is known without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.models.adapters.registry import adapter
from audit.models.blocks import rows_read
from audit.models.transforms import as_input
from audit.patching.attention import attention_weights, can_look, mean_attention
from audit.patching.sites import Site, heads_of, record
from tests.models_for_tests import FAMILIES, noise_pixels, tiny

pytestmark = pytest.mark.unit
KNOWN = [name for name in FAMILIES if can_look(tiny(name), Site(0, 0))]


@pytest.mark.parametrize("family", KNOWN)
def test_attention_times_values_is_what_the_head_holds(family: str) -> None:
    """Weighted by the attention that is computed here, the values must give z: no other weights would."""
    model, pixels = tiny(family), noise_pixels(3)
    for layer in range(adapter(model).depth):
        block, n_heads = model.blocks[layer], heads_of(model, layer)
        with torch.inference_mode():
            trace = record(model, as_input(model, pixels))
            weights = attention_weights(block, trace.entering[layer], n_heads, None)
            values = block.attn.qkv(block.norm1(trace.entering[layer])).unflatten(-1, (3, n_heads, -1))[:, :, 2]
            held = torch.einsum("bhqk,bkhd->bqhd", weights, values).flatten(2)
        assert (held - trace.head_activations[layer]).abs().max() < 1e-4 * trace.head_activations[layer].abs().max()


@pytest.mark.parametrize("family", KNOWN)
def test_shares_add_up_to_what_is_not_on_prefix_tokens(family: str) -> None:
    model, pixels = tiny(family), noise_pixels(20)
    sites = [Site(adapter(model).depth - 1, 0), Site(0, 0)]
    found = mean_attention(model, pixels, np.arange(20), sites)
    assert set(found) == set(sites)
    for grid in found.values():
        assert grid.shape == tuple(model.patch_embed.grid_size)
        assert (grid >= 0).all()
        assert grid.sum() == pytest.approx(1.0) if model.num_prefix_tokens == 0 else 0 < grid.sum() < 1


def test_a_head_without_preferences_looks_everywhere_alike() -> None:
    model = tiny()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[:32] = 0.0
        model.blocks[1].attn.qkv.bias[:32] = 0.0
    grid = mean_attention(model, noise_pixels(4), np.arange(4), [Site(1, 2)])[Site(1, 2)]
    np.testing.assert_allclose(grid, 1 / 17, rtol=1e-5)
    assert rows_read(model) == 1


def test_the_mean_is_over_the_images_that_are_named() -> None:
    model, pixels, site = tiny(), noise_pixels(20), Site(1, 1)
    every, one = (mean_attention(model, pixels, rows, [site])[site] for rows in (np.arange(20), np.array([7])))
    alone = [mean_attention(model, pixels, np.array([k]), [site])[site] for k in range(20)]
    np.testing.assert_allclose(every, np.mean(alone, axis=0), rtol=1e-5)
    np.testing.assert_allclose(one, alone[7])


def test_heads_of_unknown_blocks_are_left_alone() -> None:
    assert not can_look(tiny("unknown attention"), Site(0, 0))
    assert can_look(tiny(), Site(0, 0))
