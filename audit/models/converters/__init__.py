"""Vision transformers of Hugging Face and torchvision, converted to timm's, which compute the same.

Patching reads one form of attention block. A checkpoint of another library has the same blocks under other names, with
queries, keys and values in one matrix or in three; renaming and joining them gives a model whose logits are those of
the original. Nothing of ``transformers`` is needed, and no code that a folder may hold is run.
"""

from __future__ import annotations

from pathlib import Path

from audit.errors import ModelError
from audit.models.converters.conversion import Conversion, State
from audit.models.converters.huggingface import find_weights, read_folder
from audit.models.converters.torchvision import fetch, read_model

HUGGING_FACE, TORCHVISION = "huggingface", "torchvision/"


def is_foreign(name: str) -> bool:
    """Tell whether a card's model name is one of another library."""
    return name == HUGGING_FACE or name.startswith(TORCHVISION)


def read_conversion(name: str, weights: Path | None) -> Conversion:
    """Return how a card's model is converted: of a Hugging Face folder, or a torchvision model by name.

    Raises
    ------
    ModelError
        If there is no such folder or model, or it is of a kind that cannot be converted.
    """
    if name != HUGGING_FACE:
        return read_model(name.removeprefix(TORCHVISION))
    if weights is None:
        raise ModelError("model.weights", f"name: {name} needs a folder", "name one that holds config.json")
    return read_folder(weights)


def weights_file(name: str, weights: Path) -> Path:
    """Return the file that holds the tensors: of Hugging Face one in the folder, else that which the card names."""
    return find_weights(weights) if name == HUGGING_FACE else weights


def fetch_weights(name: str) -> State:
    """Fetch torchvision's own weights of a model."""
    return fetch(name.removeprefix(TORCHVISION))


def class_names(name: str, folder: Path) -> list[str]:
    """Return what the outputs of a folder's model mean.

    Raises
    ------
    ModelError
        If the folder does not say so.
    """
    classes = read_conversion(name, folder).classes
    if classes is None:
        raise ModelError(str(folder / "config.json"), "does not name the classes", "name them under model.classes")
    return classes
