"""Which runs are of one question: an earlier run of it is gone on with, any other is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import vit_audit as va
from audit.pipeline.prepare import Options, question_key

pytestmark = pytest.mark.unit
IMAGES = 40


def squashed(image: Image.Image, by: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((32, 32))) / 255.0 + by).permute(2, 0, 1).float()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> va.Data:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = [(f"{i}.png", "no" if i % 2 else "yes", "one" if i % 4 < 2 else "two") for i in range(IMAGES)]
    for name, *_ in rows:
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    frame = pd.DataFrame(rows, columns=["path", "label", "kind"])
    return va.Data.from_frame(frame, images="path", label="label", groups={"kind": "kind"}, root=folder)


def key_of(fn: Callable[[Image.Image], torch.Tensor], data: va.Data, out: Path) -> str:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=2)
    net = va.wrap(model, ["no", "yes"], preprocess=va.Preprocess(fn))
    plan = va.plan({"name": "own", "audit": {"outcomes": ["yes"], "min_group_size": 2}}, net, data)
    return question_key(plan.inputs, Options("", out), "the weights", plan.preprocessing)


def test_a_function_that_nothing_tells_from_another_is_a_new_question_each_time(data: va.Data, tmp_path: Path) -> None:
    unnamed = functools.partial(squashed, by=0.5)
    assert key_of(squashed, data, tmp_path) == key_of(squashed, data, tmp_path)
    assert key_of(unnamed, data, tmp_path) != key_of(unnamed, data, tmp_path)
