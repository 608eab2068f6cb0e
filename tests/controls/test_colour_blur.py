"""Colour and blur on small trained models: all controls pass, and each fails when its thing is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.card.schema import ControlsSpec, ModelSpec
from audit.controls import colour_blur
from audit.controls.colour_blur import Channel, Shift, best_head, channels, measure_shift, run_channel
from audit.controls.initialisation import Pair, run_initialisation
from audit.controls.sets import ControlSet, _rendered
from audit.controls.training import ControlModels, spoil, train_controls
from audit.models.build import Backbone
from audit.models.predict import predict_logits
from audit.patching.engine import Donor, patch_layer
from audit.patching.sites import Trace
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.property
ROLES = ["colour", "blur"]
MODEL = ModelSpec(
    name="vit_tiny_patch16_224",
    weights="none",
    image_size=64,
    overrides={"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
)
SPEC = ControlsSpec(base_epochs=8, condition_epochs=4, learning_rate=3e-3)


@pytest.fixture(scope="module")
def images() -> ControlSet:
    return _rendered(448, 64, 64, 0)


@pytest.fixture(scope="module")
def models(images: ControlSet, tmp_path_factory: pytest.TempPathFactory) -> ControlModels:
    def step(_name: str) -> Callable[[int, int], None]:
        return lambda _done, _total: None

    return train_controls(Backbone(MODEL, None), SPEC, images, cache=tmp_path_factory.mktemp("cache"), step=step)


@pytest.fixture(scope="module")
def tried(models: ControlModels, images: ControlSet) -> dict[str, Channel]:
    return {c.name: c for c in channels(models, images, range(2))}


def failed(channel: Channel) -> set[str]:
    """Return the failed controls of a channel, without the channel's name."""
    return {c.id.removeprefix(f"{channel.name}_") for c in run_channel(channel).controls if not c.passed}


@pytest.mark.parametrize("role", ROLES)
def test_everything_passes_on_trained_models(role: str, tried: dict[str, Channel]) -> None:
    ticks: list[None] = []
    result = run_channel(tried[role], tick=lambda: ticks.append(None))
    assert {c.id: c.estimate for c in result.controls if not c.passed} == {}
    assert len({c.id for c in result.controls}) == 9
    assert len(ticks) == colour_blur.MEASUREMENTS
    assert [g.id for g in result.grids] == [role, f"{role}_null", f"{role}_input"]
    for grid in result.grids:
        assert np.shape(grid.values) == np.shape(grid.marks) == (2, 4)


@pytest.mark.parametrize("role", ROLES)
def test_the_models_know_what_they_should_and_cannot_know_the_rest(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]

    def accuracy(model: VisionTransformer, corruption: str) -> float:
        found = predict_logits(model, spoil(channel.pixels, corruption)).argmax(1)
        return float((found == channel.targets).mean())

    assert accuracy(channel.clean, "clean") > 0.9
    assert accuracy(channel.clean, channel.corruption) < 0.5
    assert accuracy(channel.corrupted, channel.corruption) < 0.5


@pytest.mark.parametrize("role", ROLES)
def test_the_gate_is_open_for_models_of_one_base(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]
    pair = Pair(channel.corrupted, channel.clean, "a", "a", role)
    controls = run_initialisation(pair, channel.pixels, channel.targets, layers=range(2))
    assert [c.id for c in controls if not c.passed] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_clean_model_that_knows_nothing_has_no_effect(role: str, tried: dict[str, Channel]) -> None:
    broken = replace(tried[role], clean=tried[role].null)
    assert failed(broken) >= {"gap_models", "joint_models", "head_models"}


def test_an_untrained_clean_model_has_no_effect(tried: dict[str, Channel]) -> None:
    untrained = Backbone(MODEL, None).build(4)
    assert failed(replace(tried["colour"], clean=untrained)) >= {"gap_models", "joint_models"}


@pytest.mark.parametrize("role", ROLES)
def test_a_null_donor_that_knows_is_not_quiet(role: str, tried: dict[str, Channel]) -> None:
    broken = replace(tried[role], null=tried[role].clean)
    assert failed(broken) == {"gap_models", "joint_models", "head_models", "null_other_seed"}


