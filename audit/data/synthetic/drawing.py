"""How a face becomes 64 x 64 pixels: flat shapes, drawn large with Pillow, shrunk, lit and grained."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw

from audit.data.synthetic.faces import Face

SIZE = 64  # pixels a side
RENDERER_VERSION = "faces-1"  # change it whenever the same parameters would give other pixels

# The Monk Skin Tone scale: Ellis Monk, "Monk Skin Tone Scale", 2019, https://skintone.google (CC BY 4.0).
MONK_TONES = (
    "#f6ede4",
    "#f3e7db",
    "#f7ead0",
    "#eadaba",
    "#d7bd96",
    "#a07e56",
    "#825c43",
    "#604134",
    "#3a312a",
    "#292420",
)

# Pillow works on whole pixels: at 6x the mouth moves in steps of a sixth of a pixel of the final image.
_SUPERSAMPLE = 6
_NOISE_SD = 4.0  # grey levels

# Redder than every skin tone, so that the same direction in colour shows the mouth on all of them; lips and
# mouth also take on some of the skin's lightness (see _draw_mouth). Thus a change of expression moves the
# pixels about equally on every tone, and no group's smile is easier to learn than the other's.
_LIPS = (142, 62, 60)
_MOUTH = (128, 24, 36)
_TEETH = (236, 232, 222)
_EYE_WHITE = (228, 226, 218)
_IRIS = (50, 34, 26)
_HIGHLIGHT = (255, 216, 184)
_GLASSES = (112, 118, 138)
_GOLD = (226, 178, 52)

Colour = tuple[int, int, int]
Points = NDArray[np.float64]


def _turn(corners: int) -> Points:
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


_CIRCLE = _turn(32)
_DOT = _turn(14)
_ARCH = -_turn(32)[:17]  # upper half, from left to right
_ACROSS = np.linspace(-1.0, 1.0, 15)  # along the mouth, from corner to corner
_AXIS = ((np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1).astype(np.float32)


class _Pen:
    """Draws shapes given in face coordinates: pixels at scale 1, origin between the eyes and the nose."""

    def __init__(self, draw: ImageDraw.ImageDraw, face: Face) -> None:
        tilt = math.radians(face.tilt_deg)
        zoom = _SUPERSAMPLE * face.scale
        cos, sin = zoom * math.cos(tilt), zoom * math.sin(tilt)
        self._draw = draw
        self._turn = np.array([[cos, sin], [-sin, cos]])
        self._origin = _SUPERSAMPLE * np.array([SIZE / 2 + face.shift_x, SIZE / 2 + 1 + face.shift_y])

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        corners = np.rint(np.asarray(points) @ self._turn + self._origin)
        self._draw.polygon(corners.ravel().tolist(), fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        circle = _DOT if rx < 5 else _CIRCLE
        self.polygon(circle * (rx, ry) + (x, y), colour)

    def line(self, points: ArrayLike, width: float, colour: Colour) -> None:
        corners = np.rint(np.asarray(points) @ self._turn + self._origin)
        self._draw.line(corners.ravel().tolist(), fill=colour, width=round(width * _SUPERSAMPLE), joint="curve")


def render(face: Face) -> Image.Image:
    """Draw a face.

    Parameters
    ----------
    face : Face
        All that decides the pixels; the same face gives the same pixels in every process.

    Returns
    -------
    PIL.Image.Image
        RGB, 64 x 64.
    """
    large = Image.new("RGB", (SIZE * _SUPERSAMPLE,) * 2, _rgb(face.background))
    pen = _Pen(ImageDraw.Draw(large), face)
    skin = _rgb(MONK_TONES[face.monk_tone - 1])
    _draw_body(pen, face, skin)
    _draw_head(pen, face, skin)
    _draw_hair(pen, face)
    _draw_eyes(pen, face)
    _draw_mouth(pen, face, skin)
    _draw_accessories(pen, face)
    return Image.fromarray(_lit(np.asarray(large.reduce(_SUPERSAMPLE)), face))


def _draw_body(pen: _Pen, face: Face, skin: Colour) -> None:
    half = face.face_width / 2
    pen.polygon([(-44, 46), (-30, 30), (-10, 25), (10, 25), (30, 30), (44, 46)], _rgb(face.clothes))
    hair = _rgb(face.hair_colour)
    bottom = _between(-4.0, 33.0, face.hair_extent)
    flare = _between(0.5, 6.5, face.hair_extent)
    top = _ARCH * (half + 1.5, 23.0) + (0, -5)
    # Behind the head: over the top from left to right, down the right side, and up the left.
    ends = [(half + flare, bottom - 3), (half + flare - 3, bottom)]
    pen.polygon([*top, *ends, *((-x, y) for x, y in reversed(ends))], hair)
    pen.polygon([(-7, 14), (7, 14), (8, 29), (-8, 29)], _blend(skin, (0, 0, 0), 0.18))


def _draw_head(pen: _Pen, face: Face, skin: Colour) -> None:
    half = face.face_width / 2
    shade = _blend(skin, (0, 0, 0), 0.14)
    for side in (-1, 1):
        pen.oval(side * half, 0, 3.2, 5.0, shade)
    x, y = _CIRCLE[:, 0], _CIRCLE[:, 1]
    jaw = 1 - 0.14 * np.clip(y, 0, None) ** 2
    pen.polygon(np.stack([half * x * jaw, 23.5 * y + 1], axis=1), skin)
    soft, bright = _blend(skin, _HIGHLIGHT, 0.05), _blend(skin, _HIGHLIGHT, 0.16)
    pen.oval(0, -1, half * 0.8, 18, soft)  # light on skin gives dark tones their form
    pen.oval(0, -13, half * 0.45, 2.6, bright)
    pen.polygon([(0.2, -3), (3.0, 6), (0, 7), (-3.0, 6)], shade)  # nose
    pen.polygon([(-0.2, -4), (1.0, 5.2), (-1.4, 5.4)], bright)
    cheek = _blend(skin, (204, 112, 92), 0.24)
    for side in (-1, 1):  # cheeks rise with the smile
        pen.oval(side * half * 0.6, 7.0 - 1.8 * face.intensity, 3.8, 2.4 + 0.6 * face.intensity, cheek)


def _draw_hair(pen: _Pen, face: Face) -> None:
    half, hair = face.face_width / 2, _rgb(face.hair_colour)
    cap = _ARCH
    outer = cap * (half + 1.8, 21.0) + (0, -7)
    inner = cap[::-1] * (half - 2.0, 9.5) + (0, -7)
    pen.polygon(np.concatenate([outer, inner]), hair)
    bottom = _between(-6.0, 31.0, face.hair_extent)
    inward = _between(0.0, 2.5, face.hair_extent)
    for side in (-1, 1):  # strands in front of the ears; they stay clear of eyes and mouth
        strand = [(half + 1.8, -8), (half - 2, -8), (half - inward, bottom), (half + 1.8 + inward, bottom)]
        pen.polygon(np.array(strand) * (side, 1), hair)


def _draw_eyes(pen: _Pen, face: Face) -> None:
    opening = 2.4 - 0.4 * face.intensity  # half height; a smile narrows the eyes
    lids = opening * (1 - _ACROSS**2)
    brow = _blend(_rgb(face.hair_colour), (0, 0, 0), 0.35)
    for side in (-1, 1):
        x = side * face.face_width * 0.225
        _band(pen, x + 4.6 * _ACROSS, -4.4 - lids, -4.0 + lids, brow)  # lashes
        _band(pen, x + 4.2 * _ACROSS, -3.5 - lids, -3.5 + lids, _EYE_WHITE)
        pen.oval(x, -3.5, 1.9, min(1.9, opening), _IRIS)
        ends = [(x - side * 4.2, -8.8 - 1.3 * face.intensity), (x + side * 4.2, -8.8 + 0.6 * face.intensity)]
        pen.polygon([*ends, *((end, y - 1.7) for end, y in reversed(ends))], brow)


def _draw_mouth(pen: _Pen, face: Face, skin: Colour) -> None:
    lightness = sum(skin) / 765
    lips_colour = _blend(_LIPS, skin, 0.35 * lightness)
    mouth_colour = _blend(_MOUTH, skin, 0.38 * lightness)
    opening = 1.7 + 1.6 * face.intensity  # half height in the middle; 0.1 at a full frown
    _mouth_band(pen, face, 1.0, opening + 0.9, colour=lips_colour)
    _mouth_band(pen, face, 0.95, opening, colour=mouth_colour)
    teeth = max(face.intensity - 0.1, 0.0) / 0.9  # they come in from a point, well past the ambiguous range
    if teeth > 0:
        _mouth_band(pen, face, 0.85 * math.sqrt(teeth), 0.8 * opening, below=-0.2, colour=_TEETH)


def _mouth_band(pen: _Pen, face: Face, width: float, height: float, below: float = 1.0, *, colour: Colour) -> None:
    """Draw a crescent along the mouth: width as a share of the mouth's, half height in pixels."""
    across = _ACROSS * width * (1 + 0.1 * face.intensity)
    # Corners and middle are 6 px apart at full intensity; the mouth's mean height does not move.
    middle = 14.0 - 6.0 * face.intensity * (across**2 - 1 / 3)
    half = height * (1 - 0.85 * _ACROSS**2)
    _band(pen, across * (face.mouth_width / 2), middle - half, middle + below * half, colour)


