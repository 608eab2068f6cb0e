"""Fine-tuning: repeatable to the bit, and training what it says and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.data.pixels import mirrored
from audit.errors import UnfinishedError
from audit.models.checkpoint import hash_state
from audit.models.device import ON_CPU, Compute, held_on
from audit.models.finetune import (
    KEPT_AT_MOST,
    Batch,
    Recipe,
    Views,
    finetune,
    loss_and_gradient,
    make_views,
    prefix_blocks,
)
from audit.models.predict import predict_logits
from audit.models.transforms import as_input
from tests.limits import files_of_at_most
from tests.models_for_tests import noise_pixels, tiny, two_tones

pytestmark = pytest.mark.unit
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=1e-3, weight_decay=0.05, warmup_share=0.1, seed=0)
PIXELS, TARGETS = two_tones(24)


def fresh(family: str = "three layers") -> VisionTransformer:
    return tiny(family, classes=2)


def trained(
    recipe: Recipe = RECIPE, *, family: str = "three layers", flip: bool = False, compute: Compute = ON_CPU
) -> VisionTransformer:
    model = fresh(family)
    with held_on(compute.device, model):
        views = make_views(model, [PIXELS, mirrored(PIXELS)] if flip else [PIXELS], recipe.train_blocks)
        finetune(model, views, TARGETS, recipe, precision=compute.precision)
    return model


def changed(before: VisionTransformer, after: VisionTransformer) -> set[str]:
    """Return the names of the weights that differ."""
    old, new = before.state_dict(), after.state_dict()
    return {name for name in old if not torch.equal(old[name], new[name])}


PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("train_blocks", [None, 1])
def test_twice_the_same_to_the_bit(train_blocks: int | None, precision: torch.dtype, device: torch.device) -> None:
    recipe, compute = replace(RECIPE, train_blocks=train_blocks), Compute(device, precision)
    first, second = (trained(recipe, flip=True, compute=compute) for _ in range(2))
    assert hash_state(first.state_dict()) == hash_state(second.state_dict())


@pytest.mark.parametrize("train_blocks", [None, 1])
@pytest.mark.parametrize(
    ("precision", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.99), (torch.float16, 0.999)]
)
def test_the_gradient_is_nearly_the_same_on_every_device_and_in_fewer_bits(
    train_blocks: int | None, precision: torch.dtype, least: float, device: torch.device
) -> None:
    recipe, everything = replace(RECIPE, train_blocks=train_blocks), np.arange(len(PIXELS))

    def gradient(model: VisionTransformer, precision: torch.dtype) -> tuple[float, torch.Tensor]:
        views = make_views(model, [PIXELS], train_blocks)
        batch = Batch(views, TARGETS, everything, np.zeros_like(everything))
        loss, slopes = loss_and_gradient(model.train(), batch, recipe, precision=precision)
        return loss, torch.cat([g.flatten().cpu() for g in slopes if g is not None])

    loss, exact = gradient(fresh(), torch.float32)
    loss_there, there = gradient(fresh().to(device), precision)
    assert loss_there == pytest.approx(loss, rel=1e-5 if precision == torch.float32 else 1e-2)
    assert float(torch.nn.functional.cosine_similarity(exact, there, dim=0)) > least
    assert there.dtype == torch.float32
    assert torch.equal(exact, there) == (precision == torch.float32 and device.type == "cpu")


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_precision_learns_the_toy_on_every_device(precision: torch.dtype, device: torch.device) -> None:
    """Weights stay float32, and lie where they were before."""
    model = trained(replace(RECIPE, epochs=16), compute=Compute(device, precision))
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    others, truth = two_tones(40, seed=1)
    assert (predict_logits(model, others).argmax(1) == truth).mean() > 0.9


def test_the_seed_orders_the_images_and_the_global_seed_does_nothing() -> None:
    original = hash_state(trained().state_dict())
    torch.manual_seed(99)
    assert hash_state(trained().state_dict()) == original
    assert hash_state(trained(replace(RECIPE, seed=1)).state_dict()) != original


def test_the_loss_falls_and_the_toy_is_learnt() -> None:
    model = fresh()
    before = (predict_logits(model, PIXELS).argmax(1) == TARGETS).mean()
    losses = finetune(model, make_views(model, [PIXELS], None), TARGETS, replace(RECIPE, epochs=12))
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    others, truth = two_tones(40, seed=1)
    after = (predict_logits(model, others).argmax(1) == truth).mean()
    assert after > 0.9 > before


def test_the_first_loss_is_the_cross_entropy() -> None:
    """One epoch of one batch reports the loss before any step."""
    model = fresh()
    logits = torch.from_numpy(predict_logits(model, PIXELS))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(TARGETS))
    views = make_views(model, [PIXELS], None)
    losses = finetune(model, views, TARGETS, replace(RECIPE, epochs=1, batch_size=24))
    assert losses == pytest.approx([float(expected)], rel=1e-4)


def test_shares_of_classes_are_targets_too() -> None:
    """All mass on one class is that class."""
    by_number, by_share = fresh(), fresh()
    views = make_views(by_number, [PIXELS], None)
    first = finetune(by_number, views, TARGETS, RECIPE)
    second = finetune(by_share, views, np.eye(2, dtype=np.float32)[TARGETS], RECIPE)
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("train_blocks", [1, 2])
def test_training_from_features_is_training_the_whole_model_with_a_frozen_prefix(train_blocks: int) -> None:
    """The reference runs pixels through every block, and freezes the prefix by the gradient alone."""
    from_features, whole = fresh(), fresh()
    features = make_views(from_features, [PIXELS], train_blocks, dtype=torch.float32)
    finetune(from_features, features, TARGETS, replace(RECIPE, train_blocks=train_blocks))
    whole.blocks[2 - train_blocks].register_forward_hook(lambda _m, _a, out: out.detach())
    frozen = {k for k in whole.state_dict() if k.split(".")[0] in ("cls_token", "pos_embed", "patch_embed")}
    frozen |= {k for k in whole.state_dict() if k.startswith("blocks.") and int(k.split(".")[1]) < 3 - train_blocks}
    finetune(whole, Views([PIXELS], 0), TARGETS, RECIPE)
    assert changed(fresh(), whole) == set(whole.state_dict()) - frozen
    np.testing.assert_allclose(predict_logits(from_features, PIXELS), predict_logits(whole, PIXELS), atol=1e-3)
    for name, weight in from_features.state_dict().items():
        if not name.endswith(
            "qkv.bias"
        ):  # keys' biases change nothing: their gradient is rounding, which Adam scales up
            torch.testing.assert_close(weight, whole.state_dict()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "options", "trains"),
    [
        ("three layers", {}, lambda _n: True),
        ("three layers", {"train_blocks": 3}, lambda _n: True),
        ("three layers", {"train_blocks": 9}, lambda _n: True),
        ("three layers", {"train_blocks": 1}, lambda n: n.startswith(("blocks.2.", "norm.", "head."))),
        (
            "three layers",
            {"train_blocks": 2, "freeze_classifier": True},
            lambda n: n.startswith(("blocks.1", "blocks.2")),
        ),
        (
            "three layers",
            {"train_blocks": 1, "attention_only": True, "freeze_classifier": True},
            lambda n: n.startswith("blocks.2.attn."),
        ),
        ("three layers", {"attention_only": True, "freeze_classifier": True}, lambda n: ".attn." in n),
        ("three layers", {"freeze_classifier": True}, lambda n: n.startswith("blocks.")),
        ("average pool", {"train_blocks": 1}, lambda n: n.startswith(("blocks.1.", "fc_norm.", "head."))),
        ("distilled", {"train_blocks": 1}, lambda n: n.startswith(("blocks.1.", "norm.", "head.", "head_dist."))),
        ("attention pool", {"train_blocks": 1}, lambda n: n.startswith(("blocks.1.", "norm.", "attn_pool.", "head."))),
    ],
)
def test_what_is_trained_and_nothing_else(
    family: str, options: dict[str, int | bool], trains: Callable[[str], bool]
) -> None:
    model = trained(replace(RECIPE, **options), family=family)  # type: ignore[arg-type]
    expected = {name for name in model.state_dict() if trains(name)}
    assert changed(fresh(family), model) == expected
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_features_are_what_leaves_the_prefix() -> None:
    model = fresh()
    views = make_views(model, [PIXELS, mirrored(PIXELS)], 1)
    assert (views.prefix, len(views), len(views.data)) == (2, 24, 2)
    with torch.inference_mode():
        last = model.forward_head(model.norm(model.blocks[2](features(views, 1).float())))
        torch.testing.assert_close(last, model(as_input(model, PIXELS[:, :, ::-1])), atol=1e-2, rtol=1e-2)


def features(views: Views, number: int = 0) -> torch.Tensor:
    found = views.data[number]
    assert isinstance(found, torch.Tensor)
    return found


def test_features_are_rounded_to_float16_and_no_further() -> None:
    """Half a unit in the last of 11 binary places, and the smallest step that float16 has."""
    exact = features(make_views(fresh(), [PIXELS], 1, dtype=torch.float32))
    rounded = features(make_views(fresh(), [PIXELS], 1))
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.float16)
    error = (rounded.float() - exact).abs()
    assert (error <= exact.abs() * 2**-11 + 2**-25).all()
    assert error.max() > 0


def test_rounded_features_train_a_model_that_predicts_the_same() -> None:
    models = []
    for dtype in (torch.float16, torch.float32):
        model = fresh()
        finetune(model, make_views(model, [PIXELS], 1, dtype=dtype), TARGETS, replace(RECIPE, train_blocks=1))
        models.append(model)
    moved = np.abs(predict_logits(fresh(), PIXELS) - predict_logits(models[1], PIXELS)).max()
    np.testing.assert_allclose(*(predict_logits(m, PIXELS) for m in models), atol=0.02 * moved)


def test_features_beyond_float16_stay_as_they_are() -> None:
    model = fresh()
    with torch.no_grad():
        model.pos_embed[0, 0, 0] = 1e5
    found = features(make_views(model, [PIXELS], 1))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_features_that_may_not_be_kept_train_the_same_model_from_the_images(tmp_path: Path) -> None:
    """Up to rounding, for a batch of another size rounds otherwise; and no file is written meanwhile."""
    logits, kinds = [predict_logits(fresh(), PIXELS)], []
    with files_of_at_most(0):
        for limit in (KEPT_AT_MOST, 0):
            model = fresh()
            views = make_views(model, [PIXELS, mirrored(PIXELS)], 1, kept_at_most=limit)
            kinds.append({isinstance(view, torch.Tensor) for view in views.data})
            finetune(model, views, TARGETS, replace(RECIPE, train_blocks=1))
            logits.append(predict_logits(model, PIXELS))
    assert kinds == [{True}, {False}]
    before, kept, again = logits
    moved = np.abs(kept - before).max()
    assert moved > 0.01
    np.testing.assert_allclose(again, kept, atol=0.02 * moved)


@pytest.mark.parametrize("kept", [True, False])
def test_features_beyond_float16_train_in_float32(kept: bool) -> None:
    model = fresh()
    with torch.no_grad():
        model.pos_embed[0, 0, 0] = 1e5
    views = make_views(model, [PIXELS], 1, kept_at_most=KEPT_AT_MOST if kept else 0)
    everything = np.arange(len(PIXELS))
    batch = Batch(views, TARGETS, everything, np.zeros_like(everything))
    loss, _ = loss_and_gradient(model.train().requires_grad_(True), batch, replace(RECIPE, train_blocks=1))
    with torch.inference_mode():
        wanted = torch.nn.functional.cross_entropy(model(as_input(model, PIXELS)), torch.from_numpy(TARGETS))
    assert loss == pytest.approx(float(wanted), rel=1e-4)


def test_features_fit_to_the_byte_or_are_not_kept() -> None:
    """Two views of 24 images, 17 tokens of width 32 or so, two bytes each; a byte less, and none is kept."""
    model = fresh()
    size = 2 * features(make_views(model, [PIXELS], 1)).nbytes
    for limit, kept in ((size, True), (size - 1, False)):
        views = make_views(model, [PIXELS, PIXELS], 1, kept_at_most=limit)
        assert isinstance(views.data[0], torch.Tensor) is kept


@pytest.mark.parametrize(("train", "frozen"), [(None, 0), (1, 2), (3, 0), (7, 0)])
def test_blocks_of_the_prefix(train: int | None, frozen: int) -> None:
    assert prefix_blocks(fresh(), train) == frozen


def test_only_the_named_rows_are_seen() -> None:
    rows = np.arange(0, 24, 3)
    some, alone = fresh(), fresh()
    finetune(some, make_views(some, [PIXELS], None), TARGETS, RECIPE, rows=rows)
    finetune(alone, make_views(alone, [PIXELS[rows]], None), TARGETS[rows], RECIPE)
    assert hash_state(some.state_dict()) == hash_state(alone.state_dict())


def test_both_views_are_drawn() -> None:
    """With a second view of noise the result differs from training on the first alone, and from the second alone."""
    hashes = set()
    for data in ([PIXELS], [noise_pixels(24)], [PIXELS, noise_pixels(24)]):
        model = fresh()
        finetune(model, make_views(model, data, None), TARGETS, RECIPE)
        hashes.add(hash_state(model.state_dict()))
    assert len(hashes) == 3


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    model = fresh()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(UnfinishedError, match=r"training, epoch 1: the loss is nan; lower training\.learning_rate"):
        finetune(model, make_views(model, [PIXELS], None), TARGETS, RECIPE)


def test_progress_counts_every_step() -> None:
    model, seen = fresh(), []
    views = make_views(model, [PIXELS], None)
    finetune(model, views, TARGETS, replace(RECIPE, batch_size=10), progress=lambda *n: seen.append(n))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_another_objective_is_what_is_made_small() -> None:
    asked: list[tuple[int, ...]] = []

    def towards_the_first(logits: torch.Tensor, targets: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        assert np.array_equal(targets.numpy(), TARGETS[rows])
        asked.append(tuple(logits.shape))
        return -logits.log_softmax(-1)[:, 0].mean()

    model = fresh()
    losses = finetune(model, make_views(model, [PIXELS], None), TARGETS, RECIPE, objective=towards_the_first)
    assert asked == [(8, 2)] * 6
    assert losses[1] < losses[0]
    assert predict_logits(model, PIXELS).argmax(1).tolist() == [0] * 24
