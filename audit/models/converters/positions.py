"""Tables of positions at another image size, resampled as the library that a checkpoint comes from does it."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch.nn import functional as F

SPECIAL = 3  # entries of BEiT's table that are no distances: class to patch, patch to class, class to itself


def resample_positions(
    positions: torch.Tensor, tokens: int, grid: tuple[int, int], *, antialias: bool, align_corners: bool
) -> torch.Tensor:
    """Return positions (1, tokens, width) of a square grid of patches, after those of prefix tokens, for another grid.

    Parameters
    ----------
    positions : torch.Tensor (1, N, width)
    tokens : int
        How many the model has.
    grid : tuple of int
        Rows and columns of its patches.
    antialias, align_corners : bool
        As ``torch.nn.functional.interpolate`` has them.
    """
    prefix = tokens - grid[0] * grid[1]
    first, patches = positions[:, :prefix], positions[:, prefix:]
    side = isqrt(patches.shape[1])
    if patches.shape[1] != side * side or positions.shape[1] == tokens:
        return positions  # what does not fit is found by whoever loads it
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=align_corners, antialias=antialias)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], dim=1)


def resample_distances(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return BEiT's biases by distance (distances and 3, heads) of a square grid for another grid of patches."""
    rows, columns = (2 * side - 1 for side in grid)
    side = isqrt(len(table) - SPECIAL)
    if len(table) == rows * columns + SPECIAL or side * side != len(table) - SPECIAL:
        return table
    image = table[:-SPECIAL].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([image.permute(0, 2, 3, 1).flatten(0, 2), table[-SPECIAL:]])


def resampled(state: dict[str, torch.Tensor], model: Any, *, antialias: bool, align_corners: bool) -> None:
    """Resample, in place, what a state dict under timm's names says of the places of a transformer's patches."""
    grid = tuple(getattr(getattr(model, "patch_embed", None), "grid_size", None) or ())
    wanted = model.state_dict()
    if "pos_embed" in state and "pos_embed" in wanted:
        tokens = wanted["pos_embed"].shape[1]
        state["pos_embed"] = resample_positions(
            state["pos_embed"], tokens, grid, antialias=antialias, align_corners=align_corners
        )
    for name, table in state.items():
        if name.endswith("relative_position_bias_table") and (name.startswith("rel_pos") or name[:6] == "blocks"):
            state[name] = resample_distances(table, grid)
