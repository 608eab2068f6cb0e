"""Regions of an image by which a map of its patches is told in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAMES = {2: (("top", "bottom"), ("left", "right")), 3: (("top", "middle", "bottom"), ("left", "centre", "right"))}


def region_shares(weights: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return what share of a head's attention falls on each region, row by row; no patch is in two of them.

    Three by three regions where the grid of patches divides so, two by two where it divides by two only.
    """
    grid = np.array(weights, dtype=np.float64)
    parts = _parts(grid.shape[0])
    rows = np.array_split(grid, parts, axis=0)
    return [[float(part.sum()) for part in np.array_split(row, parts, axis=1)] for row in rows]


def region_names(weights: Sequence[Sequence[float]]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of the rows and of the columns of regions."""
    return NAMES[_parts(len(weights))]


def largest_region(weights: Sequence[Sequence[float]]) -> tuple[float, str, str]:
    """Return the largest sum over a region of the image, either way, and the region's row and column."""
    down, across = region_names(weights)
    places = [(abs(v), -i, -j, v) for i, row in enumerate(region_shares(weights)) for j, v in enumerate(row)]
    _, i, j, value = max(places)
    return value, down[-i], across[-j]


def _parts(side: int) -> int:
    return 2 if side % 3 and side % 2 == 0 else 3
