"""Weights that an audit has saved carry how images are made for them: whoever opens them sees the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

import vit_audit as va
from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.build import Backbone
from audit.models.checkpoint import PREPROCESSING, save_weights
from audit.models.preprocessing import Preprocess
from tests.models_for_tests import enlarged

pytestmark = pytest.mark.unit
BODY: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}
NAME = "vit_tiny_patch16_224"
STATED = {"resize": 40, "crop": 32, "interpolation": "bilinear", "mean": [0.2] * 3, "std": [0.3] * 3}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def stored(folder: Path, **section: Any) -> tuple[ModelSpec, Path]:
    """Write weights as a run does, of a model whose card says so of its images."""
    spec = ModelSpec.model_validate({"name": NAME, "weights": "w", "classes": ["a", "b"], "overrides": BODY} | section)
    model = enlarged(timm.create_model(NAME, img_size=32, num_classes=2, **BODY), 0).eval()
    save_file(model.state_dict(), folder / "first.safetensors")
    backbone = Backbone(spec, folder / "first.safetensors")
    made = backbone.preprocessing(backbone.build_as_is(2))
    assert made.carried is not None
    save_weights(model.state_dict(), folder / "w.safetensors", preprocessing=made.carried.text)
    return spec, folder / "w.safetensors"


@pytest.mark.parametrize(
    "said",
    [
        {"image_size": 32},
        {"image_size": 32, "preprocess": "legacy", "mean": [0.1] * 3},
        {"preprocess": STATED},
        {"preprocess": {**STATED, "mode": "squash", "resize": 32}},
        {"image_size": 32, "weights": "rendered"},
    ],
)
def test_a_card_that_says_nothing_of_images_sees_those_of_the_run(
    said: dict[str, Any], picture: Path, tmp_path: Path
) -> None:
    spec, path = stored(tmp_path, **said)
    told = spec.model_dump(exclude_defaults=True) | {"weights": str(tmp_path / "first.safetensors")}
    again = va.load_model({"name": NAME, "weights": str(path), "classes": ["a", "b"], "overrides": BODY})
    assert again.preprocessing.source == "weights"
    if spec.weights == "rendered":  # whole images, which no card says
        assert again.preprocessing.steps[0].startswith("Resize(size=32")
        return
    np.testing.assert_array_equal(again.predict([picture]), va.load_model(told).predict([picture]))


def test_what_a_card_says_comes_first(picture: Path, tmp_path: Path) -> None:
    _, path = stored(tmp_path, image_size=32)
    section = {"name": NAME, "weights": str(path), "classes": ["a", "b"], "overrides": BODY, "preprocess": STATED}
    assert va.load_model(section).preprocessing.source == "card"


def test_a_function_cannot_be_carried(tmp_path: Path) -> None:
    spec, path = stored(tmp_path, image_size=32)
    backbone = Backbone(spec, path, preprocess=Preprocess(lambda image: __import__("torch").zeros(3, 32, 32)))
    model = backbone.build_as_is(2)
    carried = backbone.preprocessing(model).carried
    assert carried is not None
    save_weights(model.state_dict(), path, preprocessing=carried.text)
    with pytest.raises(ModelError, match="give it again as va"):
        va.load_model({"name": NAME, "weights": str(path), "classes": ["a", "b"], "overrides": BODY})


def test_what_is_no_preprocessing_is_refused(tmp_path: Path) -> None:
    model = timm.create_model(NAME, img_size=32, num_classes=2, **BODY)
    save_file(model.state_dict(), tmp_path / "w.safetensors", {PREPROCESSING: '{"preprocess": "magic"}'})
    with pytest.raises(ModelError, match=f"metadata {PREPROCESSING} is no preprocessing"):
        va.load_model({"name": NAME, "weights": str(tmp_path / "w.safetensors"), "classes": ["a", "b"]})
