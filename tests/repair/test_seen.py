"""What the audited model makes of images, once; and answers of other weights, from the first block that they change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.models.adapters.registry import adapter
from audit.models.predict import predict_logits
from audit.repair.base import state_of
from audit.repair.seen import EMBEDDING, Seen, first_changed, last_layer_of, with_state
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
PIXELS = noise_pixels(70)
FAMILIES = ["class token", "distilled", "average pool", "attention pool", "beit", "swin", "resnet, basic", "convnext"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_gives_the_models_logits_and_is_folded_back(family: str) -> None:
    model = tiny(family)
    last, seen = last_layer_of(model), Seen(model, PIXELS[:8], adapter(model).depth)
    assert last is not None
    whole = predict_logits(model, PIXELS[:8])
    assert np.allclose(last.logits(seen.features).numpy(), whole, atol=1e-4)
    assert np.array_equal(seen.logits, whole)
    state = state_of(model)
    again = last.folded_into(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_a_classifier_without_a_bias_has_no_last_layer_that_could_be_shifted() -> None:
    model = tiny()
    model.head = torch.nn.Linear(32, 3, bias=False)
    assert last_layer_of(model) is None


def test_logits_that_are_changed_after_the_last_layer_are_not_taken_for_its_product() -> None:
    model = tiny()
    with torch.no_grad():
        model.head.register_forward_hook(lambda _module, _args, out: out.tanh())
    assert last_layer_of(model) is None


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize(
    ("changed", "first"),
    [("head.bias", 3), ("blocks.2.mlp.fc1.weight", 2), ("blocks.1.attn.qkv.weight", 1), ("pos_embed", EMBEDDING)],
)
def test_answers_of_other_weights_are_those_of_a_whole_pass(changed: str, first: int, start: int) -> None:
    model = tiny("three layers")
    state = state_of(model)
    state[changed] += torch.randn(state[changed].shape, generator=torch.Generator().manual_seed(1))
    assert first_changed(model, state) == first
    seen = Seen(model, PIXELS, start)
    whole = predict_logits(with_state(model, state), PIXELS)
    assert np.allclose(seen.answer(state), whole, atol=1e-4)
    rows = np.array([3, 66, 5])
    assert np.allclose(seen.answer(state, rows), whole[rows], atol=1e-4)
    assert not np.allclose(seen.logits, whole, atol=1e-3)


def test_unchanged_weights_answer_to_the_bit() -> None:
    model = tiny()
    seen = Seen(model, PIXELS, 1)
    assert first_changed(model, state_of(model)) is None
    assert np.array_equal(seen.answer(state_of(model)), predict_logits(model, PIXELS))


def test_nothing_is_held_that_takes_more_memory_than_allowed() -> None:
    model = tiny("three layers")
    held, free = Seen(model, PIXELS, 1), Seen(model, PIXELS, 1, kept_at_most=1000)
    assert held.holds
    assert not free.holds
    for layer in (1, 2):
        streams = [torch.cat([s for _, s in seen.entering(layer, np.arange(70))]) for seen in (held, free)]
        assert torch.allclose(*streams, atol=1e-6)


def test_a_gradient_passes_through_what_reads_the_stream() -> None:
    model = tiny()
    model.requires_grad_(True)
    for start in (1, 2):
        ((_, stream),) = Seen(model, PIXELS[:4], start).entering(1, np.arange(4))
        adapter(model).classify(adapter(model).run(1, stream)).sum().backward()
        assert model.blocks[1].attn.qkv.weight.grad.abs().sum() > 0
        model.zero_grad()
