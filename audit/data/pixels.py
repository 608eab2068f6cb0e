"""From image files to arrays: every image decoded and resized once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from audit.data.samples import ImageSource

Pixels = npt.NDArray[np.uint8]


def load_pixels(
    source: ImageSource,
    keys: Sequence[str],
    size: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode images, crop them to a centred square and resize them.

    Parameters
    ----------
    source : ImageSource
        Opens a key as an RGB image.
    keys : sequence of str
        Which images, in order.
    size : int
        Side of the square in pixels.
    progress : callable, optional
        Called with the number of images done.

    Returns
    -------
    numpy.ndarray, shape (len(keys), size, size, 3), uint8
    """
    out = np.empty((len(keys), size, size, 3), dtype=np.uint8)
    for i, key in enumerate(keys):
        image = source.open(key)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        out[i] = np.asarray(image)
        if progress is not None and (i + 1) % 64 == 0:
            progress(i + 1)
    return out
