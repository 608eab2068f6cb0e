"""The two corruptions on known images, and pixels as model input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from audit.batching import batches
from audit.data.synthetic.corrupted import blurred, grayed
from audit.models.predict import predict_logits
from audit.models.transforms import Corruption, as_input, blur, corrupt_pixels, gray
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit


def test_gray_has_equal_channels_and_keeps_luma() -> None:
    pixels = noise_pixels(3)
    out = corrupt_pixels(pixels, gray)
    assert out.dtype == np.uint8
    assert out.shape == pixels.shape
    assert (out[..., 0] == out[..., 1]).all()
    assert (out[..., 0] == out[..., 2]).all()
    np.testing.assert_allclose(out[..., 0], pixels @ np.array([0.299, 0.587, 0.114]), atol=1.1)  # cut, not rounded


def test_gray_images_stay_as_they_are() -> None:
    pixels = np.repeat(noise_pixels(2)[..., :1], 3, axis=-1)
    np.testing.assert_allclose(corrupt_pixels(pixels, gray).astype(int), pixels, atol=1)


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    pixels = noise_pixels(2, size=64)
    out = corrupt_pixels(pixels, blur)
    assert out.dtype == np.uint8
    np.testing.assert_allclose(out.mean((1, 2)), pixels.mean((1, 2)), atol=2.0)
    assert out.std() < 0.2 * pixels.std()


def test_blur_leaves_flat_images() -> None:
    flat = np.full((1, 48, 48, 3), 77, dtype=np.uint8)
    assert (corrupt_pixels(flat, blur) == flat).all()


def test_blur_spreads_a_point_by_a_fourteenth_of_the_side() -> None:
    point = np.zeros((1, 96, 96, 3), dtype=np.uint8)
    point[0, 40:56, 40:56] = 255
    column = corrupt_pixels(point, blur)[0, :, 48, 0].astype(float)
    at = np.arange(96)
    centre = (column * at).sum() / column.sum()
    spread = np.sqrt((column * (at - centre) ** 2).sum() / column.sum())
    assert centre == pytest.approx(47.5, abs=0.1)
    assert spread == pytest.approx(np.sqrt((16**2 - 1) / 12 + (96 / 14) ** 2), rel=0.03)


@pytest.mark.parametrize(("drawn", "seen"), [(grayed, gray), (blurred, blur)])
def test_pictures_of_corrupted_images_are_what_models_see(drawn: Callable[..., Any], seen: Corruption) -> None:
    pixels = noise_pixels(3)
    assert np.abs(drawn(pixels).astype(int) - corrupt_pixels(pixels, seen)).max() <= 1  # rounded in other places


def test_corrupting_in_chunks_is_corrupting_one_by_one() -> None:
    pixels = noise_pixels(300, size=16)
    out = corrupt_pixels(pixels, blur)
    assert (
        out[[0, 255, 256, 299]] == np.concatenate([corrupt_pixels(pixels[i : i + 1], blur) for i in (0, 255, 256, 299)])
    ).all()


def test_the_originals_are_left_alone() -> None:
    pixels = noise_pixels(2)
    before = pixels.copy()
    corrupt_pixels(pixels, gray)
    assert (pixels == before).all()


def test_input_is_scaled_as_the_model_was_pretrained() -> None:
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    pixels[..., 1] = 255
    for family in ("class token", "clip, pre-norm"):
        model = tiny(family)
        found = as_input(model, pixels)[0, :, 0, 0].numpy()
        mean, std = (np.array(model.pretrained_cfg[k]) for k in ("mean", "std"))
        np.testing.assert_allclose(found, (np.array([0.0, 1.0, 0.0]) - mean) / std, rtol=1e-5)


def test_prediction_does_not_depend_on_the_batch() -> None:
    model, pixels = tiny(), noise_pixels(7)
    np.testing.assert_allclose(predict_logits(model, pixels, batch=3), predict_logits(model, pixels), atol=1e-5)


def test_batches_cover_the_range_once() -> None:
    assert list(batches(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(batches(0, 3)) == []


@pytest.mark.parametrize("size", [16, 31, 64])
def test_blur_is_that_of_a_square_kernel(size: int) -> None:
    """Torchvision's, but for rounding at halves of a grey level."""
    images = torch.from_numpy(noise_pixels(3, size=size)).permute(0, 3, 1, 2)
    sigma = size / 14
    kernel = 2 * int(3 * sigma) + 1
    expected = tvf.gaussian_blur(images, kernel_size=[kernel, kernel], sigma=[sigma, sigma])
    away = (blur(images).int() - expected.int()).abs()
    assert away.max() <= 1
    assert (away > 0).float().mean() < 1e-3
