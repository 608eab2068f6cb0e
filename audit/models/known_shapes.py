"""Which models have which shapes: a table of every model that can be patched, so that a file is known without them.

To make each of these models and look takes minutes, and timm alone seconds to import. ``python -m
audit.models.known_shapes`` writes the table again, for the versions that are installed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


def measure(pattern: str = "*") -> Iterator[Known]:
    """Make models on no device, and yield what the table holds of each."""
    import timm
    import torch
    from torchvision.models import get_model, get_model_weights

    from audit.models.adapters.registry import adapter
    from audit.models.converters.torchvision import read_model, torchvision_names
    from audit.models.supported import refusals

    for name in [name for name, refused in refusals(pattern) if not refused]:
        with torch.device("meta"):
            model = timm.create_model(name)
        body, cfg = adapter(model), model.pretrained_cfg
        tensors = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        yield Known(
            name=name,
            shapes=hash_shapes(tensors),
            unit=body.unit,
            layers=body.depth,
            units=body.units(0),
            side=body.side,
            positions=tensors["pos_embed"][1] if len(tensors.get("pos_embed", ())) == 3 else 0,
            patch=tensors["patch_embed.proj.weight"][-1] if "patch_embed.proj.weight" in tensors else 0,
            mean=list(cfg["mean"]),
            std=list(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_pct=cfg["crop_pct"],
        )
    for name in torchvision_names() if pattern == "*" else ():
        with torch.device("meta"):
            original = get_model(name)
        conversion, seen = read_model(name), get_model_weights(name).DEFAULT.transforms()
        tensors = {key: tuple(tensor.shape) for key, tensor in original.state_dict().items()}
        yield Known(
            name=f"torchvision/{name}",
            shapes=hash_shapes(tensors),
            unit="head",
            layers=conversion.options["depth"],
            units=conversion.options["num_heads"],
            side=conversion.image_size,
            positions=tensors["encoder.pos_embedding"][1],
            patch=conversion.options["patch_size"],
            mean=list(seen.mean),
            std=list(seen.std),
            interpolation=seen.interpolation.value,
            crop_pct=round(seen.crop_size[0] / seen.resize_size[0], 4),
        )


def write_table() -> None:
    """Write the table."""
    import timm
    import torchvision

    versions: dict[str, Any] = {"timm": timm.__version__, "torchvision": torchvision.__version__.split("+")[0]}
    rows = ",\n".join(json.dumps(asdict(known)) for known in measure())
    TABLE.write_text(f'{{"made with": {json.dumps(versions)}, "models": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    write_table()
