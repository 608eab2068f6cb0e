"""What the controls take away from images, without torch: for pictures of it; models see ``models.transforms``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLUR_SHARE = 1 / 14  # standard deviation of the Gaussian blur, as a share of the image's side
_LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)
Pixels = NDArray[np.uint8]


def grayed(pixels: Pixels) -> Pixels:
    """Return images (N, H, W, 3) with their luma in all three channels."""
    luma = (pixels.astype(np.float32) @ _LUMA).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)


def blurred(pixels: Pixels) -> Pixels:
    """Return images (N, H, W, channels) after a Gaussian blur, mirrored at their edges and cut at 3 sigma."""
    sigma = pixels.shape[2] * BLUR_SHARE
    down, along = (_blurring(length, sigma) for length in pixels.shape[1:3])
    found: NDArray[np.float64] = np.einsum("ih,nhwc,jw->nijc", down, pixels.astype(np.float64), along, optimize=True)
    return np.rint(found).astype(np.uint8)


def _blurring(length: int, sigma: float) -> NDArray[np.float64]:
    """Return the matrix (length, length) that blurs a line of pixels."""
    reach = int(3 * sigma)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    every = np.pad(np.eye(length), ((0, 0), (reach, reach)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(every, len(bell), axis=1)
    matrix: NDArray[np.float64] = (windows @ (bell / bell.sum())).T
    return matrix
