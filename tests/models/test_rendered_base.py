"""The base that is trained here: once for each recipe, and never again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from audit.card.schema import ModelSpec
from audit.models.build import Backbone
from audit.models.checkpoint import open_checkpoint
from audit.models.rendered_base import RECIPE, rendered_base

pytestmark = pytest.mark.unit
SPEC = ModelSpec(
    name="vit_tiny_patch16_224",
    weights="rendered",
    image_size=32,
    overrides={"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 4},
)


small_base = partial(rendered_base, faces=32, recipe=replace(RECIPE, epochs=1, batch_size=16))


def test_the_second_call_does_not_train(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = small_base(SPEC, cache=tmp_path, progress=lambda *n: steps.append(n))
    assert steps == [(1, 2), (2, 2)]
    written = first.read_bytes()
    assert small_base(SPEC, cache=tmp_path, progress=lambda *n: steps.append(n)) == first
    assert len(steps) == 2
    assert first.read_bytes() == written
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_it_is_the_same_base_every_time(tmp_path: Path) -> None:
    one, other = (small_base(SPEC, cache=tmp_path / name) for name in ("a", "b"))
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_another_architecture_size_or_recipe_is_another_base(tmp_path: Path) -> None:
    names = {small_base(SPEC, cache=tmp_path).name}
    names.add(small_base(SPEC.model_copy(update={"image_size": 48}), cache=tmp_path).name)
    names.add(small_base(SPEC.model_copy(update={"overrides": {**SPEC.overrides, "depth": 2}}), cache=tmp_path).name)
    slower = replace(RECIPE, epochs=1, batch_size=16, learning_rate=5e-4)
    names.add(small_base(SPEC, cache=tmp_path, recipe=slower).name)
    names.add(small_base(SPEC, cache=tmp_path, faces=48).name)
    assert len(names) == 5


def test_classes_and_trained_blocks_do_not_make_another_base(tmp_path: Path) -> None:
    first = small_base(SPEC, cache=tmp_path)
    assert small_base(SPEC.model_copy(update={"train_blocks": 1}), cache=tmp_path) == first


def test_the_base_can_be_built_upon(tmp_path: Path) -> None:
    path = small_base(SPEC, cache=tmp_path)
    model = Backbone(SPEC, path).build(5)
    assert model.head.out_features == 5
    assert (model.cls_token == open_checkpoint(path).take(None).tensors["cls_token"]).all()
