"""``.safetensors``: tensors in mapped memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from audit.errors import ModelError


def read_safetensors(path: Path) -> dict[object, object]:
    """Return the tensors of a file, each of which is read when it is first used.

    Raises
    ------
    ModelError
        If the file is damaged.
    """
    tensors: dict[object, object] = {}
    try:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor: torch.Tensor = opened.get_tensor(name)
                tensors[name] = tensor
    except Exception as error:  # a damaged file may raise anything while it is parsed
        what = f"cannot be read as weights ({type(error).__name__})"
        raise ModelError(str(path), what, "restore the file, or save the weights again as .safetensors") from error
    return tensors
