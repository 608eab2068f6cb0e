"""What the images themselves give away: near-copies across splits, and groups that come from different sources.

A head that carries the brightness, the sharpness or the size of an image will look as if it carried the group, where
the groups were photographed differently; so will one that carries who labelled an image, where annotators differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageFilter
from scipy.stats.contingency import association

from audit.data.samples import HELD_BACK, UNKNOWN
from audit.filenames import printable
from audit.records import AttributeInfo, DataWarning, DataWarningCode

HASH_SIDE = 8  # a hash has 8 x 8 bits
NEAR_BITS = 3  # images whose hashes differ in so many bits or fewer may be near-copies
THUMB_SIDE = 16  # pixels that these are compared on once more: aligned faces share their hashes, not their features
# Correlation of two such thumbnails of one picture; in 4,346 aligned photographs that of two people was .91 at most.
ALIKE = 0.97
PLAIN_BITS = 6  # an image with fewer set or unset bits has next to no structure, and is like any other such image
STATISTICS_SIDE = 64  # pixels that statistics are taken on
APART = 0.5  # standard deviations: what Cohen (1988) calls a medium difference
GRAY_APART = 0.1  # of the share of gray images
ANNOTATORS_APART = 0.3  # Cramer's V: what Cohen calls medium, for a table of one degree of freedom
LEAST = 30  # images of a group, or of an annotator, that are compared
STATISTICS = ("brightness", "contrast", "sharpness", "pixels")
COLUMNS = (*STATISTICS, "gray", "bits", "thumb")
TINY = 1e-9  # differences that are rounding
CONSTANT_APART = 1e9  # stands for infinitely many standard deviations
Look = Mapping[str, float | int | bytes]
GRAY_LEVELS = 2.0  # mean difference of the channels up to which an image is gray; JPEG adds a little


def look_at(image: Image.Image) -> Look:
    """Return statistics of an image and its difference hash.

    Parameters
    ----------
    image : PIL.Image.Image
        RGB.

    Returns
    -------
    dict
        ``brightness`` and ``contrast`` (0 to 255), ``sharpness`` (spread of the edges), ``pixels`` (logarithm),
        ``gray`` (0 or 1), ``bits`` (64 of them: whether each of 8 x 8 pixels is brighter than its left neighbour),
        ``thumb`` (16 x 16 gray levels).
    """
    small = image.resize((STATISTICS_SIDE, STATISTICS_SIDE), Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.float64)
    luma = small.convert("L")
    levels = np.asarray(luma, dtype=np.float64)
    tiny = np.asarray(luma.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(tiny[:, 1:] > tiny[:, :-1])
    edges = np.asarray(luma.filter(ImageFilter.FIND_EDGES), dtype=np.float64)[1:-1, 1:-1]
    return {
        "brightness": float(levels.mean()),
        "contrast": float(levels.std()),
        "sharpness": float(edges.std()),
        "pixels": float(np.log(image.width * image.height)),
        "gray": int(np.ptp(colours, axis=2).mean() <= GRAY_LEVELS),
        "bits": int.from_bytes(bits.tobytes(), "big"),
        "thumb": luma.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX).tobytes(),
    }


def leak_warnings(
    frame: pd.DataFrame,
    looks: pd.DataFrame,
    digests: pd.Series,
    attributes: Mapping[str, AttributeInfo],
    nuisance: Sequence[str],
) -> list[DataWarning]:
    """Return a warning for each way in which the images may give away more than their group.

    Parameters
    ----------
    frame : pandas.DataFrame
        Samples: ``image``, ``label``, ``split``, the attributes and the nuisance columns.
    looks : pandas.DataFrame
        COLUMNS, by image.
    digests : pandas.Series
        SHA-256 by image: copies to the byte are reported elsewhere.
    attributes : mapping of str to AttributeInfo
    nuisance : sequence of str
        Columns that donors are matched on, such as who labelled the image.
    """
    seen = looks.loc[frame["image"]].set_axis(frame.index)
    copies = list(_near_copies(frame, seen, frame["image"].map(digests)))
    frame = frame[~frame["split"].isin(HELD_BACK)]
    seen = seen.loc[frame.index]
    return [
        *copies,
        *(warning for name, info in attributes.items() for warning in _sources(frame, seen, name, info)),
        *(warning for column in nuisance for warning in _annotators(frame, column)),
    ]


def near_pairs(bits: npt.NDArray[np.uint64]) -> set[tuple[int, int]]:
    """Return the pairs of places whose hashes differ in at most NEAR_BITS bits.

    Of NEAR_BITS + 1 parts of two such hashes one is equal, so only images that share a part are compared.
    """
    structured = [i for i, value in enumerate(bits.tolist()) if PLAIN_BITS <= value.bit_count() <= 64 - PLAIN_BITS]
    width = 64 // (NEAR_BITS + 1)
    found: set[tuple[int, int]] = set()
    for part in range(NEAR_BITS + 1):
        buckets: dict[int, list[int]] = {}
        for i in structured:
            buckets.setdefault(int(bits[i]) >> (part * width) & (1 << width) - 1, []).append(i)
        for members in buckets.values():
            values = bits[members]
            for place, value in enumerate(values):
                distance = np.bitwise_count(values[place + 1 :] ^ value)
                found |= {(members[place], members[place + 1 + k]) for k in np.flatnonzero(distance <= NEAR_BITS)}
    return found


def _alike(a: bytes, b: bytes) -> bool:
    """Compare two thumbnails, brightness and contrast aside."""
    first, second = (np.frombuffer(thumb, dtype=np.uint8).astype(np.float64) for thumb in (a, b))
    spread = float(first.std() * second.std())
    return spread > 0 and float(((first - first.mean()) * (second - second.mean())).mean()) >= ALIKE * spread


def _near_copies(frame: pd.DataFrame, seen: pd.DataFrame, content: pd.Series) -> Iterator[DataWarning]:
    split, subject, digest, thumb = (c.to_numpy() for c in (frame["split"], frame["subject"], content, seen["thumb"]))
    torn = {
        (a, b)
        for a, b in near_pairs(seen["bits"].to_numpy(dtype=np.uint64))
        if split[a] != split[b] and subject[a] != subject[b] and digest[a] != digest[b] and _alike(thumb[a], thumb[b])
    }
    if torn:
        places = sorted({i for pair in torn for i in pair})
        yield DataWarning(
            code=DataWarningCode.NEAR_COPIES,
            images=len(places),
            examples=[printable(key) for key in frame["image"].iloc[list(min(torn))]],
        )


def _sources(frame: pd.DataFrame, seen: pd.DataFrame, name: str, info: AttributeInfo) -> Iterator[DataWarning]:
    """Compare the images of each group with those of the reference."""
    of_group = {g: seen[(frame[name] == g).to_numpy()] for g in info.groups if g != UNKNOWN}
    reference = of_group.pop(info.reference, seen.iloc[:0])
    for group, images in of_group.items():
        if min(len(images), len(reference)) < LEAST:
            continue
        apart = {
            statistic: standardised
            for statistic in STATISTICS
            if abs(standardised := _apart(images[statistic].to_numpy(), reference[statistic].to_numpy())) >= APART
        }
        gray = float(images["gray"].mean() - reference["gray"].mean())
        if abs(gray) >= GRAY_APART:
            apart["gray"] = gray
        if apart:
            yield DataWarning(
                code=DataWarningCode.SOURCES_DIFFER, of=name, names=[group, info.reference], numbers=apart
            )


def _apart(images: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> float:
    """Return how many standard deviations two means are apart; CONSTANT_APART where both are constant and differ."""
    difference = float(images.mean() - reference.mean())
    spread = float(np.sqrt((images.var(ddof=1) + reference.var(ddof=1)) / 2))
    if spread < TINY:
        return 0.0 if abs(difference) < TINY else math.copysign(CONSTANT_APART, difference)
    return difference / spread


def _annotators(frame: pd.DataFrame, column: str) -> Iterator[DataWarning]:
    """Ask whether labels depend on a nuisance column, such as who gave them."""
    known = frame[frame[column] != UNKNOWN]
    counts = pd.crosstab(known[column], known["label"])
    counts = counts[counts.sum(axis=1) >= LEAST]
    counts = counts.loc[:, counts.sum() > 0]
    if min(counts.shape) < 2:
        return
    strength = float(association(counts.to_numpy(), method="cramer"))
    if strength < ANNOTATORS_APART:
        return
    shares = counts.div(counts.sum(axis=1), axis=0)
    label = str((shares.max() - shares.min()).idxmax())
    of_label = shares[label].sort_values()
    yield DataWarning(
        code=DataWarningCode.LABELS_BY_COLUMN,
        of=column,
        names=[label],
        values=[str(of_label.index[0]), str(of_label.index[-1])],
        numbers={"cramers_v": strength, "lowest": float(of_label.iloc[0]), "highest": float(of_label.iloc[-1])},
    )
