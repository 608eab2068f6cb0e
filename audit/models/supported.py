"""Which models can be patched: by family from what the code knows, and name by name from timm itself."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import timm

from audit.models.adapters.registry import FAMILIES
from audit.models.architecture import why_not_patchable
from audit.models.converters import HUGGING_FACE, OPEN_CLIP, TORCHVISION
from audit.models.converters.kinds import KINDS
from audit.models.converters.timm_folder import KIND
from audit.models.converters.torchvision import torchvision_names
from audit.models.undrawn import without_memory
from audit.units import UNITS, Unit

MODULES = (*(kind.__module__.rsplit(".", 1)[1] for kind in FAMILIES), "deit")  # timm's, in which such models are

SLICED = ("convnext", "convnextv2", "resnet")  # kinds of Hugging Face's of which slices of channels are patched
HUGGING_FACE_FAMILIES: Mapping[Unit, str] = {
    "head": "ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, BEiT, Swin, Swin V2",
    "slice": "ResNet, ConvNeXt, ConvNeXt V2",
}


@dataclass(frozen=True)
class Row:
    """A row of the table of families: what a card names, and what is patched."""

    library: str
    family: str
    name: str  # model.name in a card
    unit: str
    notes: str


def families() -> list[Row]:
    """Return a row for each family."""
    rows = [
        Row("timm", made.called, ", ".join(made.named), UNITS[made.unit].full, made.notes) for made in FAMILIES.values()
    ]
    of_torchvision: Mapping[Unit, str] = {"head": "ViT", "slice": "ResNet"}
    for unit, family in of_torchvision.items():
        names = ", ".join(TORCHVISION + n for n in torchvision_names() if n.startswith("vit_") == (unit == "head"))
        notes = f"converted to timm's {family}; weights: pretrained, or a FILE in torchvision's names"
        rows.append(Row("torchvision", family, names, UNITS[unit].full, notes))
    made = "converted to timm's model; weights: a folder with config.json of model_type"
    for unit, family in HUGGING_FACE_FAMILIES.items():
        kinds = ", ".join(kind for kind in KINDS if (kind in SLICED) == (unit == "slice"))
        rows.append(Row("Hugging Face", family, HUGGING_FACE, UNITS[unit].full, f"{made} {kinds}"))
    notes = "open_clip's own vision transformer, or timm's as trunk; a folder with open_clip_config.json, or a FILE"
    rows.append(Row("open_clip", "CLIP and SigLIP image towers", f"{OPEN_CLIP}ViT-*", UNITS["head"].full, notes))
    notes = f"a folder with config.json that names an architecture, pushed to the Hub by timm or of model_type {KIND}"
    rows.append(Row("Hugging Face", "any of timm's above", HUGGING_FACE, "as above", notes))
    return rows


def names_like(pattern: str) -> list[str]:
    """Return the timm names of the known modules that match a pattern as a shell has it."""
    return [n for m in sorted(set(MODULES)) for n in timm.list_models(module=m) if fnmatch.fnmatch(n, pattern)]


def refusals(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield each timm model that matches, and why it is refused, or "".

    Models are made without memory for their weights, so that the largest takes a fraction of a second.
    """
    for name in names_like(pattern):
        with warnings.catch_warnings(), without_memory():
            warnings.simplefilter("ignore")
            yield name, why_not_patchable(timm.create_model(name))
