"""Images that the controls were tried on, rendered again from their seed; never images of the audited data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from audit.data.synthetic.corrupted import blurred, grayed
from audit.data.synthetic.shapes import sample_shapes
from audit.records import Audit, ControlLook
from audit.report.drawn.base import Picture, pixels_as_picture
from audit.report.regions import largest_region
from audit.report.text import Sentences

EXAMPLES = 2  # one of each channel
ENLARGED = 2
DARKEST = 0.15  # of the brightness, where a head does not look
Pixels = npt.NDArray[np.uint8]
TAKEN: Mapping[str, Callable[[Pixels], Pixels]] = {"colour": grayed, "blur": blurred}


@dataclass(frozen=True)
class Shape:
    """What is drawn on a rendered image."""

    shape: str
    hue: str
    texture: str


def of_audit(audit: Audit, text: Sentences) -> list[Picture]:
    """Return an image of each channel that was tried, the same without it, and where a head looks in it.

    None where the images were real; a record of an earlier version has no looks.
    """
    setup = audit.controls.setup
    if setup is None or setup.rendered is None or setup.seed is None:
        return []
    channels = dict.fromkeys(c.channel for c in audit.controls.controls if c.channel is not None)
    shapes, pixels = rendered(setup.rendered, setup.evaluate, setup.seed)
    looks = {(look.channel, look.image): look for look in audit.controls.looks}
    pictures: list[Picture] = []
    for place, (channel, shape, image) in enumerate(zip(channels, shapes, pixels, strict=False)):
        pictures.append(_picture(text, channel, shape, image, is_corrupted=False))
        pictures.append(_picture(text, channel, shape, TAKEN[channel](image[None])[0], is_corrupted=True))
        if (look := looks.get((channel, place))) is not None:
            pictures.append(_look(text, look, shape, image))
    return pictures


def _look(text: Sentences, look: ControlLook, shape: Shape, image: Pixels) -> Picture:
    """Draw the image with its patches as bright as the head looks at them, the brightest as they are."""
    weights = np.array(look.weights, dtype=np.float64)
    large = image.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    down, across = (np.arange(n) * patches // n for n, patches in zip(large.shape, weights.shape, strict=False))
    shade = DARKEST + (1 - DARKEST) * (weights / (weights.max() or 1.0))[np.ix_(down, across)][..., None]
    title = text.picture("example_look_title", look)
    alt = text.picture("example_look", look, shape, largest_region(look.weights))
    return pixels_as_picture((large * shade).round().astype(np.uint8), title, alt)


def _picture(text: Sentences, channel: str, shape: Shape, image: Pixels, *, is_corrupted: bool) -> Picture:
    title, alt = (text.picture(part, channel, shape, is_corrupted) for part in ("example_title", "example"))
    return pixels_as_picture(image.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1), title, alt)


@lru_cache(maxsize=4)
def rendered(count: int, evaluated: int, seed: int) -> tuple[tuple[Shape, ...], Pixels]:
    """Render ``count`` images again, and return the first of those that were ``evaluated``, which are the last ones."""
    frame, pixels = sample_shapes(count, seed)
    first = count - evaluated
    seen = frame.iloc[first : first + EXAMPLES]
    shapes = tuple(Shape(row["shape"], row["hue"], row["texture"]) for row in seen.to_dict("records"))
    return shapes, pixels[first : first + EXAMPLES].copy()
