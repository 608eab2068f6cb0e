"""Colour and blur on small trained models: all controls pass, and each fails when its thing is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.card.schema import ControlsSpec, ModelSpec
from audit.controls import colour_blur
from audit.controls.colour_blur import Measured, judge_channel
from audit.controls.control_images import ControlSet, Role, rendered_set
from audit.controls.control_models import ControlModels, corrupt, train_controls
from audit.controls.criteria import judge_form, share_of
from audit.controls.initialisation import Pair, Task, run_initialisation
from audit.controls.measure import ControlDonor, Shift, measure_heads, measure_random_direction, measure_shifts
from audit.controls.ranking import HeadEffects
from audit.controls.spec import Channel, channels
from audit.controls.trials import measure_channels, others_of_another_class
from audit.models.adapters.registry import adapter
from audit.models.build import Backbone
from audit.models.predict import predict_logits
from audit.models.readout import class_log_odds
from audit.models.transforms import as_input
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.property
ROLES: list[Role] = ["colour", "blur"]
MODEL = ModelSpec(
    name="vit_tiny_patch16_224",
    weights="none",
    image_size=64,
    overrides={"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
)
SPEC = ControlsSpec(base_epochs=8, condition_epochs=4, learning_rate=3e-3)


@pytest.fixture(scope="module")
def images() -> ControlSet:
    return rendered_set(448, 64, 64, 0)


@pytest.fixture(scope="module")
def models(images: ControlSet, tmp_path_factory: pytest.TempPathFactory) -> ControlModels:
    def step(_name: str) -> Callable[[int, int], None]:
        return lambda _done, _total: None

    return train_controls(Backbone(MODEL, None), SPEC, images, cache=tmp_path_factory.mktemp("cache"), step=step)


@pytest.fixture(scope="module")
def tried(models: ControlModels, images: ControlSet) -> dict[str, Channel]:
    untrained = Backbone(MODEL, None).build_untrained(images.classes, seed=1)
    return {c.spec.name: c for c in channels(models, images, range(2), untrained=untrained)}


def measure_channel(channel: Channel, *, seed: int = 0) -> Measured:
    """Measure a channel by itself."""
    (found,) = measure_channels([channel], seed=seed)
    return found


def failed(channel: Channel) -> set[str]:
    """Return the failed controls of a channel, without the channel's name."""
    return {
        c.id.removeprefix(f"{channel.spec.name}_")
        for c in judge_channel(measure_channel(channel)).controls
        if not c.passed
    }


@pytest.mark.parametrize("role", ROLES)
def test_everything_passes_on_trained_models(role: str, tried: dict[str, Channel]) -> None:
    result = judge_channel(measure_channel(tried[role]))
    assert {c.id: c.estimate for c in result.controls if not c.passed} == {}
    assert len({c.id for c in result.controls}) == 14
    assert [g.id for g in result.grids] == [role, f"{role}_null", f"{role}_input"]
    for grid in result.grids:
        assert np.shape(grid.values) == np.shape(grid.marks) == (2, 4)


@pytest.mark.parametrize("role", ROLES)
def test_what_was_measured_can_be_judged_again_from_its_file(
    role: Role, tried: dict[str, Channel], tmp_path: Path
) -> None:
    measured = measure_channel(tried[role], seed=3)
    measured.save(tmp_path / "measured.npz")
    assert judge_channel(Measured.load(tmp_path / "measured.npz", role)) == judge_channel(measured)
    assert [p.name for p in tmp_path.iterdir()] == ["measured.npz"]


def test_a_file_of_a_version_that_patched_every_head_on_all_images_is_read(
    tried: dict[str, Channel], tmp_path: Path
) -> None:
    measured, file = measure_channel(tried["colour"]), tmp_path / "measured.npz"
    whole = {
        name: HeadEffects(heads.values, np.full(heads.patched.shape, len(heads.values)))
        for name in colour_blur.HEADS
        if (heads := getattr(measured, name))
    }
    measured = replace(measured, **whole)
    measured.save(file)
    with np.load(file) as held:
        old = {n.removesuffix("/values"): v for n, v in held.items() if not n.endswith("/patched")}
    np.savez(file, **old)
    assert judge_channel(Measured.load(file, "colour")) == judge_channel(measured)


