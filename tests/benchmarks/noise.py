"""A small random ViT, and noise in the place of photographs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from timm.models.vision_transformer import VisionTransformer

from audit.card.schema import ModelSpec
from audit.models.build import Backbone
from benchmarks.real_planted import photographs
from tests.models_for_tests import enlarged


def whole() -> VisionTransformer:
    made_of = {"patch_size": 16, "depth": 3, "embed_dim": 24, "num_heads": 3}
    spec = ModelSpec(name="vit_tiny_patch16_224", weights="none", image_size=32, overrides=made_of)
    model = enlarged(Backbone(spec, None).build(2), 0).eval()
    assert isinstance(model, VisionTransformer)
    return model


def photographs_of_noise(splits: dict[str, int]) -> tuple[npt.NDArray[np.uint8], pd.DataFrame]:
    """Draw noise, the upper part brighter for one group, the lower part darker for one label."""
    rng = np.random.default_rng(0)
    n = sum(splits.values()) + 40
    group, label = rng.choice(["male", "female"], n), rng.choice(list(photographs.LABELS), n)
    pixels = rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)
    pixels[group == "male", :8] = pixels[group == "male", :8] // 2 + 128
    pixels[label == photographs.OUTCOME, 20:] //= 3
    named = {"label": label, photographs.ATTRIBUTE: group, "subject": [str(row) for row in range(n)]}
    frame = photographs.split(pd.DataFrame(named), splits, 1)
    return pixels[frame["subject"].to_numpy(dtype=np.int64)], frame
