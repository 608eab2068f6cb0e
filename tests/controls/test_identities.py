"""Each identity holds on every kind of model, and each fails when exactly its thing is broken."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from audit.controls import identities
from audit.controls.identities import (
    Subject,
    engine_equals_hooks,
    every_site_is_live,
    everything_patched_is_the_donor,
    head_outputs_sum_to_attention,
    less_precision_is_enough,
    rotated,
    rotation_changes_nothing,
    run_identities,
    self_patch,
)
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model
from audit.models.device import device_of
from audit.patching.engine import Donor, patch_layer, patch_together
from audit.patching.sites import Site, Trace
from tests.models_for_tests import FAMILIES, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit


def subject(model: Model) -> Subject:
    device = device_of(model)
    return Subject(model, noise_images(3).to(device), noise_images(3, seed=1).to(device))


def failed(model: Model, **options: Any) -> set[str]:
    return {c.id for c in run_identities(subject(model), **options) if not c.passed}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_identity_holds_on_every_kind_of_model(family: str, device: torch.device) -> None:
    model = tiny(family).to(device)
    controls = run_identities(subject(model))
    assert {c.id: c.estimate.value for c in controls if not c.passed} == {}
    assert len({c.id for c in controls}) == 6
    assert all(c.kind == "identity" and c.check == c.id for c in controls)
    assert hooks_left(model) == 0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_where_heads_are_searched_for_in_fewer_bits_that_is_compared_with_float32(
    precision: torch.dtype, device: torch.device
) -> None:
    controls = {c.id: c for c in run_identities(subject(tiny().to(device)), precision=precision)}
    assert len(controls) == 7
    assert all(c.passed for c in controls.values())
    assert 0 < float(controls["precision"].estimate.value or 0) <= float(controls["precision"].threshold)


def test_a_search_that_loses_the_effects_in_rounding_fails() -> None:
    model = tiny()

    def rounded(*given: Any) -> torch.Tensor:
        return (patch_layer(*given) / 4).round() * 4

    assert not less_precision_is_enough(subject(model), torch.bfloat16, patch=rounded).passed
    assert less_precision_is_enough(subject(model), torch.bfloat16, patch=patch_layer).estimate.value == 0


def test_identities_that_patch_every_head_many_times_take_two_pairs_of_images() -> None:
    images = {c.id: c.n for c in run_identities(subject(tiny()))}
    assert images == {
        "self_patch": 2,
        "writes_sum": 3,
        "everything_patched": 3,
        "rotation": 2,
        "live_sites": 8,
        "engine": 3,
    }


def test_identities_hold_for_a_checkpoint_that_still_asks_for_gradients() -> None:
    assert failed(tiny("LayerScale").requires_grad_(True)) == set()


def test_a_self_patch_is_exact_and_not_merely_small() -> None:
    control = self_patch(subject(tiny()))
    assert (control.estimate.value, control.relation, control.threshold) == (0.0, "==", 0.0)


# Engines that are wrong in one way each.


def shifted(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
    """Patch the neighbour of the head that was asked for."""
    return patch_layer(model, own, donor, layer).roll(1, 0)


def noisy(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
    return patch_layer(model, own, donor, layer) + 1e-6


def lazy(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
    """Patch nothing."""
    return patch_layer(model, own, Donor(model, own), layer)


def early(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
    """Patch a layer too early."""
    return patch_layer(model, own, donor, max(layer - 1, 0))


def crossed(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
    """Take each image's neighbour as donor."""
    rows = torch.arange(len(own.leaving)).roll(1)
    return patch_layer(model, own, Donor(donor.model, donor.trace.take(rows)), layer)


