"""Every image opened once: decoded and hashed, unreadable ones set aside and counted."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from audit.batching import batches
from audit.data.decode import (
    CUT,
    DEPTH,
    EXIF,
    METADATA,
    REPAIR,
    TRANSPARENT,
    ImageError,
    Opening,
    check_side,
    remarks_of,
)
from audit.data.leaks import COLUMNS, Look, look_at
from audit.data.samples import EXAMPLES, ImageSource
from audit.data.sources import ByteSource
from audit.errors import DataError
from audit.filenames import printable
from audit.records import DataWarning, DataWarningCode, LeftOut

MAX_QUARANTINED_SHARE = 0.05
AT_ONCE = 1024  # images that are waited for
AT_LEAST = 2  # images that are opened side by side
ROWS_AT_ONCE = 1 << 13  # of a table that is hashed
DIGEST_BYTES = 32
REASONS = 5  # named in an error, the commonest first
Digests = npt.NDArray[np.uint8]  # (N, DIGEST_BYTES)


@dataclass(frozen=True)
class Inspection:
    """What opening every image once has shown.

    Parameters
    ----------
    readable : numpy.ndarray of bool (N,)
        Which images can be read.
    digests : numpy.ndarray of uint8 (R, 32)
        SHA-256 of each readable image's bytes (of its pixels, where the source has no bytes), in their order.
    unreadable : mapping of str to ImageError
        Why an image cannot be read, by key.
    looks : pandas.DataFrame
        Statistics of each readable image, in their order; 0 of those that were not decoded.
    warnings : tuple of DataWarning
        What was decided on opening: metadata ignored, images turned or not, transparency and depth.
    """

    readable: npt.NDArray[np.bool_]
    digests: Digests
    unreadable: Mapping[str, ImageError]
    looks: pd.DataFrame
    warnings: tuple[DataWarning, ...]


@dataclass(frozen=True)
class _Seen:
    digest: bytes
    look: Look | None  # None where it was not decoded
    remarks: tuple[str, ...]


def inspect_images(
    source: ImageSource,
    keys: Sequence[str],
    where: str,
    *,
    opening: Opening = Opening.CAREFUL,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    unread_before: frozenset[str] | None = None,
) -> Inspection:
    """Open every image once: decode it, hash it, and set aside what cannot be read.

    Parameters
    ----------
    source : ImageSource
        Where the images lie.
    keys : sequence of str
        Each once.
    where : str
        The table or folder, for the message.
    opening : Opening
        How files become RGB.
    progress : callable, optional
        Called with the number of images done.
    workers : int, optional
        Threads; Pillow decodes outside Python's lock. By default as many as suit the source.
    unread_before : frozenset of str, optional
        Printable names of the images that a finished run could not read. Of all others, which it has looked at, the
        bytes are hashed and nothing is decoded.

    Returns
    -------
    Inspection

    Raises
    ------
    DataError
        If more than 5% cannot be read, or none is left.
    """
    found, side_by_side = _Found.of(len(keys)), source.at_once if isinstance(source, ByteSource) else AT_LEAST
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or side_by_side) as pool:
        warnings.simplefilter("ignore")  # remarks on metadata; bombs are refused by size
        for part in batches(len(keys), AT_ONCE):
            answers = pool.map(lambda key: _seen(source, key, opening, unread_before), keys[part])
            for place, answer in enumerate(answers, part.start):
                found.take(place, keys[place], answer)
                if progress is not None:
                    progress(place + 1)
    _refuse_too_many(found.bad, len(keys), where)
    return Inspection(
        readable=found.readable,
        digests=_of(found.readable, found.digests),
        unreadable=found.bad,
        looks=pd.DataFrame(_of(found.readable, found.looks), columns=COLUMNS[:-1], copy=False).assign(
            bits=_of(found.readable, found.bits)
        ),
        warnings=tuple(_remark_warnings(found.remarks, opening)),
    )


@dataclass(frozen=True)
class _Found:
    """What opening images has shown so far, by place; of a million images 80 megabytes."""

    readable: npt.NDArray[np.bool_]
    digests: Digests
    looks: npt.NDArray[np.float64]
    bits: npt.NDArray[np.uint64]
    bad: dict[str, ImageError] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)  # keys by remark

    @staticmethod
    def of(n: int) -> _Found:
        """Make room for so many images."""
        return _Found(
            np.zeros(n, dtype=bool),
            np.zeros((n, DIGEST_BYTES), dtype=np.uint8),
            np.zeros((n, len(COLUMNS) - 1)),
            np.zeros(n, dtype=np.uint64),
        )

    def take(self, place: int, key: str, answer: _Seen | ImageError) -> None:
        """Note what an image has shown."""
        if isinstance(answer, ImageError):
            self.bad[key] = answer
            return
        self.readable[place] = True
        self.digests[place] = np.frombuffer(answer.digest, dtype=np.uint8)
        if answer.look is not None:
            self.looks[place] = [answer.look[name] for name in COLUMNS[:-1]]
            self.bits[place] = int(answer.look["bits"])
        for remark in answer.remarks:
            self.remarks.setdefault(remark, []).append(key)


def _of(which: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return some of the values; without a copy where these are all."""
    return values if which.all() else values[which]