@pytest.mark.parametrize("role", ROLES)
def test_the_models_know_what_they_should_and_cannot_know_the_rest(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]

    def accuracy(model: VisionTransformer, corruption: str) -> float:
        found = predict_logits(model, corrupt(channel.pixels, corruption)).argmax(1)
        return float((found == channel.targets).mean())

    for model in channel.clean:
        assert accuracy(model, "clean") > 0.9
        assert accuracy(model, channel.spec.corruption) < 0.5
    for model in (channel.corrupted, *channel.null):
        assert accuracy(model, channel.spec.corruption) < 0.5


@pytest.mark.parametrize("role", ROLES)
def test_the_gate_is_open_for_models_of_one_base(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]
    pairs = [Pair(channel.corrupted, donor, "a", "a") for donor in channel.clean]
    controls = run_initialisation(pairs, Task(channel.pixels, channel.targets), role, layers=range(2))
    assert [c.id for c in controls if not c.passed] == []


@pytest.mark.parametrize("role", ROLES)
def test_clean_models_that_know_nothing_have_no_effect(role: str, tried: dict[str, Channel]) -> None:
    broken = replace(tried[role], clean=tried[role].null)
    assert failed(broken) >= {"gap_models", "joint_models", "head_models"}


def test_untrained_clean_models_have_no_effect(tried: dict[str, Channel]) -> None:
    channel = tried["colour"]
    assert failed(replace(channel, clean=(channel.untrained,) * 2)) >= {"gap_models", "joint_models"}


@pytest.mark.parametrize("role", ROLES)
def test_null_donors_that_know_show_no_effect(role: str, tried: dict[str, Channel]) -> None:
    broken = replace(tried[role], null=tried[role].clean)
    assert failed(broken) >= {"gap_models", "joint_models", "head_models"}


@pytest.mark.parametrize("role", ROLES)
def test_a_null_donor_that_knows_more_than_the_others_is_not_quiet(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]
    broken = replace(channel, null=(channel.clean[0], *channel.null[1:]))
    assert "null_other_seed" in failed(broken)


def test_the_odd_null_donor_is_found_wherever_it_stands(tried: dict[str, Channel]) -> None:
    channel = tried["colour"]
    among = [*channel.null, *channel.null, channel.clean[0]]  # a fifth of the others' mean is not half of the effect
    assert "null_other_seed" in failed(replace(channel, null=tuple(among)))


@pytest.mark.parametrize("role", ROLES)
def test_an_untrained_donor_that_was_trained_is_not_quiet(role: str, tried: dict[str, Channel]) -> None:
    broken = replace(tried[role], untrained=tried[role].clean[0])
    assert failed(broken) == {"null_untrained"}


@pytest.mark.parametrize("role", ROLES)
def test_wrong_labels_show_no_effect(role: str, tried: dict[str, Channel]) -> None:
    channel = tried[role]
    assert failed(replace(channel, targets=(channel.targets + 1) % 4)) >= {"gap_models", "gap_input"}


def test_labels_drawn_by_lot_show_no_effect(tried: dict[str, Channel]) -> None:
    channel = tried["colour"]
    drawn = np.random.default_rng(0).permutation(channel.targets)
    assert failed(replace(channel, targets=drawn)) >= {"gap_models", "gap_input"}


@pytest.mark.parametrize("role", ROLES)
def test_a_corruption_that_leaves_the_images_whole(role: str, tried: dict[str, Channel]) -> None:
    """There is nothing between an image and its copy, and where nothing should be carried all is."""
    channel = tried[role]
    nothing = {"null_nothing_to_carry", "null_nothing_to_carry_head"}
    broken = replace(channel, spec=replace(channel.spec, corruption="clean"))
    assert failed(broken) == {"gap_input", "joint_input", "head_input", "noising_input"} | nothing


