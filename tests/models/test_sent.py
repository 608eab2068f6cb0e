"""Images that are not held reach processes that share nothing with this one, whatever is done to them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from safetensors.torch import save_file
from torchvision.models import resnet18

import vit_audit as va
from audit.data.pixels import ImagesOnDemand, Pixels
from audit.data.sources import FileSource
from tests.models.awkward_images import write_awkward_images
from tests.models.small_towers import OPEN_CLIP, write_open_clip
from tests.models.test_preprocessing import CLASSES, HUGGING_FACE, ended, halved, mirrored

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_awkward_images(tmp_path_factory.mktemp("awkward"))


def resnet_of_torchvision(folder: Path) -> va.Net:
    save_file(resnet18(num_classes=3).state_dict(), folder / "own.safetensors")
    weights = str(folder / "own.safetensors")
    return va.load_model({"name": "torchvision/resnet18", "weights": weights, "classes": CLASSES})


def of_hugging_face(folder: Path) -> va.Net:
    make, processor = HUGGING_FACE["vit, squashed"]
    make().save_pretrained(folder)
    processor().save_pretrained(folder)
    return va.load_model({"name": "huggingface", "weights": str(folder)})


def of_open_clip(folder: Path) -> va.Net:
    write_open_clip(folder / "model", OPEN_CLIP["own tower"])
    prompts = {name: [f"a photo of a {name} person"] for name in CLASSES}
    return va.load_model({"name": "open_clip/own", "weights": str(folder / "model"), "prompts": prompts})


def wrapped(preprocess: Any) -> Callable[[Path], va.Net]:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    return lambda _folder: va.wrap(model, CLASSES, preprocess=preprocess)


NORMALISED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
KINDS: dict[str, Callable[[Path], va.Net]] = {
    "timm": wrapped("deployed"),
    "timm at its test size": wrapped("test"),
    "torchvision": resnet_of_torchvision,
    "hugging face": of_hugging_face,
    "open_clip": of_open_clip,
    "the card's": wrapped({"resize": 40, **NORMALISED}),
    "the card's, squashed": wrapped({"mode": "squash", **NORMALISED}),
    "the card's, with a border": wrapped({"mode": "border", **NORMALISED}),
    "legacy": wrapped("legacy"),
    "a function": wrapped(va.Preprocess(halved)),
    "a Compose": wrapped(va.Preprocess(ended(mirrored))),
}


def decoded(images: ImagesOnDemand) -> Pixels:
    return images[:]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """Return a process that shares nothing with this one, as those of several accelerators."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_decoded_alike_in_a_process_that_is_sent_them(
    kind: str, files: list[Path], tmp_path: Path, elsewhere: ProcessPoolExecutor
) -> None:
    net = KINDS[kind](tmp_path)
    geometry = net.backbone.preprocessing(net.module).geometry
    images = ImagesOnDemand(FileSource(files[0].parent), [files[0].name, None, files[1].name], geometry)
    here = decoded(images)
    assert here.std() > 0
    np.testing.assert_array_equal(elsewhere.submit(decoded, images).result(), here)
