"""Image files: decoded safely, unreadable ones set aside and counted, all of them hashed."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

import numpy as np
import pandas as pd
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from audit.data.leaks import COLUMNS, Look, look_at
from audit.errors import DataError
from audit.records import ExcludedRow

MIN_SIDE_PX = 8
MAX_PIXELS = 50_000_000  # a larger image is a mistake or a decompression bomb
MAX_QUARANTINED_SHARE = 0.05
# Formats that Pillow decodes by itself; others (EPS, for one) would start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_REPAIR = "repair or remove it"


class ByteSource(Protocol):
    """An image source that can also say which bytes stand behind a key."""

    def read(self, key: str) -> bytes:
        """Return the stored bytes of an image; raise ``DataError`` where there are none."""
        ...

    def open(self, key: str) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where it cannot be read."""
        ...

    def decode(self, key: str, content: bytes) -> Image.Image:
        """Return the image that ``content`` holds as RGB; raise ``DataError`` where it cannot be read."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Images that lie as files under one folder.

    Parameters
    ----------
    root : pathlib.Path
        Keys are relative to it, with forward slashes.
    links : bool
        Follow links that lead out of the root.
    """

    root: Path
    links: bool = False

    def read(self, key: str) -> bytes:
        """Return the bytes of the file; raise ``DataError`` where it is missing or outside the root."""
        try:
            file = (self.root / safe_key(key, str(self.root))).resolve()
            if not self.links and not file.is_relative_to(self.root.resolve()):
                raise DataError(key, "is a link that leads out of its folder", "copy the file, or set data.links: true")
            return file.read_bytes()
        except FileNotFoundError:
            raise DataError(key, "missing file", "check the path, relative to the table") from None
        except (OSError, RuntimeError) as error:  # the latter of links that lead in a circle
            what = getattr(error, "strerror", None) or "links in a circle"
            raise DataError(key, f"cannot be opened ({what})", _REPAIR) from None

    def decode(self, key: str, content: bytes) -> Image.Image:
        """Return the file's content as an upright RGB image; raise ``DataError`` where it is none."""
        return decode_image(key, content)

    def open(self, key: str) -> Image.Image:
        """Return the image as RGB; raise ``DataError`` where it cannot be read."""
        return self.decode(key, self.read(key))


def safe_key(value: str, where: str) -> str:
    """Return an image path in its one spelling: relative, forward slashes, no ``.``.

    Parameters
    ----------
    value : str
        As it stands in the table.
    where : str
        The table, for the message.

    Returns
    -------
    str

    Raises
    ------
    DataError
        If the path is absolute, is an address, or climbs out of its folder.
    """
    if "\0" in value:
        raise DataError(where, f"image '{value}' holds a zero byte", "correct the path")
    path = PurePosixPath(value.replace("\\", "/"))
    absolute = path.is_absolute() or bool(PureWindowsPath(value).drive) or "://" in value
    if absolute or ".." in path.parts:
        what = "is not relative to the table" if absolute else "climbs out of its folder"
        raise DataError(where, f"image path '{value}' {what}", "write paths relative to the table's folder")
    return path.as_posix()


