"""Image files decoded safely: whatever their mode, depth and metadata, an RGB image or the reason why not."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from audit.errors import DataError
from audit.records import LeftOut

MIN_SIDE_PX = 8
MAX_PIXELS = 50_000_000  # a larger image is a mistake or a decompression bomb
# Formats of photographs that Pillow decodes by itself; others (EPS, for one) would start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
IMAGE_SUFFIXES = tuple(sorted(end for end, kind in Image.registered_extensions().items() if kind in FORMATS))
REPAIR = "repair or remove it"
SCALE_DOWN = "scale it down or remove it"
REMARKS = "vit-audit"  # key of ``Image.info``: what is to be reported of a decoded image
METADATA, DEPTH = "metadata", "depth"  # remarks: metadata were ignored, a depth was inferred from the values
EXIF, TRANSPARENT, CUT = "exif", "transparent", "cut"  # stored turned, with transparency, with more than 8 bits
ORIENTATION = int(ExifTags.Base.Orientation)
MORE_THAN_8_BITS = ("I", "F")  # what modes of such images begin with
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}  # types of EXIF: byte, short, long
SMALLER_DEPTHS = (8, 12)  # bits of values that are stored in 16
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_PNG_SBIT = re.compile(rb"\0\0\0[\1-\4]sBIT(.)", re.S)


class ImageError(DataError):
    """One image cannot be read.

    Parameters
    ----------
    key : str
        Its name.
    kind : LeftOut
    fix : str
    detail : str
        Its size, or what a library said.
    """

    may_pass = True  # as on a file system that other machines share

    def __init__(self, key: str, kind: LeftOut, fix: str = "", detail: str = "") -> None:
        self.kind, self.detail = kind, detail
        super().__init__(key, f"{kind} ({detail})" if detail else str(kind), fix)


class Opening(StrEnum):
    """How an image file becomes RGB."""

    AS_STORED = "as stored"  # Image.open(...).convert("RGB"), as users of timm, torchvision and transformers do
    TURNED = "turned"  # likewise, turned upright by its EXIF orientation
    CAREFUL = "careful"  # upright, transparency laid on white, 16 bits scaled to 8 by the depth of the values


def decode_image(name: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
    """Decode an image file of any mode to RGB.

    Parameters
    ----------
    name : str
        For the message.
    content : bytes
        The file.
    opening : Opening
        How.

    Returns
    -------
    PIL.Image.Image
        Mode RGB. ``remarks_of`` tells what was decided on the way.

    Raises
    ------
    ImageError
        If it is no image, is damaged or larger than 50 million pixels. Metadata that cannot be read are no reason.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # importing WeasyPrint turns this on for the whole process
    try:
        return _decoded(name, content, opening)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise ImageError(name, LeftOut.NOT_AN_IMAGE, REPAIR) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(name, LeftOut.TOO_LARGE, SCALE_DOWN) from None
    except MemoryError:
        raise
    except Exception:  # damaged files make Pillow's decoders raise nearly anything
        raise ImageError(name, LeftOut.DAMAGED, REPAIR) from None


def check_side(name: str, image: Image.Image) -> None:
    """Raise where an image is smaller than 8 px on a side: a mistake in a data set, though a model would answer."""
    if min(image.size) < MIN_SIDE_PX:
        raise ImageError(
            name, LeftOut.TOO_SMALL, "give a larger image or remove it", f"{image.width}x{image.height} px"
        )


def remarks_of(image: Image.Image) -> tuple[str, ...]:
    """Return what is to be said of a decoded image: METADATA, DEPTH, EXIF, TRANSPARENT, CUT."""
    return tuple(image.info.get(REMARKS, ()))


