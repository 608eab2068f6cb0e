"""From image files to arrays: every image decoded and brought to the model's size once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from audit.data.decode import Opening
from audit.data.samples import ImageSource
from audit.data.sources import open_image

Pixels = npt.NDArray[np.uint8]  # of a preprocessing that gives no bytes: float32
TOLD_EVERY = 64  # images


@dataclass(frozen=True)
class Geometry:
    """How an image becomes an array of the model's size.

    Parameters
    ----------
    fit : callable
        From an RGB image to an array of ``shape``.
    shape : tuple of int
        Height, width, channels.
    opening : Opening
        How files become RGB.
    dtype : type
        uint8, or float32 where the preprocessing gives no bytes.
    """

    fit: Callable[[Image.Image], Pixels]
    shape: tuple[int, int, int]
    opening: Opening = Opening.CAREFUL
    dtype: type[np.uint8] | type[np.float32] = np.uint8


def centred_square(size: int) -> Geometry:
    """Crop to a centred square and resize it, bicubic, to ``size`` pixels a side."""

    def fit(image: Image.Image) -> Pixels:
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    return Geometry(fit, (size, size, 3))


def load_pixels(
    source: ImageSource,
    keys: Sequence[str | None],
    geometry: Geometry,
    *,
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode images and bring them to the model's size; several at once, on as many cores as there are.

    Parameters
    ----------
    source : ImageSource
        Opens a key as an RGB image.
    keys : sequence of str or None
        Which images, in order; None leaves a black one.
    geometry : Geometry
    progress : callable, optional
        Called with the number of images done.

    Returns
    -------
    numpy.ndarray, shape (len(keys), height, width, channels)
    """
    out: Pixels = np.zeros((len(keys), *geometry.shape), dtype=geometry.dtype)
    places = [place for place, key in enumerate(keys) if key is not None]

    def fitted(key: str) -> Pixels:
        return geometry.fit(open_image(source, key, geometry.opening))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            images = pool.map(fitted, [key for key in keys if key is not None])
            for i, (place, image) in enumerate(zip(places, images, strict=True)):
                out[place] = image
                if progress is not None and (i + 1) % TOLD_EVERY == 0:
                    progress(i + 1)
        except BaseException:  # an image that cannot be opened, or an interrupted run: the others are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out
