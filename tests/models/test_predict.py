"""The rest of a model behind a residual stream: the same as the whole model, for every supported kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.models.adapters.registry import adapter
from audit.models.blocks import drops_at_random
from audit.models.predict import finish, finish_logits, predict_logits
from audit.models.transforms import as_input
from tests.models_for_tests import FAMILIES, noise_pixels, tiny

pytestmark = pytest.mark.unit
PIXELS = noise_pixels(5)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_model(family: str) -> None:
    model = tiny(family)
    images = as_input(model, PIXELS)
    found, expected = finish(model, adapter(model).embed(images), 0), model(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    weights = [w for w in model.parameters() if w.requires_grad]
    ours, theirs = (torch.autograd.grad(logits.sin().sum(), weights) for logits in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * float(other.abs().max()) + 1e-4, rtol=1e-3)


def test_the_last_block_is_run_for_the_class_token_alone() -> None:
    model, seen = tiny(), []
    model.blocks[-1].mlp.register_forward_hook(lambda _m, _a, out: seen.append(out.shape[1]))
    predict_logits(model, PIXELS)
    assert seen == [1]


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_the_stream_may_enter_at_any_block(start: int) -> None:
    model = tiny("three layers")
    with torch.inference_mode():
        stream = adapter(model).embed(as_input(model, PIXELS))
        for block in model.blocks[:start]:
            stream = block(stream)
    found = finish_logits(model, stream, start, batch=2)
    np.testing.assert_allclose(found, predict_logits(model, PIXELS), atol=1e-4)


@pytest.mark.parametrize("rate", ["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "patch_drop_rate"])
def test_layers_that_draw_lots_are_known(rate: str) -> None:
    assert not drops_at_random(tiny())
    assert drops_at_random(tiny(**{rate: 0.5}))


def test_dropout_of_the_last_block_is_kept_in_training() -> None:
    model = tiny(proj_drop_rate=0.5).train()
    stream = adapter(model).embed(as_input(model, PIXELS))
    torch.manual_seed(0)
    found = finish(model, stream, 1)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model.forward_head(model.norm(model.blocks[1](stream))))
