"""Write the table of known shapes again, for the versions that are installed: ``python -m benchmarks.known_shapes``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import timm
import torch
import torchvision
from torchvision.models import get_model, get_model_weights

from audit.models.adapters.registry import adapter
from audit.models.converters.torchvision import read_model, torchvision_names
from audit.models.known_shapes import TABLE, Known, hash_shapes
from audit.models.supported import refusals


def measure(pattern: str = "*") -> Iterator[Known]:
    """Make models on no device, and yield what the table holds of each."""
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
    versions: dict[str, Any] = {"timm": timm.__version__, "torchvision": torchvision.__version__.split("+")[0]}
    rows = ",\n".join(json.dumps(asdict(known)) for known in measure())
    TABLE.write_text(f'{{"made with": {json.dumps(versions)}, "models": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    write_table()
