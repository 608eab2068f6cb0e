"""What the images themselves give away: near-copies across splits, and groups that come from different sources.

A head that carries the brightness, the sharpness or the size of an image will look as if it carried the group, where
the groups were photographed differently; so will one that carries who labelled an image, where annotators differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

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
COMPARED_AT_MOST = 500_000_000  # pairs of hashes: some ten seconds
PAIRS_AT_ONCE = 1 << 18
FOUND_AT_MOST = 20_000  # pairs whose thumbnails are compared
PLAIN_BITS = 6  # an image with fewer set or unset bits has next to no structure, and is like any other such image
THUMBS_HELD = 4096
STATISTICS_SIDE = 64  # pixels that statistics are taken on
APART = 0.5  # standard deviations: what Cohen (1988) calls a medium difference
GRAY_APART = 0.1  # of the share of gray images
ANNOTATORS_APART = 0.3  # Cramer's V: what Cohen calls medium, for a table of one degree of freedom
LEAST = 30  # images of a group, or of an annotator, that are compared
STATISTICS = ("brightness", "contrast", "sharpness", "pixels")
COLUMNS = (*STATISTICS, "gray", "bits")
TINY = 1e-9  # differences that are rounding
CONSTANT_APART = 1e9  # stands for infinitely many standard deviations
Look = Mapping[str, float | int]
Thumb = Callable[[str], npt.NDArray[np.float64]]
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
        ``gray`` (0 or 1), ``bits`` (64 of them: whether each of 8 x 8 pixels is brighter than its left neighbour).
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
    }


def leak_warnings(
    frame: pd.DataFrame,
    looks: pd.DataFrame,
    content: npt.NDArray[np.int64],
    attributes: Mapping[str, AttributeInfo],
    nuisance: Sequence[str],
    thumb: Thumb,
) -> list[DataWarning]:
    """Return a warning for each way in which the images may give away more than their group.

    Parameters
    ----------
    frame : pandas.DataFrame
        Samples: ``image``, ``label``, ``split``, the attributes and the nuisance columns.
    looks : pandas.DataFrame
        COLUMNS, row by row.
    content : numpy.ndarray of int (N,)
        The same number for images of the same bytes: such copies are reported elsewhere.
    attributes : mapping of str to AttributeInfo
    nuisance : sequence of str
        Columns that donors are matched on, such as who labelled the image.
    thumb : callable
        From an image's key to its ``thumbnail``.
    """
    copies = list(_near_copies(frame, looks["bits"].to_numpy(dtype=np.uint64), content, thumb))
    seen, held_back = looks, frame["split"].isin(HELD_BACK).to_numpy()
    if held_back.any():
        frame, seen = frame[~held_back], looks[~held_back]
    return [
        *copies,
        *(warning for name, info in attributes.items() for warning in _sources(frame, seen, name, info)),
        *(warning for column in nuisance for warning in _annotators(frame, column)),
    ]


@dataclass(frozen=True)
class NearPairs:
    """Pairs of images whose hashes are nearly alike."""

    pairs: set[tuple[int, int]]  # places of the images, the smaller first
    # how many pairs were compared, and how many share a part of their hashes: more than a limit are not compared
    compared: int
    of: int


def near_pairs(
    bits: npt.NDArray[np.uint64],
    differ: Sequence[npt.NDArray[np.integer]] = (),
    *,
    compared_at_most: int = COMPARED_AT_MOST,
    found_at_most: int = FOUND_AT_MOST,
) -> NearPairs:
    """Find the pairs of places whose hashes differ in at most NEAR_BITS bits.

    Of NEAR_BITS + 1 parts of two such hashes one is equal, so only images that share a part are compared. Where many
    images are much alike, so many share one that not all are: the fewer share a part, the sooner they are compared.

    Parameters
    ----------
    bits : numpy.ndarray of uint64 (N,)
    differ : sequence of numpy.ndarray of int (N,)
        Codes in all of which a pair differs.
    compared_at_most, found_at_most : int
        Pairs.
    """
    ones = np.bitwise_count(bits)
    structured = np.flatnonzero((ones >= PLAIN_BITS) & (ones <= 64 - PLAIN_BITS)).astype(np.int32)
    shared = _Shared.of(bits, structured)
    sizes = shared.sizes.astype(np.int64)
    each = sizes * (sizes - 1) // 2
    allowed = int(np.searchsorted(np.cumsum(each), compared_at_most, side="right"))
    found: set[tuple[int, int]] = set()
    compared = 0
    for pairs, of in _near(bits, shared, allowed, differ):
        found |= pairs
        compared += of
        if len(found) > found_at_most:
            break
    return NearPairs(found, compared, int(each.sum()))


@dataclass(frozen=True)
class _Shared:
    """Groups of images whose hashes are equal in one of NEAR_BITS + 1 parts; the smaller come first."""

    places: npt.NDArray[np.int32]  # of images, group after group for each part
    # (G,), where in ``places`` a group begins, and how many are in it, two at least
    starts: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]

    @classmethod
    def of(cls, bits: npt.NDArray[np.uint64], structured: npt.NDArray[np.int32]) -> _Shared:
        """Find the groups among the places ``structured``."""
        width, n = 64 // (NEAR_BITS + 1), len(structured)
        places, starts = np.empty((NEAR_BITS + 1) * n, dtype=np.int32), []
        for part in range(NEAR_BITS + 1):
            codes = (bits[structured] >> np.uint64(part * width) & np.uint64((1 << width) - 1)).astype(np.uint16)
            order = np.argsort(codes, kind="stable").astype(np.int32)
            first = np.ones(n, dtype=bool)
            first[1:] = codes[order[1:]] != codes[order[:-1]]
            places[part * n : (part + 1) * n] = structured[order]
            starts.append((np.flatnonzero(first) + part * n).astype(np.int32))
        begun = np.concatenate(starts)
        sizes = np.diff(begun, append=np.int32(len(places)))
        several = np.flatnonzero(sizes > 1).astype(np.int32)
        several = several[np.argsort(sizes[several], kind="stable")]
        return cls(places, begun[several], sizes[several])

    def alike_in_size(self, groups: int) -> Iterator[range]:
        """Yield the first groups in order, such as are of one size together, but not too many at once."""
        ends = [*(np.flatnonzero(np.diff(self.sizes[:groups])) + 1), groups] if groups else []
        for start, end in pairwise([0, *map(int, ends)]):
            step = max(1, PAIRS_AT_ONCE // int(self.sizes[start]) ** 2)
            yield from (range(first, min(first + step, end)) for first in range(start, end, step))

    def members(self, groups: range) -> npt.NDArray[np.int32]:
        """Return the places (groups, size) of groups of one size."""
        size = int(self.sizes[groups.start])
        found: npt.NDArray[np.int32] = self.places[self.starts[groups.start : groups.stop, None] + np.arange(size)]
        return found


def _near(
    bits: npt.NDArray[np.uint64], shared: _Shared, groups: int, differ: Sequence[npt.NDArray[np.integer]]
) -> Iterator[tuple[set[tuple[int, int]], int]]:
    """Yield the near pairs of the first groups, group after group, and among how many they were found.

    Of a large group a part is yielded for each image, which is compared with those after it.
    """
    for some in shared.alike_in_size(groups):
        members = shared.members(some)
        size = members.shape[1]
        pairs: list[set[tuple[int, int]]] = [set() for _ in some]
        for place in range(size - 1):
            first, rest = members[:, place, None], members[:, place + 1 :]
            near = np.bitwise_count(bits[rest] ^ bits[first]) <= NEAR_BITS
            if near.any():
                for codes in differ:
                    near &= codes[rest] != codes[first]
                for group, other in zip(*np.nonzero(near), strict=True):
                    pairs[group].add((int(first[group, 0]), int(rest[group, other])))
            if len(some) == 1:
                yield pairs[0], size - 1 - place
                pairs = [set()]
        if len(some) > 1:
            yield from ((found, size * (size - 1) // 2) for found in pairs)


def thumbnail(image: Image.Image) -> npt.NDArray[np.float64]:
    """Return 16 x 16 gray levels of an RGB image."""
    small = image.resize((STATISTICS_SIDE, STATISTICS_SIDE), Image.Resampling.BOX).convert("L")
    return np.asarray(small.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX), dtype=np.float64)


def _alike(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> bool:
    """Compare two thumbnails, brightness and contrast aside."""
    spread = float(first.std() * second.std())
    return spread > 0 and float(((first - first.mean()) * (second - second.mean())).mean()) >= ALIKE * spread


def _near_copies(
    frame: pd.DataFrame, bits: npt.NDArray[np.uint64], content: npt.NDArray[np.int64], thumb: Thumb
) -> Iterator[DataWarning]:
    """Look for near-copies; the pairs that may be some are opened once more."""
    differ: list[npt.NDArray[np.integer]] = [content]
    differ += [pd.factorize(frame[column])[0].astype(np.int32) for column in ("split", "subject")]
    near = near_pairs(bits, differ)
    keys, again = frame["image"], lru_cache(THUMBS_HELD)(thumb)
    torn = {(a, b) for a, b in sorted(near.pairs) if _alike(again(keys.iloc[a]), again(keys.iloc[b]))}
    if torn:
        places = sorted({i for pair in torn for i in pair})
        yield DataWarning(
            code=DataWarningCode.NEAR_COPIES,
            images=len(places),
            examples=[printable(key) for key in keys.iloc[list(min(torn))]],
        )
    if near.compared < near.of:
        yield DataWarning(
            code=DataWarningCode.NEAR_COPIES_LIMITED,
            images=len(frame),
            numbers={"compared": float(near.compared), "of": float(near.of)},
        )


def _sources(frame: pd.DataFrame, seen: pd.DataFrame, name: str, info: AttributeInfo) -> Iterator[DataWarning]:
    """Compare the images of each group with those of the reference."""
    of_group = {g: (frame[name] == g).to_numpy() for g in info.groups if g != UNKNOWN}
    reference = of_group.pop(info.reference, np.zeros(len(frame), dtype=bool))
    values = {statistic: seen[statistic].to_numpy() for statistic in (*STATISTICS, "gray")}
    for group, own in of_group.items():
        if min(own.sum(), reference.sum()) < LEAST:
            continue
        apart = {
            statistic: standardised
            for statistic in STATISTICS
            if abs(standardised := _apart(values[statistic][own], values[statistic][reference])) >= APART
        }
        gray = float(values["gray"][own].mean() - values["gray"][reference].mean())
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
