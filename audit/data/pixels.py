"""From image files to arrays: every image decoded and resized once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from audit.data.samples import ImageSource

Pixels = npt.NDArray[np.uint8]
TOLD_EVERY = 64  # images


def load_pixels(
    source: ImageSource,
    keys: Sequence[str | None],
    size: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode images, crop them to a centred square and resize them; several at once, on as many cores as there are.

    Parameters
    ----------
    source : ImageSource
        Opens a key as an RGB image.
    keys : sequence of str or None
        Which images, in order; None leaves a black one.
    size : int
        Side of the square in pixels.
    progress : callable, optional
        Called with the number of images done.

    Returns
    -------
    numpy.ndarray, shape (len(keys), size, size, 3), uint8
    """
    out = np.zeros((len(keys), size, size, 3), dtype=np.uint8)
    places = [place for place, key in enumerate(keys) if key is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            images = pool.map(lambda key: _fitted(source.open(key), size), [key for key in keys if key is not None])
            for i, (place, image) in enumerate(zip(places, images, strict=True)):
                out[place] = image
                if progress is not None and (i + 1) % TOLD_EVERY == 0:
                    progress(i + 1)
        except BaseException:  # an image that cannot be opened, or an interrupted run: the others are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out


def _fitted(image: Image.Image, size: int) -> Pixels:
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
