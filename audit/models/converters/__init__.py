"""Vision transformers of Hugging Face and torchvision, converted to timm's, which compute the same.

Patching reads one form of attention block. A checkpoint of another library has the same blocks under other names, with
queries, keys and values in one matrix or in three; renaming and joining them gives a model whose logits are those of
the original. Nothing of ``transformers`` is needed, and no code that a folder may hold is run.
"""

from __future__ import annotations

from pathlib import Path

from audit.card.schema import BOTH
from audit.errors import ModelError
from audit.models.converters.conversion import Conversion, State
from audit.models.converters.huggingface import find_weights, read_folder
from audit.models.converters.huggingface import kept_configuration as kept_folder
from audit.models.converters.open_clip import kept_open_clip, read_open_clip
from audit.models.converters.torchvision import fetch, kept, read_model
from audit.models.pretrained import kept_by_timm

HUGGING_FACE, TORCHVISION, OPEN_CLIP = "huggingface", "torchvision/", "open_clip/"


def is_foreign(name: str) -> bool:
    """Tell whether a card's model name is one of another library."""
    return name == HUGGING_FACE or name.startswith((TORCHVISION, OPEN_CLIP))


def read_conversion(name: str, weights: Path | None) -> Conversion:
    """Return how a card's model is converted: of a folder of Hugging Face's or open_clip's, or by torchvision's name.

    Raises
    ------
    ModelError
        If there is no such folder or model, or it is of a kind that cannot be converted.
    """
    if name.startswith(TORCHVISION):
        return read_model(name.removeprefix(TORCHVISION))
    if weights is None:
        holds = "config.json" if name == HUGGING_FACE else "open_clip_config.json"
        raise ModelError("model.weights", f"name: {name} needs a folder", f"name one that holds {holds}")
    return read_folder(weights) if name == HUGGING_FACE else read_open_clip(name.removeprefix(OPEN_CLIP), weights)


def weights_file(name: str, weights: Path) -> Path:
    """Return the file that holds the tensors: one in the folder, or that which the card names."""
    return find_weights(weights) if keeps_configuration(name) else weights


def keeps_configuration(name: str) -> bool:
    """Tell whether what a card's model is made of is said by files beside its weights."""
    return name == HUGGING_FACE or name.startswith(OPEN_CLIP)


def kept_configuration(name: str, folder: Path) -> dict[str, bytes]:
    """Return what a run keeps of a folder, so that its model can be built again: files by name."""
    return kept_folder(folder) if name == HUGGING_FACE else kept_open_clip(name.removeprefix(OPEN_CLIP), folder)


def fetch_weights(name: str) -> State:
    """Fetch torchvision's own weights of a model."""
    return fetch(name.removeprefix(TORCHVISION))


def kept_weights(name: str) -> Path | None:
    """Return the file of a card's pretrained weights on this machine, or None where they would have to be fetched."""
    return kept(name.removeprefix(TORCHVISION)) if name.startswith(TORCHVISION) else kept_by_timm(name)


def class_names(name: str, folder: Path) -> list[str]:
    """Return what the outputs of a folder's model mean.

    Raises
    ------
    ModelError
        If the folder does not say so, or says the same of two outputs.
    """
    classes = read_conversion(name, folder).classes
    if classes is None:
        raise ModelError(str(folder / "config.json"), "does not name the classes", "name them under model.classes")
    twice = [name for name in classes if classes.count(name) > 1]
    if twice:
        what = f"calls two outputs '{twice[0]}'"
        raise ModelError(str(folder / "config.json"), what, "name each output once, in order, under model.classes")
    if len(classes) < 2:
        raise ModelError(str(folder / "config.json"), "names fewer than two classes", f"under model.classes, {BOTH}")
    return classes
