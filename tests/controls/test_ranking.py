"""The best head is found from few exact patches, and what is said of it is exact."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from audit.controls.measure import (
    Array,
    ControlDonor,
    Exchange,
    Shift,
    estimate_heads,
    measure_exchanges,
    measure_heads,
    measure_shifts,
)
from audit.controls.ranking import HeadEffects, Ranking, largest, measure_rankings
from audit.models.adapters.registry import Model, adapter
from audit.patching.sites import Site
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
N, LAYERS = 24, range(3)
PIXELS, TARGETS = noise_pixels(N), np.arange(N) % 3
RECIPIENT = tiny("three layers")


def moved(share: float, *, seed: int = 1) -> Model:
    """Return the recipient with its weights moved some way to those of a stranger."""
    model, stranger = copy.deepcopy(RECIPIENT), tiny("three layers", seed=seed).state_dict()
    model.load_state_dict({k: torch.lerp(v, stranger[k], share) for k, v in model.state_dict().items()})
    return model


DONORS = {"clean": ControlDonor(moved(0.2), PIXELS), "null": ControlDonor(moved(0.2, seed=2), PIXELS)}


def difference(found: Mapping[str, Array]) -> Array:
    return found["clean"] - found["null"]


def null(found: Mapping[str, Array]) -> Array:
    return found["null"]


def ranking(donors: Mapping[str, ControlDonor] = DONORS, **options: int) -> Ranking:
    recipient = ControlDonor(RECIPIENT, PIXELS)
    return Ranking("which", recipient, donors, TARGETS, LAYERS, (difference, null), **options)


def ranked(**options: int) -> list[HeadEffects]:
    (effects,) = measure_rankings([ranking(**options)])
    return effects


@pytest.fixture(scope="module")
def exact() -> dict[str, Array]:
    return measure_heads(RECIPIENT, PIXELS, DONORS, TARGETS, LAYERS)


def test_where_heads_are_few_every_one_is_patched_on_every_image(exact: dict[str, Array]) -> None:
    for options in ({"finalists": 12}, {"screened": N}):
        for effects, sum_up in zip(ranked(**options), (difference, null), strict=True):
            assert np.array_equal(effects.values, sum_up(exact))
            assert (effects.patched == N).all()
            assert effects.fewest is None


def test_finalists_are_as_measured_and_the_others_estimated(exact: dict[str, Array]) -> None:
    effects, nulls = ranked(screened=6, finalists=3)
    finalists = effects.patched == N
    assert finalists.sum() == 3
    assert (effects.patched[~finalists] == 6).all()
    assert effects.fewest == 6
    np.testing.assert_allclose(effects.values[:, finalists], difference(exact)[:, finalists], atol=1e-5)
    np.testing.assert_allclose(nulls.values[:, finalists], null(exact)[:, finalists], atol=1e-5)
    means, truth = effects.values.mean(0), difference(exact).mean(0)
    errors = effects.values.std(0, ddof=1) / np.sqrt(N)
    assert (np.abs(means - truth) < 4 * errors + 1e-6).all()
    assert effects.best(LAYERS) == ranked(finalists=12)[0].best(LAYERS)


def test_the_estimate_uses_first_order_and_does_not_trust_it(exact: dict[str, Array]) -> None:
    """Estimates come closer to all patches than the patched images alone do, over the heads."""
    effects, _ = ranked(screened=6, finalists=1)
    truth, few = difference(exact).mean(0), difference(exact)[:6].mean(0)
    others = effects.patched == 6
    missed = np.abs(effects.values.mean(0) - truth)[others].mean()
    assert missed < 0.7 * np.abs(few - truth)[others].mean()


def test_a_small_change_of_another_model_is_estimated_well() -> None:
    near = {"near": ControlDonor(moved(0.002), PIXELS)}
    found = estimate_heads(RECIPIENT, PIXELS, near, TARGETS, LAYERS)["near"]
    wanted = measure_heads(RECIPIENT, PIXELS, near, TARGETS, LAYERS)["near"]
    assert found.shape == wanted.shape == (N, 3, 4)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("family", ["swin", "convnext", "resnet, bottleneck"])
def test_layers_of_unequal_width_are_estimated_head_by_head(family: str) -> None:
    model, donors = tiny(family), {"other": ControlDonor(tiny(family, seed=1), PIXELS[:4])}
    layers = range(adapter(model).depth)
    found = estimate_heads(model, PIXELS[:4], donors, TARGETS[:4], layers)["other"]
    wanted = measure_heads(model, PIXELS[:4], donors, TARGETS[:4], layers)["other"]
    assert np.array_equal(np.isnan(found), np.isnan(wanted))


def test_heads_that_are_not_asked_for_are_not_numbers(exact: dict[str, Array]) -> None:
    heads = np.random.default_rng(0).random((3, 4)) < 0.3
    found = measure_heads(RECIPIENT, PIXELS, DONORS, TARGETS, LAYERS, heads=heads)
    for name, values in found.items():
        assert np.array_equal(np.isnan(values), np.broadcast_to(~heads, values.shape))
        np.testing.assert_allclose(values[:, heads], exact[name][:, heads], atol=1e-5)


def test_some_images_are_measured_as_among_all(exact: dict[str, Array]) -> None:
    some = range(5, 18)
    given = RECIPIENT, PIXELS, DONORS, TARGETS, LAYERS
    found, estimated = measure_heads(*given, images=some), estimate_heads(*given, images=some)
    every = estimate_heads(*given)
    for name in DONORS:
        np.testing.assert_allclose(found[name], exact[name][5:18], atol=1e-5)
        np.testing.assert_allclose(estimated[name], every[name][5:18], atol=1e-5)


def test_a_head_that_gives_no_number_is_a_finalist_and_the_best() -> None:
    """What is wrong with it shows in the control of the best head, which then has no number."""
    broken = copy.deepcopy(RECIPIENT)
    with torch.no_grad():
        broken.blocks[2].attn.proj.weight[:, 8:16] = float("nan")
    donors = {"clean": ControlDonor(broken, PIXELS), "null": DONORS["null"]}
    ((effects, _),) = measure_rankings([ranking(donors, screened=6, finalists=2)])
    assert effects.best(LAYERS) == Site(2, 1)


def test_the_largest_heads_are_those_that_exist() -> None:
    means = np.array([[3.0, 1.0, np.nan], [2.0, np.nan, 0.0]])
    there = np.array([[True, True, False], [True, True, True]])
    assert largest(means, there, 2).tolist() == [[True, False, False], [False, True, False]]


def test_the_best_head_is_that_of_the_largest_mean_of_those_patched_throughout() -> None:
    values = np.zeros((6, 2, 3))
    values[:, 1, 0] = [2, 2, 2, 2, 2, 2]
    values[:, 0, 2] = [9, 0, 0, 0, 0, 0]
    values[:, 0, 0] = 5
    patched = np.full((2, 3), 6)
    patched[0, 0] = 2
    assert HeadEffects(values, patched).best(range(4, 6)) == Site(5, 0)


# Exchanges


def test_exchanges_measured_together_are_those_measured_one_by_one() -> None:
    other = PIXELS[::-1].copy()
    clean, twin = DONORS["clean"], ControlDonor(DONORS["clean"].model, other)
    exchanges = {
        "one": Exchange(ControlDonor(RECIPIENT, PIXELS), {**DONORS, "again": clean}, Site(1, 2)),
        "other images": Exchange(ControlDonor(RECIPIENT, other), {"clean": twin}, Site(1, 2)),
        "back": Exchange(clean, {"recipient": ControlDonor(RECIPIENT, PIXELS), "input": twin}, Site(0, 1)),
    }
    passes: list[int] = []
    models = (RECIPIENT, *(d.model for d in DONORS.values()))
    handles = [m.patch_embed.register_forward_hook(lambda *_: passes.append(1)) for m in models]
    found = measure_exchanges(exchanges, TARGETS, LAYERS)
    for handle in handles:
        handle.remove()
    assert len(passes) == 5  # three models on the images, two of them on the other ones
    for name, e in exchanges.items():
        alone = measure_shifts(e.recipient.model, e.recipient.pixels, e.donors, TARGETS, LAYERS, e.site)
        assert found[name].keys() == alone.keys() == e.donors.keys()
        for donor, shift in alone.items():
            assert_equal(found[name][donor], shift)


def assert_equal(one: Shift, other: Shift) -> None:
    for part in ("joint", "total", "single"):
        np.testing.assert_allclose(getattr(one, part), getattr(other, part), atol=1e-6)
