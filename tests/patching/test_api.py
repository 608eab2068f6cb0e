"""Patching on tensors: known answers, and the slow reference."""

from __future__ import annotations

import copy

import pytest
import torch

from audit.errors import InputError
from audit.models.readout import class_log_odds
from audit.patching.api import Scale, attribution, patch_heads, written_parts
from audit.patching.contributions import Component
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site, sites_of
from audit.records import PartKind
from tests.models_for_tests import hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit
RECIPIENTS, DONORS = noise_images(5), noise_images(5, seed=1)
KINDS = ["class token", "swin", "resnet, basic", "convnext v2"]


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("scale", ["log_odds", "probability", "logit"])
def test_a_head_patched_with_itself_changes_nothing(family: str, scale: Scale) -> None:
    model = tiny(family)
    effects = patch_heads(model, RECIPIENTS, RECIPIENTS, scale=scale)
    assert effects.shape == (5, len(sites_of(model)), 3)
    assert effects.dtype is torch.float64
    assert effects.abs().max() == 0.0
    twin = copy.deepcopy(model)
    assert patch_heads(model, RECIPIENTS, RECIPIENTS, donor_model=twin, scale=scale).abs().max() == 0.0
    assert attribution(model, RECIPIENTS, RECIPIENTS, scale=scale).abs().max() < 1e-5


@pytest.mark.parametrize("family", KINDS)
def test_effects_are_those_of_plain_hooks(family: str) -> None:
    model, other = tiny(family), tiny(family, seed=3)
    heads = [(1, 1), (0, 1), (1, 0)]
    for donor_model in (None, other):
        found = patch_heads(model, RECIPIENTS, DONORS, heads, donor_model=donor_model, scale="logit")
        with torch.inference_mode():
            before = model(RECIPIENTS)
        for place, (layer, head) in enumerate(heads):
            site = Site(layer, head)
            outputs = donor_head_outputs(donor_model or model, DONORS, [site])
            wanted = (patch_with_hooks(model, RECIPIENTS, outputs) - before).double()
            torch.testing.assert_close(found[:, place], wanted, rtol=1e-3, atol=1e-4)
    assert hooks_left(model) == 0


def test_what_is_written_comes_as_a_frame_or_not_at_all() -> None:
    model = tiny()
    found = written_parts(model, RECIPIENTS, {"b": 1, "c": 2}, [0, 1, 0, 1, 0])
    frame = found.to_frame("c")
    assert frame["head"].shape == (5, 8)
    place = found.components.index(Component(PartKind.HEAD, 1, 2))
    assert frame[("head", 1, 2)].to_list() == found.values[:, place, 1].tolist()
    with pytest.raises(InputError, match=r"outcomes: are \{'d': 3\}, of 5 images and 3 classes"):
        written_parts(model, RECIPIENTS, {"d": 3})
    with pytest.raises(InputError, match="of 0 images"):
        written_parts(model, RECIPIENTS[:0], {"b": 1})
    for labels in ([0, 1], [0, 0, 0, 0, -1], [0.5] * 5):
        with pytest.raises(InputError, match="labels: "):
            written_parts(model, RECIPIENTS, {"b": 1}, labels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="images: are"):
        written_parts(model, RECIPIENTS[..., :16], {"b": 1})


def test_scales_agree() -> None:
    model = tiny()
    with torch.inference_mode():
        before = model(RECIPIENTS).double()
    logit, odds, p = (patch_heads(model, RECIPIENTS, DONORS, scale=s) for s in ("logit", "log_odds", "probability"))
    after = before[:, None] + logit
    torch.testing.assert_close(odds, class_log_odds(after) - class_log_odds(before)[:, None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p, after.softmax(-1) - before.softmax(-1)[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("scale", ["log_odds", "probability", "logit"])
def test_small_changes_are_estimated_well(family: str, scale: Scale) -> None:
    """Donors next to the recipients, where the model is all but linear; in double precision against rounding."""
    model, recipients = tiny(family).double(), RECIPIENTS.double()
    donors = recipients + 1e-5 * DONORS.double()
    exact = patch_heads(model, recipients, donors, scale=scale)
    estimated = attribution(model, recipients, donors, scale=scale)
    assert exact.abs().max() > 1e-10
    torch.testing.assert_close(estimated, exact, rtol=0, atol=0.01 * float(exact.abs().max()))


def test_heads_come_in_the_order_asked_for() -> None:
    model, heads = tiny(), [(1, 3), (0, 2), Site(1, 0)]
    places = [sites_of(model).index(Site(*h) if isinstance(h, tuple) else h) for h in heads]
    for effect in (patch_heads, attribution):
        torch.testing.assert_close(
            effect(model, RECIPIENTS, DONORS, heads),
            effect(model, RECIPIENTS, DONORS)[:, places],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("effect", [patch_heads, attribution])
def test_what_cannot_be_patched_is_refused(effect: object) -> None:
    assert callable(effect)
    model = tiny()
    with pytest.raises(InputError, match=r"donors: are \(4, 3, 32, 32\), the recipients \(5, 3, 32, 32\)"):
        effect(model, RECIPIENTS, DONORS[:4])
    with pytest.raises(InputError, match="no layer 2, head 0"):
        effect(model, RECIPIENTS, DONORS, [(2, 0)])
    with pytest.raises(InputError, match="none is named"):
        effect(model, RECIPIENTS, DONORS, [])
