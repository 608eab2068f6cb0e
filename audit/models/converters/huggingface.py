"""A Hugging Face folder: its configuration, what its outputs mean, and how its images are made."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audit.card.schema import Output
from audit.errors import ModelError
from audit.models.containers import find_in_folder
from audit.models.converters.conversion import Conversion
from audit.models.converters.kinds import DEFAULTS, KINDS
from audit.models.converters.processors import (
    CONFIG,
    PROCESSORS,
    folder_of,
    processor_file,
    processor_settings,
    read_json,
)
from audit.models.converters.timm_folder import KIND, is_timm_folder, read_timm

BYTES = 255.0  # pixels are divided by it before they are normalised


def read_folder(folder: Path) -> Conversion:
    """Return how the model of a folder, or of that which a file is in, is converted.

    Raises
    ------
    ModelError
        If it is of a kind that cannot be converted, its outputs are no classes, or a file is damaged.
    """
    folder = folder_of(folder)
    config = read_json(folder / CONFIG)
    found = _of_kind(config, str(folder / CONFIG))
    file = processor_file(folder)
    processor = {} if file is None or is_timm_folder(config) else processor_settings(file)
    mean, std = _normalisation(processor, str(file))
    mean, std = mean or found.mean, std or found.std
    side = side_of(processor) or found.image_size  # published DINOv2: 224 against the 518 it was trained at
    found = dataclasses.replace(found, output=_output(config, str(folder / CONFIG)))
    return dataclasses.replace(found, classes=_labels(config), mean=mean, std=std, image_size=side)


def _of_kind(config: Mapping[str, Any], where: str) -> Conversion:
    timm = is_timm_folder(config)
    kind = KIND if timm else str(config.get("model_type", ""))
    if kind not in KINDS and not timm:
        supported = f"supported: {', '.join((*KINDS, KIND))}"
        raise ModelError(where, f"model_type '{kind}' cannot be converted", supported)
    try:
        if timm:
            return read_timm(config)
        return KINDS[kind](_settings(kind, config))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"is not the configuration of a {kind} model ({type(error).__name__}: {error})"
        raise ModelError(where, what, "restore the file that was saved with the weights") from None


def _settings(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the image tower; how wide a space it shares with texts, the whole model says."""
    whole = {key: config[key] for key in ("architectures", "projection_dim") if key in config}
    return {**DEFAULTS.get(kind, {}), **config, **(config.get("vision_config") or {}), **whole}


def _output(config: Mapping[str, Any], where: str) -> Output:
    """Return how the library itself reads the outputs."""
    problem = config.get("problem_type") or "single_label_classification"
    outputs: dict[str, Output] = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
    if problem not in outputs:
        raise ModelError(where, f"problem_type '{problem}': its outputs are no classes", "audit a classifier")
    return outputs[problem]


def find_weights(folder: Path) -> Path:
    """Return what of a folder holds its tensors: a file, or the index of several.

    Raises
    ------
    ModelError
        If there is none.
    """
    return find_in_folder(folder) if folder.is_dir() else folder


def kept_configuration(folder: Path) -> dict[str, bytes]:
    """Return what a run keeps of a folder, so that its model can be built again: files by name.

    Private entries, such as the path that the model was once loaded from, are left out.
    """
    folder = folder_of(folder)
    there = [CONFIG, *(name for name in PROCESSORS if (folder / name).is_file())]
    return {name: (json.dumps(_public(read_json(folder / name)), indent=1) + "\n").encode() for name in there}


def _public(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: _public(value) for key, value in content.items() if not key.startswith("_")}


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
    normalises = processor.get("do_normalize", True)
    given = [processor.get(f"image_{n}") if normalises else [d] * 3 for n, d in (("mean", 0.0), ("std", 1.0))]
    try:
        scale = rescaled_by(processor)
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


def rescaled_by(processor: Mapping[str, Any]) -> float:
    """Return what a processor makes of a pixel of 255 before it normalises: 1 by most settings."""
    factor = processor.get("rescale_factor", 1 / BYTES) if processor.get("do_rescale", True) else 1.0
    scale = BYTES * float(factor)
    return 1.0 if math.isclose(scale, 1.0) else scale


def side_of(processor: Mapping[str, Any]) -> int | None:
    """Return the side of the square that a processor's settings make, or None where they do not say."""
    crops = processor.get("do_center_crop", "crop_size" in processor)
    size = processor.get("crop_size") if crops else processor.get("size") if processor.get("do_resize", True) else None
    if isinstance(size, Mapping):
        sides = {size[k] for k in ("height", "width", "shortest_edge") if size.get(k) is not None}
        size = sides.pop() if len(sides) == 1 else None
    return size if type(size) is int else None