@pytest.fixture(scope="module")
def measured(tried: dict[str, Channel]) -> Measured:
    return measure_channel(tried["colour"])


def failed_of(measured: Measured) -> set[str]:
    """Return the failed controls of what was measured of a channel, without the channel's name."""
    return {c.id.removeprefix("colour_") for c in judge_channel(measured).controls if not c.passed}


def without(part: str, measured: Measured) -> Measured:
    """Return measurements in which one kind of patch moved nothing."""

    def still(shift: Shift) -> Shift:
        return replace(shift, **{part: np.zeros_like(getattr(shift, part))})

    mappings = {name: {n: still(s) for n, s in getattr(measured, name).items()} for name in colour_blur.SHIFTS}
    return replace(measured, **mappings, on_input=still(measured.on_input))


def test_donors_that_show_the_same_image_are_not_the_shuffled_null(measured: Measured) -> None:
    clean = {**measured.clean, "shuffled": measured.clean["clean-0"]}
    assert failed_of(replace(measured, clean=clean)) == {"null_shuffled"}


def test_a_single_patch_that_does_nothing_finds_no_head(measured: Measured) -> None:
    assert failed_of(without("single", measured)) >= {"head_models", "head_input"}


def test_a_joint_patch_that_does_nothing_carries_nothing(measured: Measured) -> None:
    expected = {"joint_models", "joint_input", "noising_models", "noising_input"}
    assert failed_of(without("joint", measured)) == expected


@pytest.mark.parametrize("role", ROLES)
def test_donors_that_take_nothing_away_fail_the_other_direction(role: str, tried: dict[str, Channel]) -> None:
    """The later null donors are as clean as the recipient, so they leave it what it knows."""
    channel = tried[role]
    broken = replace(channel, null=(channel.null[0], *channel.clean[1:]))
    assert "noising_models" in failed(broken)


def test_a_random_direction_that_is_the_right_one_is_not_quiet(measured: Measured) -> None:
    right = measured.clean["clean-0"].single[measured.rest]
    assert failed_of(replace(measured, random_direction=right)) == {"null_random_direction"}


SITE = Site(1, 2)


@pytest.mark.unit
def test_a_model_as_its_own_donor_shifts_nothing() -> None:
    model, pixels, targets = tiny(), noise_pixels(5), np.array([0, 1, 2, 0, 1])
    own = {"own": ControlDonor(model, pixels), "copy": ControlDonor(tiny(), pixels.copy())}
    heads = measure_heads(model, pixels, own, targets, range(2))
    moved = measure_shifts(model, pixels, own, targets, range(2), SITE)
    for name in own:
        assert heads[name].shape == (5, 2, 4)
        for part in (heads[name], moved[name].joint, moved[name].total, moved[name].single):
            np.testing.assert_allclose(part, 0, atol=2e-5)


