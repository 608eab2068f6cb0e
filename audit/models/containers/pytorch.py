"""PyTorch files: read with ``weights_only=True``, in mapped memory where their form allows it."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from audit.errors import ModelError

# What training scripts store beside weights, and what runs nothing when it is read.
NUMPY_SCALAR: Callable[..., object] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
HARMLESS: list[Callable[..., object]] = [argparse.Namespace, pathlib.PosixPath, np.dtype, NUMPY_SCALAR]
HARMLESS += {type(np.dtype(kind)) for kind in "?fdilq"}
CALLED = re.compile(
    r"Unsupported (?:global: GLOBAL|class) (?:builtins\.)?(\w[\w.]*\w)"
)  # what a pickle would call, in torch's refusal
CONVERT = (  # every set of weights is kept: which of them is in use, the card says
    "convert it in Python, if you trust its maker: import torch; "
    "kept = lambda m: m if torch.is_tensor(m) else "
    "{{k: kept(v) for k, v in getattr(m, 'state_dict', lambda: m)().items() if torch.is_tensor(v) "
    "or hasattr(v, 'items') or hasattr(v, 'state_dict')}}; "
    "torch.save(kept(torch.load({old!r}, map_location='cpu', weights_only=False)), {new!r})"
)


@contextmanager
def _harmless_allowed() -> Iterator[None]:
    """Let a pickle name what is harmless, for the length of a block (torch has a manager for it since 2.5)."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([*HARMLESS])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_pytorch(path: Path) -> object:
    """Return what a file holds; nothing that it says is run.

    Raises
    ------
    ModelError
        If it is damaged, or needs code to be read; the fix is then the lines that convert it.
    """
    try:
        with warnings.catch_warnings(), _harmless_allowed():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file may raise anything while it is parsed
        called = CALLED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if called is not None:
            what = f"cannot be read as weights alone: its pickle runs code ({called[1]})"
            fix = CONVERT.format(old=str(path), new=str(path.with_name(f"{path.stem}-weights.pth")))
            raise ModelError(str(path), what, fix) from error
        # Its kind only: what torch says of a pickle is to load it unsafely, in colours.
        what = f"cannot be read as weights ({type(error).__name__})"
        raise ModelError(str(path), what, "save it as .safetensors and name that file") from error
    return loaded
