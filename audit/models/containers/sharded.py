"""Checkpoints in several files, with an index that says which tensor is in which: ``*.index.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from audit.errors import ModelError
from audit.models.containers.pytorch import read_pytorch
from audit.models.containers.safetensors_files import read_safetensors

INDEX = ".index.json"
FIX = "fetch all files of the checkpoint again"


def read_sharded(index: Path) -> tuple[dict[object, object], int]:
    """Return the tensors of all files that an index names, and the bytes of these files.

    Raises
    ------
    ModelError
        If the index is damaged or leads out of its folder, a file is missing, or a file lacks what the index says.
    """
    files: dict[str, list[str]] = {}
    for name, file in _map_of(index).items():
        if Path(file).name != file:
            raise ModelError(str(index), f"names a file outside its folder: {file!r}", FIX)
        files.setdefault(file, []).append(name)
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        what = f"{len(missing)} of {len(files)} files are missing: {', '.join(missing[:3])}"
        raise ModelError(str(index), what, FIX)
    tensors: dict[object, object] = {}
    for file, names in files.items():
        part = index.parent / file
        held = read_safetensors(part) if part.suffix == ".safetensors" else read_pytorch(part)
        lacking = [name for name in names if not isinstance(held, Mapping) or name not in held]
        if lacking:
            raise ModelError(str(part), f"lacks {lacking[0]}, which {index.name} says it holds", FIX)
        assert isinstance(held, Mapping)
        tensors |= {name: held[name] for name in names}
    return tensors, sum((index.parent / file).stat().st_size for file in files)


def _map_of(index: Path) -> dict[str, str]:
    try:
        named = json.loads(index.read_bytes())["weight_map"]
        if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
            raise TypeError("weight_map")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        what = f"is no index of a checkpoint ({type(error).__name__})"
        raise ModelError(str(index), what, FIX) from error
    return {str(name): str(file) for name, file in named.items()}
