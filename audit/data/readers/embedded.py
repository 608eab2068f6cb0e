"""Images of published sets that are no files by themselves: numbers in a table, faces cut out of photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from audit.data.decode import MIN_SIDE_PX, ImageError, Opening, decode_image
from audit.data.sources import ByteSource, FileSource
from audit.errors import DataError
from audit.records import LeftOut

FER_SIDE = 48


@dataclass(frozen=True)
class PixelSource(ByteSource):
    """Gray images stored as numbers in a table."""

    held: ClassVar[bool] = True
    pixels: Mapping[str, str]  # by key, 48 x 48 numbers parted by blanks, row by row

    def read(self, key: str) -> bytes:
        """Return the stored numbers; raise ``DataError`` where there are none."""
        if key not in self.pixels:
            raise DataError(key, "no such image in fer2013.csv", "use keys such as 'fer0000000.png'")
        return self.pixels[key].encode()

    def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where the numbers are none."""
        del opening
        try:
            values: npt.NDArray[np.int64] = np.array(content.split(), dtype=np.int64)
        except ValueError:
            values = np.empty(0, dtype=np.int64)
        if len(values) != FER_SIDE**2 or values.min() < 0 or values.max() > 255:
            detail = f"not {FER_SIDE**2} numbers in [0, 255]"
            raise ImageError(key, LeftOut.DAMAGED, "download the set again", detail)
        return Image.fromarray(values.astype(np.uint8).reshape(FER_SIDE, FER_SIDE)).convert("RGB")


@dataclass(frozen=True)
class Crop:
    """A part of an image."""

    file: str  # the image, relative to its folder
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    in_shares: bool = False  # whether the box is given in shares of the image's width and height instead


@dataclass(frozen=True)
class CropSource(ByteSource):
    """Faces or people cut out of photographs."""

    files: FileSource  # the photographs
    crops: Mapping[str, Crop]  # by key

    def read(self, key: str) -> bytes:
        """Return the box in a line, then the photograph: two people of one photograph are not the same image."""
        if key not in self.crops:
            raise DataError(key, "no such part of an image in the set's lists", "use its keys as they are there")
        crop = self.crops[key]
        if not np.isfinite(crop.box).all():
            raise ImageError(key, LeftOut.NO_BOX, "remove it from the list")
        line = " ".join(f"{side:.6f}x" if crop.in_shares else f"{side:.0f}" for side in crop.box)
        return line.encode() + b"\n" + self.files.read(crop.file)

    def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
        """Return what was cut out as RGB; raise ``DataError`` where the photograph or the box is none."""
        line, _, photograph = content.partition(b"\n")
        image = decode_image(key, photograph, opening)
        sizes = (image.width, image.height) * 2
        left, top, right, bottom = (_in_pixels(side, size) for side, size in zip(line.split(), sizes, strict=True))
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE_PX:
            raise ImageError(key, LeftOut.SMALL_BOX, "remove it from the list")
        return image.crop(box)


def _in_pixels(side: bytes, size: int) -> int:
    """Return a side of a box in pixels; with an "x" it is given as a share of ``size``."""
    return round(float(side[:-1]) * size) if side.endswith(b"x") else int(side)