def _band(pen: _Pen, x: Points, upper: Points, lower: Points, colour: Colour) -> None:
    there, back = np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)[::-1]
    pen.polygon(np.concatenate([there, back]), colour)


def _draw_accessories(pen: _Pen, face: Face) -> None:
    half = face.face_width / 2
    if face.glasses:
        x = face.face_width * 0.225
        for side in (-1, 1):
            ring = _CIRCLE * (6.0, 5.2) + (side * x, -3.4)
            pen.line(np.concatenate([ring, ring[:2]]), 1.2, _GLASSES)
            pen.line([(side * (x + 6), -4), (side * half, -5)], 1.2, _GLASSES)
        pen.line([(6 - x, -4), (x - 6, -4)], 1.2, _GLASSES)
    if face.earrings:
        for side in (-1, 1):
            pen.oval(side * (half + 1), 6.5, 1.9, 2.4, _GOLD)
    if face.hat:
        cloth = _blend(_rgb(face.clothes), (255, 255, 255), 0.15)
        dome = _ARCH * (half + 1.5, 17.0) + (0, -14)
        pen.polygon(dome, cloth)
        brim = half + 4
        band = _blend(cloth, (0, 0, 0), 0.35)
        pen.polygon([(-brim, -15), (brim, -15), (brim, -12), (-brim, -12)], band)


def _lit(pixels: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
    angle = math.radians(face.light_angle_deg)
    gain_x = np.float32(face.brightness * face.light_gradient * math.cos(angle)) * _AXIS
    gain_y = np.float32(face.brightness * face.light_gradient * math.sin(angle)) * _AXIS
    gain = np.float32(face.brightness) + gain_x[None, :] + gain_y[:, None]
    grain = np.random.default_rng(face.noise_seed).standard_normal(pixels.shape, dtype=np.float32)
    lit = pixels * gain[..., None] + np.float32(_NOISE_SD) * grain
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


@functools.cache
def _rgb(code: str) -> Colour:
    red, green, blue = ImageColor.getrgb(code)[:3]
    return red, green, blue


def _blend(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