def _decoded(name: str, content: bytes, opening: Opening) -> Image.Image:
    try:
        image = _opened(name, content)
    except (DataError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:  # of some, metadata are the reason
        bare, exif = _parted(content)
        if bare == content:
            raise
        image = _opened(name, bare)
        image.info["exif"] = exif
    orientation = _orientation(image)
    turns = opening != Opening.AS_STORED
    remarks = [METADATA] if orientation is None and turns else []
    seen = image.transpose(_UPRIGHT[orientation]) if turns and orientation in _UPRIGHT else image
    kept: dict[str | tuple[int, int], object] = {}
    if opening == Opening.CAREFUL:
        check_side(name, image)
        rgb = _to_rgb(seen, content, name, remarks.append)
    else:
        remarks += [EXIF] if orientation in _UPRIGHT else []
        remarks += [TRANSPARENT] if image.has_transparency_data else []
        remarks += [CUT] if image.mode.startswith(MORE_THAN_8_BITS) else []
        rgb = seen.convert("RGB")
        kept = {k: v for k, v in rgb.info.items() if k == "transparency"}  # some libraries' processors look at it
    rgb.info = {**kept, REMARKS: tuple(remarks)}
    return rgb


def _opened(name: str, content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(name, LeftOut.TOO_LARGE, SCALE_DOWN, f"{width}x{height} px")
    image.load()
    return image


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 to 8; None where the block cannot be read."""
    exif = image.info.get("exif")
    try:
        found = orientation_in(exif) if isinstance(exif, bytes) else None
        if found is None:  # of a TIFF, or in XMP
            found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a stranger's metadata; nothing in them is worth the image
        return None
    return (found or 1) if isinstance(found, int) and 0 <= found <= 8 else None  # 0: undefined


def orientation_in(exif: bytes) -> int | None:
    """Return the orientation that an EXIF block states, whatever else it holds; None where it states none.

    Pillow gives up on a block with one bad entry, and its ``exif_transpose`` fails where it cannot write one again
    (python-pillow/Pillow issues 4238, 8605, 8965).

    Raises
    ------
    ValueError, struct.error
        If it is no such block, is cut, or the orientation is no whole number.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("no TIFF header")
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (entries,) = struct.unpack_from(f"{order}H", exif, directory)
    for place in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, place)
        if tag == ORIENTATION:
            if kind not in WHOLE_NUMBERS:
                raise ValueError("no whole number")
            return int(struct.unpack_from(order + WHOLE_NUMBERS[kind], exif, place + 8)[0])
    return None


def _parted(jpeg: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG file without EXIF, XMP and the like, and its EXIF block; any other content as it is."""
    if not jpeg.startswith(b"\xff\xd8"):
        return jpeg, b""
    kept, exif, place = [jpeg[:2]], b"", 2
    while jpeg[place : place + 1] == b"\xff" and (marker := jpeg[place + 1 : place + 2]) not in (b"", b"\xda"):
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        segment = jpeg[place:end]
        if not b"\xe1" <= marker <= b"\xed":  # APP0 and APP14 say how the pixels are to be read
            kept.append(segment)
        elif segment[4:].startswith(b"Exif\0\0"):
            exif += segment[4:]
        place = end
    return b"".join([*kept, jpeg[place:]]), exif


def _to_rgb(image: Image.Image, content: bytes, name: str, remark: Callable[[str], None]) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image, dtype=np.int64)
        sbit = _PNG_SBIT.search(content[:1000]) if content.startswith(b"\x89PNG") else None
        eight, depth = to_8_bits(levels, sbit[1][0] if sbit else None)
        if depth < 16:
            remark(DEPTH)
        return Image.fromarray(eight).convert("RGB")
    if image.mode == "F":
        shares = np.asarray(image, dtype=np.float64)
        if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1):
            raise ImageError(name, LeftOut.PIXELS_OUT_OF_RANGE, "save it with 8 or 16 bits", "not in [0, 1]")
        return Image.fromarray(np.round(255 * shares).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def to_8_bits(levels: npt.NDArray[np.int64], stated: int | None = None) -> tuple[npt.NDArray[np.uint8], int]:
    """Scale gray levels that are stored in 16 bits to 8, by the depth that they really have.

    Parameters
    ----------
    levels : numpy.ndarray of int64
        Any shape; below 0 counts as 0, above 65,535 as that.
    stated : int, optional
        Significant bits as a PNG's ``sBIT`` states them; else 8 and 12 are tried.

    Returns
    -------
    levels : numpy.ndarray of uint8
    depth : int
        The least depth tried that holds the largest value, else 16. PNG asks writers to scale values up to all 16 bits
        (W3C PNG, 12.4), and those that do are recognised by their largest value whatever they state.
    """
    inside = np.clip(levels, 0, 65535)
    largest = int(inside.max(initial=0))
    tried = SMALLER_DEPTHS if stated is None else (stated,)
    depth = next((bits for bits in tried if 0 < largest < 2**bits), 16)
    return (inside * 255 // (2**depth - 1)).astype(np.uint8), depth
