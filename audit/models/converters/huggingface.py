"""A Hugging Face folder: its configuration, what its outputs mean, and how its images are made."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audit.errors import ModelError
from audit.models.converters.conversion import Conversion
from audit.models.converters.kinds import KINDS
from audit.models.converters.timm_folder import KIND, is_timm_folder, read_timm

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
BYTES = 255.0  # pixels are divided by it before they are normalised


def read_folder(folder: Path) -> Conversion:
    """Return how the model of a folder is converted.

    Raises
    ------
    ModelError
        If it is of a kind that cannot be converted, its outputs do not exclude each other, or a file is damaged.
    """
    config = _json(folder / CONFIG)
    processor = _json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    found = _of_kind(config, str(folder / CONFIG))
    mean, std = _normalisation(processor, str(folder / PROCESSOR))
    mean, std = mean or found.mean, std or found.std
    return dataclasses.replace(found, classes=_labels(config), mean=mean, std=std, squashes=_squashes(processor))


def _of_kind(config: Mapping[str, Any], where: str) -> Conversion:
    timm = is_timm_folder(config)
    kind = KIND if timm else str(config.get("model_type", ""))
    if kind not in KINDS and not timm:
        supported = f"supported: {', '.join((*KINDS, KIND))}"
        raise ModelError(where, f"model_type '{kind}' cannot be converted", supported)
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        fix = "audit a model with a softmax over its classes"
        raise ModelError(where, f"problem_type '{problem}': its outputs are not classes that exclude each other", fix)
    try:
        if timm:
            return read_timm(config)
        return KINDS[kind]({**config, **(config.get("vision_config") or {})})
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"is not the configuration of a {kind} model ({type(error).__name__}: {error})"
        raise ModelError(where, what, "restore the file that was saved with the weights") from None


def find_weights(folder: Path) -> Path:
    """Return the file of a folder that holds its tensors.

    Raises
    ------
    ModelError
        If there is none.
    """
    there = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if there is None:
        raise ModelError(str(folder), "holds no weights", f"put {' or '.join(WEIGHTS)} there, in one file")
    return there


def kept_configuration(folder: Path) -> dict[str, bytes]:
    """Return what a run keeps of a folder, so that its model can be built again: files by name.

    Private entries, such as the path that the model was once loaded from, are left out.
    """
    kept = {}
    for name in (CONFIG, PROCESSOR):
        if name == CONFIG or (folder / name).is_file():
            public = {key: value for key, value in _json(folder / name).items() if not key.startswith("_")}
            kept[name] = (json.dumps(public, indent=1) + "\n").encode()
    return kept


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(str(path), "no such file", "name a folder that save_pretrained wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read as JSON ({type(error).__name__})"
        raise ModelError(str(path), what, "restore the file") from None
    if not isinstance(content, dict):
        raise ModelError(str(path), "holds no mapping", "restore the file")
    return content


def _labels(config: Mapping[str, Any]) -> list[str] | None:
    """Return what the outputs mean, where the configuration names all of them."""
    named = config.get("id2label")
    listed = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if named is None and isinstance(listed, list):
        return [str(label) for label in listed]
    if not isinstance(named, dict) or not all(str(k).isdecimal() for k in named):
        return None
    by_number = {int(k): str(v) for k, v in named.items()}
    return [by_number[i] for i in range(len(by_number))] if set(by_number) == set(range(len(by_number))) else None


def _normalisation(processor: Mapping[str, Any], where: str) -> tuple[tuple[float, ...] | None, ...]:
    """Return mean and scale of pixels between 0 and 1; processors may scale them otherwise before they normalise.

    ``(f p - m) / s`` of bytes p equals ``(p / 255 - m / (255 f)) / (s / (255 f))``.
    """
    if not processor:
        return None, None
    factor = processor.get("rescale_factor", 1 / BYTES) if processor.get("do_rescale", True) else 1.0
    normalises = processor.get("do_normalize", True)
    given = [processor.get(f"image_{n}") if normalises else [d] * 3 for n, d in (("mean", 0.0), ("std", 1.0))]
    try:
        scale = BYTES * float(factor)
        scale = 1.0 if math.isclose(scale, 1.0) else scale
        mean, std = (
            None if v is None else tuple(float(x) / scale for x in (v if isinstance(v, list) else [v] * 3))
            for v in given
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        what = f"does not say how pixels are normalised ({type(error).__name__}: {error})"
        raise ModelError(where, what, "restore the file that was saved with the weights") from None
    if any(v is not None and len(v) != 3 for v in (mean, std)) or (std is not None and min(std) <= 0):
        raise ModelError(where, "image_mean and image_std are not three numbers each", "restore the file")
    return mean, std


def _squashes(processor: Mapping[str, Any]) -> bool:
    """Tell whether images are resized to one size whatever their shape, rather than cropped to a square."""
    size = processor.get("size")
    if not processor.get("do_resize", True) or size is None:
        return False
    if isinstance(size, Mapping):
        return "height" in size and "width" in size
    return not processor.get("do_center_crop", False)
