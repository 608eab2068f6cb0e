"""Images that the controls were tried on, rendered again from their seed; never images of the audited data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from audit.data.synthetic.corrupted import blurred, grayed
from audit.data.synthetic.shapes import sample_shapes
from audit.records import Audit
from audit.report.drawn.base import Picture, pixels_as_picture
from audit.report.text import Sentences

EXAMPLES = 2  # one of each channel
ENLARGED = 2
Pixels = npt.NDArray[np.uint8]
TAKEN: Mapping[str, Callable[[Pixels], Pixels]] = {"colour": grayed, "blur": blurred}


@dataclass(frozen=True)
class Shape:
    """What is drawn on a rendered image."""

    shape: str
    hue: str
    texture: str


def of_audit(audit: Audit, text: Sentences) -> list[Picture]:
    """Return an image of each channel that was tried, and the same without it; none where the images were real."""
    setup = audit.controls.setup
    if setup is None or setup.rendered is None or setup.seed is None:
        return []
    channels = dict.fromkeys(c.channel for c in audit.controls.controls if c.channel is not None)
    shapes, pixels = rendered(setup.rendered, setup.evaluate, setup.seed)
    pictures: list[Picture] = []
    for channel, shape, image in zip(channels, shapes, pixels, strict=False):
        pictures.append(_picture(text, channel, shape, image, is_corrupted=False))
        pictures.append(_picture(text, channel, shape, TAKEN[channel](image[None])[0], is_corrupted=True))
    return pictures


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
