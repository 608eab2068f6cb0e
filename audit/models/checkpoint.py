"""Weights files: read safely, written as safetensors, named by their content."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from audit.errors import ModelError
from audit.store import atomic_write

StateDict = Mapping[str, torch.Tensor]
STARTED_FROM = "started_from"  # in a file's metadata: hash_state of the weights before training


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running anything that the file says.

    Parameters
    ----------
    path : pathlib.Path
        ``.safetensors``, or a PyTorch file, which is read with ``weights_only=True``. A file that holds the
        state dict under ``model`` or ``state_dict`` is accepted.

    Returns
    -------
    dict of str to torch.Tensor
        In float32, on the CPU.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise ModelError(str(path), "no such weights file", "correct model.weights in the card")
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything while it is parsed
        # Its kind only: what torch says of a pickle is to load it unsafely, in colours.
        what = f"cannot be read as weights ({type(error).__name__})"
        raise ModelError(str(path), what, "save it as .safetensors and name that file") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise ModelError(str(path), "holds no state dict", "save model.state_dict() as .safetensors")
    odd = [k for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if odd:
        raise ModelError(str(path), f"'{odd[0]}' is not a tensor", "save model.state_dict() as .safetensors")
    return {str(k).removeprefix("module."): v.float() if v.is_floating_point() else v for k, v in loaded.items()}


def save_weights(state: StateDict, path: Path, *, started_from: str | None = None) -> None:
    """Write a state dict as safetensors, whole or not at all, with the hash of the weights it was trained from."""
    metadata = None if started_from is None else {STARTED_FROM: started_from}
    with atomic_write(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary, metadata)
        except SafetensorError as error:  # which says in words alone what the system said
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def started_from(path: Path) -> str:
    """Return the hash of the weights that a safetensors file says it was trained from, or ""."""
    with safe_open(path, framework="pt") as opened:
        return str((opened.metadata() or {}).get(STARTED_FROM, ""))


def hash_state(state: StateDict) -> str:
    """SHA-256 over the names, shapes, types and bytes of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
