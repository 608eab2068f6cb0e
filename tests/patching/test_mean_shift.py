"""The mean-shift patch: answers that are known, and plain hooks, on every supported kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.errors import InputError
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.models.readout import Readout, with_readout
from audit.patching.hooks import output_with_hooks, shift_with_hooks
from audit.patching.mean_shift import measure_shifts, parts_shifted
from audit.patching.parts import Kind, Part
from audit.patching.shifts import Moved, Shifts, coefficients_of, drawn_again, halves_of, random_groups
from audit.patching.sites import head_part, sites_of
from tests.models_for_tests import FAMILIES, enlarged, hooks_left, noise_images, tiny

pytestmark = pytest.mark.unit
LABEL, HALF, GROUP = (np.array(codes) for codes in ([0] * 4 + [1] * 4, [0, 0, 1, 1] * 2, [0, 1] * 4))
IN_GROUP = GROUP == 1
FEW = ("class token", "average pool, registers", "beit", "swin", "resnet, basic", "convnext v2")
EVERY = [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]


def shifts_of(label: Any, half: Any, is_group: Any, *others: Any, donors: Any = None) -> Shifts:
    """Return shifts by the groups as they are, or as ``donors`` says, then by other columns; each image counts once."""
    first = coefficients_of(label, half, is_group if donors is None else donors)
    return Shifts(label, half, is_group, np.ones(len(label)), np.stack([first, *others], axis=1))


def measured(model: Model, images: torch.Tensor, shifts: Shifts, parts: list[Part], outcomes: list[int]) -> Moved:
    return measure_shifts(model, lambda rows: images[rows], shifts, parts, outcomes)


def every_part(model: Model) -> list[Part]:
    depth, body = adapter(model).depth, adapter(model)
    tokens = [Part(kind, 1) for kind in (Kind.CLASS_TOKEN, Kind.PATCH_TOKENS)] if body.prefix_tokens else []
    heads = [head_part(model, site) for site in (sites_of(model)[0], sites_of(model)[-1])]
    return [*parts_shifted(model), *heads, *tokens, Part(Kind.RESIDUAL, depth)]


@pytest.mark.parametrize("family", EVERY)
def test_equal_means_change_not_one_bit(family: str) -> None:
    model = tiny(family)
    images = noise_images(4)[np.array([0, 0, 1, 1, 2, 2, 3, 3])]
    found = measured(model, images, shifts_of(LABEL, HALF, IN_GROUP), every_part(model), [0, 1, 2])
    own = np.broadcast_to(found.unpatched[:, None, None], found.patched.shape)
    # windows of one image round otherwise in another place of the batch, so that its two means are not quite equal
    np.testing.assert_allclose(found.patched, own, rtol=0, atol=1e-5 if "swin" in family else 0)
    assert hooks_left(model) == 0


@pytest.mark.parametrize("family", EVERY)
def test_it_is_what_plain_hooks_do(family: str) -> None:
    model = tiny(family)
    images, parts = noise_images(8), every_part(model)
    found = measured(model, images, shifts_of(LABEL, HALF, IN_GROUP), parts, [1])
    for place, part in enumerate(parts):
        wanted = np.zeros(8)
        out = output_with_hooks(model, images, part).double()
        for label in (0, 1):
            for half in (0, 1):
                of, on = label == LABEL, half == HALF
                middle = [out[np.flatnonzero(of & on & (side == IN_GROUP))].mean(0) for side in (False, True)]
                for side, sign in ((True, 0.5), (False, -0.5)):
                    rows = np.flatnonzero(of & ~on & (side == IN_GROUP))
                    shift = (sign * (middle[0] - middle[1])).float()
                    logits = shift_with_hooks(model, images[rows], part, shift).double()
                    wanted[rows] = Readout().log_odds(logits)[:, 1].numpy()
        np.testing.assert_allclose(found.patched[:, place, 0, 0, 0], wanted, rtol=1e-4, atol=1e-4)
    assert hooks_left(model) == 0


def linear(*, classes: int = 2) -> Any:
    """Return a model that is linear from pixels to logits: attention of layer 0 alone writes what the logits read."""
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, num_classes=classes,
        global_pool="avg", fc_norm=False, qkv_bias=False,
    )  # fmt: skip
    model: Any = enlarged(made, 0).eval()
    assert isinstance(model, VisionTransformer)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1 = torch.nn.Identity()
            block.attn.qkv.weight[:64] = 0.0  # every token looks at all tokens alike
            block.mlp.fc2.weight.zero_()
            block.mlp.fc2.bias.zero_()
        model.blocks[1].attn.proj.weight.zero_()
        model.blocks[1].attn.proj.bias.zero_()
        model.norm = torch.nn.Identity()
        model.head.weight[:, 16:] = 0.0
        model.patch_embed.proj.weight[:16] = 0.0  # the embedding has nothing where the logits read
        model.blocks[0].attn.proj.weight[16:] = 0.0
    return model


def gap_of(values: Any) -> float:
    """Return the gap, labels counting alike."""
    cells = {(y, g): values[(y == LABEL) & (g == GROUP)].mean(axis=0) for y in (0, 1) for g in (0, 1)}
    return sum(cells[y, 1] - cells[y, 0] for y in (0, 1)) / 2


def test_the_part_by_which_alone_the_group_reaches_the_answer_takes_the_whole_gap() -> None:
    model, images = linear(), noise_images(8)
    images[IN_GROUP] += 0.3
    parts = parts_shifted(model)
    found = measured(model, images, shifts_of(LABEL, HALF, IN_GROUP), parts, [1])
    gap, after = gap_of(found.unpatched[:, 0, 0]), gap_of(found.patched[:, :, 0, 0, 0])
    assert abs(gap) > 0.05
    share = dict(zip(map(str, parts), 1 - after / gap, strict=True))
    for name in ("embedding", "L0 attention", "residual stream at 1"):
        assert share[name] == pytest.approx(1.0, abs=1e-4), name
    for name in ("L0 MLP", "L1 attention", "L1 MLP"):
        assert share[name] == 0.0, name


def test_pulls_are_what_the_means_add_to_the_effect() -> None:
    model, images = linear(), noise_images(8)
    images[IN_GROUP] += 0.3
    found = measured(model, images, shifts_of(LABEL, HALF, IN_GROUP), [Part(Kind.ATTENTION, 0)], [1])
    along = np.where(IN_GROUP, 1.0, -1.0) / 2  # two images a cell, of which each half is moved by one mean
    of_images = gap_of(found.unpatched[:, 0, 0]) - gap_of(found.patched[:, 0, 0, 0, 0])
    # each image that is moved counts 1 here, and half a label in the gap: two in each cell
    assert float((along * found.pulls[:, 0, 0, 0] / 4).sum() * 2) == pytest.approx(of_images, rel=1e-4)


@pytest.mark.parametrize("family", ["class token", "swin", "convnext"])
def test_relabelling_the_groups_moves_every_image_as_before(family: str) -> None:
    model, images = tiny(family), noise_images(8)
    parts = every_part(model)
    one, other = (measured(model, images, shifts_of(LABEL, HALF, g), parts, [0, 2]) for g in (IN_GROUP, ~IN_GROUP))
    np.testing.assert_array_equal(one.patched, other.patched)


def test_exchanged_donors_turn_the_effect_and_random_groups_are_quiet() -> None:
    model, images, rng = linear(), noise_images(400), np.random.default_rng(0)
    label, is_group = np.arange(400) % 2, np.arange(400) // 2 % 2 == 1
    images[is_group] += 0.3
    subjects = np.arange(400)
    half = halves_of(label, is_group, subjects, np.random.default_rng(0))
    random = [coefficients_of(label, half, random_groups(label, half, is_group, subjects, rng)) for _ in range(5)]
    parts = [Part(Kind.ATTENTION, 0)]
    found = measured(model, images, shifts_of(label, half, is_group, *random), parts, [1])
    turned = measured(model, images, shifts_of(label, half, is_group, donors=~is_group), parts, [1])
    gaps = [
        (lambda v: v[is_group].mean() - v[~is_group].mean())(values)
        for values in (found.unpatched[:, 0, 0], *found.patched[:, 0, :, 0, 0].T, turned.patched[:, 0, 0, 0, 0])
    ]
    whole, effects = gaps[0], gaps[0] - np.array(gaps[1:])
    assert effects[0] == pytest.approx(whole, rel=1e-3)
    assert effects[-1] == pytest.approx(-whole, rel=1e-3)
    assert abs(effects[1:-1]).max() < 0.4 * abs(whole)


@pytest.mark.parametrize("family", ["class token", "swin", "resnet, basic"])
def test_means_drawn_again_do_what_pulls_say(family: str) -> None:
    model, rng = tiny(family), np.random.default_rng(1)
    label, is_group = np.arange(64) % 2, np.arange(64) // 2 % 2 == 1
    subjects = np.arange(64) // 4 * 4 + np.arange(64) % 4  # each image is of a subject of its own
    half = halves_of(label, is_group, subjects, np.random.default_rng(0))
    counts = 1 + 0.005 * (drawn_again(half, is_group, subjects, rng) - 1)  # a small step, where slopes tell all
    again = coefficients_of(label, half, is_group, counts)
    shifts = shifts_of(label, half, is_group, again)
    parts = every_part(model)
    found = measured(model, noise_images(64), shifts, parts, [1])
    signs = np.where(is_group, 1.0, -1.0)
    for scale in (0, 1):
        values = found.patched[..., 0, scale]
        exact = -(signs[:, None] * (values[:, :, 1] - values[:, :, 0])).sum(axis=0)
        first_order = -2 * (again - shifts.coefficients[:, 0]) @ found.pulls[:, :, 0, scale]
        np.testing.assert_allclose(first_order, exact, rtol=0.1, atol=0.02 * abs(exact).max())


def test_the_slope_of_a_rate_is_that_of_the_decision() -> None:
    model, images = with_readout(linear(classes=3), Readout()), noise_images(600)
    label, is_group = np.zeros(600, dtype=np.int64), np.arange(600) % 2 == 1
    half, rng = halves_of(label, is_group, np.arange(600), np.random.default_rng(0)), np.random.default_rng(0)
    counts = 1.0 + rng.standard_exponential(600)
    again = coefficients_of(label, half, is_group, counts)
    shifts = shifts_of(label, half, is_group, 4 * again)
    found = measured(model, images, shifts, [Part(Kind.ATTENTION, 0)], [0, 1, 2])
    values = found.patched[:, 0, :, :, 2]
    exact = -(np.where(is_group, 1.0, -1.0)[:, None] * (values[:, 1] - values[:, 0])).sum(axis=0)
    first_order = -2 * (4 * again - shifts.coefficients[:, 0]) @ found.pulls[:, 0, :, 2]
    assert np.abs(exact).max() > 3
    np.testing.assert_allclose(first_order, exact, atol=0.4 * np.abs(exact).max())


@pytest.mark.parametrize(
    "readout",
    [
        Readout(),
        Readout("softmax", "threshold", 0.3),
        Readout("sigmoid", "threshold", 0.6),
        Readout("sigmoid", "argmax"),
    ],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_margins_are_above_zero_where_an_image_is_called_so(readout: Readout, classes: int) -> None:
    logits = torch.randn(200, classes, generator=torch.Generator().manual_seed(0))
    called = readout.called(logits)
    if called is None:
        called = readout.predicted(logits)[:, None] == torch.arange(classes)
    assert torch.equal(readout.margins(logits) > 0, called)


def test_parts_that_cannot_be_moved_are_refused() -> None:
    model, images = tiny(), noise_images(8)
    shifts = shifts_of(LABEL, HALF, IN_GROUP)
    for part, said in (
        (Part(Kind.ATTENTION), "all layers"),
        (Part(Kind.LAYER, 0), "two parts"),
        (Part(Kind.MLP, 9), "beyond 1"),
    ):
        with pytest.raises(InputError, match=said):
            measured(model, images, shifts, [part], [1])


def test_halves_are_equal_and_hold_subjects_whole() -> None:
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(60), 2)
    label, is_group = np.repeat(rng.integers(0, 3, 60), 2), np.repeat(np.arange(60) % 2 == 1, 2)
    half = halves_of(label, is_group, subjects, np.random.default_rng(3))
    assert all(len(set(half[subjects == s])) == 1 for s in range(60))
    for y in range(3):
        for side in (False, True):
            sizes = np.bincount(half[(label == y) & (is_group == side)], minlength=2)
            assert abs(sizes[0] - sizes[1]) <= 2
    shuffled = random_groups(label, half, is_group, subjects, rng)
    for y in range(3):
        for h in (0, 1):
            cell = (label == y) & (half == h)
            assert shuffled[cell].sum() == is_group[cell].sum()
    assert all(len(set(shuffled[(subjects == s)])) == 1 for s in range(60))
    assert (shuffled != is_group).any()


def test_a_label_that_a_half_lacks_in_a_group_is_not_moved() -> None:
    found = coefficients_of(np.zeros(4, dtype=np.int64), np.array([0, 0, 1, 1]), np.array([True, False, True, True]))
    np.testing.assert_array_equal(found, [-0.5, 0.5, 0.0, 0.0])


def test_transformers_have_attention_and_mlp_apart() -> None:
    names = list(map(str, parts_shifted(tiny())))
    assert names == ["embedding", "L0 attention", "L0 MLP", "L1 attention", "L1 MLP", "residual stream at 1"]
    assert isinstance(adapter(tiny()), Heads)
    assert list(map(str, parts_shifted(tiny("resnet, basic"))))[:2] == ["embedding", "L0"]
