"""Attribution patching: exact for small changes, zero for none, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from audit.models.adapters.registry import adapter
from audit.patching.attribution import attribute, attribute_pairs, linearise
from audit.patching.engine import Donor, Patches, patch
from audit.patching.sites import Trace, heads_of, record, sites_of
from tests.models_for_tests import FAMILIES, OLDER_TIMM, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit


def z_of(trace: Trace) -> dict[int, torch.Tensor]:
    return dict(enumerate(trace.head_activations))


def first_logit(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def second_logit(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1]


def towards(own: Trace, other: Trace, share: float) -> Trace:
    """Return a trace whose z lies a share of the way from one to another."""
    pairs = zip(own.head_activations, other.head_activations, strict=True)
    moved = [torch.lerp(a, b, share) for a, b in pairs]
    return Trace(own.entering, own.attention, moved, own.leaving)


@pytest.mark.parametrize("family", FAMILIES)
def test_small_patches_are_estimated_exactly(family: str) -> None:
    """A millionth of the way to the donor, first order is all there is: in double precision it agrees to 1%.

    No rectifier turns on such a way.

    Every recipient, three copies of one image, is patched from every donor.
    """
    if family == "rotary by layer" and OLDER_TIMM:
        pytest.skip("timm before 1.0.31 rotates by layer in single precision alone")
    model, donors = tiny(family).double(), noise_images(3, seed=1).double()
    images = noise_images(1).double().repeat(3, 1, 1, 1)
    layers = range(adapter(model).depth)
    passed = linearise(model, images, {"first": first_logit}, layers)
    near = towards(passed.trace, record(model, donors), 1e-6)
    found = attribute(model, z_of(passed.trace), z_of(near), passed.slopes["first"])
    recipient, donor = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    columns = []
    for i in layers:
        patches = Patches.of_heads(range(heads_of(model, i)), recipient, donor)
        change = patch(model, passed.trace, Donor(model, near), i, patches)[:, 0].unflatten(0, (-1, 3, 3))
        columns.append(change - passed.logits[:, 0, None])
    exact = torch.cat(columns).permute(1, 2, 0)
    assert found.shape == exact.shape == (3, 3, len(sites_of(model)))
    assert float((found - exact).abs().max() / exact.abs().max()) < 0.01
    assert hooks_left(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorded_pass_is_that_of_a_pass_without_slopes(family: str) -> None:
    model, images = tiny(family), noise_images(2)
    last = range(adapter(model).depth - 1, adapter(model).depth)
    passed, plain = linearise(model, images, {"first": first_logit}, last), record(model, images)
    with torch.inference_mode():
        torch.testing.assert_close(passed.logits, model(images), rtol=1e-5, atol=2e-6)
    for ours, theirs in zip(
        (*passed.trace.entering, *passed.trace.attention, *passed.trace.head_activations, passed.trace.leaving),
        (*plain.entering, *plain.attention, *plain.head_activations, plain.leaving),
        strict=True,
    ):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def test_a_model_as_its_own_donor_has_no_effect() -> None:
    """To the rounding of two sums in different orders; another image's estimate is far from that."""
    model, images = tiny(), noise_images(2)
    passed = linearise(model, images, {"first": first_logit}, range(2))
    found = attribute(model, z_of(passed.trace), z_of(passed.trace), passed.slopes["first"])
    itself, other = found[[0, 1], [0, 1]], found[[0, 1], [1, 0]]
    assert float(itself.abs().max()) < 1e-6 < 1e-3 < float(other.abs().min())


def test_some_layers_only() -> None:
    model, images = tiny("three layers"), noise_images(2)
    whole = linearise(model, images, {"first": first_logit}, range(3)).slopes["first"]
    last = linearise(model, images, {"first": first_logit}, range(2, 3)).slopes["first"]
    assert list(last) == [2]
    assert torch.equal(whole[2], last[2])
    assert hooks_left(model) == 0


def test_each_scalar_has_its_own_slopes() -> None:
    model, images = tiny(), noise_images(2)
    both = linearise(model, images, {"first": first_logit, "second": second_logit}, range(2)).slopes
    for name, scalar in (("first", first_logit), ("second", second_logit)):
        alone = linearise(model, images, {name: scalar}, range(2)).slopes[name]
        assert all(torch.equal(both[name][i], alone[i]) for i in range(2))
    assert not torch.equal(both["first"][0], both["second"][0])


def test_the_estimate_is_linear_in_the_donors_write() -> None:
    model, images = tiny(), noise_images(2)
    passed, other = linearise(model, images, {"first": first_logit}, range(2)), record(model, noise_images(2, seed=1))
    half, whole = (
        attribute(model, z_of(passed.trace), z_of(towards(passed.trace, other, s)), passed.slopes["first"])[
            [0, 1], [0, 1]
        ]
        for s in (0.5, 1.0)
    )
    torch.testing.assert_close(2 * half, whole, rtol=1e-4, atol=1e-5)


def test_heads_are_in_the_order_of_the_sites() -> None:
    model, images = tiny("three layers"), noise_images(1)
    passed = linearise(model, images, {"first": first_logit}, range(1, 3))
    found = attribute(model, z_of(passed.trace), z_of(record(model, noise_images(1, seed=1))), passed.slopes["first"])
    assert found.flatten(2).shape[-1] == len(sites_of(model, range(1, 3)))


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_the_diagonal_of_every_donor_with_every_recipient(family: str) -> None:
    model, images, others = tiny(family), noise_images(3), noise_images(3, seed=1)
    layers = range(adapter(model).depth)
    passed, given = linearise(model, images, {"first": first_logit}, layers), record(model, others)
    every = attribute(model, z_of(passed.trace), z_of(given), passed.slopes["first"])
    pairs = attribute_pairs(model, passed.trace, Donor(model, given), passed.slopes["first"])
    torch.testing.assert_close(pairs, every.diagonal().T, atol=1e-5, rtol=1e-4)
