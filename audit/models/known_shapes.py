"""Which models have which shapes: a table of every model that can be patched, so that a file is known without them.

To make each of these models and look takes minutes, and timm alone seconds to import: ``benchmarks/known_shapes.py``
does it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]
TABLE = Path(__file__).with_suffix(".json")
# What depends on image size or classes, and what nothing is computed from.
VARIES = re.compile(r"pos_embed$|pos_embedding$|relative_position|num_batches_tracked$|^heads?(_dist)?\.|^fc\.")


@dataclass(frozen=True)
class Known:
    """A model that can be patched, as its name alone makes it."""

    name: str  # as a card has it
    shapes: str  # of its tensors, as :func:`hash_shapes` sums them up
    unit: str
    layers: int
    units: int  # of the first layer
    side: int  # of its images, in pixels
    positions: int  # rows of its table of positions; 0 where it has none
    patch: int  # side of a patch, in pixels; 0 of convolutional networks
    mean: list[float]
    std: list[float]
    interpolation: str
    crop_pct: float

    def side_of(self, positions: int) -> int | None:
        """Return the side of the images of a file with so many positions, or None where they make no square."""
        if not self.positions or positions == self.positions:
            return self.side
        before = self.positions - (self.side // self.patch) ** 2
        grid = round((positions - before) ** 0.5) if positions > before else 0
        return grid * self.patch if grid and grid**2 + before == positions else None


def hash_shapes(shapes: Shapes) -> str:
    """Sum up names and shapes, but for what depends on image size or classes."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in shapes.items() if not VARIES.search(name))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@functools.cache
def known_models() -> tuple[Known, ...]:
    """Return the table."""
    return tuple(Known(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))["models"])
