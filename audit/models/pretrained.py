"""Pretrained weights that a library fetches once: the file that it has kept of them, where that is on this machine."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import try_to_load_from_cache

from audit.errors import ModelError

OF_HUB = ("model.safetensors", "pytorch_model.bin")  # what timm takes of a repository, the first that is there


def kept_by_timm(name: str) -> Path | None:
    """Return the file of a model's pretrained weights, or None where they would have to be fetched."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    if config.file:
        return _if_there(Path(config.file))
    if not config.hf_hub_id:
        return kept_by_torch(config.url) if config.url else None
    repository, _, revision = config.hf_hub_id.partition("@")
    own = config.hf_hub_filename
    names = OF_HUB if own is None else (str(Path(own).with_suffix(".safetensors")), own)
    found = (try_to_load_from_cache(repository, file, revision=revision or None) for file in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def not_loaded(file: Path, error: Exception, fix: str = "") -> ModelError:
    """Return what to tell of a file of pretrained weights that cannot be loaded."""
    what = f"pretrained weights that were fetched cannot be loaded ({type(error).__name__})"
    return ModelError(str(file), what, f"{fix}remove the file, so that it is fetched again")


def kept_by_torch(url: str) -> Path | None:
    """Return the file that torch has kept of an address, or None where it would have to be fetched."""
    return _if_there(Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(url).path).name)


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