@pytest.mark.parametrize("role", ROLES)
def test_wrong_labels_show_no_effect(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]
    assert failed(replace(channel, targets=(channel.targets + 1) % 4)) >= {"gap_models", "gap_input"}


def test_labels_drawn_by_lot_show_no_effect(tried: dict[str, Channel]) -> None:
    channel = tried["colour"]
    drawn = np.random.default_rng(0).permutation(channel.targets)
    assert failed(replace(channel, targets=drawn)) >= {"gap_models", "gap_input"}


@pytest.mark.parametrize("role", ROLES)
def test_a_corruption_that_leaves_the_images_whole(
    role: str, tried: dict[str, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing between an image and its copy, and where nothing should be carried all is."""
    monkeypatch.setattr(colour_blur, "spoil", lambda pixels, _corruption: pixels)
    assert failed(tried[role]) == {"gap_input", "joint_input", "head_input", "null_nothing_to_carry"}


def test_donors_that_show_the_same_image_are_not_the_shuffled_null(
    tried: dict[str, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colour_blur, "_elsewhere", lambda targets: np.arange(len(targets)))
    assert failed(tried["colour"]) == {"null_shuffled"}


def test_an_engine_that_patches_nothing_finds_no_head(
    tried: dict[str, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(model: VisionTransformer, own: Trace, _donor: Donor, layer: int) -> torch.Tensor:
        return patch_layer(model, own, Donor(model, own), layer)

    monkeypatch.setattr(colour_blur, "patch_layer", lazy)
    assert failed(tried["colour"]) >= {"head_models"}


def test_a_joint_patch_that_does_nothing_carries_nothing(
    tried: dict[str, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colour_blur, "patch_with_hooks", lambda model, pixels, _writes: model(pixels))
    assert failed(tried["colour"]) == {"joint_models", "joint_input"}


@pytest.mark.unit
def test_a_model_as_its_own_donor_shifts_nothing() -> None:
    model, pixels = tiny(), noise_pixels(5)
    shift = measure_shift(model, model, pixels, pixels, np.array([0, 1, 2, 0, 1]), range(2))
    assert shift.heads.shape == (5, 2, 4)
    for part in (shift.heads, shift.joint, shift.total):
        np.testing.assert_allclose(part, 0, atol=2e-5)


@pytest.mark.unit
def test_the_whole_shift_is_the_difference_of_the_log_odds() -> None:
    model, donor, targets = tiny(classes=2), tiny(classes=2, seed=1), np.array([0, 1, 1])
    ours, theirs = noise_pixels(3), noise_pixels(3, seed=1)
    shift = measure_shift(model, donor, ours, theirs, targets, range(2), singly=False)
    sign = np.where(targets == 0, 1, -1)
    expected = [sign * (lo[:, 0] - lo[:, 1]) for lo in (predict_logits(donor, theirs), predict_logits(model, ours))]
    np.testing.assert_allclose(shift.total, expected[0] - expected[1], rtol=1e-4, atol=1e-4)
    assert shift.heads.size == 0


@pytest.mark.unit
def test_the_best_head_is_that_of_the_largest_mean() -> None:
    heads = np.zeros((6, 2, 3))
    heads[:, 1, 0] = [2, 2, 2, 2, 2, 2]
    heads[:, 0, 2] = [9, 0, 0, 0, 0, 0]
    assert best_head(heads) == (1, 0)


@pytest.mark.unit
def test_images_elsewhere_are_of_another_class_where_the_classes_are_even() -> None:
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 8))
    others = colour_blur._elsewhere(targets)
    assert sorted(others) == list(range(32))  # each image donates once
    assert (targets[others] != targets).all()


def test_a_gap_of_the_wrong_sign_has_no_share(tried: dict[str, Channel]) -> None:
    n = np.random.default_rng(0).normal(size=(20, 2, 4))
    shift = Shift(n, np.ones(20), -np.ones(20))
    halves = np.arange(10), np.arange(10, 20)
    controls = {c.id: c for c in colour_blur._form_controls(tried["colour"], shift, *halves, form="models")}
    assert controls["colour_joint_models"].estimate.value is None
    assert not controls["colour_joint_models"].passed
