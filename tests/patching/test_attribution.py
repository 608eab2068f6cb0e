"""Attribution patching: exact for small changes, zero for none, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from audit.patching.attribution import attribute, gradients
from audit.patching.engine import Donor, patch_layer
from audit.patching.sites import Trace, record
from tests.models_for_tests import FAMILIES, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit


def first_logit(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def towards(own: Trace, other: Trace, share: float) -> Trace:
    """Return a trace whose z lies a share of the way from one to another."""
    return Trace(own.entering, own.attention, [torch.lerp(a, b, share) for a, b in zip(own.z, other.z, strict=True)],
                 own.leaving)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_small_patches_are_estimated_exactly(family: str) -> None:
    """A thousandth of the way to the donor, first order is all there is: in double precision it agrees to 1%."""
    model, images, donors = tiny(family).double(), noise_images(3).double(), noise_images(3, seed=1).double()
    layers = range(len(model.blocks))
    own = record(model, images)
    near = Donor(model, towards(own, record(model, donors), 1e-3))
    found = attribute(model, own, near, gradients(model, images, first_logit, layers))
    with torch.inference_mode():
        before = model(images)[:, 0]
    exact = torch.stack([patch_layer(model, own, near, i)[:, :, 0].T - before[:, None] for i in layers], dim=1)
    assert found.shape == exact.shape
    assert float((found - exact).abs().max() / exact.abs().max()) < 0.01
    assert hooks_left(model) == 0


def test_a_model_as_its_own_donor_has_no_effect() -> None:
    model, images = tiny(), noise_images(2)
    own = record(model, images)
    found = attribute(model, own, Donor(model, own), gradients(model, images, first_logit, range(2)))
    assert torch.equal(found, torch.zeros(2, 2, 4))


def test_some_layers_only() -> None:
    model, images = tiny("three layers"), noise_images(2)
    whole = gradients(model, images, first_logit, range(3))
    last = gradients(model, images, first_logit, range(2, 3))
    assert list(last) == [2]
    assert torch.equal(whole[2], last[2])
    assert hooks_left(model) == 0


def test_the_estimate_is_linear_in_the_donors_write() -> None:
    model, images = tiny(), noise_images(2)
    own, other = record(model, images), record(model, noise_images(2, seed=1))
    slopes = gradients(model, images, first_logit, range(2))
    half, whole = (attribute(model, own, Donor(model, towards(own, other, s)), slopes) for s in (0.5, 1.0))
    torch.testing.assert_close(2 * half, whole, rtol=1e-4, atol=1e-5)
