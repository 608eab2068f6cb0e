"""Every image opened once: decoded and hashed, unreadable ones set aside and counted."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from audit.data.decode import DEPTH, METADATA, REPAIR, ImageError, remarks_of
from audit.data.leaks import COLUMNS, Look, look_at
from audit.data.samples import EXAMPLES, ImageSource
from audit.data.sources import ByteSource
from audit.errors import DataError
from audit.filenames import printable
from audit.records import DataWarning, DataWarningCode, LeftOut

MAX_QUARANTINED_SHARE = 0.05
REASONS = 5  # named in an error, the commonest first


@dataclass(frozen=True)
class Inspection:
    """What opening every image once has shown.

    Parameters
    ----------
    digests : pandas.Series
        SHA-256 of each readable image's bytes (of its pixels, where the source has no bytes), by key.
    unreadable : pandas.Series
        The ``ImageError`` of each image that cannot be read, by key.
    looks : pandas.DataFrame
        Statistics of each readable image, by key.
    warnings : tuple of DataWarning
        Metadata that were ignored, depths that were inferred from the values.
    """

    digests: pd.Series
    unreadable: pd.Series
    looks: pd.DataFrame
    warnings: tuple[DataWarning, ...]


@dataclass(frozen=True)
class _Seen:
    digest: str
    look: Look
    remarks: tuple[str, ...]


def inspect_images(
    source: ImageSource,
    keys: Sequence[str],
    where: str,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int = 2,
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
        answers: list[_Seen | ImageError] = []
        for done, answer in enumerate(pool.map(lambda key: _seen(source, key), keys), start=1):
            answers.append(answer)
            if progress is not None:
                progress(done)
    good = {key: answer for key, answer in zip(keys, answers, strict=True) if isinstance(answer, _Seen)}
    bad = {key: answer for key, answer in zip(keys, answers, strict=True) if isinstance(answer, ImageError)}
    unreadable = pd.Series(bad, dtype=object)
    _refuse_too_many(unreadable, len(keys), where)
    looks = pd.DataFrame([seen.look for seen in good.values()], index=list(good), columns=list(COLUMNS))
    return Inspection(
        digests=pd.Series({key: seen.digest for key, seen in good.items()}, dtype=object),
        unreadable=unreadable,
        looks=looks.astype({"bits": np.uint64}),
        warnings=tuple(_remark_warnings(good)),
    )


def _seen(source: ImageSource, key: str) -> _Seen | ImageError:
    try:
        if isinstance(source, ByteSource):
            content = source.read(key)
            image = source.decode(key, content)
        else:
            image = _opened(source, key)
            content = f"{image.size}".encode() + image.tobytes()
    except ImageError as error:
        return error
    except DataError as error:  # of somebody else's source
        return ImageError(key, LeftOut.NOT_OPENED, error.fix, error.what)
    return _Seen(hashlib.sha256(content).hexdigest(), look_at(image), remarks_of(image))


def _opened(source: ImageSource, key: str) -> Image.Image:
    """Open an image of somebody else's source, which may raise what it likes."""
    try:
        return source.open(key).convert("RGB")
    except DataError:
        raise
    except Exception as error:
        raise ImageError(key, LeftOut.NOT_OPENED, REPAIR, type(error).__name__) from None


def _remark_warnings(good: Mapping[str, _Seen]) -> Iterator[DataWarning]:
    for remark, code in ((METADATA, DataWarningCode.METADATA_IGNORED), (DEPTH, DataWarningCode.DEPTH_GUESSED)):
        keys = sorted(key for key, seen in good.items() if remark in seen.remarks)
        if keys:
            yield DataWarning(code=code, images=len(keys), examples=[printable(key) for key in keys[:EXAMPLES]])


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


def duplicate_warnings(frame: pd.DataFrame, digests: pd.Series) -> list[DataWarning]:
    """Return a warning where images with the same bytes have several names.

    Parameters
    ----------
    frame : pandas.DataFrame
        With columns ``image``, ``subject`` and ``split``.
    digests : pandas.Series
        SHA-256 of each image, by key.

    Returns
    -------
    list of DataWarning
        Empty, or one whose ``numbers`` say how many have a twin in another split, and of another subject.
    """
    content = frame["image"].map(digests)
    twins = frame[content.duplicated(keep=False)]
    if twins.empty:
        return []
    alike = twins.groupby(content[twins.index])
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


def _refuse_too_many(unreadable: pd.Series, total: int, where: str) -> None:
    if len(unreadable) <= MAX_QUARANTINED_SHARE * total:
        return
    reasons = pd.Series([error.what for error in unreadable], dtype=object).value_counts()
    counts = ", ".join(f"{reason} ({n})" for reason, n in reasons.head(REASONS).items())
    counts += f" and {len(reasons) - REASONS} more reasons" if len(reasons) > REASONS else ""
    examples = ", ".join(printable(str(key)) for key in unreadable.index[:3])
    share = len(unreadable) / total if total else 0.0
    raise DataError(
        where,
        f"{len(unreadable)} of {total} images ({share:.0%}) cannot be read: {counts}; e.g. {examples}",
        f"repair or remove them, or check where they lie; up to {MAX_QUARANTINED_SHARE:.0%} is set aside",
    )