def raw(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
    """Patch raw z through the recipient's own projection."""
    return patch_layer(model, own, Donor(model, donor.trace), layer)


@pytest.mark.parametrize("engine", [shifted, lazy, early, crossed])
def test_a_wrong_engine_does_not_equal_hooks(engine: identities.Patch) -> None:
    assert not engine_equals_hooks(subject(tiny()), patch=engine).passed


def first_only(model: Model, own: Trace, donor: Donor, sites: Sequence[Site]) -> torch.Tensor:
    """Patch one head of the set."""
    return patch_together(model, own, donor, sites[:1])


def test_a_set_of_which_one_head_is_patched_does_not_equal_hooks() -> None:
    assert engine_equals_hooks(subject(tiny())).passed
    assert not engine_equals_hooks(subject(tiny()), patch_set=first_only).passed


def test_a_self_patch_is_tried_as_between_two_models() -> None:
    """An engine that is exact within a model, and off by a millionth between two."""

    def unequal(model: Model, own: Trace, donor: Donor, layer: int) -> torch.Tensor:
        return patch_layer(model, own, donor, layer) + (0.0 if donor.model is model else 1e-6)

    assert failed(tiny(), patch=unequal) == {"self_patch"}


def test_a_wrong_slice_fails_the_comparison_with_hooks() -> None:
    """Heads change places in the batch, so that rounding may show in the self-patch too, and nowhere else."""
    assert {"engine"} <= failed(tiny(), patch=shifted) <= {"engine", "self_patch"}


def test_noise_a_millionth_high_fails_the_self_patch_alone() -> None:
    assert failed(tiny(), patch=noisy) == {"self_patch"}


def test_a_raw_z_patch_fails_the_rotation_alone() -> None:
    assert failed(tiny(), patch=raw) == {"rotation"}


# Rotations that are wrong.


def test_a_rotation_leaves_the_model_and_moves_its_coordinates() -> None:
    model, images = tiny("qk norm"), noise_images(2)
    twin = rotated(model)
    with torch.inference_mode():
        torch.testing.assert_close(twin(images), model(images), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(twin.blocks[0].attn.proj.weight, model.blocks[0].attn.proj.weight, atol=1e-2)


def test_the_rotation_says_what_a_patch_of_raw_values_would_have_changed() -> None:
    assert rotation_changes_nothing(subject(tiny())).figures["raw"] > 1e-3
    same = rotation_changes_nothing(subject(tiny()), rotate=copy.deepcopy)
    assert same.figures == {}  # where they are the same, nothing is to be said


def test_a_copy_that_is_another_function_fails_the_rotation() -> None:
    def other(model: Model) -> Model:
        twin = rotated(model)
        torch.nn.init.constant_(twin.head.bias, 1.0)
        return twin

    assert not rotation_changes_nothing(subject(tiny()), rotate=other).passed


def half_rotated(model: Model, part: str) -> Model:
    """Rotate all but one of the three tensors that a rotation takes."""
    twin = rotated(model)
    for new, old in zip(twin.blocks, model.blocks, strict=True):
        module, name = part.split(".")
        getattr(new.attn, module).load_state_dict(
            {**getattr(new.attn, module).state_dict(), name: getattr(getattr(old.attn, module), name)}
        )
    return twin


@pytest.mark.parametrize("part", ["proj.weight", "qkv.weight", "qkv.bias"])
def test_half_a_rotation_fails(part: str) -> None:
    broken = functools.partial(half_rotated, part=part)
    assert not rotation_changes_nothing(subject(tiny()), rotate=broken).passed


# Models whose code does not do what the tool believes.


class BiasTwice(torch.nn.Linear):
    """A projection that adds its bias twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.bias


def test_a_bias_applied_twice_fails_the_sum() -> None:
    model = tiny()
    for block in model.blocks:
        block.attn.proj.__class__ = BiasTwice
    assert failed(model) == {"writes_sum"}


def test_layer_scale_overlooked_fails_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heads, "scale", lambda _body, _layer: None)
    assert not head_outputs_sum_to_attention(subject(tiny("LayerScale"))).passed
    assert not engine_equals_hooks(subject(tiny("LayerScale"))).passed  # hooks still know of it
    assert head_outputs_sum_to_attention(subject(tiny())).passed  # where there is none, nothing is overlooked


def with_forward(model: Model, forward: Callable[..., torch.Tensor]) -> Model:
    """Replace the code of the first block."""
    twin = copy.deepcopy(model)
    block = twin.blocks[0]
    block.forward = functools.partial(forward, block)
    return twin


def detour(block: Any, x: torch.Tensor, **_: object) -> torch.Tensor:
    """Carry something of the image past attention and MLP."""
    x = x + block.ls1(block.attn(block.norm1(x)))
    x = x + block.ls2(block.mlp(block.norm2(x)))
    return x + 0.3 * block.norm1.weight * x.std()


def test_a_block_without_a_detour_passes() -> None:
    def plain(block: Any, x: torch.Tensor, **_: object) -> torch.Tensor:
        x = x + block.ls1(block.attn(block.norm1(x)))
        return x + block.ls2(block.mlp(block.norm2(x)))

    assert failed(with_forward(tiny(), plain)) == set()


class Shortcut(torch.nn.Module):
    """A classifier norm that is shown the image's own patches once more."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm = model.norm
        model.patch_embed.register_forward_hook(self.keep)

    def keep(self, _module: object, _args: object, out: torch.Tensor) -> None:
        self.patches = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.patches.mean(1, keepdim=True))


def test_a_path_around_the_parts_fails() -> None:
    """Something of the recipient reaches the classifier although every part was patched."""
    model = tiny()
    model.norm = Shortcut(model)
    assert not everything_patched_is_the_donor(subject(model)).passed


def test_a_detour_is_seen_by_the_engine_that_goes_without_it() -> None:
    assert "engine" in failed(with_forward(tiny(), detour))


@pytest.mark.parametrize("where", [(0, 2), (1, 0)])
def test_a_head_that_writes_nothing_is_not_live(where: tuple[int, int]) -> None:
    model = tiny()
    layer, head = where
    with torch.no_grad():
        model.blocks[layer].attn.proj.weight[:, 8 * head : 8 * head + 8] = 0
    assert failed(model) == {"live_sites"}
    assert every_site_is_live(subject(model)).estimate.value == 0.0


def test_a_head_that_writes_nothing_on_one_image_is_not_live() -> None:
    model = tiny("no bias")
    with torch.no_grad():  # a black image leaves nothing in any token, so no head has anything to write
        for name, weight in model.named_parameters():
            if name.endswith("bias") or name in ("cls_token", "pos_embed"):
                weight.zero_()
    seen, black = noise_images(2), torch.zeros(1, 3, 32, 32)
    assert every_site_is_live(Subject(model, seen, seen)).passed
    assert not every_site_is_live(Subject(model, torch.cat([seen, black]), seen)).passed


def test_a_model_that_gives_no_number_passes_nothing_that_is_measured_in_logits() -> None:
    model = tiny()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    assert failed(model) >= {"self_patch", "everything_patched", "rotation", "live_sites", "engine"}
