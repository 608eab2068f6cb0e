"""Images of published sets that are no files by themselves: numbers in a table, faces cut out of photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from audit.data.quality import MIN_SIDE_PX, FileSource, decode_image
from audit.errors import DataError

FER_SIDE = 48


@dataclass(frozen=True)
class PixelSource:
    """Gray images that stand as numbers in a table.

    Parameters
    ----------
    pixels : mapping of str to str
        By key, 48 x 48 numbers parted by blanks, row by row.
    """

    pixels: Mapping[str, str]

    def read(self, key: str) -> bytes:
        """Return the numbers as they stand; raise ``DataError`` where there are none."""
        if key not in self.pixels:
            raise DataError(key, "no such image in fer2013.csv", "use keys such as 'fer0000000.png'")
        return self.pixels[key].encode()

    def decode(self, key: str, content: bytes) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where the numbers are none."""
        try:
            values: npt.NDArray[np.int64] = np.array(content.split(), dtype=np.int64)
        except ValueError:
            values = np.empty(0, dtype=np.int64)
        if len(values) != FER_SIDE**2 or values.min() < 0 or values.max() > 255:
            raise DataError(key, f"not {FER_SIDE**2} numbers from 0 to 255", "download the set again")
        return Image.fromarray(values.astype(np.uint8).reshape(FER_SIDE, FER_SIDE)).convert("RGB")

    def open(self, key: str) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where there is none."""
        return self.decode(key, self.read(key))


@dataclass(frozen=True)
class Crop:
    """A part of an image.

    Parameters
    ----------
    file : str
        The image, relative to its folder.
    box : tuple of float
        Left, top, right, bottom in pixels.
    """

    file: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class CropSource:
    """Faces cut out of photographs.

    Parameters
    ----------
    files : FileSource
        The photographs.
    crops : mapping of str to Crop
        By key.
    """

    files: FileSource
    crops: Mapping[str, Crop]

    def read(self, key: str) -> bytes:
        """Return the box in a line, then the photograph: two faces of one photograph are not the same image."""
        if key not in self.crops:
            raise DataError(key, "no such face in the set's lists", "use its keys as they stand there")
        crop = self.crops[key]
        if not np.isfinite(crop.box).all():
            raise DataError(key, "its face has no box", "remove it from the list")
        return " ".join(f"{side:.0f}" for side in crop.box).encode() + b"\n" + self.files.read(crop.file)

    def decode(self, key: str, content: bytes) -> Image.Image:
        """Return the face as RGB; raise ``DataError`` where the photograph or the box is none."""
        line, _, photograph = content.partition(b"\n")
        image = decode_image(key, photograph)
        left, top, right, bottom = (int(side) for side in line.split())
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE_PX:
            raise DataError(key, f"its face is under {MIN_SIDE_PX} px on a side", "remove it from the list")
        return image.crop(box)

    def open(self, key: str) -> Image.Image:
        """Return the face as RGB; raise ``DataError`` where there is none."""
        return self.decode(key, self.read(key))