@pytest.mark.unit
def test_the_whole_shift_is_the_difference_of_the_log_odds() -> None:
    model, donor, targets = tiny(classes=2), tiny(classes=2, seed=1), np.array([0, 1, 1])
    ours, theirs = noise_pixels(3), noise_pixels(3, seed=1)
    shift = measure_shifts(model, ours, {"donor": ControlDonor(donor, theirs)}, targets, range(2), SITE)["donor"]
    sign = np.where(targets == 0, 1, -1)
    expected = [sign * (lo[:, 0] - lo[:, 1]) for lo in (predict_logits(donor, theirs), predict_logits(model, ours))]
    np.testing.assert_allclose(shift.total, expected[0] - expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_single_heads_are_measured_alike_one_by_one_and_all_together() -> None:
    model, donor, targets, pixels = tiny(), tiny(seed=1), np.array([0, 1, 2]), noise_pixels(3)
    donors = {"donor": ControlDonor(donor, pixels)}
    heads = measure_heads(model, pixels, donors, targets, range(2))["donor"]
    shift = measure_shifts(model, pixels, donors, targets, range(2), SITE)["donor"]
    np.testing.assert_allclose(shift.single, heads[:, SITE.layer, SITE.head], atol=1e-5)


@pytest.mark.unit
def test_a_frozen_prefix_is_shared_where_it_is_one_and_only_there() -> None:
    model, pixels, targets = tiny("three layers"), noise_pixels(3), np.array([0, 1, 2])
    twin, stranger = tiny("three layers"), tiny("three layers", seed=1)
    with torch.no_grad():
        twin.blocks[2].attn.proj.weight.mul_(2)
    donors = {"twin": ControlDonor(twin, pixels), "stranger": ControlDonor(stranger, pixels)}
    for name, donor in donors.items():
        passes: list[str] = []
        donor.model.patch_embed.register_forward_hook(lambda *_, passes=passes: passes.append("whole"))
        shared = measure_heads(model, pixels, {name: donor}, targets, range(2, 3))[name]
        assert len(passes) == (0 if name == "twin" else 1)
        apart = measure_heads(model, pixels, {name: replace(donor, pixels=pixels.copy())}, targets, range(2, 3))[name]
        assert len(passes) == (1 if name == "twin" else 2)
        np.testing.assert_allclose(shared, apart, atol=1e-6)


@pytest.mark.unit
def test_a_random_direction_of_a_slice_stays_within_it() -> None:
    model, donor = tiny("convnext"), tiny("convnext", seed=5)
    pixels, targets = noise_pixels(4), np.zeros(4, dtype=np.int64)
    last, read = adapter(model).depth - 1, []
    model.head.register_forward_pre_hook(lambda _head, given: read.append(given[0]))
    measure_random_direction(model, pixels, donor, targets, Site(last, 3), seed=0)
    before, after = read
    width = before.shape[1] // 8
    moved = (after - before).abs().amax((0, 2, 3)).nonzero().flatten().tolist()
    assert moved == list(range(3 * width, 4 * width))


def test_a_random_direction_is_as_long_as_the_true_change() -> None:
    model, donor, targets, pixels = tiny(), tiny(seed=1), np.array([0, 1]), noise_pixels(2)
    shift = measure_random_direction(model, pixels, donor, targets, SITE, seed=3)
    images, rows = as_input(model, pixels), (np.arange(2), targets)
    own, theirs = donor_head_outputs(model, images, [SITE])[SITE], donor_head_outputs(donor, images, [SITE])[SITE]
    aside = torch.randn(own.shape, generator=torch.Generator().manual_seed(3))
    aside *= (theirs - own).norm(dim=-1, keepdim=True) / aside.norm(dim=-1, keepdim=True)
    with torch.inference_mode():
        before = class_log_odds(model(images))[rows]
    after = class_log_odds(patch_with_hooks(model, images, {SITE: own + aside}))[rows]
    np.testing.assert_allclose(shift, (after - before).numpy(), atol=1e-4)


@pytest.mark.unit
def test_images_elsewhere_are_of_another_class_where_the_classes_are_even() -> None:
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 8))
    others = others_of_another_class(targets)
    assert sorted(others) == list(range(32))  # each image donates once
    assert (targets[others] != targets).all()


def test_a_gap_of_the_wrong_sign_has_no_share(tried: dict[str, Channel]) -> None:
    shift = Shift(np.ones(20), -np.ones(20), np.ones(20))
    found = judge_form(tried["colour"].spec, shift, np.arange(10), Site(0, 0), form="models")
    controls = {c.id: c for c in found}
    assert controls["colour_joint_models"].estimate.value is None
    assert not controls["colour_joint_models"].passed


@pytest.mark.unit
def test_a_share_is_a_ratio_of_means_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    total = rng.normal(1.0, 0.2, 400)
    part = 0.7 * total + rng.normal(0, 0.05, 400)
    share = share_of(part, total)
    assert share.low is not None and share.high is not None
    assert 0.69 < share.low < 0.7 < share.high < 0.71
    uncertain = total - total.mean() + 0.001  # above zero by less than its error
    assert share_of(part, uncertain).value is None
