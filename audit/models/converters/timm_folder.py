"""A folder of timm's on the Hub, or of transformers' wrapper around it: an architecture by name, its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm

from audit.models.adapters.channels import Channels
from audit.models.adapters.registry import ADAPTERS, adapter, family_of
from audit.models.converters.conversion import SameNames
from audit.models.undrawn import without_memory

Config = Mapping[str, Any]
KIND, PREFIX = "timm_wrapper", "timm_model."
RESERVED = {  # arguments of timm's that load, fetch or leave out, or that a card or folder says elsewhere
    "checkpoint_path", "cache_dir", "in_chans", "num_classes", "img_size", "features_only", "out_indices", "scriptable",
    "exportable", "no_jit",
}  # fmt: skip


def is_timm_folder(config: Config) -> bool:
    """Tell whether a folder's configuration names an architecture of timm's."""
    return config.get("model_type", KIND) == KIND and "architecture" in config


def reserved_among(options: Mapping[str, Any]) -> list[str]:
    """Return which arguments are no part of an architecture, or have a field of their own."""
    return sorted(key for key in options if key in RESERVED or key.startswith("pretrained"))


@dataclass(frozen=True)
class TimmFolder(SameNames):
    """How such a folder becomes a model: its tensors have timm's names, and timm resamples them itself."""

    prefix: str = PREFIX
    architecture: str = ""
    resizable: bool = True

    def create(self, classes: int, image_size: int | None) -> Any:
        """Return the model with random weights."""
        side = {"img_size": image_size or self.image_size} if self.resizable else {}
        model = timm.create_model(self.architecture, num_classes=classes, **{**self.options, **side})
        size = image_size or self.image_size
        model.pretrained_cfg = {
            **model.pretrained_cfg,
            "mean": self.mean,
            "std": self.std,
            "input_size": (3, size, size),
        }
        return model


def read_timm(config: Config) -> TimmFolder:
    """Return how the model of a folder is made.

    Raises
    ------
    KeyError, TypeError, ValueError
        If timm has no such architecture, it is of no known family, or its arguments are none of an architecture.
    """
    name = str(config["architecture"]).partition(".")[0]
    options = dict(config.get("model_args") or {})
    side = options.pop("img_size", None)
    options.pop("num_classes", None)
    if options.pop("in_chans", 3) != 3:
        raise ValueError("model_args in_chans is not 3")
    if reserved := reserved_among(options):
        raise ValueError(f"model_args has {reserved[0]}")
    family = family_of(name) if timm.is_model(name) else None
    if family is None:
        raise ValueError(f"architecture {name} is of no known family")
    if "global_pool" in config and "global_pool" not in options and not issubclass(family, Channels):
        options["global_pool"] = str(config["global_pool"])
    with without_memory():
        model: Any = timm.create_model(name, **options)
    if not isinstance(model, tuple(ADAPTERS)):  # of a module that holds other classes too
        raise ValueError(f"architecture {name} is of no known family")
    made: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    own = {**made, **(config.get("pretrained_cfg") or {})}
    side = own["input_size"][-1] if side is None else side
    return TimmFolder(
        options,
        int(side[0] if isinstance(side, list | tuple) else side),
        {},
        head=next(iter(adapter(model).classifiers())),
        unit=family.unit,
        mean=tuple(own["mean"]),
        std=tuple(own["std"]),
        architecture=name,
        resizable=not issubclass(family, Channels),
    )