def _seen(source: ImageSource, key: str, opening: Opening, unread_before: frozenset[str] | None) -> _Seen | ImageError:
    try:
        if isinstance(source, ByteSource):
            content = source.read(key)
            if unread_before is not None and printable(key) not in unread_before:
                return _Seen(hashlib.sha256(content).digest(), None, ())
            image = source.decode(key, content, opening)
        else:
            image = _opened(source, key)
            content = f"{image.size}".encode() + image.tobytes()
        check_side(key, image)
    except ImageError as error:
        return error
    except DataError as error:  # of somebody else's source
        return ImageError(key, LeftOut.NOT_OPENED, error.fix, error.what)
    return _Seen(hashlib.sha256(content).digest(), look_at(image), remarks_of(image))


def _opened(source: ImageSource, key: str) -> Image.Image:
    """Open an image of somebody else's source, which may raise what it likes."""
    try:
        return source.open(key).convert("RGB")
    except DataError:
        raise
    except Exception as error:
        raise ImageError(key, LeftOut.NOT_OPENED, REPAIR, type(error).__name__) from None


def _remark_warnings(remarks: Mapping[str, list[str]], opening: Opening) -> Iterator[DataWarning]:
    as_stored = opening == Opening.AS_STORED
    codes = {
        METADATA: DataWarningCode.METADATA_IGNORED,
        DEPTH: DataWarningCode.DEPTH_GUESSED,
        EXIF: DataWarningCode.EXIF_AS_STORED if as_stored else DataWarningCode.EXIF_APPLIED,
        TRANSPARENT: DataWarningCode.TRANSPARENCY_DROPPED,
        CUT: DataWarningCode.DEPTH_CUT,
    }
    for remark, code in codes.items():
        keys = sorted(remarks.get(remark, ()))
        if keys:
            yield DataWarning(code=code, images=len(keys), examples=[printable(key) for key in keys[:EXAMPLES]])


def no_digests() -> Digests:
    """Return what stands for the digests of images where none was opened."""
    return np.zeros((0, DIGEST_BYTES), dtype=np.uint8)


def fingerprint(frame: pd.DataFrame, digests: Digests) -> str:
    """Return the SHA-256 over a table of samples and the bytes of its images.

    Parameters
    ----------
    frame : pandas.DataFrame
        With a column ``image``; sorted by it.
    digests : numpy.ndarray of uint8 (N, 32)
        SHA-256 of each image, row by row; of no length where none was opened.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in batches(max(1, len(frame)), ROWS_AT_ONCE):
        content = [row.tobytes().hex() for row in digests[part]] if len(digests) else ""
        table = frame.iloc[part].assign(sha256=content)
        digest.update(table.to_csv(index=False, lineterminator="\n", header=part.start == 0).encode())
    return digest.hexdigest()


def same_content(digests: Digests) -> npt.NDArray[np.int64]:
    """Return a number (N,) for each image, the same for images of the same bytes."""
    rows = np.ascontiguousarray(digests)
    begun, number, times = np.unique(rows[:, :8].copy().view("<u8")[:, 0], return_inverse=True, return_counts=True)
    alike = np.flatnonzero(times[number] > 1)  # they begin alike: few, and looked at whole
    number = number.astype(np.int64)
    number[alike] = len(begun) + np.unique(rows[alike].view(f"S{DIGEST_BYTES}"), return_inverse=True)[1].reshape(-1)
    return number


def duplicate_warnings(frame: pd.DataFrame, content: npt.NDArray[np.int64]) -> list[DataWarning]:
    """Return a warning where images with the same bytes have several names.

    Parameters
    ----------
    frame : pandas.DataFrame
        With columns ``image``, ``subject`` and ``split``.
    content : numpy.ndarray of int (N,)
        As ``same_content`` gives it.

    Returns
    -------
    list of DataWarning
        Empty, or one whose ``numbers`` say how many have a twin in another split, and of another subject.
    """
    several = np.bincount(content, minlength=1)[content] > 1
    if not several.any():
        return []
    twins = frame[several]
    alike = twins.groupby(content[several])
    torn = {f"several {c}s": float((alike[c].transform("nunique") > 1).sum()) for c in ("split", "subject")}
    return [
        DataWarning(
            code=DataWarningCode.IDENTICAL_IMAGES,
            images=len(twins),
            total=len(frame),
            examples=[printable(key) for key in twins["image"].head(EXAMPLES)],
            numbers={"different": float(alike.ngroups), **torn},
        )
    ]


def _refuse_too_many(unreadable: Mapping[str, ImageError], total: int, where: str) -> None:
    if len(unreadable) <= MAX_QUARANTINED_SHARE * total:
        return
    reasons = pd.Series([error.what for error in unreadable.values()], dtype=object).value_counts()
    counts = ", ".join(f"{reason} ({n})" for reason, n in reasons.head(REASONS).items())
    counts += f" and {len(reasons) - REASONS} more reasons" if len(reasons) > REASONS else ""
    examples = ", ".join(map(printable, list(unreadable)[:3]))
    share = len(unreadable) / total if total else 0.0
    raise DataError(
        where,
        f"{len(unreadable)} of {total} images ({share:.0%}) cannot be read: {counts}; e.g. {examples}",
        f"repair or remove them, or check where they lie; up to {MAX_QUARANTINED_SHARE:.0%} is set aside",
    )
