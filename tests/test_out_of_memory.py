"""Where a model's pass takes more memory than there is, whatever runs the model does it with fewer images at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from audit.controls.measure import ControlDonor, estimate_heads, measure_heads, measure_random_direction, measure_shifts
from audit.errors import MemoryExhaustedError
from audit.models.adapters.registry import adapter
from audit.models.finetune import Batch, Recipe, finetune, loss_and_gradient, make_views
from audit.models.predict import finish_logits, predict_logits
from audit.models.transforms import as_input
from audit.patching.attention import mean_attention
from audit.patching.first_order import sweep_first_order
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, measure_unpatched, sweep, sweep_together
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
ROOM = 2  # images
MODEL, OTHER, PIXELS = tiny(), tiny(seed=3), noise_pixels(9)
EVERY, LAYERS, SITE, OUTCOMES = np.arange(9), range(2), Site(1, 2), {"anger": 0}
TARGETS = EVERY % 3
DONORS = [DonorKind("cross", MODEL, EVERY[::-1].copy()), DonorKind("other", OTHER, EVERY)]
CONTROL_DONORS = {"other": ControlDonor(OTHER, PIXELS), "own": ControlDonor(MODEL, PIXELS[::-1].copy())}
PLAN = pd.DataFrame(
    {"recipient": [0, 1, 2, 3], "cross": [5, 4, 7, 6], "placebo": [4, 5, 6, 7], "unit": [0, 0, 1, 1],
     "side": ["group", "reference"] * 2, "label": "smile", "stratum": 0}
)  # fmt: skip
with torch.inference_mode():
    STREAM = adapter(MODEL).embed(as_input(MODEL, PIXELS))
RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0.05, warmup_share=0.1, seed=0)


@contextmanager
def room_for(images: int, *models: Any) -> Iterator[list[int]]:
    """Let a block of a model, and its first layer, fail for more than so many images; yield how many were tried."""
    tried: list[int] = []

    def allocate(_part: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(given[0]))
        if len(given[0]) > images:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    parts = [part for model in models for part in (model.patch_embed, *model.blocks)]
    handles = [part.register_forward_pre_hook(allocate) for part in parts]
    try:
        yield tried
    finally:
        for handle in handles:
            handle.remove()


def in_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Sort what a sweep found: batches of other sizes come in another order."""
    keys = [c for c in ("position", "set", "donor_kind", "layer", "head") if c in table.columns]
    return table.sort_values(keys, ignore_index=True)


WORK: dict[str, Callable[[], Any]] = {
    "logits": lambda: predict_logits(MODEL, PIXELS),
    "logits of a stream": lambda: finish_logits(MODEL, STREAM, 0),
    "unpatched": lambda: measure_unpatched(MODEL, PIXELS, EVERY, OUTCOMES),
    "features of frozen blocks": lambda: make_views(MODEL, [PIXELS], 1, dtype=torch.float32).data[0],
    "attention": lambda: mean_attention(MODEL, PIXELS, EVERY, [SITE])[SITE],
    "control, each head": lambda: list(measure_heads(MODEL, PIXELS, CONTROL_DONORS, TARGETS, LAYERS).values()),
    "control, estimated": lambda: list(estimate_heads(MODEL, PIXELS, CONTROL_DONORS, TARGETS, LAYERS).values()),
    "control, together": lambda: [
        astuple(shift) for shift in measure_shifts(MODEL, PIXELS, CONTROL_DONORS, TARGETS, LAYERS, SITE).values()
    ],
    "control, random direction": lambda: measure_random_direction(MODEL, PIXELS, OTHER, TARGETS, SITE, seed=0),
    "sweep": lambda: in_rows(sweep(MODEL, PIXELS, EVERY, DONORS, layers=LAYERS, outcomes=OUTCOMES)),
    "sweep of sets": lambda: in_rows(
        sweep_together(MODEL, PIXELS, EVERY, DONORS, sets={"two": [Site(0, 1), SITE]}, outcomes=OUTCOMES)
    ),
    "first order": lambda: in_rows(
        sweep_first_order(MODEL, PIXELS, PLAN, EVERY, ("cross", "placebo"), layers=LAYERS, outcomes=OUTCOMES)
    ),
}  # fmt: skip


def assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted, rtol=1e-5, atol=1e-5)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    else:
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WORK)
def test_work_goes_on_with_fewer_images_at_once_and_finds_the_same(name: str) -> None:
    wanted = WORK[name]()
    with room_for(ROOM, MODEL, OTHER) as tried:
        found = WORK[name]()
    assert max(tried) > ROOM
    assert_close(found, wanted)


@pytest.mark.parametrize("name", WORK)
def test_work_that_fits_for_no_image_ends_in_a_line(name: str) -> None:
    what = "^memory: does not suffice, with as few images at once as there can be; close other"
    with room_for(0, MODEL, OTHER), pytest.raises(MemoryExhaustedError, match=what):
        WORK[name]()


@pytest.mark.parametrize("train_blocks", [None, 1])
def test_a_model_trains_in_parts_of_a_batch_as_it_does_in_whole_ones(train_blocks: int | None) -> None:
    """Up to rounding, which the optimiser scales up where a gradient is next to nothing."""
    losses, logits = [], [predict_logits(tiny(), PIXELS)]
    for room in (len(PIXELS), ROOM):
        model = tiny()
        with room_for(room, model) as tried:
            losses.append(finetune(model, make_views(model, [PIXELS], train_blocks), TARGETS, RECIPE))
        assert (max(tried) > room) is (room == ROOM)
        logits.append(predict_logits(model, PIXELS))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    before, whole, in_parts = logits
    moved = np.abs(before - whole).max()
    assert moved > 0.1
    np.testing.assert_allclose(in_parts, whole, atol=0.02 * moved)


def test_the_gradient_of_unequal_parts_is_that_of_the_batch() -> None:
    """Nine images are taken as 2, 2, 2, 1 and 2."""
    found = []
    for room in (len(PIXELS), ROOM):
        model = tiny().train()
        batch = Batch(make_views(model, [PIXELS], None), TARGETS, EVERY, np.zeros(9, dtype=np.int64))
        with room_for(room, model):
            found.append(loss_and_gradient(model, batch, RECIPE))
    (whole, slopes), (in_parts, summed) = found
    assert in_parts == pytest.approx(whole, rel=1e-5)
    assert len(slopes) == len(summed) > 20
    for one, other in zip(slopes, summed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_statistics_are_those_of_the_halves_alone() -> None:
    """A norm behind the first takes no more than four images: what the first has learnt from eight is forgotten."""
    kept = []
    for sizes in ([9], [4, 5]):
        model = tiny("resnet, basic").train()
        parts = np.split(EVERY, np.cumsum(sizes)[:-1])
        views = make_views(model, [PIXELS], None)
        model.train()
        if len(sizes) == 1:
            body = adapter(model)
            body.blocks[-1].register_forward_pre_hook(lambda _part, given: _refuse(len(given[0]) > 5))
            batch = Batch(views, TARGETS, EVERY, np.zeros(9, dtype=np.int64))
            loss_and_gradient(model, batch, replace(RECIPE, learn_statistics=True))
        else:
            with torch.no_grad():
                for rows in parts:
                    model(as_input(model, PIXELS[rows]))
        kept.append({name: b.clone() for name, b in model.named_buffers() if "running" in name})
    assert len(kept[0]) > 10
    for name, statistic in kept[0].items():
        torch.testing.assert_close(statistic, kept[1][name], rtol=1e-4, atol=1e-5)


def _refuse(too_many: bool) -> None:
    if too_many:
        raise MemoryError


def test_norms_that_learn_statistics_never_see_a_single_image() -> None:
    model, recipe = tiny("resnet, basic"), replace(RECIPE, learn_statistics=True)
    body, tried = adapter(model), []

    def allocate(_part: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(given[0]))
        raise MemoryError

    body.blocks[0].register_forward_pre_hook(allocate)
    with pytest.raises(MemoryExhaustedError):
        finetune(model, make_views(model, [PIXELS], None), TARGETS, recipe)
    assert tried == [9, 4, 2]