def decode_image(name: str, content: bytes) -> Image.Image:
    """Decode an image file of any mode to RGB.

    Parameters
    ----------
    name : str
        For the message.
    content : bytes
        The file.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, turned upright by its EXIF orientation, transparency laid on white, 16 bits scaled to 8.

    Raises
    ------
    DataError
        If it is no image, is damaged, smaller than 8 px on a side or larger than 50 million pixels.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # importing WeasyPrint turns this on for the whole process
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if min(width, height) < MIN_SIDE_PX:
            what = f"{width}x{height} px is under {MIN_SIDE_PX} px on a side"
            raise DataError(name, what, "give a larger image or remove it")
        if width * height > MAX_PIXELS:
            raise DataError(name, f"over {MAX_PIXELS:,} pixels", "scale it down or remove it")
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except UnidentifiedImageError:
        raise DataError(name, "not an image", _REPAIR) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(name, f"over {MAX_PIXELS:,} pixels", "scale it down or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, ZeroDivisionError):
        # what Pillow's decoders raise on damaged files
        raise DataError(name, "damaged or truncated image", _REPAIR) from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, in 16 or 32 bits a pixel
        levels = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(name, "floating-point pixels have no stated range", "save it with 8 or 16 bits")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


Seen = tuple[str, Look]  # SHA-256 and statistics of an image


@dataclass(frozen=True)
class Inspection:
    """What opening every image once has shown.

    Parameters
    ----------
    digests : pandas.Series
        SHA-256 of each readable image's bytes, by key.
    quarantined : tuple of ExcludedRow
        One row a reason.
    looks : pandas.DataFrame
        Statistics of each readable image, by key.
    """

    digests: pd.Series
    quarantined: tuple[ExcludedRow, ...]
    looks: pd.DataFrame


def inspect_images(
    source: ByteSource,
    keys: Sequence[str],
    where: str,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int = 2,
) -> Inspection:
    """Open every image once: decode it, hash its bytes, and set aside what cannot be read.

    Parameters
    ----------
    source : ByteSource
        Where the images lie.
    keys : sequence of str
        Each once.
    where : str
        The table or folder, for the message.
    progress : callable, optional
        Called with the number of images done.
    workers : int
        Threads; Pillow decodes outside Python's lock.

    Returns
    -------
    Inspection

    Raises
    ------
    DataError
        If more than 5% cannot be read, or none is left.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # remarks on metadata; bombs are refused by size
        answers: list[Seen | DataError] = []
        for done, answer in enumerate(pool.map(lambda key: _digest(source, key), keys), start=1):
            answers.append(answer)
            if progress is not None:
                progress(done)
    bad = [(key, answer) for key, answer in zip(keys, answers, strict=True) if isinstance(answer, DataError)]
    _refuse_too_many(bad, len(keys), where)
    good = {key: answer for key, answer in zip(keys, answers, strict=True) if not isinstance(answer, DataError)}
    digests = pd.Series({key: digest for key, (digest, _) in good.items()}, dtype=object)
    looks = pd.DataFrame([look for _, look in good.values()], index=list(good), columns=list(COLUMNS))
    return Inspection(digests, tuple(_by_reason(bad)), looks.astype({"bits": np.uint64}))


def fingerprint(frame: pd.DataFrame, digests: pd.Series) -> str:
    """Return the SHA-256 over a table of samples and the bytes of its images.

    Parameters
    ----------
    frame : pandas.DataFrame
        With a column ``image``; sorted by it.
    digests : pandas.Series
        SHA-256 of each image, by key.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    table = frame.assign(sha256=frame["image"].map(digests)).to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(table.encode()).hexdigest()


def duplicate_warnings(frame: pd.DataFrame, digests: pd.Series) -> list[str]:
    """Return a warning where images with the same bytes stand under several names.

    Parameters
    ----------
    frame : pandas.DataFrame
        With columns ``image`` and ``split``.
    digests : pandas.Series
        SHA-256 of each image, by key.

    Returns
    -------
    list of str
        Empty, or one sentence with counts.
    """
    content = frame["image"].map(digests)
    twins = frame[content.duplicated(keep=False)]
    if twins.empty:
        return []
    across = twins.groupby(content[twins.index])["split"].transform("nunique") > 1
    torn = int(across.sum())
    means = (
        "what was trained on or found on one is no test on the other"
        if torn
        else "where they have several subjects, each counts as a person of its own, and intervals are too narrow"
    )
    found = f"{len(twins)} images are byte-identical to another one; {torn} have a twin in another split"
    return [f"{found}: {means}; give copies one subject"]


def _digest(source: ByteSource, key: str) -> Seen | DataError:
    try:
        content = source.read(key)
        look = look_at(source.decode(key, content))
    except DataError as error:
        return error
    return hashlib.sha256(content).hexdigest(), look


def _by_reason(bad: Sequence[tuple[str, DataError]]) -> list[ExcludedRow]:
    reasons: dict[str, list[str]] = {}
    for key, error in bad:
        reasons.setdefault(error.what, []).append(key)
    return [
        ExcludedRow(reason=reason, images=len(keys), examples=sorted(keys)) for reason, keys in sorted(reasons.items())
    ]


def _refuse_too_many(bad: Sequence[tuple[str, DataError]], total: int, where: str) -> None:
    if len(bad) <= MAX_QUARANTINED_SHARE * total:
        return
    counts = ", ".join(f"{row.reason} ({row.images})" for row in _by_reason(bad))
    examples = ", ".join(key for key, _ in bad[:3])
    raise DataError(
        where,
        f"{len(bad)} of {total} images ({len(bad) / total:.0%}) cannot be read: {counts}; e.g. {examples}",
        f"repair or remove them, or check where they lie; up to {MAX_QUARANTINED_SHARE:.0%} is set aside",
    )
