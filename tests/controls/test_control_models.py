"""The control models: trained once for each recipe, all from one base, classifier in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.card.schema import ControlsSpec, ModelSpec
from audit.controls.control_images import ControlSet
from audit.controls.control_models import (
    ControlModels,
    cache_key,
    conditions,
    corrupt,
    start_from,
    train_controls,
    train_enough,
)
from audit.models.build import Backbone
from audit.models.checkpoint import hash_state, save_weights
from audit.models.device import ON_CPU, Compute
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
BODY: dict[str, int | float | str | bool] = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}
MODEL = ModelSpec(name="vit_tiny_patch16_224", weights="none", image_size=32, overrides=BODY)
SPEC = ControlsSpec(base_epochs=1, condition_epochs=1, learning_rate=1e-3, batch_size=8)


def images(*, one_task: bool = False, seed: int = 0) -> ControlSet:
    """Return a small set of noise; as real images have it, with one task, or as rendered ones, with two."""
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 3, 24) for _ in range(2))
    tasks = {"colour": first, "blur": first if one_task else second}
    return ControlSet(
        name="noise",
        train=noise_pixels(16, seed=seed),
        evaluate=noise_pixels(8, seed=seed + 100),
        targets={role: (codes[:16], codes[16:]) for role, codes in tasks.items()},
        classes=3,
        base_targets=first[:16] if one_task else np.eye(5, dtype=np.float32)[rng.integers(0, 5, 16)],
        base_classes=3 if one_task else 5,
    )


def quiet(_name: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


def train(
    tmp_path: Path,
    *,
    spec: ControlsSpec = SPEC,
    model: ModelSpec = MODEL,
    one_task: bool = False,
    compute: Compute = ON_CPU,
) -> ControlModels:
    seen = images(one_task=one_task)
    return train_controls(Backbone(model, None), spec, seen, cache=tmp_path, step=quiet, compute=compute)


def differing(a: VisionTransformer, b: VisionTransformer) -> set[str]:
    return {k for k, v in a.state_dict().items() if not torch.equal(v, b.state_dict()[k])}


@pytest.mark.parametrize("one_task", [True, False])
def test_of_a_model_that_reads_gray_images_only_blur_is_tried(one_task: bool) -> None:
    wanted = conditions(one_task, 2, ("blur",))
    assert {c.role for c in wanted} == {"blur"}
    assert {c.corruption for c in wanted} == {"clean", "blur"}
    assert len(wanted) == 1 + 2 * 2  # a recipient, and of each seed a clean donor and its twin


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_models_of_each_device_and_precision_are_kept_apart(
    precision: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    compute = Compute(device, precision)
    here, there = train(tmp_path), train(tmp_path, compute=compute)
    assert (here.folder == there.folder) == (compute == ON_CPU)
    assert {p.device.type for m in there.models.values() for p in m.parameters()} == {"cpu"}
    same = [hash_state(here.models[n].state_dict()) == hash_state(there.models[n].state_dict()) for n in here.models]
    assert same == [compute == ON_CPU] * len(same)
    assert set(here.started_from.values()).isdisjoint(there.started_from.values()) == (compute != ON_CPU)


@pytest.mark.parametrize("one_task", [True, False])
def test_the_second_call_loads_the_same_models(one_task: bool, tmp_path: Path) -> None:
    first = train(tmp_path, one_task=one_task)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    second = train(tmp_path, one_task=one_task)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == stamps
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.started_from == second.started_from
    assert len(set(first.started_from.values())) == 1
    assert "" not in first.started_from.values()
    assert first.models.keys() == second.models.keys()
    for name, model in first.models.items():
        assert hash_state(model.state_dict()) == hash_state(second.models[name].state_dict())
        assert not second.models[name].training


def test_a_model_that_is_lacking_is_trained_again_and_no_other(tmp_path: Path) -> None:
    first = train(tmp_path)
    (first.folder / "colour_gray_donor_2.safetensors").unlink()
    stamps = {p.name: p.stat().st_mtime_ns for p in first.folder.glob("*.safetensors")}
    second = train(tmp_path)
    assert not second.from_cache
    assert all((first.folder / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert hash_state(second.models["colour_gray_donor_2"].state_dict()) == hash_state(
        first.models["colour_gray_donor_2"].state_dict()
    )


def test_whatever_makes_the_models_makes_the_key() -> None:
    backbone, threads = Backbone(MODEL, None), torch.get_num_threads()
    keys = [
        cache_key(backbone, SPEC, images()),
        cache_key(backbone, SPEC.model_copy(update={"condition_epochs": 2}), images()),
        cache_key(backbone, SPEC.model_copy(update={"seed": 1}), images()),
        cache_key(backbone, SPEC, images(seed=1)),
        cache_key(backbone, SPEC, images(one_task=True)),
        cache_key(Backbone(MODEL.model_copy(update={"train_blocks": 1}), None), SPEC, images()),
        cache_key(Backbone(MODEL.model_copy(update={"overrides": {**BODY, "depth": 1}}), None), SPEC, images()),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(Backbone(MODEL, None), SPEC, images()) == keys[0]
    assert torch.get_num_threads() == threads


def test_a_changed_recipe_trains_again(tmp_path: Path) -> None:
    assert not train(tmp_path).from_cache
    assert not train(tmp_path, spec=SPEC.model_copy(update={"learning_rate": 2e-3})).from_cache
    assert train(tmp_path).from_cache


def test_conditions_of_two_tasks_train_attention_only(tmp_path: Path) -> None:
    models = train(tmp_path).models
    donors = {f"{role}_{c}_donor_{k}" for role, c in [("colour", "gray"), ("blur", "blur")] for k in (2, 3)}
    clean = {f"{role}_clean_donor_{k}" for role in ("colour", "blur") for k in (2, 3)}
    assert set(models) == {"gray", "blur"} | donors | clean
    for name, model in models.items():
        assert name == "gray" or differing(models["gray"], model)
        assert all(".attn." in k for k in differing(models["gray"], model))


def test_conditions_of_one_task_share_norm_and_classifier(tmp_path: Path) -> None:
    models = train(tmp_path, one_task=True).models
    assert set(models) == {"gray", "blur"} | {
        f"{role}_{c}_donor_{k}"
        for role, c in [("colour", "clean"), ("colour", "gray"), ("blur", "blur")]
        for k in (2, 3)
    }
    for name, model in models.items():
        assert name == "gray" or differing(models["gray"], model)
        assert all(k.startswith("blocks.") for k in differing(models["gray"], model))


def test_the_frozen_prefix_is_common_too(tmp_path: Path) -> None:
    models = train(tmp_path, model=MODEL.model_copy(update={"train_blocks": 1}), one_task=True).models
    assert all(k.startswith("blocks.1.") for k in differing(models["gray"], models["blur"]))


def test_null_donors_differ_from_the_recipient_by_the_seed_alone_and_from_clean_ones_by_the_images() -> None:
    by_name = {c.name: c for c in conditions(one_task=False, donor_seeds=3)}
    for role, corruption in (("colour", "gray"), ("blur", "blur")):
        recipient = by_name[corruption]
        for k in (2, 3, 4):
            null, clean = by_name[f"{role}_{corruption}_donor_{k}"], by_name[f"{role}_clean_donor_{k}"]
            assert (recipient.role, recipient.corruption) == (null.role, null.corruption)
            assert (clean.role, clean.corruption) == (role, "clean")
            assert clean.seed == null.seed != recipient.seed


@pytest.mark.parametrize("one_task", [True, False])
def test_each_channel_has_its_twins(one_task: bool, tmp_path: Path) -> None:
    models = train(tmp_path, one_task=one_task)
    for role, corruption in (("colour", "gray"), ("blur", "blur")):
        clean, null = models.donors(role, "clean"), models.donors(role, corruption)
        assert len(clean) == len(null) == 2
        assert not set(clean) & set(null)


@pytest.mark.parametrize("family", ["class token", "distilled", "attention pool"])
def test_a_new_classifier_has_fixed_and_distinct_directions(family: str) -> None:
    base, first, second = tiny(family, classes=7), tiny(family, seed=1, classes=4), tiny(family, seed=2, classes=4)
    start_from(base, first)
    start_from(base, second)
    assert differing(first, second) == set()
    assert all(
        k.startswith("head") for k in first.state_dict() if not torch.equal(first.state_dict()[k], base.state_dict()[k])
    )
    torch.testing.assert_close(first.head.weight @ first.head.weight.T, torch.eye(4), atol=1e-5, rtol=0)


def test_a_classifier_that_fits_is_kept() -> None:
    base, model = tiny(), tiny(seed=1)
    start_from(base, model)
    assert differing(base, model) == set()


def test_distilled_models_have_control_models_too(tmp_path: Path) -> None:
    distilled = MODEL.model_copy(update={"name": "deit_tiny_distilled_patch16_224", "train_blocks": 1})
    assert set(train(tmp_path, model=distilled).models) >= {"colour_clean_donor_2", "gray"}


def test_clean_pixels_are_not_touched() -> None:
    pixels = noise_pixels(2)
    assert corrupt(pixels, "clean") is pixels
    assert (corrupt(pixels, "gray")[..., 0] == corrupt(pixels, "gray")[..., 2]).all()
    assert corrupt(pixels, "blur").std() < pixels.std()


def of_colours(count: int, *, learnable: bool) -> ControlSet:
    """Return images of one shade each, which is their class where that can be learnt, else a class by lot."""
    rng = np.random.default_rng(5)
    shades = rng.integers(0, 2, count)
    pixels = np.clip(noise_pixels(count, size=32) // 8 + 160 * shades[:, None, None, None], 0, 255).astype(np.uint8)
    codes = shades if learnable else rng.integers(0, 2, count)
    tasks = dict.fromkeys(("colour", "blur"), (codes, codes[:8]))
    return ControlSet("shades", pixels, pixels[:8], tasks, 2, codes, 2, drawn=True)


@pytest.mark.parametrize("learnable", [True, False])
def test_few_images_are_trained_on_where_they_are_enough(learnable: bool, tmp_path: Path) -> None:
    weights = tmp_path / "pretrained.safetensors"
    backbone = Backbone(MODEL, None)
    save_weights(backbone.build(3).state_dict(), weights)
    pretrained = Backbone(MODEL.model_copy(update={"weights": str(weights)}), weights)
    epochs = 4 if learnable else 1  # what cannot be learned is not learned in more
    spec = SPEC.model_copy(update={"base_epochs": epochs, "condition_epochs": epochs})
    every = of_colours(96, learnable=learnable)
    for start, few in ((pretrained, 32), (backbone, 32), (pretrained, 64)):
        trained, used = train_enough(start, spec, every, cache=tmp_path / "cache", step=quiet, roles=("blur",), few=few)
        expected = 32 if learnable and start is pretrained and few == 32 else 96
        assert len(used.train) == expected
        assert (
            trained.folder
            == train_enough(start, spec, every, cache=tmp_path / "cache", step=quiet, roles=("blur",), few=few)[
                0
            ].folder
        )
    not_drawn = replace(every, drawn=False)
    used = train_enough(pretrained, spec, not_drawn, cache=tmp_path / "cache", step=quiet, roles=("blur",), few=32)[1]
    assert len(used.train) == 96
