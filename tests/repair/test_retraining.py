"""Repairs that train on: what is drawn, what is trained, and which cells count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.models.finetune import finetune, make_views
from audit.records.repair_methods import Method
from audit.repair.base import RepairData, RepairInput, state_of
from audit.repair.registry import repair
from audit.repair.retraining import Augmented, worst_cells
from tests.models_for_tests import noise_pixels, tiny
from tests.repair.planted import RECIPE, planted_images, planted_world

pytestmark = pytest.mark.unit
TRAINED = [Method.CONTINUED, Method.GROUP_DRO]


def world(**changes: object) -> RepairInput:
    return replace(planted_world(64, accuracy_margin=1 - 1e-9).given, model=tiny(classes=2), **changes)  # type: ignore[arg-type]


def test_an_image_is_augmented_alike_whatever_is_asked_with_it() -> None:
    images = noise_pixels(6)
    seen = Augmented(images, seed=3, flip=True)
    whole = seen[np.arange(6)]
    assert np.array_equal(seen[np.array([4, 1])], whole[[4, 1]])
    assert np.array_equal(seen[1:3], whole[1:3])
    assert not np.array_equal(whole, images)
    assert not np.array_equal(whole, Augmented(images, seed=4, flip=True)[np.arange(6)])
    assert (seen.shape, seen.dtype, len(seen)) == (images.shape, images.dtype, 6)


def test_augmenting_leaves_torchs_own_draws_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _ = Augmented(noise_pixels(2), seed=0, flip=True)[0:2]
    assert torch.equal(torch.rand(3), expected)


def test_augmented_images_pass_through_a_frozen_prefix() -> None:
    views = make_views(tiny(classes=2), [Augmented(noise_pixels(4), seed, flip=False) for seed in (0, 1)], 1)
    assert len(views) == 4
    assert not torch.equal(torch.as_tensor(views.data[0]), torch.as_tensor(views.data[1]))


@pytest.mark.parametrize("method", TRAINED)
def test_it_trains_what_the_recipe_trains_and_repeats_itself(method: Method) -> None:
    given = world(recipe=replace(RECIPE, train_blocks=1))
    audited = state_of(given.model)
    first, again = (repair(method, replace(given)) for _ in range(2))
    assert first.state is not None
    assert again.state is not None
    assert all(torch.equal(first.state[name], again.state[name]) for name in audited)
    assert first.settings == again.settings
    assert all(torch.equal(tensor, audited[name]) for name, tensor in state_of(given.model).items())
    if first.settings["strength"] != 0:
        changed = {name for name in audited if not torch.equal(first.state[name], audited[name])}
        assert changed
        assert not any(name.startswith(("blocks.0.", "patch_embed", "pos_embed")) for name in changed)


def test_another_seed_trains_otherwise() -> None:
    losses = [repair(Method.CONTINUED, world(seed=seed)).settings["losses"] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_the_weight_of_a_cell_rises_with_its_loss() -> None:
    loss = worst_cells(np.array([0, 0, 1, 1]), 2, step=1.0)
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    targets, rows = torch.tensor([0, 0, 1, 1]), np.arange(4)
    right, wrong = float(torch.log1p(torch.exp(torch.tensor(-4.0)))), float(torch.log1p(torch.exp(torch.tensor(4.0))))
    first = float(loss(logits, targets, rows))
    q = np.exp([right, wrong]) / np.exp([right, wrong]).sum()
    assert first == pytest.approx(q[0] * right + q[1] * wrong, rel=1e-6)
    assert first > (right + wrong) / 2
    assert float(loss(logits, targets, rows)) > first


def test_group_dro_closes_a_gap_that_plain_training_opens() -> None:
    """Blue, the group, tells the label but for a few images, and red does less surely: plain training takes both."""
    images, split = planted_images(600, seed=5)
    kept = np.flatnonzero((split.groups == split.targets) | (np.arange(600) % 22 < 2)).astype(np.int64)
    training = replace(split.take(kept), images=images[kept])
    recipe = replace(RECIPE, epochs=8, learning_rate=3e-3)
    start = tiny(classes=2)
    plain = tiny(classes=2)
    finetune(plain, make_views(plain, [training.images], None), training.targets, recipe)
    of_new = planted_world(200).given.data.repair
    data = RepairData(of_new, training)
    given = replace(world(recipe=recipe), data=data, model=plain, start=start)
    made = repair(Method.GROUP_DRO, given)
    assert made.settings["cells"] == 4
    before, after = (abs(float(str(made.settings[name]))) for name in ("gap_before", "gap_on_repair"))
    assert before > 0.2
    assert after < before / 2
