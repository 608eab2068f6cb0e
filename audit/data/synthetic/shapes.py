"""Control images whose answer is known: hue that dies with colour, fine texture that dies with blur.

Luma is drawn from one range for all hues, so a grey image holds no hue. All textures have a period of 4 px,
one mean and one contrast, and fade toward the outline, so a Gaussian blur of standard deviation size/24
or more leaves none of them. (Pillow's GaussianBlur does leave a trace: it stands for the Gaussian with three box
filters, whose side lobes pass a hundredth of the waves.) Shape survives both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.data.synthetic.drawing import SIZE
from audit.errors import DataError

SHAPES = ("disc", "square", "triangle", "cross")

# Wave vectors (right, down) of each texture, in waves per period; two crossed waves make a checkerboard.
_WAVES = {
    "horizontal": ((0.0, 1.0),),
    "vertical": ((1.0, 0.0),),
    "checkerboard": ((1.0, 1.0), (1.0, -1.0)),
    "diagonal": ((0.5**0.5, 0.5**0.5),),
}
TEXTURES = tuple(_WAVES)

# Directions in the plane of equal luma (Cb, Cr).
_CHROMA = {"blue": (1.0, 0.0), "red": (0.0, 1.0), "yellow": (-1.0, 0.0), "green": (0.0, -1.0)}
HUES = tuple(_CHROMA)
BRIGHTNESS = ("dark", "dim", "light", "bright")

# With this chroma, luma and texture no channel leaves [0, 255], so no hue is clipped: see the unit test.
_CHROMA_RADIUS = 30.0
_LUMA = (110.0, 145.0)
_LUMA_STEPS = np.linspace(*_LUMA, 5)[1:-1]
_TEXTURE_RMS = 24.0  # grey levels, inside the shape
_PERIOD = 4.0  # pixels
_PHASE = np.pi / 2  # radians; waves of any phase would cancel in a linear reading of the pixels
_FADE = 5.0  # pixels, from the outline to full texture

# ITU-R BT.601, the weights of PIL's "L": luma (1st), Cb and Cr to RGB.
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], dtype=np.float32)
_BATCH = 256  # images drawn at once; bounds memory

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """Position of each shape: all arrays of shape (n, 1, 1), in pixels and radians."""

    x: Pixels
    y: Pixels
    radius: Pixels
    angle: Pixels


def sample_shapes(n: int, seed: int) -> tuple[pd.DataFrame, NDArray[np.uint8]]:
    """Draw control images.

    Parameters
    ----------
    n : int
        How many, 0 or more. Shape, hue and texture are independent and balanced, exactly where n is a
        multiple of 64.
    seed : int
        The same seed gives the same images.

    Returns
    -------
    frame : pandas.DataFrame
        One row per image: ``shape``, ``hue``, ``texture`` (names of ``SHAPES``, ``HUES``, ``TEXTURES``) and
        ``luma``, the fill's mean grey level.
    images : numpy.ndarray
        uint8, shape (n, 64, 64, 3), RGB.

    Raises
    ------
    DataError
        If n is negative.
    """
    if n < 0:
        raise DataError("sample_shapes", f"n = {n}", "give 0 or more")
    rng = np.random.default_rng(seed)
    shape, hue, texture = _balanced(n, rng)
    luma, background = rng.uniform(*_LUMA, n), rng.uniform(40.0, 215.0, n)
    layout = _layout(n, rng)
    phase = rng.uniform(0.0, _PHASE, (n, 2))
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, n, _BATCH):
        part = slice(start, start + _BATCH)
        place = _Layout(layout.x[part], layout.y[part], layout.radius[part], layout.angle[part])
        distance = _distances(shape[part], place)
        grain = _textures(texture[part], phase[part])
        images[part] = _painted(distance, grain, hue[part], luma[part], background[part])
    frame = pd.DataFrame(
        {
            "shape": np.array(SHAPES)[shape],
            "hue": np.array(HUES)[hue],
            "texture": np.array(TEXTURES)[texture],
            "luma": luma,
            "brightness": np.array(BRIGHTNESS)[np.digitize(luma, _LUMA_STEPS)],
        }
    )
    return frame, images


def _balanced(n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return indices of shape, hue and texture, shape (3, n): whole rounds of all cells, in random order."""
    cells = np.array(list(itertools.product(range(4), repeat=3)), dtype=np.intp)
    rounds = [rng.permutation(cells) for _ in range(-(-n // len(cells)))]
    chosen = np.concatenate([cells[:0], *rounds])[:n]
    return rng.permutation(chosen).T


def _layout(n: int, rng: np.random.Generator) -> _Layout:
    def draw(low: float, high: float) -> Pixels:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    return _Layout(draw(27, 37), draw(27, 37), draw(17, 23), draw(-0.2, 0.2))


def _distances(shape: NDArray[np.intp], layout: _Layout) -> Pixels:
    """Signed distance to the outline in pixels, negative inside; shape (n, 64, 64)."""
    axis = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    x, y = axis[None, None, :] - layout.x, axis[None, :, None] - layout.y
    cos, sin = np.cos(layout.angle), np.sin(layout.angle)
    x, y = cos * x + sin * y, cos * y - sin * x
    distance: Pixels = np.empty_like(x)
    for index, measure in enumerate((_disc, _square, _triangle, _cross)):
        rows = shape == index
        distance[rows] = measure(x[rows], y[rows], layout.radius[rows])
    return distance


def _disc(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    distance: Pixels = np.sqrt(x * x + y * y) - np.float32(0.88) * radius
    return distance


def _square(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    distance: Pixels = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.78) * radius
    return distance


def _triangle(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    slope = np.float32(np.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
    distance: Pixels = np.maximum(slope, y) - np.float32(0.6) * radius
    return distance


def _cross(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    long, short = radius, np.float32(0.42) * radius
    upright = np.maximum(np.abs(x) - short, np.abs(y) - long)
    lying = np.maximum(np.abs(x) - long, np.abs(y) - short)
    distance: Pixels = np.minimum(upright, lying)
    return distance


def _textures(texture: NDArray[np.intp], phase: NDArray[np.float64]) -> Pixels:
    """Waves of mean 0 and root mean square 1, shape (n, 64, 64)."""
    axis = np.arange(SIZE, dtype=np.float32) * np.float32(2 * np.pi / _PERIOD)
    a, b = (phase[:, index].astype(np.float32)[:, None, None] for index in (0, 1))
    across, down = axis[None, None, :] + a, axis[None, :, None] + b
    waves = np.zeros((len(texture), SIZE, SIZE), dtype=np.float32)
    for index, directions in enumerate(_WAVES.values()):
        rows = texture == index
        weight = np.float32(np.sqrt(2 / len(directions)))  # root mean square 1, however many waves
        for right, downward in directions:
            angle = np.float32(right) * across[rows] + np.float32(downward) * down[rows]
            waves[rows] += weight * np.cos(angle)
    return waves


def _painted(
    distance: Pixels,
    grain: Pixels,
    hue: NDArray[np.intp],
    luma: NDArray[np.float64],
    background: NDArray[np.float64],
) -> NDArray[np.uint8]:
    inside = np.clip(0.5 - distance, 0, 1)[..., None]
    fade = np.clip(-distance / np.float32(_FADE), 0, 1)
    envelope = fade * fade * (3 - 2 * fade)  # smooth: an abrupt end of the waves would survive the blur
    chroma = np.float32(_CHROMA_RADIUS) * np.array(list(_CHROMA.values()), dtype=np.float32)[hue]
    colour = np.concatenate([luma[:, None].astype(np.float32), chroma], axis=1) @ _TO_RGB.T
    ground = background.astype(np.float32)[:, None, None, None]
    fill = colour[:, None, None, :] + np.float32(_TEXTURE_RMS) * (envelope * grain)[..., None]
    painted: NDArray[np.uint8] = np.rint(ground + inside * (fill - ground)).astype(np.uint8)
    return painted
