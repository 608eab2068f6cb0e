"""Control images: a classifier reads hue and texture when clean, and only guesses when they are corrupted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from audit.data.synthetic import HUES, SHAPES, TEXTURES, sample_shapes
from audit.errors import DataError
from audit.models.transforms import BLUR_SHARE

pytestmark = pytest.mark.unit

N = 768
FRAME, IMAGES = sample_shapes(N, 0)
# Guessing among four on half of the images, and four standard deviations more.
CHANCE = 0.25 + 4 * np.sqrt(0.25 * 0.75 / (N / 2))


def grey(images: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in images])


def blurred(images: np.ndarray) -> np.ndarray:
    sigma = images.shape[1] * BLUR_SHARE
    return np.stack([gaussian_filter(image, (sigma, sigma, 0)) for image in images])


def statistics(images: np.ndarray) -> np.ndarray:
    """Colour and its spread, and the strength of differences in four directions; shape (n, features)."""
    x = images.astype(float)
    g = x.mean(axis=3)
    steps = (
        g[:, 1:, 1:] - g[:, :-1, 1:],
        g[:, 1:, 1:] - g[:, 1:, :-1],
        g[:, 1:, 1:] - g[:, :-1, :-1],
        g[:, 1:, :-1] - g[:, :-1, 1:],
    )
    middle = slice(24, 40)
    columns = [x.mean(axis=(1, 2)), x.std(axis=(1, 2)), x[:, middle, middle].mean(axis=(1, 2))]
    columns += [np.abs(step[:, middle, middle]).mean(axis=(1, 2))[:, None] for step in steps]
    return np.concatenate(columns, axis=1)


def accuracy(images: np.ndarray, label: str) -> float:
    features, half = statistics(images), N // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features[:half], FRAME[label][:half])
    return float(model.score(features[half:], FRAME[label][half:]))


@pytest.mark.parametrize(("label", "destroy", "keep"), [("hue", grey, blurred), ("texture", blurred, grey)])
def test_a_corruption_takes_its_own_label_and_no_other(
    label: str, destroy: Callable[[np.ndarray], np.ndarray], keep: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert accuracy(IMAGES, label) > 0.9
    assert accuracy(keep(IMAGES), label) > 0.9
    assert accuracy(destroy(IMAGES), label) < CHANCE


def test_labels_are_balanced_and_independent() -> None:
    cells = FRAME.groupby(["shape", "hue", "texture"]).size()
    assert cells.tolist() == [N // 64] * 64
    assert set(FRAME["shape"]) == set(SHAPES)
    assert set(FRAME["hue"]) == set(HUES)
    assert set(FRAME["texture"]) == set(TEXTURES)


def test_no_colour_is_clipped() -> None:
    """Clipping would make the luma of one hue differ from the others'."""
    assert IMAGES.min() > 0
    assert IMAGES.max() < 255


def test_the_fill_has_the_luma_that_was_drawn() -> None:
    inside = grey(IMAGES)[:, 28:36, 28:36, 0].mean(axis=(1, 2))  # whole waves: their mean is the fill's
    discs = (FRAME["shape"] == "disc").to_numpy()
    assert np.abs(inside - FRAME["luma"])[discs].mean() < 1.0


def test_textures_have_the_same_contrast() -> None:
    discs = (FRAME["shape"] == "disc").to_numpy()
    spread = grey(IMAGES)[discs, 28:36, 28:36, 0].std(axis=(1, 2))
    by_texture = [spread[FRAME["texture"][discs] == texture].mean() for texture in TEXTURES]
    assert max(by_texture) / min(by_texture) < 1.1


def test_shapes_cover_different_areas_of_the_image_but_all_are_visible() -> None:
    fill = np.ptp(IMAGES.astype(int), axis=3) > 20  # coloured pixels; the background is grey
    assert (fill.mean(axis=(1, 2)) > 0.06).all()
    assert (fill.mean(axis=(1, 2)) < 0.5).all()


def test_the_same_seed_gives_the_same_images_whatever_the_number() -> None:
    frame, images = sample_shapes(70, 3)
    again = sample_shapes(70, 3)
    assert frame.equals(again[0])
    assert (images == again[1]).all()
    assert (images[:64] != sample_shapes(64, 4)[1]).any()


def test_no_images_and_negative_numbers() -> None:
    frame, images = sample_shapes(0, 0)
    assert len(frame) == 0
    assert images.shape == (0, 64, 64, 3)
    with pytest.raises(DataError, match="give 0 or more"):
        sample_shapes(-1, 0)
